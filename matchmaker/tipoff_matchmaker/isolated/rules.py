"""Decides what an untrusted game server may have written for it. Pure.

The seal has shown which deployment speaks. It may speak of itself and of sessions on it, and of nothing else. Events
may come twice, late, and to two matchmakers at once; so each is judged by the current records, and every write that
follows is a compare-and-set.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec

from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.records import GameserverLease, SessionRecord, SessionState
from tipoff_shared.server_events import ServerEvent

_SEATED = (SessionState.READY, SessionState.ACTIVE)


def check_games(games: Iterable[Game]) -> None:
    """Raises `ConfigError` for a game that cannot be in the isolated profile."""
    for game in games:
        if wrong := complaint_about(game):
            raise ConfigError(f"game {game.name!r} version {game.version!r} {wrong}")


def complaint_about(game: Game) -> str:
    """Why the game cannot be in the isolated profile: its servers send no events, or their orchestrator passes them no
    key; "" when it can."""
    if not game.bevygap and game.orchestrator != SESSIONS:
        return ""
    why = "is bevygap's" if game.bevygap else f"has the orchestrator {SESSIONS!r}"
    return f"{why}: its servers cannot be in the isolated profile; TIPOFF_MATCHMAKER_PROFILE=trusted"


class Join(Enum):
    """What to do when a server says that a player has joined."""

    WRITE = "write"
    """The session has its seat there: write its connection."""

    KICK = "kick"
    """It must not be connected there: kick it."""


class Leave(Enum):
    """What to do when a server says that a player has left."""

    TELL = "tell"
    """The session has its seat there: delete its connection, so that the presence reader sees a departure even where
    there was no connection."""

    CLEAN = "clean"
    """The session is over: remove a connection that was left behind."""

    IGNORE = "ignore"
    """Another server's session."""


def join(record: SessionRecord | None, deployment_id: str, boot_id: str, client_id: str) -> Join:
    """Judge that `client_id` has joined on this boot of `deployment_id`; `record`: the session's."""
    if (
        record is None
        or record.deployment_id != deployment_id
        or record.state not in _SEATED
        or record.boot_id not in ("", boot_id)
        or record.client_id != client_id
    ):
        return Join.KICK
    return Join.WRITE


def leave(record: SessionRecord | None, deployment_id: str) -> Leave:
    """Judge that the player of `record` has left `deployment_id`."""
    if record is None:
        return Leave.CLEAN
    if record.deployment_id != deployment_id:
        return Leave.IGNORE
    return Leave.TELL if record.state in _SEATED else Leave.CLEAN


def newer(lease: GameserverLease | None, event: ServerEvent) -> bool:
    """Whether the event is later than the one that wrote this lease."""
    return lease is None or event.order > (lease.started_at, lease.seq)


def withdraws(lease: GameserverLease | None, event: ServerEvent) -> bool:
    """Whether a goodbye withdraws this lease: it is of the same boot, and the lease was written before."""
    return lease is not None and lease.boot_id == event.boot_id and newer(lease, event)


def ordered(lease: GameserverLease, event: ServerEvent) -> GameserverLease:
    """The lease with the event's place in the order, as it is written."""
    return msgspec.structs.replace(lease, started_at=event.started_at, seq=event.seq)
