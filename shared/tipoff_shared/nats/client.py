"""nats-py's client, hardened at the level of bytes and sockets.

nats-py                                                        here
a permission error shows as a time-out                         `PermissionDenied` at once, with subject and user
an unreadable subject or header ends its reader for good       only that message is dropped
so does a stored message's reply subject of the second form    both forms are read
a dead link is closed only after all bytes were taken          closed at once
sends the password in clear where the server asks no TLS       never
writes to a lost connection can break an unrelated socket      dropped
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.errors import FAILURES, NoAnswer, NoListener, PermissionDenied
from tipoff_shared.nats.wire import STORED_REPLY, is_readable

log = logging.getLogger(__name__)

_DENIED = re.compile(r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"]*)"')
"""nats-server's message, in lower case as nats-py reports it."""
_TELL_UNREADABLE_EVERY = 10.0
_NOT_OPENING = 0.2
"""Seconds that `close` waits for a socket that is being opened."""
_CLOSE_TRIES = 5
_LOOK_FOR_OVERDUE = 0.5
"""Seconds between two looks for questions whose time is up."""


class _TcpTransport(TcpTransport):
    """nats-py's transport for TCP and TLS, which may be written to after its connection was lost.

    asyncio's `writelines` of Python 3.12 to 3.13.7 then waits until the number of the closed socket is writable. The
    next socket that is given this number fails (https://github.com/python/cpython/issues/136234). `write` drops what it
    is given, and every version has it right."""

    def writelines(self, payload: list[bytes]) -> None:
        self.write(b"".join(payload))  # type: ignore[no-untyped-call] # nats-py has no annotation there

    def __bool__(self) -> bool:
        return True  # its own are false until they connect, and nats-py replaces those


