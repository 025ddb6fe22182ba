"""Decides the life of one session, as a pure state machine: record + event + now -> new record and effects.

    requested ──seat found──> ready ──connected──> active
        │                       │ deadline            │ left, server gone
        └── deadline ──> closing <────────────────────┘
                            └── everything released ──> gone

The driver (store.py) reads the record, calls `step`, writes the outcome by compare-and-set and publishes the effects;
after a lost compare-and-set it reads and calls `step` again. Nothing here does I/O, reads a clock or draws random
numbers. Times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import msgspec

from tipoff_shared.records import NOT_CLAIMED, SessionRecord, SessionState
from tipoff_shared.session_end import BY_ITSELF, EndCause, SessionEnd, server_end


@dataclass(frozen=True, slots=True)
class SeatFound:
    """A seat of this deployment is written down; the player has until `claim_deadline` to connect."""

    deployment_id: str
    boot_id: str
    claim_deadline: float


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """The request id was repeated: a fresh token goes out, which may be used until `claim_deadline`."""

    claim_deadline: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The player wants its seat back: a token of this `generation` goes out, which may be used until `claim_deadline`.
    Too late when there is one of that generation already."""

    generation: int
    claim_deadline: float


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The server this session waited for did not start; it waits for another one."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """`owner` handles the request from now on, instead of `former` ("" means that any matchmaker may), until
    `deadline` if that is later than before. Too late when another matchmaker has taken it from `former` already."""

    owner: str
    former: str
    deadline: float = 0.0


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The request ended without a seat, for `owner`; a matchmaker that has taken it over may still find one."""

    reason: str
    owner: str


@dataclass(frozen=True, slots=True)
class Connected:
    """`active_connections[id]` exists."""


@dataclass(frozen=True, slots=True)
class Left:
    """`active_connections[id]` was deleted. `end`: why, as the game server says."""

    end: SessionEnd = BY_ITSELF


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The record's deadline may have passed; `connected`: whether `active_connections[id]` exists now."""

    connected: bool


