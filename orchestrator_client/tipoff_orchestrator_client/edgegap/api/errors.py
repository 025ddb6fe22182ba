"""What can go wrong with Edgegap, typed, with its own words.

OrchestratorError
├── Gone                    404, 410 (not of a POST); of a status 400 as well: there is no such thing (any more)
├── NoCapacity
│   ├── Busy                we ourselves hold the call back
│   └── NoRoom              422, or words of a quota: nothing can be placed now
├── NotConfigured
│   ├── Unauthorized        401, 403: the token
│   └── Rejected            any other 4xx: the request is wrong, and stays so
└── OrchestratorUnavailable
    ├── RateLimited         429
    ├── Unreachable         no answer in time, no connection, 5xx
    └── Unreadable          an answer nobody can use: no JSON, too long, members missing or of a wrong type
"""

from __future__ import annotations

from tipoff_orchestrator_client.base import (
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
)


class Gone(OrchestratorError):
    """There is no such deployment, session, application or version."""


class NoRoom(NoCapacity):
    """Nothing can be placed now."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message, retryable=True, retry_after=5.0)
        self.request_id = request_id
        """Of what could not be placed."""


class Busy(NoCapacity):
    """Too much is asked just now; no trouble of Edgegap's, so nothing that a circuit breaker should count."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, retryable=True, retry_after=retry_after)


class Unauthorized(NotConfigured):
    """Edgegap does not take the token."""


class Rejected(NotConfigured):
    """Edgegap does not take the request."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class RateLimited(OrchestratorUnavailable):
    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, retryable=True, retry_after=retry_after)


class Unreachable(OrchestratorUnavailable):
    def __init__(self, message: str, *, sent: bool, retry_after: float | None = None) -> None:
        """`sent`: the request may have arrived, so what it asked for may have been done."""
        super().__init__(message, retryable=True, may_have_started=sent, retry_after=retry_after)
        self.sent = sent


class Unreadable(OrchestratorUnavailable):
    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True, may_have_started=True)
