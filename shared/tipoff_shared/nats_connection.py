"""The one way to NATS: a connection that fails fast, never gives up later, and closes in order.

What nats-py does by default and we do not (each was seen to hurt):
connecting loops on a refused port or bad credentials -> a deadline, and the reason in the error; reconnecting
stops after two minutes -> for ever, and begins only when a dead link has taken all bytes -> at once; pings every two
minutes leave a half-open link unseen -> every 5 s; writes made while disconnected are sent later -> refused at once;
subscription callbacks run one at a time -> `serve` runs each request in a task of its own, up to a bound; permission
errors show as time-outs -> `PermissionDenied`, at once, with the subject and the user; a message whose subject or
headers it cannot read ends its reading for good -> that message alone is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import nats.errors
import nats.protocol.parser
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from tipoff_shared.errors import Unavailable
from tipoff_shared.settings import NatsSettings
from tipoff_shared.subjects import Subjects
from tipoff_shared.supervise import BoundedHandlers

log = logging.getLogger(__name__)

PING_INTERVAL = 5
PINGS_OUTSTANDING = 2  # a half-open link is noticed within 15 s
RECONNECT_WAIT = 0.25
_TOLD_DENIALS = 100
_DENIED = re.compile(r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"]*)"')
"""nats-server's words, in the small letters that nats-py makes of them."""
_TELL_UNREADABLE_EVERY = 10.0
_STORED = b"$JS.ACK."
"""What the reply subject of a message out of a stream begins with."""
_HEADERS = b"NATS/1.0\r\n"
_STATUS = re.compile(rb"\r\n\s*status\s*:", re.IGNORECASE)

# Words of NATS's protocol end at a space or a tab. nats-py takes any white space of Python's: with a form feed in its
# subject, which nats-server lets pass, a message is a protocol error that comes again after each reconnect.
_WORD = rb"([^ \t\r\n]+)[ \t]+"
nats.protocol.parser.MSG_RE = re.compile(rb"\AMSG[ \t]+" + _WORD + _WORD + rb"(" + _WORD + rb")?(\d+)\r\n")
nats.protocol.parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+" + _WORD + _WORD + rb"(" + _WORD + rb")?(\d+)[ \t]+(\d+)\r\n"
)


class PermissionDenied(Unavailable, nats.errors.Error):
    """NATS does not let this connection's user do that; asking again will not help, an operator must.

    `str` says what was denied to whom and what to do; `message`, which a player may see, does not.
    """

    def __init__(self, subject: str, user: str, *, subscription: bool = False, inbox: bool = False) -> None:
        super().__init__("this service is not set up right; its operator's log says how", retry_after=30)
        self.subject = subject
        self.user = user
        self.subscription = subscription
        self.inbox = inbox
        """It is the inbox of answers: all that is asked on this connection stays without one."""

    def __str__(self) -> str:
        denied = f"NATS user {self.user!r} may not {'subscribe' if self.subscription else 'publish'} to {self.subject}"
        if self.inbox:
            return f"{denied}, where answers to it come: set NATS_INBOX_PREFIX to what its permissions allow"
        return (
            f"{denied}. Is NATS_USER the user of this role, TIPOFF_NAMESPACE the right one? Where NATS has the "
            "permissions of an older version, `tipoff secrets init` renews them and NATS must reload"
        )

    def again(self) -> PermissionDenied:
        """Another one that says the same: to raise from this one."""
        return PermissionDenied(self.subject, self.user, subscription=self.subscription, inbox=self.inbox)

    def concerns(self, subject: str) -> bool:
        """Whether it is about `subject`. NATS tells it in small letters."""
        return self.subject.lower() == subject.lower()