@dataclass(frozen=True, slots=True)
class ServerGone:
    """The server is gone. `living_boot`: the boot id that lives in its place, "" when none does."""

    deployment_id: str
    reason: str
    living_boot: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """An operator, or the end of the match, ends this session."""

    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The seat is free and the allocator knows."""


Event: TypeAlias = (
    SeatFound
    | AskedAgain
    | Resumed
    | StartFailed
    | TakenOver
    | GivenUp
    | Connected
    | Left
    | DeadlinePassed
    | ServerGone
    | Ended
    | Released
)


class Effect(Enum):
    """What the driver does after the new record is written; each is idempotent."""

    CLAIMED = "claimed"
    """The session is no longer unclaimed (bevygap's bucket)."""

    RELEASE = "release"
    """Free the seat, tell the allocator; then report `Released`."""

    KICK = "kick"
    """End a connection that must not be: the session is over."""


@dataclass(frozen=True, slots=True)
class Step:
    """`record`: what to write, None when nothing changes."""

    record: SessionRecord | None = None
    effects: tuple[Effect, ...] = ()


NOTHING = Step()
_OPEN = (SessionState.REQUESTED, SessionState.READY, SessionState.ACTIVE)


def is_open(record: SessionRecord) -> bool:
    """Whether the session has not ended: it may hold a seat, or is going to."""
    return record.state in _OPEN


def step(record: SessionRecord | None, event: Event, now: float) -> Step:
    """What follows from `event` for `record` (None: there is none). Total: every pair has an answer."""
    if record is None:
        # A connection without a session must end. Every other event comes too late to matter.
        return Step(effects=(Effect.KICK,)) if isinstance(event, Connected) else NOTHING
    match record.state:
        case SessionState.REQUESTED:
            return _requested(record, event, now)
        case SessionState.READY:
            return _ready(record, event, now)
        case SessionState.ACTIVE:
            return _active(record, event, now)
        case SessionState.CLOSING:
            return _closing(record, event)
        case SessionState.GONE:
            return Step(effects=(Effect.KICK,)) if isinstance(event, Connected) else NOTHING


def _requested(record: SessionRecord, event: Event, now: float) -> Step:
    match event:
        case SeatFound(deployment_id, boot_id, claim_deadline):
            return Step(
                msgspec.structs.replace(
                    record,
                    state=SessionState.READY,
                    deployment_id=deployment_id,
                    boot_id=boot_id,
                    deadline=claim_deadline,
                    generation=record.generation + 1,
                    reason="",
                )
            )
        case StartFailed(reason):
            return Step(msgspec.structs.replace(record, attempt=record.attempt + 1, reason=reason))
        case TakenOver(owner, former, deadline) if record.owner == former:
            after = msgspec.structs.replace(record, owner=owner, deadline=max(deadline, record.deadline))
            return Step(after) if after != record else NOTHING
        case GivenUp(reason, owner) if record.owner == owner:
            return _close(record, EndCause.NO_SEAT, reason, now)
        case Ended(reason):
            return _close(record, EndCause.OPERATOR, reason, now)
        case DeadlinePassed(connected):
            if (
                connected or now < record.deadline
            ):  # who plays has a seat: NATS has an older state of the record
                return NOTHING
            return _close(record, EndCause.NO_SEAT, "no server became ready in time", now)
        case _:
            return NOTHING


def _ready(record: SessionRecord, event: Event, now: float) -> Step:
    match event:
        case Connected():
            return _activate(record)
        case DeadlinePassed(connected):
            if connected:
                return _activate(record)
            return (
                _close(record, EndCause.NOT_CLAIMED, NOT_CLAIMED, now) if now >= record.deadline else NOTHING
            )
        case AskedAgain(claim_deadline):
            if claim_deadline <= record.deadline:
                return NOTHING
            return Step(msgspec.structs.replace(record, deadline=claim_deadline))
        case Resumed(generation, claim_deadline) if generation == record.generation + 1:
            deadline = max(record.deadline, claim_deadline)
            return Step(msgspec.structs.replace(record, generation=generation, deadline=deadline))
        case Left(end):  # connected and left, and the two notices came as one
            return _close(record, end.cause, str(end), now)
        case ServerGone() | Ended():
            return _lose_server(record, event, now)
        case _:
            return NOTHING


def _active(record: SessionRecord, event: Event, now: float) -> Step:
    match event:
        case Left(end):
            return _close(record, end.cause, str(end), now)
        case ServerGone() | Ended():
            return _lose_server(record, event, now)
        case Connected() | DeadlinePassed(connected=True):
            return Step(effects=(Effect.CLAIMED,))
        case Resumed(generation) if generation == record.generation + 1:
            return Step(msgspec.structs.replace(record, generation=generation))
        case _:
            return NOTHING


def _closing(record: SessionRecord, event: Event) -> Step:
    match event:
        case Released():
            return Step(msgspec.structs.replace(record, state=SessionState.GONE, deadline=0.0))
        case Connected():
            return Step(effects=(Effect.KICK,))
        case Left() | DeadlinePassed() | ServerGone() | Ended():
            return Step(effects=(Effect.RELEASE,))  # the matchmaker that closed it may have died half-way
        case _:
            return NOTHING


def _activate(record: SessionRecord) -> Step:
    return Step(msgspec.structs.replace(record, state=SessionState.ACTIVE, deadline=0.0), (Effect.CLAIMED,))


def _lose_server(record: SessionRecord, event: ServerGone | Ended, now: float) -> Step:
    if isinstance(event, Ended):
        return _close(record, EndCause.OPERATOR, event.reason, now)
    # A token without a boot id is good for any boot.
    lives_on = event.living_boot and record.boot_id in ("", event.living_boot)
    if record.deployment_id != event.deployment_id or lives_on:
        return NOTHING
    end = server_end(event.reason)
    text = event.reason if end.cause is EndCause.SERVER_STOPPED else str(end)
    return _close(record, end.cause, text, now)


def _close(record: SessionRecord, cause: EndCause, reason: str, now: float) -> Step:
    return Step(
        msgspec.structs.replace(
            record, state=SessionState.CLOSING, deadline=0.0, cause=cause, reason=reason, ended_at=now
        ),
        (Effect.RELEASE,),
    )
