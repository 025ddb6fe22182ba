"""Options of an emulator, and the applications and versions of games.toml that its account begins with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tipoff_edgegap_emulator.deployment import AppKey
from tipoff_edgegap_emulator.schema import MAX_TAG
from tipoff_edgegap_emulator.state import Rules
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.setup.app_version import ports as version_ports
from tipoff_shared.games import Game

RATES = {"deploy": 40, "status": 20, "list": 10}
"""Edgegap's limits: requests a second, by operation. No other limit is known."""


def _some_ports() -> range:
    """Two hundred ports, at random, because several emulators run on one machine."""
    first = random.randrange(12_000, 29_800, 200)
    return range(first, first + 200)


@dataclass(frozen=True, slots=True)
class Options:
    """`host`, `port`: where it listens; port 0 is any free one; `fd`: a listening socket instead. `token`: the API
    token; "" makes a random one. `public_ip`: where players reach the servers. `rates`: requests a second by operation;
    {} is no limit. `ports`: host ports for the servers.

    `environment`: the variables of each game's version, as `tipoff edgegap configure-app` would write them.
    `window`: seconds over which the rates count. `max_tag`: characters of a tag. `max_page`: items of a page of a list.

    `session_config` replaces the session configuration that games.toml implies. `url`: how servers reach the emulator;
    by default where it listens. `empty`: the account begins without applications. `namespace` labels its containers.
    """

    host: str = "127.0.0.1"
    port: int = 0
    fd: int | None = None
    token: str = field(default="", repr=False)
    public_ip: str = "127.0.0.1"
    rules: Rules = field(default_factory=Rules)
    rates: Mapping[str, int] = field(default_factory=lambda: RATES)
    ports: range = field(default_factory=_some_ports)
    window: float = 1.0
    max_tag: int = MAX_TAG
    max_page: int = 100
    environment: Callable[[Game], Mapping[str, str]] | None = None
    session_config: Mapping[str, Any] | None = None
    url: str = ""
    empty: bool = False
    die_with_parent: bool = True
    namespace: str = "edgegap"


def app_key(game: Game) -> AppKey:
    """The game's application and version at Edgegap: `[game.edgegap]`, else the game's name and version."""
    if game.edgegap is None:
        return game.name, game.version
    return game.edgegap.application, game.edgegap.version


def first_version(game: Game, options: Options) -> dict[str, Any]:
    """The version of this game that the account begins with."""
    application, name = app_key(game)
    environment = options.environment(game) if options.environment is not None else {}
    version: dict[str, Any] = {
        "name": name,
        "docker_repository": "registry.edgegap.com",
        "docker_image": f"emulated/{application}",
        "docker_tag": name if name != "latest" else "1",
        "req_cpu": 256,
        "req_memory": 512,
        "restart_policy": "never",
        "ports": version_ports(game, tls_upgrade=False),
        "envs": [{"key": key, "value": value, "is_secret": False} for key, value in environment.items()],
    }
    config = options.session_config if options.session_config is not None else _session_config(game)
    if config:
        version["session_config"] = dict(config)
    return version


def _session_config(game: Game) -> dict[str, Any]:
    if game.edgegap is None or game.orchestrator != SESSIONS:
        return {}
    kind = game.edgegap.kind.capitalize()
    return {"kind": kind, "sockets": game.seats if kind == "Seat" else 1, "autodeploy": True, "empty_ttl": 10}
