"""Names our deployments at Edgegap by tags, and turns Edgegap's deployments into `Deployment`s. Pure.

Each has three tags: the namespace, the deployment's id, and a short digest of game and version. Tags consist of
letters, digits and dashes and are at most 31 characters long, as v2 allows (A: tag-length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tipoff_orchestrator_client.base import Deployment, Port, RunState
from tipoff_orchestrator_client.edgegap.api.answers import NamedPort, Server
from tipoff_shared.games import Game, GameKey
from tipoff_shared.records import EdgegapOrder

_ID = "id-"
_PROTOCOLS: dict[str, tuple[str, ...]] = {
    "udp": ("udp", "tcp/udp"),
    "webtransport": ("udp", "tcp/udp"),
    "websocket": ("ws", "wss", "http", "https", "tcp", "tcp/udp"),
    "tcp": ("tcp", "tcp/udp"),
}
"""Transport -> the protocols at Edgegap of a port that it can use, likeliest first."""


def namespace_tag(namespace: str) -> str:
    """The tag of all deployments of a namespace."""
    return f"tipoff-{namespace}" if namespace else "tipoff"


def game_tag(key: GameKey) -> str:
    """The tag of all deployments of a game and version."""
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=8, person=b"tipoff game")
    return f"game-{digest.hexdigest()}"


def tags_of(namespace: str, deployment_id: str, key: GameKey) -> list[str]:
    """The tags that a deployment is created with."""
    return [namespace_tag(namespace), f"{_ID}{deployment_id}", game_tag(key)]


def deployment_id_in(tags: Iterable[str], namespace: str) -> str | None:
    """The id of our deployment with these tags; None for one of another namespace or project."""
    tags = list(tags)
    if namespace_tag(namespace) not in tags:
        return None
    ids = [tag.removeprefix(_ID) for tag in tags if tag.startswith(_ID) and tag != _ID]
    return ids[0] if len(ids) == 1 else None


def game_in(tags: Iterable[str], games: Iterable[Game]) -> Game | None:
    """The game that one of the tags names."""
    known = {game_tag(game.key): game for game in games}
    return next((known[tag] for tag in tags if tag in known), None)


def as_deployment(
    server: Server, deployment_id: str, key: GameKey, game: Game | None, *, reason: str = ""
) -> Deployment:
    """A deployment of Edgegap's as a `Deployment`. An unusable address is left out; `reason` then says why."""
    state = RunState.RUNNING if server.running else RunState.STOPPED if server.ended else RunState.STARTING
    ports = ports_of(server.ports, game)
    host = server.ip
    if server.fqdn and (not host or ":" in host or _browsers_need_a_name(server.ports)):
        host = server.fqdn
    return Deployment(
        deployment_id,
        *key,
        state,
        native_id=server.request_id,
        host=host,
        ports=ports,
        reason=reason or server.reason or server.problem,
    )


def as_started(order: EdgegapOrder) -> Deployment:
    """The deployment of an order of which nothing more is known."""
    return Deployment(
        order.deployment_id, order.game, order.version, RunState.STARTING, native_id=order.request_id
    )


def as_stopped(order: EdgegapOrder) -> Deployment:
    """The deployment of an order that was stopped."""
    return replace(as_started(order), state=RunState.STOPPED, reason=order.reason or "stopped")


def ports_of(ports: Mapping[str, NamedPort], game: Game | None) -> dict[str, Port]:
    """The ports by transport (`udp`, `websocket`, ...): the port that games.toml names gets the name of the primary
    transport."""
    found = {port.name.lower(): _port(port) for port in ports.values()}
    if game is None or game.edgegap is None:
        return found
    chosen = choose_port({name: port.protocol for name, port in ports.items()}, game)
    if chosen is None:
        return found
    found.pop(chosen.lower(), None)
    return {game.primary: _port(ports[chosen], web=game.primary == "websocket")} | {
        n: p for n, p in found.items() if n != game.primary
    }


def choose_port(protocols: Mapping[str, str], game: Game) -> str | None:
    """The port, of `protocols` (name -> protocol), that the game's primary transport uses: the one that games.toml
    names, else the one with the transport's name, else the first with a fitting protocol. None: there is none."""
    wanted = game.edgegap.port if game.edgegap is not None else ""
    if wanted:
        return wanted if wanted in protocols else None
    for name in protocols:
        if name.lower() == game.primary:
            return name
    for fitting in _PROTOCOLS[game.primary]:
        for name, protocol in protocols.items():
            if protocol == fitting:
                return name
    return None


def _port(port: NamedPort, *, web: bool = False) -> Port:
    protocol = port.protocol
    if web or protocol in ("ws", "http"):
        secure = port.tls or protocol in ("wss", "https")
        protocol = "wss" if secure else "ws"
    return Port(port.internal, port.external, "udp" if protocol == "tcp/udp" else protocol)


def _browsers_need_a_name(ports: Mapping[str, NamedPort]) -> bool:
    """Whether Edgegap terminates TLS for a port: its certificate is for the name, so players must dial the name."""
    return any(port.tls or port.protocol in ("wss", "https") for port in ports.values())
