"""How the container of one server is made: its name, its marks, its limits and what it may not. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tipoff_launcher.backends.docker.inside import DIRECTORY
from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import RunState
from tipoff_orchestrator_client.wire import check_deployment_id
from tipoff_shared.errors import Malformed
from tipoff_shared.games import DockerSpec

MIB = 1024 * 1024
_TMP = "rw,nosuid,nodev,noexec,mode=1777,size=64m"
_LOG_FILES = 2
_TO_THE_HOST = "host.docker.internal"
_DNS_LABEL = 63
"""Characters: a longer name is no label of a name in DNS, and cannot be looked up."""

_NAMESPACE, _LAUNCHER, _DEPLOYMENT = "tipoff.namespace", "tipoff.launcher", "tipoff.deployment"
_OWNER = "tipoff.owner"
_GAME, _VERSION, _RECORD = "tipoff.game", "tipoff.version", "tipoff.record"

_decoder = msgspec.json.Decoder(Record)


def container_name(namespace: str, deployment_id: str) -> str:
    """By which one finds it in `docker ps`, and a reverse proxy on its network reaches it."""
    middle = re.sub(r"[^a-z0-9-]", "-", namespace.lower())
    name = f"tipoff-{middle}-{deployment_id}" if middle else f"tipoff-{deployment_id}"
    if len(name) <= _DNS_LABEL:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{name[: _DNS_LABEL - len(digest) - 1].rstrip('-')}-{digest}"


def marks(namespace: str, launcher: str, owner: str) -> dict[str, str]:
    """The labels that all containers of one launcher carry, and nobody else's. `owner`: which of the systems that share
    the engine."""
    return {_NAMESPACE: namespace, _LAUNCHER: launcher, _OWNER: owner}


def labels(record: Record, marks: Mapping[str, str]) -> dict[str, str]:
    """All that is needed to know a server again whose record is lost; with `marks` of its launcher."""
    return {
        **marks,
        _DEPLOYMENT: record.deployment_id,
        _GAME: record.game,
        _VERSION: record.version,
        _RECORD: msgspec.json.encode(record).decode(),
    }


def record_of(container_id: str, found: Mapping[str, str]) -> Record | None:
    """The record that a running container's labels hold; None where that cannot be read, or is about another one."""
    try:
        record = _decoder.decode(found[_RECORD])
        check_deployment_id(record.deployment_id)
    except (KeyError, Malformed, msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if (record.deployment_id, record.namespace) != (found.get(_DEPLOYMENT), found.get(_NAMESPACE)):
        return None
    return msgspec.structs.replace(record, state=RunState.RUNNING, native_id=container_id, reason="")


def deployment_of(found: Mapping[str, str]) -> str:
    return found.get(_DEPLOYMENT, "")


def _behind_a_proxy(record: Record, variables: Mapping[str, str]) -> bool:
    """Its WebSocket listener speaks no TLS, and the proxy that does reaches it by the container's name: then nobody
    else is to reach it, and the port is not published."""
    host = record.proxy.partition(":")[0]
    return bool(variables.get("TIPOFF_WEBSOCKET_URL")) and host == container_name(
        record.namespace, record.deployment_id
    )


def configuration(
    spec: DockerSpec,
    record: Record,
    variables: Mapping[str, str],
    *,
    marks: Mapping[str, str],
    network: str,
    publish_on: str,
    init: bool,
    max_log_bytes: int,
    files: bool,
) -> dict[str, Any]:
    """What the engine is told to create. `publish_on`: the host's addresses, separated by commas, that the ports are
    published on; `files`: whether a volume for our files is wanted."""
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
    mark = labels(record, marks)
    host: dict[str, Any] = {
        "NetworkMode": network or "bridge",
        "PortBindings": {
            name: [{"HostIp": ip, "HostPort": str(port.external)} for ip in publish_on.split(",")]
            for name, port in ports.items()
        },
        # A server that ends stays ended: its sessions have ended with it, and another is started where one is needed.
        "RestartPolicy": {"Name": "no"},
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": False,
        "Init": init,
        "Tmpfs": dict.fromkeys(["/tmp", *spec.writable], _TMP),  # the container's own
        "NanoCpus": round(spec.cpus * 1e9),
        "Memory": spec.memory * MIB,
        "MemorySwap": spec.memory * MIB,  # together with memory: no swap
        "PidsLimit": spec.pids,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(max_log_bytes), "max-file": str(_LOG_FILES)},
        },
    }
    if files:
        host["Mounts"] = [
            {"Type": "volume", "Target": DIRECTORY, "VolumeOptions": {"NoCopy": True, "Labels": mark}}
        ]
    if not host_network and any(_TO_THE_HOST in value for value in variables.values()):
        host["ExtraHosts"] = [f"{_TO_THE_HOST}:host-gateway"]
    config: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": mark,
        "ExposedPorts": {name: {} for name in ports},
        "Healthcheck": {"Test": ["NONE"]},  # the server's lease says whether it is well
        "HostConfig": host,
    }
    if spec.command:
        config["Cmd"] = spec.command
    if spec.user:
        config["User"] = spec.user
    return config
