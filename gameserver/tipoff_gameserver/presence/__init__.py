"""How a game server tells the rest of the system that it is there and who plays.

One interface (`Presence`), three implementations: `NoPresence` for a stand-alone server; for a deployment
`nats.NatsPresence` (the trusted profile: the server writes its KV keys itself) or `events.EventPresence` (the isolated
one: the server says what happens, a matchmaker writes it down). All pass the same contract tests.

The truth is the set of connected sessions. It is kept as state, never as a queue of messages: whatever was missed
while NATS was away is made good by comparing, when it is back. Nothing here blocks the tick loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tipoff_gameserver.context import Context
from tipoff_shared.records import Command, GameserverLease

DescribeLease = Callable[[], GameserverLease]
OnCommand = Callable[[Command], None]


class Presence(Protocol):
    """`async with` or `start` and `close` around the time in which the server runs."""

    async def start(self, describe: DescribeLease, on_command: OnCommand) -> None:
        """Begin to announce what `describe` returns, now and regularly. Returns at once, whether or not anybody can
        be told yet. `on_command` is called with each command of the matchmaker."""
        ...

    @property
    def connected(self) -> bool:
        """Whether others can be told just now."""
        ...

    def joined(self, session_id: str, client_id: int) -> None:
        """A session is connected. Idempotent."""
        ...

    def left(self, session_id: str) -> None:
        """A session is not connected (any more). Idempotent; right also for one that never was."""
        ...

    async def announce(self, timeout: float) -> bool:
        """Announce the present state at once; whether that was done within `timeout` seconds."""
        ...

    async def look_up(self, client_id: int) -> str | None:
        """The session of a client id, where the matchmaker is bevygap's; None when there is none or it cannot be
        told."""
        ...

    async def close(self, *, keep_lease: bool, timeout: float = 5.0) -> None:
        """Let go: connected sessions are written off, then the lease is withdrawn unless it is to be kept (an
        `ended` lease must be seen; it expires by itself). Idempotent, takes at most about `timeout` seconds."""
        ...


class NoPresence:
    """A server that stands alone: there is nobody to tell."""

    async def start(self, describe: DescribeLease, on_command: OnCommand) -> None:
        pass

    @property
    def connected(self) -> bool:
        return True

    def joined(self, session_id: str, client_id: int) -> None:
        pass

    def left(self, session_id: str) -> None:
        pass

    async def announce(self, timeout: float) -> bool:
        return True

    async def look_up(self, client_id: int) -> str | None:
        return None

    async def close(self, *, keep_lease: bool, timeout: float = 5.0) -> None:
        pass


def presence_of(context: Context, boot_id: str) -> Presence:
    """The one that a server in this deployment needs."""
    if context.nats is None:
        return NoPresence()
    # Here and not above: a server that stands alone needs no nats-py.
    if context.event_key is not None:
        from tipoff_gameserver.presence.events import EventPresence

        return EventPresence(
            context.nats,
            context.deployment_id,
            boot_id,
            context.event_key,
            announcement=context.announcement(boot_id),
            lease_ttl=context.lease_ttl,
        )
    from tipoff_gameserver.presence.nats import NatsPresence

    return NatsPresence(
        context.nats,
        context.deployment_id,
        announcement=context.announcement(boot_id),
        lease_ttl=context.lease_ttl,
    )
