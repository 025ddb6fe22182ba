"""What a live check has seen at Edgegap. `judge.py` decides what follows from it. Pure.

A member is None, or empty, where the check did not come that far; `unseen` then says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.errors import Gone, NoRoom, Rejected


@dataclass(frozen=True, slots=True)
class Call:
    """One call that may be refused. `error` None: it succeeded."""

    error: OrchestratorError | None = None

    @property
    def ok(self) -> bool:
        """Whether Edgegap did what was asked."""
        return self.error is None

    @property
    def refused(self) -> bool:
        """Whether Edgegap refused the request as wrong; a time-out, a quota or a 5xx says nothing about that."""
        return isinstance(self.error, Gone | Rejected)

    @property
    def no_room(self) -> bool:
        """Whether a quota, or a lack of room, kept Edgegap from it."""
        return isinstance(self.error, NoRoom)

    @property
    def status(self) -> int | None:
        """The HTTP status of a refusal, where it is known."""
        return self.error.status if isinstance(self.error, Rejected) else None

    def __str__(self) -> str:
        return "accepted" if self.error is None else str(self.error)


@dataclass(frozen=True, slots=True)
class Hit:
    """One call of a burst. Times are seconds; the call arrived at Edgegap between them. `limited`: it got 429."""

    sent: float
    answered: float
    limited: bool


@dataclass(frozen=True, slots=True)
class Burst:
    """Calls of one kind at once, more than its limit of `rate` a second, and one more call `pause` seconds after the
    last answer."""

    what: str
    rate: int
    hits: tuple[Hit, ...]
    pause: float
    later_limited: bool


@dataclass(frozen=True, slots=True)
class PageSeen:
    """The first page of the deployments: `rows` of `total`, where `asked` were asked for. `call`: was it refused?"""

    asked: int
    call: Call
    rows: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ScratchVersion:
    """The inactive version that the check creates. `full`: with `arguments` and `session_config`; `plain`: without
    them, tried where `full` was refused; `shown`: what Edgegap shows of it."""

    full: Call
    plain: Call | None = None
    shown: Mapping[str, Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is such a version now."""
        return self.full.ok or (self.plain is not None and self.plain.ok)


@dataclass(slots=True)
class SessionSeen:
    """What became of the session. `created`, `deleted`: the calls. `linked_to`: request id of its deployment.
    `waited`: it was seen before it was ready. `usable`: ready, with address and ports. `gone`: unknown after its
    deletion; `deployment_runs`: its deployment went on."""

    created: Call
    linked_to: str = ""
    waited: bool = False
    usable: bool = False
    failed: str = ""
    deleted: Call | None = None
    gone: bool | None = None
    deployment_runs: bool | None = None


@dataclass(slots=True)
class HooksSeen:
    """The session's webhooks. `proved`: a webhook that the check posted itself came through httpd and NATS to it.
    `states`: (linked, ready) of each webhook that came."""

    proved: bool = False
    states: list[tuple[bool, bool]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoppedSeen:
    """`known` at `after` seconds after the deployment was stopped."""

    after: float
    known: bool


@dataclass(slots=True)
class Evidence:
    """Everything that one live check has seen.

    `orders`: length of the longest tag -> the order with it. `known_after`: seconds from the order to the first status
    that knew the deployment; `unknown_for`: seconds in which it was looked for in vain. `announced_url`: the WebSocket
    URL that the server announced for browsers. `ended`: why the deployment ended by itself, or "".
    """

    unseen: dict[str, str] = field(default_factory=dict)
    unknown_id: Call | None = None
    page: PageSeen | None = None
    large_page: PageSeen | None = None
    bursts: list[Burst] = field(default_factory=list)
    scratch: ScratchVersion | None = None
    order_of_inactive: Call | None = None
    order_of_unknown: Call | None = None
    orders: dict[int, Call] = field(default_factory=dict)
    request_id: str = ""
    known_after: float | None = None
    unknown_for: float = 0.0
    ended: str = ""
    session: SessionSeen | None = None
    hooks: HooksSeen = field(default_factory=HooksSeen)
    announced_url: str | None = None
    stopped: list[StoppedSeen] = field(default_factory=list)
