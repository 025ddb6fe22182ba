"""The matchmaker's own exceptions, beside those of `tipoff_shared.errors`.

    TipoffError
    ├── NoRecord                404  no record of this deployment exists
    ├── NotFound                404  an operator named a session or server that does not exist
    ├── NoSeat                  409  a deployment cannot take these members
    ├── AnsweredElsewhere       409  another matchmaker answers this request
    └── Unavailable             503
        └── ShuttingDown             this matchmaker stops; the request may be repeated at once
    OrchestratorError                (`tipoff_orchestrator_client.base`)
    └── OrchestratorUnavailable
        └── CircuitOpen              the orchestrator has failed too often, so it was not called

`LostRace` (a compare-and-set met another revision) and `Full` are those of `tipoff_shared.kv.bucket`. Edgegap's
allocator adds `SessionLost`, which never leaves its folder.
"""

from __future__ import annotations

from tipoff_orchestrator_client.base import OrchestratorUnavailable
from tipoff_shared.errors import TipoffError, Unavailable


class NoRecord(TipoffError):
    """No record of this deployment exists: it was never written, or it is over."""

    code = 404


class NotFound(TipoffError):
    """An operator named a session or a server that does not exist."""

    code = 404


class NoSeat(TipoffError):
    """A deployment cannot take these members (full, not ready, or gone): try another one."""

    code = 409

    def __init__(self, message: str = "the deployment has no seat for them") -> None:
        super().__init__(message)


class AnsweredElsewhere(TipoffError):
    """Another living matchmaker answers this request; this one must stay silent."""

    code = 409


class ShuttingDown(Unavailable):
    """This matchmaker stops; the same request may be repeated at once, for another matchmaker."""

    def __init__(self) -> None:
        super().__init__("this matchmaker is stopping, ask again", retry_after=1)


class CircuitOpen(OrchestratorUnavailable):
    """The orchestrator has failed too often, so it was not called. Repeating before `retry_after` is of no use."""