class _Client(NatsClient):
    """nats-py closes a lost connection in order: it waits until all is sent, which on a half-open link takes until the
    kernel gives up (a quarter of an hour), and begins to reconnect only then; and it forgets to close one that was
    accepted and never said a word. What is lost is thrown away here. And it sends the password in clear when a server
    (or whoever sits in front of it) does not ask for TLS: `require_tls` forbids that, at every connect."""

    require_tls = False
    who = ""
    """The user's name, for messages."""
    deaf: PermissionDenied | None = None
    """It may not subscribe the inbox of its requests."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[str, str] = {}
        """Token of each question that waits for an answer -> the subject that was asked."""
        self._unreadable = 0
        self._told_unreadable_at = -_TELL_UNREADABLE_EVERY

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        """Whoever may publish chooses the bytes of subject and headers; nats-py's reader would end at some of them, and
        take others for the server's own words."""
        if _is_readable(subject, reply, headers):
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] # None where there are none
            return
        self._unreadable += 1
        if (now := time.monotonic()) - self._told_unreadable_at >= _TELL_UNREADABLE_EVERY:
            log.warning(
                "%d message(s) that nobody can read are thrown away; the last on %r",
                self._unreadable,
                subject[:100],
            )
            self._told_unreadable_at, self._unreadable = now, 0
        if reply.startswith(_STORED):  # out of the stream with it, or it comes again for ever
            with contextlib.suppress(nats.errors.Error, UnicodeDecodeError):
                await super().publish(reply.decode(), b"+TERM")

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        if reply:
            token = reply.rpartition(".")[2]
            waiting = self._resp_map.get(token)
            if waiting is not None:
                if self.deaf is not None:
                    waiting.cancel()  # which makes nats-py forget it
                    raise self.deaf.again()
                self._asked[token] = subject
                waiting.add_done_callback(lambda _: self._asked.pop(token, None))
        await super().publish(subject, payload, reply, headers)

    async def _process_err(self, err_msg: str) -> None:
        found = _DENIED.search(err_msg)
        if found is None:
            await super()._process_err(err_msg)
            return
        subscription, subject = found[1] == "subscription", found[2]
        inbox = subscription and subject.startswith(self._answers_come_to())
        denied = PermissionDenied(subject, self.who, subscription=subscription, inbox=inbox)
        if inbox:
            self.deaf = denied
        for token, asked in list(self._asked.items()):
            waiting = self._resp_map.get(token)
            if waiting is None or waiting.done():
                continue
            if inbox or (not subscription and denied.concerns(asked)):
                denied.subject = subject if inbox else asked  # as it was written
                waiting.set_exception(denied.again())
        await self._error_cb(denied)

    def _answers_come_to(self) -> str:
        prefix = self._resp_sub_prefix
        return bytes(prefix).decode().lower() if prefix else "-"

    def _connect_command(self) -> bytes:
        writer = getattr(self._transport, "_io_writer", None)
        encrypted = writer is not None and writer.get_extra_info("ssl_object") is not None
        if self.require_tls and not encrypted:
            raise nats.errors.SecureConnRequiredError
        if encrypted and writer is not None:
            # nats-py forgets to say so after its upgrade, and asyncio warns at the end of every connection.
            writer.transport.get_protocol()._over_ssl = True
        return super()._connect_command()

    async def _process_op_err(self, e: Exception) -> None:
        self.abort()
        await super()._process_op_err(e)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _connect_to_server(self, s: Srv) -> None:
        self.abort()
        self.deaf = None
        await super()._connect_to_server(s)

    def abort(self) -> None:
        """The socket is closed now, whatever waits to be sent."""
        writer = getattr(self._transport, "_io_writer", None)  # none on nats-py's WebSocket transport
        if writer is not None:
            writer.transport.abort()


def _is_readable(subject: bytes, reply: bytes, headers: bytes | None) -> bool:
    """Whether nats-py can read a message, and takes one out of a stream for what it is: a status is the server's to
    tell, and never stored."""
    try:
        subject.decode()
        reply.decode()
        if not headers:
            return True
        if reply.startswith(_STORED):
            return headers.startswith(_HEADERS) and not _STATUS.search(headers)
        status, _, _ = headers.partition(b"\r\n\r\n")
        return headers.startswith(_HEADERS) or (headers.startswith(b"NATS/1.0 ") and bool(status.decode()))
    except UnicodeDecodeError:
        return False


