"""The errors of Edgegap's API. Their texts quote Edgegap's message.

OrchestratorError
├── Gone                    404, 410 (not of a POST): an unknown or deleted id
├── NoCapacity
│   ├── Busy                our own rate limit holds the call back
│   └── NoRoom              422, or a text about a quota: nothing can be placed now
├── NotConfigured
│   ├── Unauthorized        401, 403: the token
│   └── Rejected            any other 4xx: the request is wrong, and stays so
└── OrchestratorUnavailable
    ├── RateLimited         429
    ├── Unreachable         no answer in time, no connection, 5xx
    └── Unreadable          an unusable answer: no JSON, too long, members missing or of a wrong type
"""

from __future__ import annotations

from tipoff_orchestrator_client.base import (
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
)


class Gone(OrchestratorError):
    """Edgegap does not know this deployment, session, application or version."""


class NoRoom(NoCapacity):
    """Edgegap can place nothing now. `request_id`: the deployment that it created in error, if it names one."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message, retryable=True, retry_after=5.0)
        self.request_id = request_id
        """Of what could not be placed."""


class Busy(NoCapacity):
    """Our own rate limit holds the call back. Edgegap is well, so a circuit breaker must not count it."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, retryable=True, retry_after=retry_after)


class Unauthorized(NotConfigured):
    """Edgegap refuses the token."""


class Rejected(NotConfigured):
    """Edgegap refuses the request with this `status`."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class RateLimited(OrchestratorUnavailable):
    """Edgegap's rate limit is exceeded."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, retryable=True, retry_after=retry_after)


class Unreachable(OrchestratorUnavailable):
    """Edgegap gives no usable response. `sent`: the request may have arrived, and may have been carried out."""

    def __init__(self, message: str, *, sent: bool, retry_after: float | None = None) -> None:
        super().__init__(message, retryable=True, may_have_started=sent, retry_after=retry_after)
        self.sent = sent


class Unreadable(OrchestratorUnavailable):
    """Edgegap's answer cannot be parsed or used."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True, may_have_started=True)
