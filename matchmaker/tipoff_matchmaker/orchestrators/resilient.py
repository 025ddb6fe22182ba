"""Makes any orchestrator resilient: it answers in time, with typed errors, and is left alone while it keeps failing.

Around each call: a deadline, a check of the answer before anybody uses it, typed errors in place of a client's bugs,
and a circuit breaker for each kind of call (an orchestrator that cannot start servers may well stop them).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from tipoff_matchmaker.errors import CircuitOpen
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    GameUnavailable,
    KnowsNativeIds,
    NoCapacity,
    NotConfigured,
    Orchestrator,
    OrchestratorError,
    OrchestratorUnavailable,
    ServerDirectory,
    TellsProblems,
    TellsStarts,
    usable,
    usable_list,
)
from tipoff_shared.admin import Failing, OrchestratorStatus
from tipoff_shared.primitives.circuit_breaker import Breaker, BreakerState
from tipoff_shared.primitives.text import describe, one_line

log = logging.getLogger(__name__)

T = TypeVar("T")

LIMITS = {"deploy": 20.0, "get": 5.0, "stop": 20.0, "list": 4.5}
"""Seconds after which a call has failed, unless the client's own deadline comes first."""

_OUTAGE = 30.0
_OUTAGE_FAILURES = 3

_SEVERITY = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


_WELL = (NoCapacity, GameUnavailable)
"""Errors of a healthy orchestrator: it answers, and can start other servers."""


