"""nats-py's client, hardened: what it does at the level of bytes and sockets, and what hurts there.

Permission errors show as time-outs -> `PermissionDenied`, at once, with the subject and the user; a message whose
subject or headers it cannot read ends its reading for good -> that message alone is thrown away; a dead link is given
up only when it has taken all bytes -> at once; a password goes in clear where no TLS is asked for -> never.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from typing import Any

import nats.errors
import nats.protocol.parser
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv

from tipoff_shared.nats.errors import PermissionDenied

log = logging.getLogger(__name__)

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


_NOT_OPENING = 0.2
"""Seconds for a socket that is being opened when one leaves."""
_CLOSE_TRIES = 5


class HardenedClient(NatsClient):
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
        self._opened = asyncio.Event()
        """No socket is being opened."""
        self._opened.set()
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
        self._opened.clear()
        try:
            await super()._connect_to_server(s)
        finally:
            self._opened.set()

    async def close(self) -> None:
        """Nothing connects any more when it returns. nats-py asks its task to end once: in the middle of connecting the
        new socket would be nobody's, and before Python 3.12 `asyncio.wait_for` may swallow it."""
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
        with contextlib.suppress(TimeoutError):  # then nobody answers, and there is no socket yet
            async with asyncio.timeout(_NOT_OPENING):
                await self._opened.wait()

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
