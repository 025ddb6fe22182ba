"""The environment a game server starts with: what it needs, and nothing else that the launcher knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tipoff_launcher.backends.interface import Surroundings
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import DeploySpec, NotConfigured, Port, environment_of
from tipoff_shared.games import Game
from tipoff_shared.settings import NatsSettings

PASSED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "TIPOFF_LOG",
    "TIPOFF_LOG_LEVEL",
)
"""What a process gets of the launcher's own environment."""

DEPLOYMENT_ID = "TIPOFF_DEPLOYMENT_ID"


def child_environment(
    inherited: Mapping[str, str],
    spec: DeploySpec,
    game: Game,
    settings: Settings,
    nats: NatsSettings,
    *,
    key_file: Path,
    ports: Mapping[str, Port],
    surroundings: Surroundings,
    arbitrium: Mapping[str, str],
) -> dict[str, str]:
    """All variables of one server. Holds the NATS password and tokens: for `env=` alone. Its paths are this host's.

    What games.toml gives the server (`surroundings.own`) may replace what is passed on, where and how it listens
    (TIPOFF_BIND_HOST, TIPOFF_PUBLIC_HOST, TIPOFF_TLS_...) and its NATS credentials; who the server is, it cannot.
    Raises `NotConfigured` where a server nobody trusts would get the launcher's credentials.
    """
    own = dict(surroundings.own)
    if spec.event_key and not (settings.server_nats_user or "NATS_USER" in own):
        raise NotConfigured(
            "in the isolated profile servers get a NATS user of their own: set TIPOFF_LAUNCHER_SERVER_NATS_USER and "
            "TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE (`tipoff secrets init` makes nats/gameserver.password)"
        )
    environment = {name: inherited[name] for name in surroundings.passed_on if name in inherited}
    if "PATH" in surroundings.passed_on:
        environment.setdefault("PATH", os.defpath)
    environment["PYTHONUNBUFFERED"] = "1"  # a log that lacks its last lines helps nobody
    environment["TIPOFF_PUBLIC_HOST"] = settings.public_host
    environment["TIPOFF_BIND_HOST"] = surroundings.bind_host
    if spec.websocket_url:  # a proxy in front does the TLS, and expects none here
        environment["TIPOFF_WEBSOCKET_URL"] = spec.websocket_url
    elif settings.tls_cert and settings.tls_key:
        environment["TIPOFF_TLS_CERT"] = str(Path(settings.tls_cert).absolute())
        environment["TIPOFF_TLS_KEY"] = str(Path(settings.tls_key).absolute())
    environment |= _nats(nats, own)
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


def _nats(nats: NatsSettings, own: Mapping[str, str]) -> dict[str, str]:
    """The launcher's way to NATS, without its credentials where the game has its own."""
    environment = nats.to_environment()
    if nats.ca_file:
        environment["NATS_CA"] = str(Path(nats.ca_file).absolute())  # the server's directory is another one
    if "NATS_USER" in own:
        for name in ("NATS_USER", "NATS_PASSWORD", "NATS_INBOX_PREFIX"):
            environment.pop(name, None)
    return environment