class ResilientOrchestrator:
    """An `Orchestrator` around `inner`. Where that only is a `ServerDirectory`, `deploy` raises `NotConfigured`.
    `breakers`: one for each of deploy, get, stop and list."""

    def __init__(
        self,
        inner: ServerDirectory,
        *,
        threshold: int = 5,
        first_pause: float = 2.0,
        limits: Mapping[str, float] = LIMITS,
        on_change: Callable[[str, str, BreakerState], None] = lambda name, operation, state: None,
        on_error: Callable[[str, str], None] = lambda name, operation: None,
    ) -> None:
        self._inner = inner
        self._limits = limits
        self._on_change = on_change
        self._on_error = on_error
        self.breakers = {operation: Breaker(threshold, first_pause) for operation in LIMITS}
        self._list_failures: deque[float] = deque(maxlen=_OUTAGE_FAILURES)
        self._list_error = ""
        self._trials = {operation: asyncio.Event() for operation in LIMITS}
        """Set when the trial has ended that others wait for."""
        self._back_listeners: list[Callable[[], None]] = []
        if isinstance(inner, TellsStarts):
            inner.subscribe_starts(self._is_back)
        for operation in LIMITS:
            on_change(inner.name, operation, BreakerState.CLOSED)

    @property
    def name(self) -> str:
        """The orchestrator's name, as in games.toml."""
        return self._inner.name

    def subscribe_back(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the service answers again that did not: what failed meanwhile can be tried."""
        self._back_listeners.append(listener)

    def wait(self, operation: str) -> float:
        """Seconds until such a call would be made; 0: now, or when the one that is being tried has an answer."""
        breaker, now = self.breakers[operation], time.monotonic()
        return breaker.wait(now) if breaker.state_at(now) is BreakerState.OPEN else 0.0

    def describe(self) -> OrchestratorStatus:
        """For status: the worst of the states, and what fails why."""
        now = time.monotonic()
        states = {operation: breaker.state_at(now) for operation, breaker in self.breakers.items()}
        worst = max(states.values(), key=_SEVERITY.__getitem__)
        failing = [
            Failing(
                operation,
                states[operation].value,
                breaker.failures,
                breaker.last_error,
                round(breaker.wait(now), 1),
            )
            for operation, breaker in self.breakers.items()
            if breaker.failures
        ]
        return OrchestratorStatus(self.name, worst.value, failing, self.problems)

    @property
    def problems(self) -> list[str]:
        """What keeps it from starting servers although it answers, in its own words, for people."""
        inner = self._inner
        return list(inner.problems) if isinstance(inner, TellsProblems) else []

    def outage(self) -> str:
        """Why it counts as not working: the last error of `list`, when that call failed three times within 30 s, in a
        row or not, as it does while a service is started again and again, or when its breaker holds it back. "" while
        it works, and while this process does not ask it."""
        now = time.monotonic()
        recent = [at for at in self._list_failures if now - at < _OUTAGE]
        if len(recent) >= _OUTAGE_FAILURES:
            if self.breakers["list"].failures:
                return self._list_error
            return f"it answers, but failed {len(recent)} times within {_OUTAGE:.0f} s: {self._list_error}"
        held_back = self.breakers["list"].state is not BreakerState.CLOSED
        asks = bool(self._list_failures) and now - self._list_failures[-1] < 3 * _OUTAGE
        return self._list_error if held_back and asks else ""

    def starts_nothing(self) -> str:
        """Why it is not asked to start servers at present; "" when it is."""
        breaker = self.breakers["deploy"]
        return breaker.last_error if breaker.state_at(time.monotonic()) is BreakerState.OPEN else ""

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """See `Orchestrator.deploy`; raises `OrchestratorError` only."""
        inner = self._inner
        if not isinstance(inner, Orchestrator):
            raise NotConfigured(f"{self.name} starts its servers itself")
        return await self._call(
            "deploy", lambda: inner.deploy(spec), lambda found: usable(found, spec.deployment_id)
        )

    async def get(self, deployment_id: str) -> Deployment | None:
        """See `Orchestrator.get`; raises `OrchestratorError` only."""
        return await self._call(
            "get",
            lambda: self._inner.get(deployment_id),
            lambda found: None if found is None else usable(found, deployment_id),
        )

    async def stop(self, deployment_id: str) -> None:
        """See `Orchestrator.stop`; raises `OrchestratorError` only."""
        await self._call("stop", lambda: self._inner.stop(deployment_id), lambda nothing: nothing)

    async def list(self) -> list[Deployment]:
        """See `Orchestrator.list`; raises `OrchestratorError` only."""
        return await self._call("list", self._inner.list, usable_list)

    async def deployment_named(self, native_id: str) -> str | None:
        """Where servers may call themselves by the orchestrator's own names; None also when it does not say."""
        if not isinstance(self._inner, KnowsNativeIds):
            return None
        try:
            async with asyncio.timeout(self._limits["get"]):
                return await self._inner.deployment_named(native_id)
        except (OrchestratorError, TimeoutError) as exc:
            log.warning("whose deployment %s is: %s", native_id, str(exc) or "no answer in time")
        except Exception:
            log.exception("deployment_named of orchestrator %s failed by a mistake of its client", self.name)
        return None

    def events(self) -> AsyncIterator[Deployment]:
        """See `Orchestrator.events`: the client's own, without a deadline or a breaker."""
        return self._inner.events()

    async def close(self) -> None:
        """Nothing: the orchestrator is its opener's."""

    def _is_back(self) -> None:
        """What failed because nobody was there is not waited for any longer."""
        for operation, breaker in self.breakers.items():
            breaker.let_through()
            self._trials[operation].set()
        for listener in self._back_listeners:
            listener()

    async def _call(self, operation: str, call: Callable[[], Awaitable[T]], check: Callable[[T], T]) -> T:
        breaker = self.breakers[operation]
        before = await self._admitted(operation)
        error: OrchestratorError
        try:
            async with asyncio.timeout(self._limits[operation]):
                answer = check(await call())
            self._note(operation, before, breaker, None)
            return answer
        except OrchestratorError as exc:
            error = exc
        except TimeoutError:
            error = OrchestratorUnavailable(
                f"{self.name} does not answer within {self._limits[operation]:g} s",
                retryable=True,
                may_have_started=operation == "deploy",
            )
        except Exception:  # a third-party orchestrator: its fault must not end our loops
            log.exception("%s of orchestrator %s failed by a mistake of its client", operation, self.name)
            error = OrchestratorUnavailable(
                f"the client of {self.name} has made a mistake; the matchmaker's log shows it",
                retryable=True,
                may_have_started=operation == "deploy",
            )
        except BaseException:
            breaker.abandoned(time.monotonic())
            self._trials[operation].set()
            raise
        self._note(operation, before, breaker, error)
        raise error

    async def _admitted(self, operation: str) -> BreakerState:
        """Wait until a call may be made: not while the breaker is open, and after the trial, if there is one. Returns
        the state before. Raises `CircuitOpen`."""
        breaker, deadline = self.breakers[operation], time.monotonic() + self._limits[operation]
        while True:
            before, now = breaker.state, time.monotonic()
            if (wait := breaker.admit(now)) <= 0:
                self._trials[operation].clear()
                return before
            if before is not BreakerState.HALF_OPEN or now >= deadline:
                raise CircuitOpen(
                    f"{self.name} has failed {breaker.failures} times in a row ({breaker.last_error}); "
                    f"it is asked again in {math.ceil(wait)} s",
                    retry_after=wait,
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline - now):
                    await self._trials[operation].wait()

    def _note(
        self, operation: str, before: BreakerState, breaker: Breaker, error: OrchestratorError | None
    ) -> None:
        if error is not None and error.retryable and not isinstance(error, _WELL):
            breaker.failed(time.monotonic(), one_line(describe(error)), error.retry_after)
            self._on_error(self.name, operation)
            if operation == "list":
                self._list_failures.append(time.monotonic())
                self._list_error = breaker.last_error
        else:
            failed_before = breaker.failures
            breaker.succeeded()
            if operation == "list" and failed_before:
                self._is_back()
        self._trials[operation].set()
        if breaker.state is before:
            return
        if breaker.state is BreakerState.OPEN:
            log.error(
                "%s of orchestrator %s is left out for %.0f s after %d failures in a row: %s",
                operation,
                self.name,
                breaker.wait(time.monotonic()),
                breaker.failures,
                breaker.last_error,
            )
        elif breaker.state is BreakerState.CLOSED:
            log.warning("%s of orchestrator %s works again", operation, self.name)
        self._on_change(self.name, operation, breaker.state)
