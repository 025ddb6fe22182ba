"""The JSON values in the KV buckets.

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


NOT_CLAIMED = "the player did not connect in time"
"""The `reason` of a session that ended because its seat was never claimed."""


class SessionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`sessions[id]`; written by matchmakers only, every transition a compare-and-set.

    `deadline`: when the current state must have ended (request deadline in requested, claim deadline in ready, 0 in
    active). `generation` counts the seats this session has had, `attempt` the tries to find one.
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
    user_id: str = ""
    """What the player's login at httpd says; "" without one."""
    name: str = ""
    """The player's, for people."""
    cause: str = ""
    """Why it has ended, as an `EndCause` (session_end.py); "" before, and from an earlier release. `reason` is the text
    for it."""
    ended_at: float = 0.0


class DeploymentState(StrEnum):
    """A deployment's life: planned -> starting -> ready -> draining -> stopping -> gone."""

    PLANNED = "planned"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"


class DeploymentRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`deployments[id]`; written by matchmakers only, by compare-and-set. It counts the seats.

    `seats`: session id -> until when the seat counts without a session record that confirms it. `empty_since`: since
    when no seat is taken (0: some are). `transports`: those that players may use.
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
    """`ip:port` addresses of the game server, for a token's internal list."""
    cert_digest: str = ""
    reason: str = ""
    proxy: str = ""
    """`host:port`, or only `host`: where our reverse proxy reaches its WebSocket listener. The orchestrator reports it,
    never the server."""
    websocket_port: int = 0
    """The port its WebSocket listener is bound to, for a `proxy` without one, as launchers of an earlier release report
    it."""
    digest_key: str = ""
    """The key of `cert_digests` that only this server writes, for the clean-up. The orchestrator reports it."""
    own_key: bool = False
    """Whether its netcode key is derived from the game's (`PrivateKey.of_deployment`); otherwise it has the game's key
    itself, as bevygap's servers and those of an earlier release do. Its orchestrator says so, and then its lease."""
    locked: bool = False
    """Whether it is closed to new players, as its lease says. Seats that are taken stay, claimed or not."""
    expects: bool = False
    """Whether it wants to hear of seats that are promised (`Expect`), as its lease says."""


class FleetRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`fleets[game.version]`: which deployments may exist, decided by compare-and-set, so that any number of
    matchmakers together respect `max_deployments`. deployment id -> when it was planned. `rollout_at`: when the latest
    rollout began: servers made before are to be replaced."""

    game: str
    version: str
    deployments: dict[str, float] = {}
    rollout_at: float = 0.0


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
    """`edgegap_sessions[session id]`; written by matchmakers only: the seat of one session in a session of Edgegap's.
    `members`: all our sessions that share it; `left`: this session has released its seat."""

    edgegap_session: str
    members: list[str]
    left: bool = False


class LeaseState(StrEnum):
    """State of a game server. `draining`: no new players; `ended`: the match is over, stop the deployment."""

    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


class GameserverLease(msgspec.Struct, frozen=True, omit_defaults=True):
    """`gameservers[deployment id]`; written by the gameserver only, with a TTL, refreshed as a heartbeat.

    `transports`: the addresses for players; `internal`: the `ip:port` addresses of a token's internal list.
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
    """The port of the WebSocket listener on the server's machine, for a reverse proxy; 0 without one."""
    started_at: float = 0.0
    seq: int = 0
    """In the isolated profile, the number of the event that carried this lease (server_events.py); it orders leases."""
    key: str = ""
    """Fingerprint of the netcode key that the server has (`PrivateKey.fingerprint`); "" from an earlier release."""
    reason: str = ""
    """Why the server is draining or has ended, in one line; "" where it does not say."""
    locked: bool = False
    """Whether the game has closed the server to new players (`GameServer.lock`)."""
    expects: bool = False
    """Whether the server wants to hear of seats that are promised (`Expect`); those of an earlier release do not."""


LEASE_TTL = 10
"""Seconds a game server's lease lives; it is refreshed every third of that."""


class BanKind(StrEnum):
    """What a ban names: an address or network, a user, or a client id. See ban_list.py."""

    ADDRESS = "address"
    USER = "user"
    CLIENT = "client"


class Ban(msgspec.Struct, frozen=True, omit_defaults=True):
    """`bans[kind.digest]`; written by matchmakers only, with a TTL where it ends. `until` 0: for good. A ban that is
    lifted is written once more, with an `until` that has passed, so that everybody hears of it."""

    kind: BanKind
    subject: str
    until: float = 0.0
    reason: str = ""
    created_at: float = 0.0


class Kick(msgspec.Struct, frozen=True, tag="kick", tag_field="command"):
    """Command to a game server: end this session's connection."""

    session_id: str
    reason: str = ""


class Drain(msgspec.Struct, frozen=True, tag="drain", tag_field="command"):
    """Command to a game server: admit no more players and stop after the last one has left."""

    reason: str = ""


class Report(msgspec.Struct, frozen=True, tag="report", tag_field="command"):
    """Command to a game server: report the lease and all connections again, because NATS has lost them."""


class Bans(msgspec.Struct, frozen=True, tag="bans", tag_field="command"):
    """Command to a game server: keep these players out. `first`: all that was said before no longer counts; else they
    are added to it."""

    bans: list[Ban]
    first: bool = False


class Expect(msgspec.Struct, frozen=True, tag="expect", tag_field="command"):
    """Command to a game server: a seat waits for this session's player, for so many `seconds` from now."""

    session_id: str
    seconds: float


Command: TypeAlias = Kick | Drain | Report | Bans | Expect

T = TypeVar("T")


def encode(record: object) -> bytes:
    """A record or command as JSON."""
    return msgspec.json.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """The record of `kind` in `data`; raises `Malformed`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a {getattr(kind, '__name__', kind)}: {exc}") from exc


def decode_command(data: bytes) -> Command:
    """The command in `data`; raises `Malformed`."""
    try:
        return msgspec.json.decode(data, type=Kick | Drain | Report | Bans | Expect)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a command: {exc}") from exc
