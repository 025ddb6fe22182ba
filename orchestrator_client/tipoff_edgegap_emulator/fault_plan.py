"""Plans faults: what goes wrong, in which operations, how often. Pure.

    emulator.misbehave("status", Fail(503, retry_after=1), times=2)
    emulator.misbehave("deploy", Silent(carried_out_after=3.0), times=1)      # a time-out, but created late
    emulator.misbehave("list", Spoil(empty_list))
    emulator.misbehave("life", NeverReady())                                  # for deployments created from now on
    emulator.misbehave("webhook", Repeat(10))

Faults of a request: Fail, Silent, Drip, Huge, Garbage, Spoil. Of a deployment's life ("life"): NeverReady, GoesWrong,
Dies, Vanishes. Of a webhook's delivery ("webhook"): Repeat, Hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

OPERATIONS = (
    "deploy",
    "status",
    "stop",
    "list",
    "application",
    "application.create",
    "version",
    "version.create",
    "version.change",
    "version.delete",
    "session.create",
    "session.get",
    "session.delete",
    "sessions",
    "self-stop",
    "context",
    "life",
    "webhook",
)


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with this status. `retry_after` (seconds) becomes the header; `carried_out`: perform the operation too."""

    status: int
    message: str = "ordered by the test"
    retry_after: float | None = None
    carried_out: bool = False


@dataclass(frozen=True, slots=True)
class Silent:
    """No answer. `carried_out_after`: seconds until the operation is performed all the same; None: never."""

    carried_out_after: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Drip:
    """The answer arrives slowly: `size` bytes every `every` seconds."""

    every: float = 0.1
    size: int = 1


@dataclass(frozen=True, slots=True)
class Huge:
    """A body of `size` bytes, sent as fast as it is read."""

    size: int = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Garbage:
    """Another body, by default truncated JSON."""

    body: bytes = b'{"request_id": "4f2'


@dataclass(frozen=True, slots=True)
class Spoil:
    """The right answer, changed by `change`."""

    change: Callable[[Any], Any]


def without_ports(answer: Any) -> Any:
    """Every deployment lacks its ports."""
    return _in_deployment(answer, lambda one: one.pop("ports", None))


def null_address(answer: Any) -> Any:
    """Every deployment's `public_ip` is null."""
    return _in_deployment(answer, lambda one: one.update(public_ip=None))


def port_70000(answer: Any) -> Any:
    """Every external port is 70000, which no port is."""

    def change(one: dict[str, Any]) -> None:
        for port in (one.get("ports") or {}).values():
            port["external"] = 70_000

    return _in_deployment(answer, change)


def empty_list(answer: Any) -> Any:
    """The list has no items."""
    return {**answer, "data": [], "total_count": 0}


def _in_deployment(answer: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    """Change each deployment in a status, a list, or a session."""
    for one in answer.get("data") or [answer.get("deployment") or answer]:
        change(one)
    return answer


@dataclass(frozen=True, slots=True)
class NeverReady:
    """The deployment never starts."""


@dataclass(frozen=True, slots=True)
class GoesWrong:
    """The deployment ends in error instead of becoming ready."""

    detail: str = "Pull image timeout exceeded"


@dataclass(frozen=True, slots=True)
class Dies:
    """The deployment's server is killed `after` seconds of being ready."""

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Vanishes:
    """`after` seconds of being ready, the deployment is unknown to every operation and its server is stopped. `hidden`:
    it is only missing from the list, and goes on."""

    after: float = 0.0
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Repeat:
    """The webhook is delivered `times` times; 0: never."""

    times: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Webhooks are held until there are `count`, then delivered in reverse order."""

    count: int


RequestFault: TypeAlias = Fail | Silent | Drip | Huge | Garbage | Spoil
LifeFault: TypeAlias = NeverReady | GoesWrong | Dies | Vanishes
WebhookFault: TypeAlias = Repeat | Hold
Fault: TypeAlias = RequestFault | LifeFault | WebhookFault

_ON_LIFE = (NeverReady, GoesWrong, Dies, Vanishes)
_ON_WEBHOOK = (Repeat, Hold)


@dataclass(slots=True, eq=False)
class PlannedFault:
    """A fault of one operation. `left`: how often it still happens, None for no limit; `taken`: how often it did."""

    operation: str
    how: Fault
    left: int | None = None
    taken: int = 0
    _cancelled: bool = field(default=False, repr=False)

    @property
    def over(self) -> bool:
        """Whether it has happened often enough, or was cancelled."""
        return self._cancelled or self.left == 0

    def cancel(self) -> None:
        """End it; idempotent."""
        self._cancelled = True


class FaultPlan:
    """The planned faults, oldest first; the first one of an operation is taken."""

    def __init__(self) -> None:
        self._planned: list[PlannedFault] = []

    def add(self, operation: str, how: Fault, times: int | None = None) -> PlannedFault:
        """Plan a fault for the next `times` uses of `operation`; None: for all. Raises `ValueError` for an unknown
        operation, or a fault that it cannot have."""
        if operation not in OPERATIONS:
            raise ValueError(f"{operation!r} is none of {', '.join(OPERATIONS)}")
        fits = (
            isinstance(how, _ON_LIFE)
            if operation == "life"
            else isinstance(how, _ON_WEBHOOK)
            if operation == "webhook"
            else not isinstance(how, (*_ON_LIFE, *_ON_WEBHOOK))
        )
        if not fits:
            raise ValueError(f"{type(how).__name__} is no fault of {operation!r}")
        planned = PlannedFault(operation, how, times)
        self._planned.append(planned)
        return planned

    def take(self, operation: str) -> Fault | None:
        """The fault of this use of `operation`, which is thereby counted; None: it works."""
        self._planned = [one for one in self._planned if not one.over]
        for one in self._planned:
            if one.operation == operation:
                one.taken += 1
                if one.left is not None:
                    one.left -= 1
                return one.how
        return None

    def clear(self) -> None:
        """Drop every planned fault."""
        self._planned.clear()
