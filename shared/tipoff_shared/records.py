"""The JSON values in the KV buckets: what an operator sees, and what every part agrees on.

Times are Unix seconds (float, wall clock of the writer). Client ids are decimal text: 64 bits do not survive
JavaScript or jq.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias, TypeVar

import msgspec

from tipoff_shared.errors import Malformed
from tipoff_shared.messages import Transports


class SessionState(StrEnum):
    """A session's life: requested -> ready -> active -> closing -> gone."""

    REQUESTED = "requested"
    READY = "ready"
    ACTIVE = "active"
    CLOSING = "closing"
    GONE = "gone"


class SessionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`sessions[id]`; written by matchmakers only, every transition a compare-and-set.

    `deadline` is when the present state must have been left (request deadline in requested, claim deadline in
    ready, 0 in active). `generation` counts the seats this session has had; `attempt` the tries to find one.
    """

    id: str
    state: SessionState
    game: str
    version: str
    client_id: str
    owner: str
    created_at: float
    deadline: float = 0.0
    attempt: int = 1
    generation: int = 0
    deployment_id: str = ""
    boot_id: str = ""
    client_ip: str = ""
    reason: str = ""


class DeploymentState(StrEnum):
    """A deployment's life: planned -> starting -> ready -> draining -> stopping -> gone."""

    PLANNED = "planned"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"


class DeploymentRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`deployments[id]`; written by matchmakers only, by compare-and-set. The seat ledger.

    `seats`: session id -> until when the seat counts without its session record saying so.
    `empty_since`: since when there is no seat (0: there are some). `transports` are those players may use.
    """

    id: str
    state: DeploymentState
    game: str
    version: str
    orchestrator: str
    capacity: int
    created_at: float
    deadline: float = 0.0
    seats: dict[str, float] = {}
    empty_since: float = 0.0
    boot_id: str = ""
    transports: Transports = Transports()
    internal: list[str] = []
    """`ip:port` addresses the gameserver compares itself with (a token's internal list)."""
    cert_digest: str = ""
    reason: str = ""
    proxy: str = ""
    """`host:port`, or `host` alone: where a reverse proxy of ours reaches its WebSocket listener. Said by the
    orchestrator, never by the server."""
    websocket_port: int = 0
    """The port its WebSocket listener is bound to, for a `proxy` without one."""
    digest_key: str = ""
    """Under which key of `cert_digests` it alone writes, for whoever clears up behind it. Said by the orchestrator."""


class FleetRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`fleets[game.version]`: which deployments may exist, decided by compare-and-set, so that any number of
    matchmakers together respect `max_deployments`. deployment id -> when it was planned."""

    game: str
    version: str
    deployments: dict[str, float] = {}


class OrderState(StrEnum):
    """A deployment ordered from a service whose create is not idempotent: ordering -> ordered -> stopped."""

    ORDERING = "ordering"
    ORDERED = "ordered"
    STOPPED = "stopped"


class EdgegapOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """`edgegap_orders[deployment id]`; written by matchmakers only, by compare-and-set.

    `request_id` is Edgegap's name for it; `tried_at` the time of the latest create, `tries` how many there were.
    """

    deployment_id: str
    state: OrderState
    game: str = ""
    version: str = ""
    request_id: str = ""
    tried_at: float = 0.0
    tries: int = 0
    reason: str = ""


class EdgegapSeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """`edgegap_sessions[session id]`; written by matchmakers only: the part that one of our sessions has in a session
    of Edgegap's. `members`: all of ours that share that one; `left`: this one has given its part back."""

    edgegap_session: str
    members: list[str]
    left: bool = False


class LeaseState(StrEnum):
    """`ended`: the match is over, stop this deployment. `draining`: no new players, please."""

    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


class GameserverLease(msgspec.Struct, frozen=True, omit_defaults=True):
    """`gameservers[deployment id]`; written by the gameserver only, with a TTL, refreshed as a heartbeat.

    `transports` name what players may dial; `internal` the `ip:port` addresses of the token's internal list.
    `tick_ms` is the mean time one tick took, `tick_rate` ticks per second.
    """

    deployment_id: str
    boot_id: str
    game: str
    version: str
    state: LeaseState
    transports: Transports
    capacity: int
    players: int = 0
    internal: list[str] = []
    cert_digest: str = ""
    tick_rate: float = 0.0
    tick_ms: float = 0.0
    pid: int = 0
    websocket_port: int = 0
    """The port the WebSocket listener is bound to where the server runs, for a reverse proxy; 0: there is none."""
    started_at: float = 0.0
    seq: int = 0
    """In the isolated profile: of the event that said this (server_events.py), which orders such leases."""


LEASE_TTL = 10
"""Seconds a gameserver's lease lives; it is refreshed every third of that."""


class Kick(msgspec.Struct, frozen=True, tag="kick", tag_field="command"):
    """To a gameserver: end this session's connection."""

    session_id: str
    reason: str = ""


class Drain(msgspec.Struct, frozen=True, tag="drain", tag_field="command"):
    """To a gameserver: let nobody in any more; end when the last player has left."""

    reason: str = ""


Command: TypeAlias = Kick | Drain

T = TypeVar("T")


def encode(record: object) -> bytes:
    return msgspec.json.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """`data` as a record of `kind`; raises `Malformed` for anything else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a {getattr(kind, '__name__', kind)}: {exc}") from exc


def decode_command(data: bytes) -> Command:
    """A command to a gameserver; raises `Malformed`."""
    try:
        return msgspec.json.decode(data, type=Kick | Drain)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a command: {exc}") from exc
