"""Decides what a server's container is: its name, labels, limits, ports, environment and files. Pure.

Environment variables of a container show in `docker inspect`, so the game's key and the NATS password go in as files;
so do files of this host that variables name, because their paths mean nothing in a container.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import msgspec

from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import RunState
from tipoff_orchestrator_client.wire import check_deployment_id
from tipoff_shared.errors import Malformed
from tipoff_shared.games import DockerSpec

FILES_DIRECTORY = "/run/tipoff"
"""Where a container finds the files that the launcher puts into it."""

_MIB = 1024 * 1024
_TMP = "rw,nosuid,nodev,noexec,mode=1777,size=64m"
_LOG_FILES = 2
_HOST_NAME = "host.docker.internal"
_DNS_LABEL = 63
"""Characters; a longer name is not a valid DNS label and cannot be resolved."""

_NAMESPACE, _LAUNCHER, _DEPLOYMENT = "tipoff.namespace", "tipoff.launcher", "tipoff.deployment"
_OWNER = "tipoff.owner"
_GAME, _VERSION, _RECORD = "tipoff.game", "tipoff.version", "tipoff.record"

_PATHS = {
    "TIPOFF_PRIVATE_KEY_FILE": "private_key",
    "NATS_CA": "nats_ca.pem",
    "TIPOFF_TLS_CERT": "tls_cert.pem",
    "TIPOFF_TLS_KEY": "tls_key.pem",
}
_SECRETS = {
    "NATS_PASSWORD": ("nats_password", "NATS_PASSWORD_FILE"),
    "TIPOFF_EVENT_KEY": ("event_key", "TIPOFF_EVENT_KEY_FILE"),
}
"""Variable -> its file, and the variable by which the SDK finds the file."""
_KEYS = ("TIPOFF_PRIVATE_KEY", "LIGHTYEAR_PRIVATE_KEY")

_decoder = msgspec.json.Decoder(Record)


def container_name(namespace: str, deployment_id: str) -> str:
    """The name that `docker ps` shows and that a reverse proxy on the container's network resolves."""
    middle = re.sub(r"[^a-z0-9-]", "-", namespace.lower())
    name = f"tipoff-{middle}-{deployment_id}" if middle else f"tipoff-{deployment_id}"
    if len(name) <= _DNS_LABEL:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{name[: _DNS_LABEL - len(digest) - 1].rstrip('-')}-{digest}"


def owner_labels(namespace: str, launcher: str, owner: str) -> dict[str, str]:
    """The labels that all containers of one launcher carry, and no others. `owner` names the system, where several
    share the engine."""
    return {_NAMESPACE: namespace, _LAUNCHER: launcher, _OWNER: owner}


def container_labels(record: Record, owner_labels: Mapping[str, str]) -> dict[str, str]:
    """All labels of a server's container: enough to restore the record of a server when it is lost."""
    return {
        **owner_labels,
        _DEPLOYMENT: record.deployment_id,
        _GAME: record.game,
        _VERSION: record.version,
        _RECORD: msgspec.json.encode(record).decode(),
    }


