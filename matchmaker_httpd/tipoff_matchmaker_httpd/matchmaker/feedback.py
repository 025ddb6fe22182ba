"""Merges what the attempts of one player's request answer into what the player reads. Pure: no I/O, clock or timer.

    in    ask, receive, timeout, nats_is_back, fail, abandon; `now` is in seconds of one monotonic clock
    out   `messages` for the player, `publishes` for the matchmakers, and when to call `timeout`: `next_timeout()`

The player reads at most one `Acknowledged` and one `SessionRequestAccepted`, then progress, and as the last message
exactly one `SessionReady` or `Error`, within the deadline. An attempt's `Error` ends the request only when no other
attempt is alive.

The first attempt goes to one matchmaker. When none acknowledges it in time, or the matchmaker falls silent later, all
matchmakers are asked with the same request id: the first one may be stopped or dead.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from tipoff_shared.errors import Internal, Malformed, NoServerInTime, TipoffError, Unavailable, from_code
from tipoff_shared.messages import ACKNOWLEDGED, Failed, ProgressReport, decode_feedback, encode_feedback
from tipoff_shared.subjects import ASK_AGAIN_HEADER, RETRY_AFTER_HEADER

log = logging.getLogger(__name__)

MAX_BUFFERED = 64
"""Messages kept for a player who reads slowly; further progress reports are dropped."""
MAX_ATTEMPTS = 64
"""Attempts that matchmakers may cause by stopping one after another."""
ASK_AGAIN_AFTER = 0.25
"""Seconds until the next attempt when nobody listens: a matchmaker that is being restarted is not back on NATS yet."""
TIMER_TOLERANCE = 0.001
"""Seconds by which a timer may fire early."""
_READY = b'{"SessionReady"'
_ACCEPTED = b'{"SessionRequestAccepted"'
_PROGRESS = b'{"ProgressReport"'
_ERROR = b'{"Error"'
_SILENT = encode_feedback(ProgressReport("The matchmaker is silent: asking the others"))
_FIRST = "1"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a request waits for what, in seconds."""

    request: float = 65.0
    """From the player's request to its answer, whatever happens."""
    acknowledge: float = 10.0
    """For a sign of life from any matchmaker."""
    retry: float = 2.0
    """For a sign of life from the matchmaker that was asked; then all of them are asked."""
    silence: float = 5.0
    """The same once it has answered."""
    nats: float = 1.5
    """For a lost NATS connection to come back."""


class Kind(enum.Enum):
    """What is published: a request to one matchmaker, a request to all of them, or that the player has left."""

    REQUEST = enum.auto()
    RETRY = enum.auto()
    LEFT = enum.auto()


class Publish(NamedTuple):
    """One message to publish. Each attempt has its own inbox; `left` is its time in seconds."""

    kind: Kind
    attempt: str = ""
    left: float = 0.0

    @property
    def first(self) -> bool:
        """It is the request's first attempt."""
        return self.attempt == _FIRST


class Presence(enum.Enum):
    """What a message says about the matchmakers of this namespace."""

    ANSWERING = enum.auto()
    ABSENT = enum.auto()
    """Nobody listens."""
    ONE_IS_DEAF = enum.auto()
    """They answer, but not the one that was asked first."""


