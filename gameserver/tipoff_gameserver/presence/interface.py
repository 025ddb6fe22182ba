"""Defines `Presence`: how a game server reports that it lives and who plays on it.

| class | profile | how |
|---|---|---|
| `NoPresence` | stand-alone | nothing is reported |
| `kv.KvPresence` | trusted | the server writes its lease and `active_connections` itself |
| `events.EventPresence` | isolated | the server publishes sealed events, and a matchmaker writes |

All pass the same contract tests. The set of connected sessions is kept as state, not as a queue of messages: after an
outage it is compared with what was reported before. No call blocks the tick loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tipoff_shared.records import Command, GameserverLease
from tipoff_shared.session_end import BY_ITSELF, SessionEnd

DescribeLease = Callable[[], GameserverLease]
OnCommand = Callable[[Command], None]

ANNOUNCE_TIMEOUT = 2.0
"""Seconds for telling the matchmaker before the server goes on."""


class Presence(Protocol):
    """Reports one server; `start` and `close` enclose the time in which it runs."""

    async def start(self, describe: DescribeLease, on_command: OnCommand) -> None:
        """Start reporting what `describe` returns, now and regularly. Returns at once, connected or not. `on_command`
        is called with each command of the matchmaker."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a report can be sent now."""
        ...

    @property
    def reports(self) -> bool:
        """Whether there is a matchmaker that reads the reports."""
        return True

    def joined(self, session_id: str, client_id: int) -> None:
        """A session is connected. Idempotent."""
        ...

    def left(self, session_id: str, end: SessionEnd = BY_ITSELF) -> None:
        """A session is not connected, because of `end`. Idempotent, and allowed for a session that never was."""
        ...

    async def announce(self, timeout: float = ANNOUNCE_TIMEOUT) -> bool:
        """Report the lease now; returns whether that succeeded within `timeout` seconds. If not, its next refresh
        reports it."""
        ...

    async def look_up(self, client_id: int) -> str | None:
        """The session of a client id that bevygap's matchmaker wrote; None if there is none or NATS is away."""
        ...

    async def close(self, *, keep_lease: bool, timeout: float = 5.0) -> None:
        """Remove the connected sessions, then the lease unless `keep_lease` (an `ended` lease must be seen and expires
        by itself). Idempotent; takes about `timeout` seconds at most."""
        ...


class NoPresence(Presence):
    """The presence of a stand-alone server: reports nothing."""

    async def start(self, describe: DescribeLease, on_command: OnCommand) -> None:
        """Do nothing."""

    @property
    def connected(self) -> bool:
        """Always True."""
        return True

    @property
    def reports(self) -> bool:
        """Always False."""
        return False

    def joined(self, session_id: str, client_id: int) -> None:
        """Do nothing."""

    def left(self, session_id: str, end: SessionEnd = BY_ITSELF) -> None:
        """Do nothing."""

    async def announce(self, timeout: float = ANNOUNCE_TIMEOUT) -> bool:
        """Return True at once."""
        return True

    async def look_up(self, client_id: int) -> str | None:
        """Always None."""
        return None

    async def close(self, *, keep_lease: bool, timeout: float = 5.0) -> None:
        """Do nothing."""
