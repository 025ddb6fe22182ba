"""Keeps what both ways of reporting over NATS share: the connection, the commands and the state to report.

A connection that is closed for good is replaced by a new one, so the game goes on whatever happens to NATS.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from nats.aio.msg import Msg

from tipoff_gameserver.context import Context
from tipoff_gameserver.presence.interface import ANNOUNCE_TIMEOUT, DescribeLease, OnCommand, Presence
from tipoff_shared.errors import ConfigError, Malformed, TipoffError, Unavailable
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.retry import Backoff
from tipoff_shared.primitives.tasks import BoundedHandlers, Tasks
from tipoff_shared.primitives.waiting import wait_for_event
from tipoff_shared.records import Report, decode_command
from tipoff_shared.session_end import BY_ITSELF, SessionEnd

log = logging.getLogger(__name__)

WRITE_TIMEOUT = 3.0
RETRY = 1.0
"""Seconds between two tries."""
LONGEST_RETRY = 5.0
"""Seconds between two connections at most. A matchmaker that comes back waits for servers a little longer than this and
an attempt that NATS leaves open take, before a missing lease means something."""
REMEMBERED = 1000
"""Sessions that have left and are reported again when NATS comes back."""


class Reporter(Presence, ABC):
    """The base of `KvPresence` and `EventPresence`, for one run of one server.

    The lease is refreshed every third of `context.lease_ttl`. Raises `ConfigError` for a context without NATS.
    """

    def __init__(self, context: Context) -> None:
        if context.nats is None:
            raise ConfigError("a stand-alone server has no NATS to report to")
        self._settings = context.nats
        self._deployment_id = context.deployment_id
        self._lease_ttl = context.lease_ttl
        self._tasks = Tasks("presence")
        self._bus: Bus | None = None
        """The connection, None while there is none."""
        self._back = asyncio.Event()
        """Set when NATS is back; ends the pause before the next try."""
        self._lease_due = asyncio.Event()
        self._lease_waiters: list[asyncio.Future[None]] = []
        self._changed = asyncio.Event()
        """Something is to be reported."""
        self._settled = asyncio.Event()
        """Set while every session is reported correctly."""
        self._settled.set()
        self._closing = False
        """The lease is refreshed no more."""
        self._ended = False
        """Nothing more is reported."""

    async def start(self, describe: DescribeLease, on_command: OnCommand) -> None:
        """Connect in the background. Raises `ConfigError` for a certificate authority that cannot be read."""
        self._settings.tls_context()  # an unreadable certificate is an error now, not a warning for ever
        self._tasks.start(self._stay_connected(describe, on_command), "connection")

    @property
    def connected(self) -> bool:
        """Whether there is a connection to NATS and it works now."""
        return self._bus is not None and self._bus.connected

    async def announce(self, timeout: float = ANNOUNCE_TIMEOUT) -> bool:
        """Report the lease now; returns whether that succeeded within `timeout` seconds."""
        waiter = asyncio.get_running_loop().create_future()
        self._lease_waiters.append(waiter)
        self._lease_due.set()
        self._changed.set()
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        return True

    async def close(self, *, keep_lease: bool, timeout: float = 5.0) -> None:
        """First the connections, then the lease: once the lease is gone, the connections are gone too."""
        if self._closing:
            return
        self._closing = True
        for session_id in self._connected_sessions():
            self.left(session_id)
        if self._bus is not None:
            try:
                async with asyncio.timeout(timeout if self.connected else min(timeout, 1.0)):
                    await self._settled.wait()
                    if not keep_lease:
                        await self._end_lease()
            except (TimeoutError, TipoffError) as exc:
                log.warning(
                    "what this server leaves in NATS has to expire by itself: %s", str(exc) or "NATS is away"
                )
        await self._end()

    @abstractmethod
    def left(self, session_id: str, end: SessionEnd = BY_ITSELF) -> None:
        """A session is not connected, because of `end`."""

    @abstractmethod
    def resync(self) -> None:
        """Report everything again, as after each reconnect: NATS may have lost what it had."""

    @abstractmethod
    def _connected_sessions(self) -> list[str]:
        """The sessions that have joined and not left."""

    @abstractmethod
    async def _end_lease(self) -> None:
        """Withdraw the lease; returns when that is reported."""

    @abstractmethod
    async def _serve(self, bus: Bus, describe: DescribeLease) -> None:
        """Report over this connection; returns when it is closed for good or the server has ended."""

    async def _stay_connected(self, describe: DescribeLease, on_command: OnCommand) -> None:
        # Not `run_forever`: on 3.11 nats-py may swallow the cancellation, and `_ended` then ends the loop at once.
        pauses = Backoff(RETRY, longest=LONGEST_RETRY)
        while not self._ended:
            try:
                async with connect(self._settings, name=f"gameserver {self._deployment_id}") as bus:
                    pauses.reset()
                    try:
                        await self._begin(bus, describe, on_command)
                    finally:
                        self._bus = None
                if not self._ended:
                    log.error(
                        "the NATS connection was closed for good (%s); making a new one", bus.last_error
                    )
            except Unavailable as exc:
                log.warning("%s; trying again", exc)
            pauses.failed()
            if not self._ended:
                await asyncio.sleep(pauses.pause())

    async def _begin(self, bus: Bus, describe: DescribeLease, on_command: OnCommand) -> None:
        if self._ended:
            return
        self._bus = bus
        bus.on_reconnect(self.resync)

        async def command(msg: Msg) -> None:
            try:
                received = decode_command(msg.data)
                if isinstance(received, Report):
                    self.resync()
                else:
                    on_command(received)
            except Malformed as exc:
                log.warning("ignored an unreadable command: %s", exc)

        await bus.serve(
            bus.subjects.commands(self._deployment_id), command, handlers=BoundedHandlers("command", 64)
        )
        await self._serve(bus, describe)

    def _sessions_changed(self) -> None:
        """The reports of some sessions may be wrong: correct them."""
        self._settled.clear()
        self._changed.set()

    async def _pause(self) -> None:
        """Wait before the next try: `RETRY` seconds, or until NATS is back."""
        self._back.clear()
        await wait_for_event(self._back, RETRY)

    def _lease_reported(self, waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _end(self) -> None:
        """Stop all tasks. Cancelling is not enough: before Python 3.12 `asyncio.wait_for`, which nats-py uses, may
        swallow it."""
        self._ended = True
        for event in (self._lease_due, self._back, self._changed):
            event.set()
        if self._bus is not None:
            self._bus.closed.set()
        await self._tasks.close()
