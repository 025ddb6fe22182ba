"""What the two ways of being present over NATS share: a connection that is kept, commands that are heard, and the truth
that is to be told.

A connection that is lost for good is made anew. So whatever NATS does, the game goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod

import nats.errors
from nats.aio.msg import Msg

from tipoff_gameserver.presence import DescribeLease, OnCommand
from tipoff_shared.errors import Malformed, TipoffError, Unavailable
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.tasks import BoundedHandlers, Tasks
from tipoff_shared.records import LEASE_TTL, decode_command
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

WRITE_TIMEOUT = 3.0
_RETRY = 1.0
_LONGEST_RETRY = 15.0
REMEMBERED = 1000
"""Sessions that have left and that are told of again when NATS comes back."""


class OverNats(ABC):
    """`lease_ttl` is in seconds; the lease is refreshed every third of it. Made anew for each server."""

    def __init__(self, settings: NatsSettings, deployment_id: str, lease_ttl: int = LEASE_TTL) -> None:
        self._settings = settings
        self._deployment_id = deployment_id
        self._lease_ttl = lease_ttl
        self._tasks = Tasks("presence")
        self._bus: Bus | None = None
        self._back = asyncio.Event()
        """Set when NATS is (again) there; whoever waits to retry is woken by it."""
        self._describe: DescribeLease | None = None
        self._lease_due = asyncio.Event()
        self._lease_waiters: list[asyncio.Future[None]] = []
        self._connected: dict[str, str] = {}
        """The truth: session id -> client id, in decimal."""
        self._unsure: dict[str, None] = {}
        """Sessions of which something is to be told, in order."""
        self._changed = asyncio.Event()
        """Something is to be told."""
        self._settled = asyncio.Event()
        """Nothing of any session is to be told."""
        self._settled.set()
        self._closing = False  # the lease is not refreshed any more
        self._ended = False  # nothing is to be done any more

    async def start(self, describe: DescribeLease, on_command: OnCommand) -> None:
        self._settings.tls_context()  # a certificate that cannot be read is an error now, not a warning for ever
        self._describe = describe
        self._tasks.start(self._stay_connected(on_command), "connection")

    @property
    def connected(self) -> bool:
        return self._bus is not None and self._bus.connected

    async def announce(self, timeout: float) -> bool:
        waiter = asyncio.get_running_loop().create_future()
        self._lease_waiters.append(waiter)
        self._lease_due.set()
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        return True

    async def close(self, *, keep_lease: bool, timeout: float = 5.0) -> None:
        """First the connections, then the lease: whoever sees the lease gone finds the connections gone too."""
        if self._closing:
            return
        self._closing = True
        for session_id in list(self._connected):
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
    def left(self, session_id: str) -> None:
        """That player is not here any more."""

    @abstractmethod
    async def _end_lease(self) -> None:
        """Returns when it is told."""

    def _doubt(self, session_id: str) -> None:
        """What was told of this session may differ from the truth."""
        self._unsure[session_id] = None
        self._settled.clear()
        self._changed.set()

    @abstractmethod
    async def _serve(self, bus: Bus) -> None:
        """Begin to tell over this connection; returns when it is gone for good, or all is over."""

    @abstractmethod
    def _nats_is_back(self) -> None:
        """Compare everything: what was told before may be lost, what could not be told is still to do."""

    async def _stay_connected(self, on_command: OnCommand) -> None:
        wait = _RETRY
        while not self._ended:
            try:
                async with connect(self._settings, name=f"gameserver {self._deployment_id}") as bus:
                    wait = _RETRY
                    try:
                        await self._begin(bus, on_command)
                    finally:
                        self._bus = None
                if not self._ended:
                    log.error(
                        "the NATS connection was closed for good (%s); making a new one", bus.last_error
                    )
            except (Unavailable, nats.errors.Error) as exc:
                log.warning("%s; trying again in %.0f s", str(exc) or type(exc).__name__, wait)
            if self._ended:
                return
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # jitter, no secret
            wait = min(wait * 2, _LONGEST_RETRY)

    async def _begin(self, bus: Bus, on_command: OnCommand) -> None:
        if self._ended:
            return
        self._bus = bus
        bus.on_reconnect(self._nats_is_back)

        async def command(msg: Msg) -> None:
            try:
                on_command(decode_command(msg.data))
            except Malformed as exc:
                log.warning("a command that cannot be read: %s", exc)

        await bus.serve(
            bus.subjects.commands(self._deployment_id), command, handlers=BoundedHandlers("command", 64)
        )
        await self._serve(bus)

    async def _pause(self) -> None:
        """Between two tries: until NATS is back, at most a moment."""
        self._back.clear()
        try:
            async with asyncio.timeout(_RETRY):
                await self._back.wait()
        except TimeoutError:
            pass

    def _told_lease(self, waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _end(self) -> None:
        """All is over. Cancelling alone is not enough: before Python 3.12 `asyncio.wait_for`, which nats-py uses, may
        swallow it."""
        self._ended = True
        for event in (self._lease_due, self._back, self._changed):
            event.set()
        if self._bus is not None:
            self._bus.closed.set()
        await self._tasks.close()
