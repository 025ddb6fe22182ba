"""Makes the environment a game server starts with: what it needs, and no other secret that the launcher knows."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tipoff_launcher.backends.interface import DEPLOYMENT_ID, BackendEnvironment
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import DeploySpec, NotConfigured, Port, environment_of
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings, server_credentials

log = logging.getLogger(__name__)


def server_environment(
    inherited: Mapping[str, str],
    spec: DeploySpec,
    game: Game,
    settings: Settings,
    nats: NatsSettings,
    *,
    key_file: Path,
    ports: Mapping[str, Port],
    backend: BackendEnvironment,
    arbitrium: Mapping[str, str],
) -> dict[str, str]:
    """All variables of one server, the NATS password and tokens included; paths are this host's.

    games.toml (`backend.variables`) may replace inherited variables, where and how the server listens
    (TIPOFF_BIND_HOST, TIPOFF_PUBLIC_HOST, TIPOFF_TLS_...) and its NATS credentials, but not the server's identity.
    Raises `NotConfigured` where a server of the isolated profile would get the launcher's own NATS credentials.
    """
    own = dict(backend.variables)
    if spec.event_key and not (spec.nats_password or settings.server_nats_user or "NATS_USER" in own):
        raise NotConfigured(
            "in the isolated profile servers need their own NATS user: set TIPOFF_MATCHMAKER_SERVER_AUTH_SEED_FILE for "
            "the matchmakers (`tipoff secrets init` makes nats/server-auth.seed), or, for one that all servers share, "
            "TIPOFF_LAUNCHER_SERVER_NATS_USER and TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE"
        )
    environment = {name: inherited[name] for name in backend.inherited if name in inherited}
    if "PATH" in backend.inherited:
        environment.setdefault("PATH", os.defpath)
    environment["PYTHONUNBUFFERED"] = "1"  # else a crash would lose the last lines of the log
    # The launcher stops what is over: players are sent away at once. Who waited would be killed without a goodbye.
    environment["TIPOFF_DRAIN_GRACE"] = "0"
    environment["TIPOFF_PUBLIC_HOST"] = settings.public_host
    environment["TIPOFF_BIND_HOST"] = backend.bind_host
    if spec.websocket_url:  # a proxy in front does the TLS and connects without
        environment["TIPOFF_WEBSOCKET_URL"] = spec.websocket_url
        if settings.trusted_proxies:
            environment["TIPOFF_TRUSTED_PROXIES"] = settings.trusted_proxies
    elif settings.tls_cert and settings.tls_key:
        environment["TIPOFF_TLS_CERT"] = str(Path(settings.tls_cert).absolute())
        environment["TIPOFF_TLS_KEY"] = str(Path(settings.tls_key).absolute())
    environment |= _nats_variables(nats, own)
    if spec.nats_password and "NATS_USER" not in own:
        environment |= server_credentials(spec.deployment_id, spec.nats_password)
    environment |= own
    environment |= spec.environment
    environment |= {
        DEPLOYMENT_ID: spec.deployment_id,
        "TIPOFF_GAME": game.name,
        "TIPOFF_VERSION": game.version,
        "TIPOFF_CAPACITY": str(spec.capacity),
        "TIPOFF_PROTOCOL_ID": str(game.netcode_protocol_id),
        "TIPOFF_DIALECT": game.dialect,
        "TIPOFF_PRIVATE_KEY_FILE": str(key_file),
        "TIPOFF_NAMESPACE": nats.namespace,
        **arbitrium,
        **environment_of(spec.event_key),
    }
    if ports:
        environment["TIPOFF_PORTS"] = msgspec.json.encode(ports).decode()
    return environment


def _nats_variables(nats: NatsSettings, own: Mapping[str, str]) -> dict[str, str]:
    """How the server reaches NATS, without credentials where games.toml has its own."""
    environment = nats.to_environment()
    if nats.ca_file:
        environment["NATS_CA"] = str(
            Path(nats.ca_file).absolute()
        )  # the server has another working directory
    if "NATS_USER" in own:
        _drop_credentials(environment)
    return environment


def _drop_credentials(environment: dict[str, str]) -> None:
    for name in ("NATS_USER", "NATS_PASSWORD", "NATS_INBOX_PREFIX"):
        environment.pop(name, None)


def nats_for_servers(settings: Settings, ours: NatsSettings) -> NatsSettings:
    """How servers reach NATS: as `ours`, but with the NATS user of `server_nats_user` where it is set. Raises
    `ConfigError`."""
    user, file = settings.server_nats_user, settings.server_nats_password_file
    if not user:
        return ours
    try:
        password = Path(file).read_text().strip() if file else ""
    except OSError as exc:
        raise ConfigError(f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file}: {exc.strerror}") from exc
    except UnicodeError:
        raise ConfigError(f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file}: not a line of text") from None
    if file and not password:
        raise ConfigError(
            f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file} is empty; no server could connect"
        )
    return dataclasses.replace(ours, user=user, password=Secret(password), inbox_prefix=f"_INBOX_{user}")


def warn_about_loopback(nats_settings: NatsSettings) -> None:
    """Log a warning when containers with their own network would look for NATS on their own loopback interface."""
    for server in nats_settings.servers:
        if (host := urlsplit(server).hostname) in ("127.0.0.1", "localhost", "::1"):
            log.warning(
                "NATS_HOST=%s means the container itself inside a container, so servers will not find NATS. Set "
                "TIPOFF_LAUNCHER_DOCKER_NATS_HOST, for example to host.docker.internal:4222",
                host,
            )