# Written against nats-py 2.16: overrides and reads private parts of its client (`_process_msg`, `_process_err`,
# `_process_pong`, `_process_op_err`, `_connect_command`, `_connect_to_server`, `_init_request_sub`, `_remove_sub`,
# `_resp_map`, `_resp_sub_prefix`, `_pongs`, `_transport`, `_reconnection_task`, `_error_cb`, `_server_info`, `_subs`;
# of its subscriptions `_stop_processing` and `_id`).
class HardenedClient(NatsClient):
    """nats-py's client with the changes above (nats-py 2.16).

    nats-py closes a lost connection in order: it waits until everything is sent, which takes a quarter of an hour on a
    half-open link, and reconnects only then; and it never closes a connection that was accepted and stays silent. This
    client aborts lost connections. With `require_tls` it never connects without TLS, whatever the server asks for."""

    require_tls = False
    who = ""
    """The user's name, for error texts."""
    deaf: PermissionDenied | None = None
    """Set when this user may not subscribe to the inbox of its requests."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[str, str] = {}
        """Token of each pending request -> its subject."""
        self._questions: dict[str, tuple[asyncio.Future[bytes], float, float, str]] = {}
        """Token of each call of `ask` -> its answer, the loop's time until which it may come, seconds it was given, the
        subject that was asked."""
        self._inbox = ""
        """What stands before the token in the subject of an answer to `ask`."""
        self._overdue_timer: asyncio.TimerHandle | None = None
        self._opened = asyncio.Event()
        """Set while no socket is being opened."""
        self._opened.set()
        self._unreadable = 0
        self._told_unreadable_at = -_TELL_UNREADABLE_EVERY

    @property
    def server_info(self) -> Mapping[str, Any]:
        """What the connected nats-server says about itself: `version`, `jetstream`, `connect_urls` and more."""
        return self._server_info

    @property
    def subscriptions(self) -> Collection[Subscription]:
        """Those that are made again after a reconnect."""
        return self._subs.values()

    def forget(self, subscription: Subscription) -> None:
        """Do not subscribe again after a reconnect, where ending a subscription failed: nats-py counts it as ended,
        and still does."""
        subscription._stop_processing()
        self._remove_sub(subscription._id)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        """Drop messages whose subject or headers nats-py cannot read: a publisher chooses those bytes, and some of them
        would end nats-py's reader or look like the server's own status."""
        if is_readable(subject, reply, headers):
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] # None where there are none
            return
        self._unreadable += 1
        if (now := time.monotonic()) - self._told_unreadable_at >= _TELL_UNREADABLE_EVERY:
            log.warning(
                "%d unreadable message(s) dropped; the last on %r",
                self._unreadable,
                subject[:100],
            )
            self._told_unreadable_at, self._unreadable = now, 0
        if STORED_REPLY.fullmatch(reply):  # remove it from the stream, or it is delivered again for ever
            with contextlib.suppress(*FAILURES, UnicodeDecodeError):
                await super().publish(reply.decode(), b"+TERM")

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        """Publish, and remember the subject of a request so that a permission error ends it at once."""
        if reply:
            token = reply.rpartition(".")[2]
            waiting = self._resp_map.get(token)
            if waiting is not None:
                if self.deaf is not None:
                    waiting.cancel()  # makes nats-py forget it
                    raise self.deaf.again()
                self._asked[token] = subject
                waiting.add_done_callback(lambda _: self._asked.pop(token, None))
        await super().publish(subject, payload, reply, headers)

    async def ask(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout: float
    ) -> bytes:
        """Send a question to a part of NATS whose answers have a body (JetStream); the body of its answer.

        As `request`, at less than half its cost: it makes no random inbox and no timer for each question, so `timeout`
        (seconds) may be exceeded by half a second. It fails at once when the connection is lost. Raises `NoListener`,
        `NoAnswer`, `PermissionDenied`, `Unavailable`, and nats-py's errors where nothing can be sent. Cancelling is
        safe; what was asked for may still be done.
        """
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        if not self._inbox:
            self._inbox = bytes(self._resp_sub_prefix or b"").decode()
        if self.deaf is not None:
            raise self.deaf.again()
        loop = asyncio.get_running_loop()
        # Other roles may publish to this inbox and learn its prefix from requests, so a token must be unguessable.
        token = os.urandom(12).hex()  # nats-py's own tokens have other lengths
        future: asyncio.Future[bytes] = loop.create_future()
        self._questions[token] = (future, loop.time() + timeout, timeout, subject)
        if self._overdue_timer is None:
            self._overdue_timer = loop.call_later(_LOOK_FOR_OVERDUE, self._fail_overdue)
        try:
            await super().publish(subject, payload, self._inbox + token, headers)
            return await future
        finally:
            self._questions.pop(token, None)

    async def _request_sub_callback(self, msg: Msg) -> None:
        question = self._questions.get(msg.subject[len(self._inbox) :]) if self._inbox else None
        if question is None:
            await super()._request_sub_callback(msg)
            return
        future, _, _, subject = question
        if future.done():
            return
        if msg.data:
            future.set_result(msg.data)
        else:  # a status without a body
            future.set_exception(NoListener(f"nobody listens on {subject}"))

    def _fail_overdue(self) -> None:
        self._overdue_timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for future, deadline, timeout, _ in list(self._questions.values()):
            if deadline <= now and not future.done():
                future.set_exception(NoAnswer(f"no answer within {timeout:g} s"))
        if self._questions:
            self._overdue_timer = loop.call_later(_LOOK_FOR_OVERDUE, self._fail_overdue)

    def fail_questions(self) -> None:
        """Every `ask` raises `Unavailable` now: the connection is gone, and the answers with it."""
        for future, *_ in list(self._questions.values()):
            if not future.done():
                future.set_exception(Unavailable("the connection to NATS was lost"))

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
        requests = [(self._resp_map.get(token), asked) for token, asked in self._asked.items()]
        questions = [(future, asked) for future, _, _, asked in self._questions.values()]
        for waiting, asked in [*requests, *questions]:
            if waiting is None or waiting.done():
                continue
            if inbox or (not subscription and denied.concerns(asked)):
                denied.subject = subject if inbox else asked  # in its original case
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
            # nats-py does not set this after its upgrade to TLS, and asyncio warns at the end of every connection.
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
        self._opened.clear()
        if self._transport is None and s.uri.scheme not in ("ws", "wss"):
            self._transport = _TcpTransport()  # type: ignore[no-untyped-call] # nats-py has no annotation there
        try:
            await super()._connect_to_server(s)
        finally:
            self._opened.set()

    async def close(self) -> None:
        """Close, and return when no task connects any more. nats-py cancels its reconnection task only once: in the
        middle of connecting that leaks the new socket, and before Python 3.12 `asyncio.wait_for` may swallow it."""
        await self._not_opening()
        await super().close()
        task = self._reconnection_task
        if task is None or task is asyncio.current_task():
            return
        for _ in range(_CLOSE_TRIES):
            if task.done():
                break
            await self._not_opening()
            task.cancel()
            await asyncio.wait({task}, timeout=_NOT_OPENING)
        self.abort()

    async def _not_opening(self) -> None:
        with contextlib.suppress(TimeoutError):  # the server does not answer, and there is no socket yet
            async with asyncio.timeout(_NOT_OPENING):
                await self._opened.wait()

    def abort(self) -> None:
        """Close the socket now and drop what waits to be sent."""
        writer = getattr(self._transport, "_io_writer", None)  # none on nats-py's WebSocket transport
        if writer is not None:
            writer.transport.abort()
