"""Lists what the reconciler may do: the rules (rules.py) choose actions, the executor (executor.py) does them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tipoff_matchmaker.sessions.state_machine import Event
from tipoff_orchestrator_client.base import Deployment
from tipoff_shared.records import DeploymentRecord, GameserverLease, SessionRecord


@dataclass(frozen=True, slots=True)
class Trust:
    """The server lives, so it may get players."""

    deployment_id: str


@dataclass(frozen=True, slots=True)
class FollowLease:
    """The server's lease says something that its record does not."""

    lease: GameserverLease


@dataclass(frozen=True, slots=True)
class MarkReady:
    """The server runs, and that makes it ready."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class LookForDigest:
    """The server runs, and its context message may have been missed: the digest it wrote before tells the same."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """The orchestrator says where the server runs and the record does not: its starter died before writing that."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class Confirm:
    """Ask the orchestrator whether the server still runs, and stop it if not."""

    deployment_id: str
    why: str


@dataclass(frozen=True, slots=True)
class StopServer:
    """Stop the server, also with players on it."""

    deployment_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopIfEmpty:
    """Stop the server if it is still empty: it is not needed."""

    deployment_id: str


@dataclass(frozen=True, slots=True)
class StopUnknown:
    """The orchestrator runs a server that carries our tag and has no record."""

    orchestrator: str
    deployment_id: str


@dataclass(frozen=True, slots=True)
class RebuildDeployment:
    """A server runs whose record NATS has lost. `orchestrator` lists it as `deployment`; `seats`: session id -> until
    when the seat counts without a session record."""

    orchestrator: str
    deployment: Deployment
    seats: Mapping[str, float]
    lease: GameserverLease | None


@dataclass(frozen=True, slots=True)
class RebuildSession:
    """A player is connected to `deployment_id` whose session NATS has lost. `seat_until` as above."""

    session_id: str
    client_id: str
    deployment_id: str
    seat_until: float


@dataclass(frozen=True, slots=True)
class Reserve:
    """A live deployment whose reservation NATS has lost."""

    game: str
    version: str
    deployment_id: str


@dataclass(frozen=True, slots=True)
class Unreserve:
    """A reservation whose deployment is over, or was never created."""

    game: str
    version: str
    deployment_id: str


@dataclass(frozen=True, slots=True)
class FreeSeats:
    """Seats that no session holds: member -> the deadline the seat was written with."""

    deployment_id: str
    seats: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ApplyEvent:
    """An event of a session that its record does not show yet."""

    session_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class CheckSession:
    """Check a session's deadline and connection, and close it if need be."""

    session_id: str


@dataclass(frozen=True, slots=True)
class ReleaseSession:
    """The session is closing: release what it held."""

    session: SessionRecord


@dataclass(frozen=True, slots=True)
class CloseRecord:
    """The record of a server that ended before: nothing of it runs, and its reservation is gone. `record`: as it was
    read; one that has changed since is left alone."""

    record: DeploymentRecord


@dataclass(frozen=True, slots=True)
class KickFrom:
    """A connection of a session that is over, on this server: end it there."""

    session_id: str
    server: str


@dataclass(frozen=True, slots=True)
class DropConnection:
    """A connection of a session that is over, left behind by its server."""

    session_id: str


@dataclass(frozen=True, slots=True)
class ForgetDeparture:
    """The tombstone of a connection whose session is over: its reader died before removing it."""

    session_id: str
    revision: int


Action: TypeAlias = (
    Trust
    | FollowLease
    | MarkReady
    | LookForDigest
    | RecordPlace
    | Confirm
    | StopServer
    | StopIfEmpty
    | StopUnknown
    | RebuildDeployment
    | RebuildSession
    | Reserve
    | Unreserve
    | FreeSeats
    | ApplyEvent
    | CheckSession
    | ReleaseSession
    | CloseRecord
    | KickFrom
    | DropConnection
    | ForgetDeparture
)

DESTRUCTIVE = (StopServer, StopIfEmpty, StopUnknown)
"""Actions that stop a server without certainty: only so many in one cycle."""
