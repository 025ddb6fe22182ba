"""How the emulator misbehaves to order: what is ordered, for which requests, how often. Pure.

    emulator.misbehave("status", Fail(503, retry_after=1), times=2)
    emulator.misbehave("deploy", Silent(carried_out_after=3.0), times=1)      # a time-out, but created late
    emulator.misbehave("list", Spoil(empty_list))
    emulator.misbehave("life", NeverReady())                                  # for deployments made from now on
    emulator.misbehave("webhook", Repeat(10))

Operations: deploy, status, stop, list, application, version, session.create, session.get, session.delete, sessions,
self-stop, context; `life` is what becomes of a deployment, `webhook` how one is delivered.
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
    """Answer with this status. `retry_after` (seconds) becomes the header; `carried_out`: do it all the same."""

    status: int
    message: str = "ordered by the test"
    retry_after: float | None = None
    carried_out: bool = False


@dataclass(frozen=True, slots=True)
class Silent:
    """No answer until the client gives up. `carried_out_after`: seconds until it is done all the same; None: never."""

    carried_out_after: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Drip:
    """The answer comes `size` bytes at a time, one lot every `every` seconds."""

    every: float = 0.1
    size: int = 1


@dataclass(frozen=True, slots=True)
class Huge:
    """A body of so many bytes, as fast as it is read."""

    size: int = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Garbage:
    """A body that is not what it should be, by default JSON that stops in the middle."""

    body: bytes = b'{"request_id": "4f2'


@dataclass(frozen=True, slots=True)
class Spoil:
    """The right answer, changed."""

    change: Callable[[Any], Any]


def without_ports(answer: Any) -> Any:
    return _in_deployment(answer, lambda one: one.pop("ports", None))


def null_address(answer: Any) -> Any:
    return _in_deployment(answer, lambda one: one.update(public_ip=None))


def port_70000(answer: Any) -> Any:
    def change(one: dict[str, Any]) -> None:
        for port in (one.get("ports") or {}).values():
            port["external"] = 70_000

    return _in_deployment(answer, change)


def empty_list(answer: Any) -> Any:
    return {**answer, "data": [], "total_count": 0}


def _in_deployment(answer: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    """In a status, in each of a list, in a session's deployment."""
    for one in answer.get("data") or [answer.get("deployment") or answer]:
        change(one)
    return answer


@dataclass(frozen=True, slots=True)
class NeverReady:
    """The deployment stays on its way."""


@dataclass(frozen=True, slots=True)
class GoesWrong:
    """The deployment ends in error instead of being ready."""

    detail: str = "Pull image timeout exceeded"


@dataclass(frozen=True, slots=True)
class Dies:
    """Its server is killed so many seconds after it was ready."""

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Vanishes:
    """It is gone from the list and unknown so many seconds after it was ready; its server is stopped. `hidden`: it is
    gone from the list alone, and goes on."""

    after: float = 0.0
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Repeat:
    """The webhook is delivered so many times; 0: never."""

    times: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Webhooks are kept until `count` have come together, then delivered in reverse."""

    count: int


OnRequest: TypeAlias = Fail | Silent | Drip | Huge | Garbage | Spoil
OnLife: TypeAlias = NeverReady | GoesWrong | Dies | Vanishes
OnWebhook: TypeAlias = Repeat | Hold
Misbehaviour: TypeAlias = OnRequest | OnLife | OnWebhook

_ON_LIFE = (NeverReady, GoesWrong, Dies, Vanishes)
_ON_WEBHOOK = (Repeat, Hold)


@dataclass(slots=True, eq=False)
class Order:
    """One order; `left` counts down, None is for ever. `cancel()` ends it."""

    operation: str
    how: Misbehaviour
    left: int | None = None
    taken: int = 0
    _cancelled: bool = field(default=False, repr=False)

    @property
    def over(self) -> bool:
        return self._cancelled or self.left == 0

    def cancel(self) -> None:
        self._cancelled = True


class Plan:
    """The orders, oldest first; the first that fits is taken."""

    def __init__(self) -> None:
        self._orders: list[Order] = []

    def add(self, operation: str, how: Misbehaviour, times: int | None = None) -> Order:
        """Raises `ValueError` for an operation there is not, or one that cannot misbehave so."""
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
            raise ValueError(f"{type(how).__name__} is no misbehaviour of {operation!r}")
        order = Order(operation, how, times)
        self._orders.append(order)
        return order

    def take(self, operation: str) -> Misbehaviour | None:
        self._orders = [order for order in self._orders if not order.over]
        for order in self._orders:
            if order.operation == operation:
                order.taken += 1
                if order.left is not None:
                    order.left -= 1
                return order.how
        return None

    def clear(self) -> None:
        self._orders.clear()
