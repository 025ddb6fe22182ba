"""Connects to NATS: fails fast at the start, reconnects for ever later, and closes in order.

It changes these defaults of nats-py, each of which caused a fault:

    nats-py                                                       here
    connecting loops on a refused port or bad credentials         a deadline, and the reason in the error
    reconnecting stops after two minutes                          never stops
    pings every two minutes, so a half-open link goes unnoticed   every 5 s
    messages published while disconnected are sent later          refused at once
    subscription callbacks run one after another                  `serve` runs each request in a task, up to a bound

client.py mends what lies below that.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js import JetStreamContext

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.client import HardenedClient
from tipoff_shared.nats.errors import FAILURES, NoAnswer, NoListener, PermissionDenied, typed
from tipoff_shared.nats.write_health import WriteHealth
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.primitives.text import describe
from tipoff_shared.primitives.waiting import wait_for_event
from tipoff_shared.settings import NatsSettings
from tipoff_shared.subjects import Subjects

log = logging.getLogger(__name__)

PING_INTERVAL = 5
PINGS_OUTSTANDING = 2  # notices a half-open link within 15 s
RECONNECT_WAIT = 0.25
_TOLD_DENIALS = 100


def _away(exc: BaseException) -> Unavailable:
    return typed(exc, f"NATS is away: {describe(exc)}")


class Subscription:
    """What `Bus.subscribe` returns. Ending it never fails, and holds also where NATS is away: nats-py does not
    subscribe to it again after the reconnect."""

    def __init__(self, bus: Bus, sub: NatsSubscription) -> None:
        self._bus = bus
        self._sub: NatsSubscription | None = sub

    async def unsubscribe(self) -> None:
        """Receive no more messages. Idempotent."""
        sub, self._sub = self._sub, None
        if sub is None:
            return
        try:
            await sub.unsubscribe()
        except FAILURES as exc:
            log.debug("unsubscribing from %s: %s", sub.subject, describe(exc))

    async def drain(self, timeout: float) -> None:
        """Receive no new messages, and return when the callback has had those that NATS sent before, or after
        `timeout` seconds. Idempotent."""
        if not self._bus.connected:  # nothing can be drained
            await self.unsubscribe()
            return
        sub, self._sub = self._sub, None
        if sub is None:
            return
        try:
            async with asyncio.timeout(timeout):
                await sub.drain()  # type: ignore[no-untyped-call] # nats-py has no annotation there
        except FAILURES as exc:
            log.warning("draining %s: %s", sub.subject, describe(exc))
            self._bus.nc.forget(sub)


class Bus:
    """A live connection. `nc` and `js` are nats-py's own objects; `subjects` names everything."""

    def __init__(self, nc: HardenedClient, settings: NatsSettings) -> None:
        self.nc = nc
        self.settings = settings
        self.subjects: Subjects = settings.subjects
        self.js: JetStreamContext = nc.jetstream(timeout=5)
        self.writes = WriteHealth()
        """Which streams take writes."""
        self.connected_since: float | None = time.monotonic()
        """Monotonic time at which the current connection began, None while disconnected."""
        self.last_error: str = ""
        self.refusal: str = ""
        """NATS's refusal of the credentials, kept because the errors that follow (a reset connection) would hide it."""
        self.closed = asyncio.Event()
        """Set when the connection is closed for good (credentials expired): the process must end."""
        self.closing = False
        """Set when the owner closes the connection, so that its end is not logged as a fault."""
        self._here = asyncio.Event()
        """Not set while NATS is away."""
        self._here.set()
        self._arrived = False
        self._denials: set[str] = set()
        self._deaf_to: list[PermissionDenied] = []
        self._denied: list[Callable[[PermissionDenied], None]] = []
        self._reconnected: list[Callable[[], None]] = []
        self._pings: set[asyncio.Task[None]] = set()
        self._disconnected: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether NATS can be reached now."""
        return self.connected_since is not None and self.nc.is_connected

    @property
    def heard_since(self) -> float:
        """Unix seconds since when NATS has been reachable without a break; now, while it is away."""
        since = self.connected_since
        return time.time() - (0.0 if since is None else time.monotonic() - since)

    async def wait_connected(self, timeout: float) -> bool:
        """Wait until NATS is connected, at most `timeout` seconds. False when it is not, or closed for good."""
        return await wait_for_event(self._here, timeout) and not self.closed.is_set()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Run `callback` after every reconnect. The caller owns the tasks that it starts."""
        self._reconnected.append(callback)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Run `callback` whenever the connection is lost. Answers to earlier requests may never come."""
        self._disconnected.append(callback)

    @contextmanager
    def watched_for_disconnects(self, callback: Callable[[], None]) -> Iterator[None]:
        """As `on_disconnect`, within the block."""
        self._disconnected.append(callback)
        try:
            yield
        finally:
            self._disconnected.remove(callback)

    def on_denied(self, callback: Callable[[PermissionDenied], None]) -> None:
        """Call `callback` with each permission error, for callers that do not wait with `request`."""
        self._denied.append(callback)

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> Msg:
        """Send a request and return its answer. Raises `NoListener` at once when nobody listens on `subject`,
        `NoAnswer` after `timeout` seconds, `PermissionDenied` at once when this user may not ask, and
        `Unavailable` while NATS is away."""
        try:
            return await self.nc.request(subject, payload, timeout=timeout)
        except nats.errors.NoRespondersError as exc:
            raise NoListener(f"nobody listens on {subject}") from exc
        except (TimeoutError, nats.errors.TimeoutError) as exc:
            reason = f" ({self.last_error})" if self.last_error else ""
            raise NoAnswer(f"no answer on {subject} within {timeout:g} s{reason}") from exc
        except FAILURES as exc:
            raise _away(exc) from exc

    async def request_all(
        self, subject: str, payload: bytes, *, first: float, each: float, most: int
    ) -> list[Msg]:
        """Send a request that several may answer, and return their answers: waits `first` seconds for the first one and
        `each` seconds for every further one, and takes at most `most`. Empty when nobody listens on `subject`. Raises
        `Unavailable` while NATS is away."""
        arrived: asyncio.Queue[Msg] = asyncio.Queue()

        async def receive(msg: Msg) -> None:
            if arrived.qsize() < most:
                arrived.put_nowait(msg)

        answers: list[Msg] = []
        inbox = self.nc.new_inbox()
        subscription = await self.subscribe(inbox, receive)
        try:
            await self.publish(subject, payload, reply=inbox)
            while len(answers) < most:
                async with asyncio.timeout(each if answers else first):
                    msg = await arrived.get()
                if msg.headers and msg.headers.get("Status") == "503":
                    break  # nobody listens
                answers.append(msg)
        except TimeoutError:
            pass  # all that are going to answer have answered
        finally:
            await subscription.unsubscribe()
        return answers

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Send a message and do not wait. Raises `Unavailable` while NATS is away (`NotSent` when its buffer is
        full)."""
        try:
            await self.nc.publish(subject, payload, reply, headers)
        except FAILURES as exc:
            raise _away(exc) from exc

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Call `callback` for each message, one after another; members of one `queue` share the messages.

        Raises `Unavailable` while NATS is away. A subscription that NATS does not permit is reported by the next
        `flush`.
        """
        try:
            return Subscription(self, await self.nc.subscribe(subject, queue=queue, cb=callback))
        except FAILURES as exc:
            raise _away(exc) from exc

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has handled all earlier subscriptions and messages. Raises `Unavailable`, and
        `PermissionDenied` when the server refused a subscription made since the last call.

        nats-py's flush writes its ping ahead of the commands that still wait to be sent, so its pong may come too
        early (for 1 subscription in 100): a second ping follows them. And a pong for a flush that was cancelled or
        timed out ends nats-py's reader: so each ping runs in its own task.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._ping()
                await self._ping()
        except FAILURES as exc:
            raise _away(exc) from exc
        if self._deaf_to:
            denied, self._deaf_to = self._deaf_to[0], []
            raise denied

    async def _ping(self) -> None:
        # So long that nats-py notices a dead link first, and forgets the pong.
        task = asyncio.create_task(self.nc.flush(timeout=PING_INTERVAL * (PINGS_OUTSTANDING + 4)))
        self._pings.add(task)
        task.add_done_callback(self._pinged)
        await asyncio.shield(task)

    def _pinged(self, task: asyncio.Task[None]) -> None:
        self._pings.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as read: the waiter raises it

    async def serve(
        self,
        subject: str,
        handler: Callable[[Msg], Awaitable[None]],
        *,
        queue: str = "",
        handlers: BoundedHandlers,
        busy: Callable[[Msg], Awaitable[None]] | None = None,
    ) -> Subscription:
        """Call `handler` for each message in its own task; beyond the bound of `handlers`, call `busy` instead."""

        async def received(msg: Msg) -> None:
            if not handlers.submit(lambda: handler(msg)) and busy is not None:
                await busy(msg)

        return await self.subscribe(subject, received, queue=queue)

    # nats-py's callbacks.

    def _on_denied(self, denied: PermissionDenied) -> None:
        if denied.subscription:
            if len(self._deaf_to) < _TOLD_DENIALS:
                self._deaf_to.append(denied)
            subjects = (sub.subject for sub in self.nc.subscriptions)
            denied.subject = next(filter(denied.concerns, subjects), denied.subject)
        said = str(denied)
        if said not in self._denials and len(self._denials) < _TOLD_DENIALS:
            self._denials.add(said)
            log.error("%s", said)
        for callback in self._denied:
            callback(denied)

    async def _on_error(self, exc: Exception) -> None:
        if isinstance(exc, PermissionDenied):
            self._on_denied(exc)
            return
        said = describe(exc)
        # While NATS is away each try reports the same error, four times a second: log it once.
        level = logging.DEBUG if said == self.last_error else logging.WARNING
        self.last_error = said
        if "authorization" in said.lower() or isinstance(
            exc, nats.errors.SecureConnRequiredError | ssl.SSLCertVerificationError
        ):
            self.refusal = said
        if not self._arrived:
            if self.refusal:
                raise exc  # retrying does not help: ends the first connect at once
            return  # `connect` raises it
        log.log(level, "NATS: %s", said)

    async def _on_disconnected(self) -> None:
        if self._arrived and self.connected_since is not None and not self.closing:
            log.warning("NATS is away; trying again for as long as it takes")
        self.connected_since = None
        self._here.clear()
        self.nc.fail_questions()
        self._denials.clear()  # the permissions may differ on the next connection
        self._deaf_to.clear()
        for callback in self._disconnected:
            callback()

    async def _on_reconnected(self) -> None:
        self.connected_since = time.monotonic()
        self._here.set()
        self.last_error = ""
        self.writes.reconnected()
        log.info("NATS is back")
        for callback in self._reconnected:
            callback()

    async def _on_closed(self) -> None:
        self.connected_since = None
        self.closed.set()
        self._here.set()


@asynccontextmanager
async def connect(settings: NatsSettings, *, name: str, timeout: float = 5.0) -> AsyncIterator[Bus]:
    """Yield a connected `Bus`. Raises `Unavailable` with NATS's reason after `timeout` seconds.

    Leaving the block flushes published messages (2 s at most) and closes. Subscriptions end with it: components that
    serve requests stop their subscriptions and wait for their handlers before that.
    """
    nc = HardenedClient()
    nc.require_tls = not settings.insecure
    nc.who = settings.user
    bus = Bus(nc, settings)
    try:
        async with asyncio.timeout(timeout):
            await nc.connect(
                servers=list(settings.servers),
                name=name,
                user=settings.user or None,
                password=settings.password.reveal() or None,
                tls=settings.tls_context(),
                inbox_prefix=settings.inbox_prefix.encode(),
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] # it only sleeps that long
                ping_interval=PING_INTERVAL,
                max_outstanding_pings=PINGS_OUTSTANDING,
                connect_timeout=2,
                pending_size=-1,
                error_cb=bus._on_error,
                disconnected_cb=bus._on_disconnected,
                reconnected_cb=bus._on_reconnected,
                closed_cb=bus._on_closed,
            )
    except asyncio.CancelledError:
        bus.closing = True
        await _close(bus)
        raise
    except FAILURES as exc:
        await _close(bus)
        raise Unavailable(_why_not(bus, exc, timeout)) from exc
    bus._arrived = True
    try:
        yield bus
    finally:
        bus.closing = True
        await _close(bus)


async def _close(bus: Bus) -> None:
    nc = bus.nc
    try:
        async with asyncio.timeout(2):
            if nc.is_connected:
                await nc.flush(timeout=1)
    except FAILURES:
        log.warning("NATS went away before everything was sent")
    for ping in bus._pings:
        ping.cancel()  # the reader ends now
    try:
        # nats-py would wait for ever after a failed TLS handshake.
        async with asyncio.timeout(2 if bus._arrived else 0.2):
            await nc.close()
    except FAILURES as exc:
        level = logging.WARNING if bus._arrived else logging.DEBUG
        log.log(level, "closing the NATS connection: %s", describe(exc))
    nc.abort()  # gives up on what could not be sent in that time


def _why_not(bus: Bus, exc: BaseException, timeout: float) -> str:
    """Why the first connect failed, and what to do."""
    where = ", ".join(bus.settings.servers)
    if "authorization" in bus.refusal.lower():
        return f"NATS at {where} refuses the user or password: NATS_USER, NATS_PASSWORD (NATS_PASSWORD_FILE)"
    if "certificate" in bus.refusal.lower():
        return (
            f"NATS at {where} shows a certificate that is not trusted: {bus.refusal}. NATS_CA is the authority "
            "that signed it, NATS_HOST one of its names (`tipoff secrets rotate nats-tls --host NAME` adds one)"
        )
    if bus.refusal:
        return (
            f"NATS at {where} speaks no TLS, and a password would travel in clear: "
            "set NATS_INSECURE=1 if that is meant (on loopback, say)"
        )
    said = bus.last_error or str(exc) or "no answer"
    return (
        f"cannot connect to NATS at {where} within {timeout:g} s: {said}. Is it running? "
        "NATS_HOST says where; NATS_INSECURE=1 means without TLS"
    )