class FeedbackMerge:
    """The state of one request. Call `ask` once, then every other method as often as its event occurs.

    After each call read `messages`, `publishes`, `ended` and `next_timeout()`.
    """

    __slots__ = (
        "_accepted",
        "_acknowledged",
        "_alive",
        "_answered",
        "_ask_again_at",
        "_ask_again_until",
        "_attempt",
        "_broadcast",
        "_deadlines",
        "_expires",
        "_heard",
        "_retry",
        "_unanswered_since",
        "ended",
        "failure",
        "messages",
        "publishes",
        "ready",
    )

    def __init__(self, deadlines: Deadlines, now: float, first_retry: float) -> None:
        """`first_retry`: seconds until the first attempt is repeated to all matchmakers."""
        self.messages: deque[bytes] = deque()
        """For the player, in order. The caller takes them from the left."""
        self.publishes: list[Publish] = []
        """For the matchmakers, in order. The caller takes them out."""
        self.ended = False
        """Nothing more happens. The last message is the answer, unless the player left before."""
        self.ready = False
        """The answer is `SessionReady`."""
        self.failure: TipoffError | None = None
        """The error that the answer tells."""
        self._deadlines = deadlines
        self._retry = first_retry
        self._expires = now + deadlines.request
        self._heard = self._unanswered_since = now
        self._answered = False
        """The newest attempt, or an older one since it began, has shown a sign of life."""
        self._attempt = 0
        self._alive: set[str] = set()
        """Attempts whose answer may still come."""
        self._broadcast = False
        """All matchmakers have been asked."""
        self._ask_again_at: float | None = None
        self._ask_again_until = 0.0
        """Until then "nobody listens" is not the end: matchmakers, or NATS, are just coming back."""
        self._acknowledged = False
        self._accepted = False

    # Time.

    def next_timeout(self) -> float | None:
        """When to call `timeout`; None: never again. It changes with every call."""
        if self.ended:
            return None
        if self._answered:
            due = self._heard + self._deadlines.silence
        else:
            due = min(self._heard + self._retry, self._unanswered_since + self._deadlines.acknowledge)
        if self._ask_again_at is not None:
            due = min(due, self._ask_again_at)
        return min(due, self._expires)

    def timeout(self, now: float) -> None:
        """Do what is due: give up, ask all matchmakers, or nothing yet."""
        if self.ended:
            return
        soon = now + TIMER_TOLERANCE
        if self._expires <= soon:
            self._give_up(NoServerInTime(f"no server became ready within {self._deadlines.request:g} s"))
        elif not self._answered and self._unanswered_since + self._deadlines.acknowledge <= soon:
            self._give_up(Unavailable("no matchmaker answers", retry_after=2))
        elif self._ask_again_at is not None and self._ask_again_at <= soon:
            self._begin_attempt(Kind.RETRY if self._broadcast else Kind.REQUEST, now)
        elif self._heard + (self._deadlines.silence if self._answered else self._retry) <= soon:
            if self._answered:
                self.messages.append(_SILENT)
            self._ask_everybody(now)
            self._retry = self._deadlines.retry

    # Attempts.

    def ask(self, now: float) -> None:
        """Begin the first attempt."""
        self._begin_attempt(Kind.REQUEST, now)

    def nats_is_back(self, now: float) -> None:
        """Ask again: requests and answers during the outage may be lost, and asking twice does no harm."""
        if self._attempt:
            self._ask_again_until = now + self._deadlines.nats
            self._begin_attempt(Kind.REQUEST, now)

    def _begin_attempt(self, kind: Kind, now: float) -> None:
        """From the second attempt on, earlier ones no longer count, unless they show a sign of life."""
        if self.ended:
            return
        self._attempt += 1
        if self._attempt > 1:
            self._alive.clear()
            self._count_from(now)
        attempt = str(self._attempt)
        self._alive.add(attempt)
        self._ask_again_at = None
        self.publishes.append(Publish(kind, attempt, self._expires - now))

    def _count_from(self, now: float) -> None:
        """Wait anew: earlier messages say nothing about the matchmakers that are asked now."""
        self._heard = now
        if self._answered:
            self._answered = False
            self._unanswered_since = now
            self._retry = self._deadlines.retry

    def _ask_everybody(self, now: float) -> None:
        self._broadcast = True
        self._begin_attempt(Kind.RETRY, now)
        self._ask_again_until = self._unanswered_since + self._deadlines.acknowledge

    # Messages.

    def receive(
        self, data: bytes, headers: dict[str, str] | None, attempt: str, now: float
    ) -> Presence | None:
        """Take in a message that came to the inbox of `attempt`; what it says about the matchmakers."""
        if self.ended:
            return None
        if not data:
            return self._attempt_ended(attempt, headers, now)
        if not data.startswith(_ERROR):  # a sign of life, also from an attempt that no longer counted
            self._heard = now
            self._answered = True
            self._alive.add(attempt)
        if data == ACKNOWLEDGED:
            if self._acknowledged:
                return Presence.ANSWERING
            self._acknowledged = True
            self.messages.append(data)
            return Presence.ANSWERING if attempt == _FIRST else Presence.ONE_IS_DEAF
        if data.startswith(_READY):
            self.ready = self.ended = True
            self.messages.append(data)
        elif data.startswith(_ACCEPTED):
            self._acknowledged = True
            if not self._accepted:
                self._accepted = True
                self.messages.append(data)
        elif data.startswith(_PROGRESS):
            self._acknowledged = True
            if len(self.messages) < MAX_BUFFERED:
                self.messages.append(data)
        elif data.startswith(_ERROR):
            again = headers is not None and ASK_AGAIN_HEADER in headers
            self._attempt_failed(attempt, _error_of(data, headers), now, again=again)
        else:
            return self._receive_unusual(data, headers, attempt, now)
        return None

    def _receive_unusual(
        self, data: bytes, headers: dict[str, str] | None, attempt: str, now: float
    ) -> Presence | None:
        """Another spelling of the same JSON, or something that no client can read."""
        try:
            feedback = decode_feedback(data)
        except Malformed as exc:
            log.warning("a matchmaker sent a message that no client understands: %s", exc)
            return None
        return self.receive(encode_feedback(feedback), headers, attempt, now)

    def _attempt_ended(self, attempt: str, headers: dict[str, str] | None, now: float) -> Presence | None:
        """The empty message: the attempt has ended, or (status 503) nobody listened."""
        if headers is None or headers.get("Status") != "503":
            self._attempt_failed(attempt, Internal("the matchmaker ended without an answer"), now)
            return None
        if now >= self._ask_again_until or attempt not in self._alive:
            self._attempt_failed(attempt, Unavailable("no matchmaker is running", retry_after=2), now)
        elif self._ask_again_at is None:
            self._ask_again_at = now + ASK_AGAIN_AFTER
        return Presence.ABSENT

    def _attempt_failed(self, attempt: str, error: TipoffError, now: float, *, again: bool = False) -> None:
        """`again`: its matchmaker is stopping, and the others are to be asked."""
        if attempt not in self._alive:
            return
        self._alive.discard(attempt)
        if self._alive:
            return
        if again and self._attempt < MAX_ATTEMPTS:
            self._ask_everybody(now)
        else:
            self.fail(error)

    # The end.

    def fail(self, error: TipoffError) -> None:
        """End with `error`. Does nothing after the end."""
        if self.ended:
            return
        self.failure = error
        self.ended = True
        self.messages.append(encode_feedback(Failed(error.code, error.message)))

    def abandon(self) -> None:
        """The player has left: end without an answer and tell the matchmakers. Does nothing after the end."""
        if not self.ended:
            self.ended = True
            self._tell_left()

    def _give_up(self, error: TipoffError) -> None:
        """A matchmaker that was only paused must find no seat for this player when it goes on."""
        self.fail(error)
        self._tell_left()

    def _tell_left(self) -> None:
        if self._attempt:
            self.publishes.append(Publish(Kind.LEFT))


def _error_of(data: bytes, headers: dict[str, str] | None) -> TipoffError:
    """The error in an `Error` message, with the Retry-After header that may come with it."""
    try:
        feedback = decode_feedback(data)
    except Malformed as exc:
        log.warning("a matchmaker sent an error that cannot be read: %s", exc)
        return Internal("the matchmaker failed")
    if not isinstance(feedback, Failed):
        return Internal("the matchmaker failed")
    retry_after: float | None = None
    if headers is not None and (text := headers.get(RETRY_AFTER_HEADER)):
        try:
            retry_after = min(3600.0, max(0.0, float(text)))
        except ValueError:
            log.warning("a matchmaker sent Retry-After: %r", text[:40])
    return from_code(feedback.code, feedback.message, retry_after=retry_after)