class Bus:
    """A live connection. `nc` and `js` are nats-py's own objects; `subjects` names everything."""

    def __init__(self, nc: NatsClient, settings: NatsSettings) -> None:
        self.nc = nc
        self.settings = settings
        self.subjects: Subjects = settings.subjects
        self.js: JetStreamContext = nc.jetstream(timeout=5)
        self.connected_since: float | None = time.monotonic()
        """Monotonic time of the present connection, None while there is none."""
        self.last_error: str = ""
        self.refusal: str = ""
        """NATS said that credentials are wrong; the errors that follow (a reset connection) hide it otherwise."""
        self.closed = asyncio.Event()
        """Set when the connection is gone for good (credentials expired): the process must end."""
        self.closing = False
        """Set when the owner leaves: that the connection goes then is no news."""
        self._arrived = False
        self._denials: set[str] = set()
        self._deaf_to: list[PermissionDenied] = []
        self._denied: list[Callable[[PermissionDenied], None]] = []
        self._reconnected: list[Callable[[], None]] = []
        self._pings: set[asyncio.Task[None]] = set()
        self._disconnected: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        return self.connected_since is not None and self.nc.is_connected

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """`callback` runs after every reconnect; what it starts must be owned by the caller."""
        self._reconnected.append(callback)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """`callback` runs whenever a connection is lost; answers to what was asked before may never come."""
        self._disconnected.append(callback)

    def on_denied(self, callback: Callable[[PermissionDenied], None]) -> None:
        """`callback` is told whatever NATS does not permit: for those who wait for an answer in their own way."""
        self._denied.append(callback)

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> Msg:
        """One question, one answer; raises `Unavailable` when nobody answers within `timeout` seconds, and
        `PermissionDenied` (one of those) at once when this user may not ask that."""
        try:
            return await self.nc.request(subject, payload, timeout=timeout)
        except PermissionDenied as exc:
            raise exc.again() from exc
        except nats.errors.NoRespondersError as exc:
            raise Unavailable(f"nobody listens on {subject}") from exc
        except (TimeoutError, nats.errors.TimeoutError) as exc:
            reason = f" ({self.last_error})" if self.last_error else ""
            raise Unavailable(f"no answer on {subject} within {timeout:g} s{reason}") from exc
        except nats.errors.Error as exc:
            raise Unavailable(f"NATS is away: {exc or type(exc).__name__}") from exc

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Fire and forget; raises `Unavailable` while NATS is away."""
        try:
            await self.nc.publish(subject, payload, headers=headers)
        except nats.errors.Error as exc:
            raise Unavailable(f"NATS is away: {exc or type(exc).__name__}") from exc

    async def flush(self, timeout: float = 5.0) -> None:
        """Returns when the server has handled all that was subscribed and published before. Raises `Unavailable`,
        and `PermissionDenied` when it did not permit one of the subscriptions made since the last call.

        nats-py's own flush writes its ping ahead of the commands still waiting to be sent, so that its pong may
        come before they do (1 subscription in 100 was not there yet): the second ping follows them. And its reader
        dies of a pong for a flush that was cancelled or timed out: so ours go on in tasks of their own.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._ping()
                await self._ping()
        except (TimeoutError, nats.errors.Error) as exc:
            raise Unavailable(f"NATS is away: {exc or type(exc).__name__}") from exc
        if self._deaf_to:
            denied, self._deaf_to = self._deaf_to[0], []
            raise denied

    async def _ping(self) -> None:
        # Long enough that the link is known to be dead first, which makes nats-py forget the pong.
        task = asyncio.create_task(self.nc.flush(timeout=PING_INTERVAL * (PINGS_OUTSTANDING + 4)))
        self._pings.add(task)
        task.add_done_callback(self._pinged)
        await asyncio.shield(task)

    def _pinged(self, task: asyncio.Task[None]) -> None:
        self._pings.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits; the link's end is told by its own callbacks

    async def serve(
        self,
        subject: str,
        handler: Callable[[Msg], Awaitable[None]],
        *,
        queue: str = "",
        handlers: BoundedHandlers,
        busy: Callable[[Msg], Awaitable[None]] | None = None,
    ) -> Subscription:
        """Call `handler` for each message in a task of its own; past the bound of `handlers`, `busy` instead."""

        async def received(msg: Msg) -> None:
            if not handlers.submit(lambda: handler(msg)) and busy is not None:
                await busy(msg)

        return await self.nc.subscribe(subject, queue=queue, cb=received)

    # What nats-py tells us.

    def _on_denied(self, denied: PermissionDenied) -> None:
        if denied.subscription:
            if len(self._deaf_to) < _TOLD_DENIALS:
                self._deaf_to.append(denied)
            subjects = (sub.subject for sub in self.nc._subs.values())
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
        said = str(exc) or type(exc).__name__
        # While NATS is away every try says the same, four times a second: once is enough for a log.
        level = logging.DEBUG if said == self.last_error else logging.WARNING
        self.last_error = said
        if "authorization" in said.lower() or isinstance(
            exc, nats.errors.SecureConnRequiredError | ssl.SSLCertVerificationError
        ):
            self.refusal = said
        if not self._arrived:
            if self.refusal:
                raise exc  # trying again will not help: ends the first connect at once
            return  # the error that `connect` raises says it
        log.log(level, "NATS: %s", said)

    async def _on_disconnected(self) -> None:
        if self._arrived and self.connected_since is not None and not self.closing:
            log.warning("NATS is away; trying again for as long as it takes")
        self.connected_since = None
        self._denials.clear()  # on the next connection its permissions may be others
        self._deaf_to.clear()
        for callback in self._disconnected:
            callback()

    async def _on_reconnected(self) -> None:
        self.connected_since = time.monotonic()
        self.last_error = ""
        log.info("NATS is back")
        for callback in self._reconnected:
            callback()

    async def _on_closed(self) -> None:
        self.connected_since = None
        self.closed.set()


