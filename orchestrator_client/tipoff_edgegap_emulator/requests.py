"""Answers requests: authorises, limits, checks and records each, and applies the planned faults.

The rate limits are read strictly: at most so many requests within any second (A: rate-limits). Edgegap publishes the
numbers, not how it counts; a sliding window refuses whatever any other way of counting refuses.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tipoff_edgegap_emulator import schema
from tipoff_edgegap_emulator.fault_plan import Drip, Fail, FaultPlan, Garbage, Huge, Silent, Spoil
from tipoff_edgegap_emulator.http import Answer, Request
from tipoff_edgegap_emulator.operations import Operations
from tipoff_edgegap_emulator.options import Options
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_KEPT = 100_000

_ROUTES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (method, re.compile(pattern), operation)
    for method, pattern, operation in (
        ("POST", r"/v2/deployments", "deploy"),
        ("GET", r"/v1/status/(?P<id>[^/]+)", "status"),
        ("DELETE", r"/v1/stop/(?P<id>[^/]+)", "stop"),
        ("DELETE", r"/v1/self/stop/(?P<id>[^/]+)/(?P<key>[^/]+)", "self-stop"),
        ("GET", r"/v1/context/(?P<id>[^/]+)/(?P<key>[^/]+)", "context"),
        ("GET", r"/v1/deployments", "list"),
        ("POST", r"/v1/app", "application.create"),
        ("GET", r"/v1/app/(?P<app>[^/]+)", "application"),
        ("POST", r"/v1/app/(?P<app>[^/]+)/version", "version.create"),
        ("GET", r"/v1/app/(?P<app>[^/]+)/version/(?P<version>[^/]+)", "version"),
        ("PATCH", r"/v1/app/(?P<app>[^/]+)/version/(?P<version>[^/]+)", "version.change"),
        ("DELETE", r"/v1/app/(?P<app>[^/]+)/version/(?P<version>[^/]+)", "version.delete"),
        ("POST", r"/v1/session", "session.create"),
        ("GET", r"/v1/session/(?P<id>[^/]+)", "session.get"),
        ("DELETE", r"/v1/session/(?P<id>[^/]+)", "session.delete"),
        ("GET", r"/v1/sessions", "sessions"),
    )
)

_BODIES: dict[str, schema.Check] = {
    "session.create": schema.session,
    "application.create": schema.application,
    "version.create": schema.version,
    "version.change": schema.version_change,
}
_QUERIES: dict[str, set[str]] = {"list": {"page", "limit"}, "sessions": {"page", "limit"}}
_FROM_SERVERS = ("self-stop", "context")
"""Game servers call these, each with its own token."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request. `at`: Unix time. `problems`: what was wrong with it, for tests to assert on. `status` 0: it got no
    answer. `document` is the body, secrets included."""

    at: float
    operation: str
    method: str
    path: str
    query: Mapping[str, str]
    status: int
    problems: tuple[str, ...] = ()
    document: Any = field(default=None, repr=False)


class SlidingWindow:
    """Accepts at most `rate * seconds` requests in any `seconds`; refused ones do not count. Pure."""

    def __init__(self, rate: int, seconds: float = 1.0) -> None:
        self._rate = rate * seconds
        self._seconds = seconds
        self._accepted: deque[float] = deque()

    def accept(self, now: float) -> bool:
        """Whether a request at `now` (seconds) is within the limit."""
        while self._accepted and now - self._accepted[0] >= self._seconds:
            self._accepted.popleft()
        if len(self._accepted) >= self._rate:
            return False
        self._accepted.append(now)
        return True


class Requests:
    """The requests of one account. `recorded`: all of them, oldest first."""

    def __init__(
        self, operations: Operations, plan: FaultPlan, token: str, options: Options, tasks: Tasks
    ) -> None:
        self.recorded: deque[Recorded] = deque(maxlen=_KEPT)
        self._operations = operations
        self._plan = plan
        self._authorization = f"token {token}".encode()
        self._rates = dict(options.rates)
        self._windows = {
            operation: SlidingWindow(rate, options.window) for operation, rate in options.rates.items()
        }
        self._bodies = _BODIES | {"deploy": schema.deployment_with(options.max_tag)}
        self._tasks = tasks

    async def handle(self, request: Request) -> Answer:
        """The answer to one request, which is recorded."""
        operation, parts = _route(request)
        document, answer, problems = self._decide(operation, parts, request)
        if problems:
            log.warning("%s %s: %s", request.method, request.path, "; ".join(problems))
        self.recorded.append(
            Recorded(
                time.time(),
                operation,
                request.method,
                request.path,
                request.query,
                answer.status,
                tuple(problems),
                document,
            )
        )
        return answer

    def _decide(
        self, operation: str, parts: Mapping[str, str], request: Request
    ) -> tuple[Any, Answer, list[str]]:
        """The request's body, its answer, and what was wrong with it."""
        now = time.time()
        if not operation:
            message = f"no such endpoint: {request.method} {request.path}"
            return None, Answer(404, {"message": message}), [message]
        if operation in _FROM_SERVERS:
            return None, self._operations.perform(operation, parts, request, None, now), []
        if not hmac.compare_digest(request.authorization.encode(), self._authorization):
            message = "Unauthorized" if request.authorization else "Missing Token"
            return None, Answer(401, {"message": message}), ["wrong authorization"]
        if (window := self._windows.get(operation)) and not window.accept(time.monotonic()):
            message = f"Rate limit exceeded: {self._rates[operation]} requests per second"
            return None, Answer(429, {"message": message}), ["over the rate limit"]
        document, problems = _read(operation, request, self._bodies.get(operation))
        how = self._plan.take(operation)
        if isinstance(how, Fail):
            if how.carried_out and not problems:
                self._operations.perform(operation, parts, request, document, now)
            headers = {} if how.retry_after is None else {"retry-after": f"{how.retry_after:g}"}
            return document, Answer(how.status, {"message": how.message}, headers), problems
        if isinstance(how, Silent):
            if how.carried_out_after is not None and not problems:
                late = self._later(how.carried_out_after, operation, parts, request, document)
                self._tasks.start(late, "late")
            return document, Answer(0, silent=True), problems
        if problems:
            answer = Answer(400, {"message": "; ".join(problems), "details": {"problems": problems}})
            return document, answer, problems
        answer = self._operations.perform(operation, parts, request, document, now)
        if isinstance(how, Spoil):
            answer = Answer(answer.status, how.change(answer.document), answer.headers)
        elif isinstance(how, Drip | Huge | Garbage):
            answer = Answer(answer.status, answer.document, answer.headers, manner=how)
        return document, answer, []

    async def _later(
        self, seconds: float, operation: str, parts: Mapping[str, str], request: Request, document: Any
    ) -> None:
        await asyncio.sleep(seconds)  # the fault itself: the operation is late
        self._operations.perform(operation, parts, request, document, time.time())


def _route(request: Request) -> tuple[str, dict[str, str]]:
    for method, pattern, operation in _ROUTES:
        if method == request.method and (found := pattern.fullmatch(request.path)):
            return operation, found.groupdict()
    return "", {}


def _read(operation: str, request: Request, check: schema.Check | None) -> tuple[Any, list[str]]:
    """The body, and what is wrong with the request."""
    problems = [
        f"query parameter {name!r}: not known here"
        for name in request.query
        if name not in _QUERIES.get(operation, set())
    ]
    problems += [
        f"query parameter {name!r}: {value!r} is not an integer from 1 on"
        for name, value in request.query.items()
        if name in ("page", "limit") and not re.fullmatch(r"[1-9][0-9]{0,8}", value, re.ASCII)
    ]
    if check is None:
        return None, problems + (["a body is not expected here"] if request.body else [])
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError) as exc:
        return None, [*problems, f"the body is not JSON: {exc}"]
    return document, problems + schema.problems(check, document)