def record_of(container_id: str, found: Mapping[str, str]) -> Record | None:
    """The record in a running container's labels; None where it cannot be read or is of another server."""
    try:
        record = _decoder.decode(found[_RECORD])
        check_deployment_id(record.deployment_id)
    except (KeyError, Malformed, msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if (record.deployment_id, record.namespace) != (found.get(_DEPLOYMENT), found.get(_NAMESPACE)):
        return None
    return msgspec.structs.replace(record, state=RunState.RUNNING, native_id=container_id, reason="")


def belongs_to(found: Mapping[str, str], owners: Collection[str]) -> bool:
    """Whether the record in a container's labels has one of these owners."""
    if not owners:
        return False
    try:
        return _decoder.decode(found[_RECORD]).owner in owners
    except (KeyError, msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def deployment_of(found: Mapping[str, str]) -> str:
    """The deployment id in a container's labels; "" where there is none."""
    return found.get(_DEPLOYMENT, "")


def container_environment(
    environment: dict[str, str],
    *,
    own: Collection[str],
    secrets: Literal["file", "environment"],
    nats_host: str,
    read: Callable[[str], bytes],
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The variables of the container, and the files of its `FILES_DIRECTORY`.

    `own` names the variables that games.toml sets, whose paths are the image's. With `secrets` "environment" the
    secrets stay variables. `nats_host` replaces NATS_HOST unless "". `read` returns the content of a file of this
    host; its exceptions pass through.
    """
    variables = dict(environment)
    files: dict[str, bytes] = {}
    for name, file in _PATHS.items():
        if variables.get(name) and (name not in own or name == "TIPOFF_PRIVATE_KEY_FILE"):
            files[file] = read(variables[name])
            variables[name] = f"{FILES_DIRECTORY}/{file}"
    if nats_host:
        variables["NATS_HOST"] = nats_host
    if secrets == "environment":
        key = files.pop("private_key", b"").decode()
        variables.pop("TIPOFF_PRIVATE_KEY_FILE", None)
        variables["TIPOFF_PRIVATE_KEY"] = key
        return variables, files
    for name in _KEYS:
        variables.pop(name, None)
    for name, (file, variable) in _SECRETS.items():
        if name not in own and (secret := variables.pop(name, "")):
            files[file] = secret.encode()
            variables[variable] = f"{FILES_DIRECTORY}/{file}"
    return variables, files


def _behind_a_proxy(record: Record, variables: Mapping[str, str]) -> bool:
    """Whether a proxy that speaks TLS reaches the plain WebSocket listener by the container's name. The port is then
    not published, so that only the proxy reaches it."""
    host = record.proxy.partition(":")[0]
    return bool(variables.get("TIPOFF_WEBSOCKET_URL")) and host == container_name(
        record.namespace, record.deployment_id
    )


def configuration(
    spec: DockerSpec,
    record: Record,
    variables: Mapping[str, str],
    *,
    owner_labels: Mapping[str, str],
    network: str,
    publish_on: str,
    init: bool,
    max_log_bytes: int,
    files: bool,
) -> dict[str, Any]:
    """The body of the engine's request to create the container. `publish_on`: the host's addresses, separated by
    commas, on which ports are published; `files`: whether the container gets a volume for `FILES_DIRECTORY`."""
    host_network = network == "host"
    ports = (
        {}
        if host_network
        else {
            f"{port.internal}/{port.protocol}": port
            for name, port in record.ports.items()
            if not (name == "websocket" and _behind_a_proxy(record, variables))
        }
    )
    labels = container_labels(record, owner_labels)
    host: dict[str, Any] = {
        "NetworkMode": network or "bridge",
        "PortBindings": {
            name: [{"HostIp": ip, "HostPort": str(port.external)} for ip in publish_on.split(",")]
            for name, port in ports.items()
        },
        # Its sessions end with a server, so it is not restarted: another server is started where one is needed.
        "RestartPolicy": {"Name": "no"},
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": False,
        "Init": init,
        "Tmpfs": dict.fromkeys(["/tmp", *spec.writable], _TMP),
        "NanoCpus": round(spec.cpus * 1e9),
        "Memory": spec.memory * _MIB,
        "MemorySwap": spec.memory * _MIB,  # together with memory: no swap
        "PidsLimit": spec.pids,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(max_log_bytes), "max-file": str(_LOG_FILES)},
        },
    }
    if files:
        host["Mounts"] = [
            {"Type": "volume", "Target": FILES_DIRECTORY, "VolumeOptions": {"NoCopy": True, "Labels": labels}}
        ]
    if not host_network and any(_HOST_NAME in value for value in variables.values()):
        host["ExtraHosts"] = [f"{_HOST_NAME}:host-gateway"]
    config: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": labels,
        "ExposedPorts": {name: {} for name in ports},
        "Healthcheck": {"Test": ["NONE"]},  # the server's lease shows whether it is healthy
        "HostConfig": host,
    }
    if spec.command:
        config["Cmd"] = spec.command
    if spec.user:
        config["User"] = spec.user
    return config