@asynccontextmanager
async def connect(settings: NatsSettings, *, name: str, timeout: float = 5.0) -> AsyncIterator[Bus]:
    """A `Bus` for the time of the block. Raises `Unavailable`, with what NATS said, after `timeout` seconds.

    Leaving flushes what was published (2 s at most) and closes. Subscriptions end with it: components that serve
    requests stop their subscriptions and wait for their handlers before they leave this block.
    """
    nc = _Client()
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
    except (TimeoutError, nats.errors.Error, OSError) as exc:
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
    except (TimeoutError, nats.errors.Error):
        log.warning("NATS went away before everything was sent")
    for ping in bus._pings:
        ping.cancel()  # the reader ends now anyway
    try:
        # After a TLS handshake that failed nats-py would wait for ever.
        async with asyncio.timeout(2 if bus._arrived else 0.2):
            await nc.close()
    except (TimeoutError, nats.errors.Error, OSError) as exc:
        level = logging.WARNING if bus._arrived else logging.DEBUG
        log.log(level, "closing the NATS connection: %s", str(exc) or type(exc).__name__)
    if isinstance(nc, _Client):
        nc.abort()  # what could not be sent in that time never will be


def _why_not(bus: Bus, exc: BaseException, timeout: float) -> str:
    """What to tell when the first connect fails, and what to do."""
    where = ", ".join(bus.settings.servers)
    if "authorization" in bus.refusal.lower():
        return f"NATS at {where} refuses the user or password: NATS_USER, NATS_PASSWORD (NATS_PASSWORD_FILE)"
    if "certificate" in bus.refusal.lower():
        return (
            f"NATS at {where} shows a certificate that is not to be trusted: {bus.refusal}. NATS_CA is the authority "
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
