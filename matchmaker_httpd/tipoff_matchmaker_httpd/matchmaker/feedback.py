"""One player's request: what its attempts answer, merged into what the player reads. No I/O but the publish.

One `Acknowledged`, one `SessionRequestAccepted`, the first `SessionReady`, and an `Error` only when no other attempt is
alive. Every end is `SessionReady` or `Error`, within the deadline.

The first attempt goes to one matchmaker. When nobody acknowledges it in time, or it falls silent later, every
matchmaker is asked, with the same request id: the one that had it may be stopped or dead.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

import nats.errors

from tipoff_shared.errors import Internal, Malformed, NoServerInTime, TipoffError, Unavailable, from_code
from tipoff_shared.messages import (
    ACKNOWLEDGED,
    Failed,
    PlayRequest,
    ProgressReport,
    decode_feedback,
    encode_feedback,
)
from tipoff_shared.subjects import ASK_AGAIN_HEADER, RETRY_AFTER_HEADER, TIMEOUT_HEADER

if TYPE_CHECKING:
    from tipoff_matchmaker_httpd.matchmaker.client import Calls

log = logging.getLogger(__name__)

MAX_BUFFERED = 64
"""Messages kept for a player who reads slowly; further progress reports are dropped."""
_READY = b'{"SessionReady"'
_ACCEPTED = b'{"SessionRequestAccepted"'
_PROGRESS = b'{"ProgressReport"'
_ERROR = b'{"Error"'
_SILENT = encode_feedback(ProgressReport("The matchmaker is silent: asking the others"))
MAX_ATTEMPTS = 64
"""One whose matchmakers are stopped one after the other asks so often."""
_FIRST = "1"
_SOON = 0.001
"""Seconds by which a timer may come early."""


class Call:
    """One player's request. Iterating yields each message as it goes to the player, the last one is
    `SessionReady` or `Error`; then `failure` is None or says what went wrong. Cancelling is safe; then `close()`.
    """

    __slots__ = (
        "_accepted",
        "_acknowledged",
        "_alive",
        "_answered",
        "_attempt",
        "_broadcast",
        "_buffer",
        "_calls",
        "_ended",
        "_expires",
        "_headers",
        "_heard",
        "_payload",
        "_request",
        "_retry",
        "_timer",
        "_unanswered_since",
        "_waiter",
        "ask_again_until",
        "failure",
        "ready",
        "token",
    )

    def __init__(
        self, calls: Calls, token: str, request: PlayRequest, payload: bytes, headers: dict[str, str]
    ) -> None:
        self._calls = calls
        self.token = token
        self._request = request
        self._payload = payload
        self._headers = headers
        self._buffer: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._acknowledged = False
        self._accepted = False
        self._attempt = 0
        self._broadcast = False
        self._alive: set[str] = set()
        self.ask_again_until = 0.0
        self.failure: TipoffError | None = None
        self.ready = False
        """Whether it ended with `SessionReady`."""
        self._answered = False
        """Whether the newest attempt, or an older one since, has shown a sign of life."""
        now = calls.loop.time()
        self._expires = now + calls.deadline
        self._heard = self._unanswered_since = now
        # One timer for all: it looks when the next thing may be due. Most calls end before it ever does.
        self._retry = calls.first_retry(now)
        self._timer = calls.loop.call_later(min(self._retry, calls.acknowledge, calls.deadline), self._look)

    @property
    def asked(self) -> bool:
        return self._attempt > 0

    async def ask(self, *, alone: bool = False, everybody: bool = False) -> None:
        """Publish one attempt; `alone`: earlier attempts are not counted on any more, unless they show a sign of
        life; `everybody`: to all matchmakers. Never raises for NATS: the call ends with `Unavailable` then."""
        bus = self._calls.bus
        if self._ended:
            return
        if not bus.connected:
            self.fail(Unavailable("NATS is away", retry_after=2))
            return
        self._attempt += 1
        attempt = str(self._attempt)
        if alone:
            self._alive.clear()
            self._begin_again()
        self._alive.add(attempt)
        headers = self._headers
        if self._attempt > 1:
            left = self._expires - self._calls.loop.time()
            headers = headers | {TIMEOUT_HEADER: timeout_text(left)}
        name = bus.subjects.retry if everybody else bus.subjects.request
        try:
            await bus.nc.publish(
                name(self._request.game, self._request.version),
                self._payload,
                reply=f"{self.inbox}.{attempt}",
                headers=headers,
            )
        except nats.errors.Error as exc:
            self.fail(Unavailable(f"NATS is away: {str(exc) or type(exc).__name__}", retry_after=2))

    @property
    def inbox(self) -> str:
        """What the inboxes of all its attempts begin with."""
        return f"{self._calls.prefix}.{self.token}"

    def receive(self, data: bytes, headers: dict[str, str] | None, attempt: str) -> None:
        """What came to the inbox of `attempt`."""
        if self._ended:
            return
        if not data:
            self._attempt_ended(attempt, headers)
            return
        if not data.startswith(_ERROR):  # a sign of life, also of an attempt that was given up
            self._heard = self._calls.loop.time()
            self._answered = True
            self._alive.add(attempt)
        if data == ACKNOWLEDGED:
            self._calls.matchmaker_seen(True)
            if not self._acknowledged:
                self._acknowledged = True
                if attempt != _FIRST:
                    self._calls.one_is_deaf()
                self._push(data)
        elif data.startswith(_READY):
            self.ready = True
            self._push(data)
            self._end()
        elif data.startswith(_ACCEPTED):
            self._acknowledged = True
            if not self._accepted:
                self._accepted = True
                self._push(data)
        elif data.startswith(_PROGRESS):
            self._acknowledged = True
            if len(self._buffer) < MAX_BUFFERED:
                self._push(data)
        elif data.startswith(_ERROR):
            self._attempt_failed(attempt, _error_of(data, headers), again=_says_again(headers))
        else:
            self._receive_unusual(data, headers, attempt)

    def _receive_unusual(self, data: bytes, headers: dict[str, str] | None, attempt: str) -> None:
        """Another spelling of the same JSON, or nothing that a client could read."""
        try:
            feedback = decode_feedback(data)
        except Malformed as exc:
            log.warning("a matchmaker sent what no client understands: %s", exc)
            return
        self.receive(encode_feedback(feedback), headers, attempt)

    def _attempt_ended(self, attempt: str, headers: dict[str, str] | None) -> None:
        """The empty message: the end of an attempt, or nobody was there to hear it."""
        if headers is not None and headers.get("Status") == "503":
            self._calls.matchmaker_seen(False)
            if self._calls.loop.time() < self.ask_again_until and attempt in self._alive:
                self._calls.ask_again_later(self, everybody=self._broadcast)
            else:
                self._attempt_failed(attempt, Unavailable("no matchmaker is running", retry_after=2))
        else:
            self._attempt_failed(attempt, Internal("the matchmaker ended without an answer"))

    def _attempt_failed(self, attempt: str, error: TipoffError, *, again: bool = False) -> None:
        if attempt in self._alive:
            self._alive.discard(attempt)
            if again and not self._alive and self._attempt < MAX_ATTEMPTS:
                self._ask_everybody()
            elif not self._alive:
                self.fail(error)

    def _ask_everybody(self) -> None:
        self._begin_again()
        self._broadcast = True
        self.ask_again_until = self._unanswered_since + self._calls.acknowledge
        self._calls.ask_everybody(self)

    def _begin_again(self) -> None:
        """Count from now: what was said before says nothing about who is asked now."""
        now = self._heard = self._calls.loop.time()
        if self._answered:
            self._answered = False
            self._unanswered_since = now
            self._retry = self._calls.retry
            self._timer.cancel()
            left = max(0.0, self._expires - now)
            self._timer = self._calls.loop.call_later(min(self._retry, left), self._look)

    def fail(self, error: TipoffError) -> None:
        """End with `error`; nothing happens when the call has ended already."""
        if self._ended:
            return
        self.failure = error
        self._push(encode_feedback(Failed(error.code, error.message)))
        self._end()

    def _look(self) -> None:
        """Whatever is due: the end, another attempt, or nothing yet."""
        calls = self._calls
        now = calls.loop.time()
        left = self._expires - now
        if left <= _SOON:
            self._give_up(NoServerInTime(f"no server became ready within {calls.deadline:g} s"))
            return
        patience = calls.silence
        if not self._answered:
            patience = self._retry
            left = min(left, self._unanswered_since + calls.acknowledge - now)
            if left <= _SOON:
                self._give_up(Unavailable("no matchmaker answers", retry_after=2))
                return
        if self._heard + patience - now <= _SOON:
            if self._answered:
                self._push(_SILENT)
            self._ask_everybody()
            patience = self._retry = calls.retry
        self._timer.cancel()
        self._timer = calls.loop.call_later(min(self._heard + patience - now, left), self._look)

    def _give_up(self, error: TipoffError) -> None:
        """One that was stopped may go on one day: it must not find a seat for nobody then."""
        self.fail(error)
        self._calls.left(self)

    def _push(self, message: bytes) -> None:
        self._buffer.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self._ended = True
        self._timer.cancel()
        self._calls.waiting.pop(self.token, None)
        self._wake()

    def close(self) -> None:
        """Stop listening; what has come already can still be read. Whoever works for it is told that nobody waits
        any more. Idempotent."""
        if not self._ended:
            self._end()
            self._calls.left(self)

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> bytes:
        while not self._buffer:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = self._calls.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._buffer.popleft()


def _says_again(headers: dict[str, str] | None) -> bool:
    return headers is not None and ASK_AGAIN_HEADER in headers


def timeout_text(left: float) -> str:
    """The header's value for `left` seconds: a little less, so that the matchmaker's reason comes before our own."""
    return f"{max(left - 0.5, left * 0.8):.3f}"


def _error_of(data: bytes, headers: dict[str, str] | None) -> TipoffError:
    """The error in an `Error` message, with the Retry-After header that may come with it."""
    try:
        feedback = decode_feedback(data)
    except Malformed as exc:
        log.warning("a matchmaker sent an error that cannot be read: %s", exc)
        return Internal("the matchmaker failed")
    assert isinstance(feedback, Failed)
    retry_after: float | None = None
    if headers is not None and (text := headers.get(RETRY_AFTER_HEADER)):
        try:
            retry_after = min(3600.0, max(0.0, float(text)))
        except ValueError:
            log.warning("a matchmaker sent Retry-After: %r", text[:40])
    return from_code(feedback.code, feedback.message, retry_after=retry_after)
