"""What the sweep may do, one thing each: the rules (rules.py) choose, the deeds (deeds.py) do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tipoff_matchmaker.sessions.machine import Event
from tipoff_orchestrator_client.base import Deployment
from tipoff_shared.records import GameserverLease, SessionRecord


@dataclass(frozen=True, slots=True)
class Trust:
    """It lives: it may get players."""

    deployment_id: str


@dataclass(frozen=True, slots=True)
class Follow:
    """Its lease says something the record does not."""

    lease: GameserverLease


@dataclass(frozen=True, slots=True)
class Arrive:
    """It runs, and that makes it ready."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class LookForDigest:
    """It runs, and its context message may have been missed: the digest it wrote before says as much."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class NotePlace:
    """Its orchestrator says of it what the record does not: whoever started it died before writing it down."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class Confirm:
    """Ask its orchestrator whether it still runs, and end it if not."""

    deployment_id: str
    why: str


@dataclass(frozen=True, slots=True)
class End:
    """End it, whoever is there."""

    deployment_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Shrink:
    """End it if it is still empty: it is not needed."""

    deployment_id: str


@dataclass(frozen=True, slots=True)
class StopUnknown:
    """The orchestrator runs something that carries our tag and is in no record."""

    orchestrator: str
    deployment_id: str


@dataclass(frozen=True, slots=True)
class Unreserve:
    """A reservation whose deployment is over, or never came to be."""

    game: str
    version: str
    deployment_id: str


@dataclass(frozen=True, slots=True)
class FreeSeats:
    """Seats that no session holds: member -> the deadline it was written with."""

    deployment_id: str
    seats: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Happen:
    """Something has happened to a session, and nobody told it."""

    session_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class CheckSession:
    """Look at a session's deadline and connection, and tell it."""

    session_id: str


@dataclass(frozen=True, slots=True)
class FinishClosing:
    """It is closing; see that everything is given back."""

    session: SessionRecord


@dataclass(frozen=True, slots=True)
class DropConnection:
    """A connection of a session that is over, written by a server that does not take it back."""

    session_id: str


@dataclass(frozen=True, slots=True)
class ForgetDeparture:
    """The tombstone of a connection whose session is over: whoever handled it died before removing it."""

    session_id: str
    revision: int


Act: TypeAlias = (
    Trust
    | Follow
    | Arrive
    | LookForDigest
    | NotePlace
    | Confirm
    | End
    | Shrink
    | StopUnknown
    | Unreserve
    | FreeSeats
    | Happen
    | CheckSession
    | FinishClosing
    | DropConnection
    | ForgetDeparture
)

DRASTIC = (End, Shrink, StopUnknown)
"""Acts that end something on less than certainty: only so many in one sweep."""
