"""What can go wrong with NATS, typed. nats-py's own exceptions stay inside `tipoff_shared.nats`.

Unavailable              NATS is away
├── PermissionDenied     this user may not do that; an operator must act
├── NoListener           nobody listens on the subject: the request reached nobody
├── NotSent              the send buffer is full: nothing was sent
├── NoAnswer             no answer in time: whether the request was handled is unknown
└── Refused              JetStream answered with an error: `err_code` says which
    └── NotFound         there is no such stream, consumer or message
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors
import nats.js.errors

from tipoff_shared.errors import Unavailable
from tipoff_shared.primitives.text import describe

FAILURES = (nats.errors.Error, OSError)
"""What nats-py raises when NATS fails. `OSError` includes `TimeoutError`, and comes from every call that sends while
nats-py (2.16) has not noticed yet that its socket is gone, or is taking up a connection that breaks again."""


class PermissionDenied(Unavailable, nats.errors.Error):
    """NATS does not permit this to the connection's user. Retrying does not help; an operator must act.

    `str` says what was denied to whom and what to do; `message`, which a player may see, does not.
    """

    def __init__(self, subject: str, user: str, *, subscription: bool = False, inbox: bool = False) -> None:
        super().__init__("this service is not set up right; its operator's log says how", retry_after=30)
        self.subject = subject
        self.user = user
        self.subscription = subscription
        self.inbox = inbox
        """The subject is the inbox for answers: every request on this connection stays unanswered."""

    def __str__(self) -> str:
        denied = f"NATS user {self.user!r} may not {'subscribe' if self.subscription else 'publish'} to {self.subject}"
        if self.inbox:
            return f"{denied}, where answers to it come: set NATS_INBOX_PREFIX to what its permissions allow"
        return (
            f"{denied}. Is NATS_USER the user of this role, TIPOFF_NAMESPACE the right one? Where NATS has the "
            "permissions of an older version, `tipoff secrets init` renews them and NATS must reload"
        )

    def again(self) -> PermissionDenied:
        """A copy, to raise from this one."""
        return PermissionDenied(self.subject, self.user, subscription=self.subscription, inbox=self.inbox)

    def concerns(self, subject: str) -> bool:
        """Whether `subject` was denied. nats-py reports it in lower case."""
        return self.subject.lower() == subject.lower()


class NoListener(Unavailable):
    """Nobody listens on the subject of a request: it reached nobody."""


class NotSent(Unavailable):
    """NATS is away and the send buffer is full: the message was not sent."""


class NoAnswer(Unavailable):
    """No answer in time. Whether the request was handled is unknown; it may even be handled later."""


class Refused(Unavailable):
    """JetStream answered with an error. `err_code` is nats-server's number for it, `description` its text."""

    def __init__(self, message: str, *, err_code: int = 0, description: str = "") -> None:
        super().__init__(message)
        self.err_code = err_code
        self.description = description


class NotFound(Refused):
    """There is no such stream, consumer or message."""


def typed(exc: BaseException, message: str = "") -> Unavailable:
    """The typed error for one of nats-py's exceptions or a time-out; `message` replaces nats-py's text."""
    said = message or describe(exc)
    match exc:
        case PermissionDenied():
            return exc.again()
        case nats.js.errors.APIError():
            kind = NotFound if isinstance(exc, nats.js.errors.NotFoundError) else Refused
            return kind(said, err_code=exc.err_code or 0, description=exc.description or "")
        case nats.errors.NoRespondersError():
            return NoListener(said)
        case nats.errors.OutboundBufferLimitError():
            return NotSent(said)
        case TimeoutError() | nats.errors.TimeoutError():
            return NoAnswer(said)
        case _:
            return Unavailable(said)


@contextmanager
def translated() -> Iterator[None]:
    """Within the block `FAILURES` become the errors above."""
    try:
        yield
    except FAILURES as exc:
        raise typed(exc) from exc
