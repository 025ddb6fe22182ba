"""What a game server nobody trusts may have written down for it. Pure.

The seal has shown which deployment speaks. It may speak of itself and of sessions that sit on it, and of nothing else.
Events may come twice, late, and to two matchmakers at once; so each is judged by the records as they stand, and every
write that follows is a compare-and-set.
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
    """Raises `ConfigError` for a game whose servers know no events, or are started by somebody who tells no key."""
    for game in games:
        if game.bevygap or game.orchestrator == SESSIONS:
            why = "is bevygap's" if game.bevygap else f"has the orchestrator {SESSIONS!r}"
            raise ConfigError(
                f"game {game.name!r} version {game.version!r} {why}: its servers cannot be in the isolated profile; "
                "TIPOFF_MATCHMAKER_PROFILE=trusted"
            )


class Join(Enum):
    WRITE = "write"
    """The session sits there: its connection is written down."""

    KICK = "kick"
    """It must not be connected there (any more)."""


class Leave(Enum):
    TELL = "tell"
    """The session sits there: its connection is deleted, and the deletion seen, also where there was none."""

    CLEAN = "clean"
    """It is over: a connection that was left behind is removed."""

    IGNORE = "ignore"
    """Another server's session."""


def join(record: SessionRecord | None, deployment_id: str, boot_id: str, client_id: str) -> Join:
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
    if record is None:
        return Leave.CLEAN
    if record.deployment_id != deployment_id:
        return Leave.IGNORE
    return Leave.TELL if record.state in _SEATED else Leave.CLEAN


def newer(lease: GameserverLease | None, event: ServerEvent) -> bool:
    """Whether the event is later than what wrote this lease."""
    return lease is None or event.order > (lease.started_at, lease.seq)


def withdraws(lease: GameserverLease | None, event: ServerEvent) -> bool:
    """Whether a goodbye is about this lease: it is of the same boot, and was written before."""
    return lease is not None and lease.boot_id == event.boot_id and newer(lease, event)


def ordered(lease: GameserverLease, event: ServerEvent) -> GameserverLease:
    """The lease as it is written."""
    return msgspec.structs.replace(lease, started_at=event.started_at, seq=event.seq)
