"""Implements an `Orchestrator` in memory, with faults on request: for tests of everything that uses one.

It passes the same contract suite as the real ones. A method plans a fault, and the next fitting call uses it up. Hooks
let a test do what a real server would do, such as writing its lease:

    fake = FakeOrchestrator(on_start=announce, on_stop=withdraw)
    fake.fail("deploy", NoCapacity("full"), times=2)
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Literal, TypeAlias

from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.events import EventListeners
from tipoff_shared.games import GameKey
from tipoff_shared.primitives.tasks import Tasks

Operation: TypeAlias = Literal["deploy", "get", "stop", "list"]
OnStart: TypeAlias = Callable[[DeploySpec], Awaitable[None] | None]
OnEnd: TypeAlias = Callable[[str], Awaitable[None] | None]


class FakeOrchestrator:
    """Servers that exist only here. Every attribute may be changed at any time.

    `games`: the known games (None: all). `max_servers`: more are refused with `NoCapacity`. `start_delay`,
    `stop_delay`: seconds until a server runs, or until `stop` returns. `dies_after`: seconds until a server that is
    started from now on dies by itself; None: never. The hooks are functions or coroutine functions: `on_start(spec)`
    is called when a server runs, `on_stop(id)` when one was stopped (it withdraws its lease), `on_death(id)` when one
    died (its lease is left to expire).
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        games: Iterable[GameKey] | None = None,
        max_servers: int | None = None,
        start_delay: float = 0.0,
        stop_delay: float = 0.0,
        dies_after: float | None = None,
        on_start: OnStart | None = None,
        on_stop: OnEnd | None = None,
        on_death: OnEnd | None = None,
    ) -> None:
        self._name = name
        self.games = None if games is None else set(games)
        self.max_servers = max_servers
        self.start_delay = start_delay
        self.stop_delay = stop_delay
        self.dies_after = dies_after
        self.on_start = on_start
        self.on_stop = on_stop
        self.on_death = on_death
        self.calls: list[tuple[Operation, str]] = []
        """Every call in order, with its deployment id ("" for list)."""
        self.started: Counter[str] = Counter()
        """How often each deployment was started: never more than once."""
        self._stopped_before: set[str] = set()
        self._deployments: dict[str, Deployment] = {}
        self._errors: dict[Operation, deque[OrchestratorError]] = {
            "deploy": deque(),
            "get": deque(),
            "stop": deque(),
            "list": deque(),
        }
        self._lost_answers = 0
        self._late: deque[float] = deque()
        self._never_ready = 0
        self._empty_lists = 0
        self._lost_events = 0
        self._doubled_events = 0
        self._hidden: set[str] = set()
        self._vanished: set[str] = set()
        self._listeners = EventListeners()
        self._start_listeners: list[Callable[[], None]] = []
        self._lives = Tasks(f"{name} servers")

    def subscribe_starts(self, listener: Callable[[], None]) -> None:
        """See `TellsStarts`."""
        self._start_listeners.append(listener)

    # Faults on request.

    def fail(self, operation: Operation, error: OrchestratorError, times: int = 1) -> None:
        """The next `times` calls of `operation` raise `error` and do nothing."""
        self._errors[operation].extend([error] * times)

    def mend(self, operation: Operation) -> None:
        """Calls of `operation` no longer fail."""
        self._errors[operation].clear()

    def restarted(self) -> None:
        """Its service says that it has started."""
        for listener in self._start_listeners:
            listener()

    def lose_answers(self, times: int = 1) -> None:
        """The next `times` deploys start their server, but the caller only sees a time-out."""
        self._lost_answers += times

    def start_late(self, delay: float, times: int = 1) -> None:
        """The next `times` deploys time out, and start their server `delay` seconds later, even after a stop: so does a
        service that breaks the contract under load."""
        self._late.extend([delay] * times)

    def never_ready(self, times: int = 1) -> None:
        """The next `times` servers stay `STARTING`: no `on_start`, no event."""
        self._never_ready += times

    def run(self, deployment_id: str) -> None:
        """A server that stayed `STARTING` runs now."""
        self._update(deployment_id, RunState.RUNNING)

    def empty_lists(self, times: int = 1) -> None:
        """The next `times` lists are empty, without an error."""
        self._empty_lists += times

    def hide(self, deployment_id: str) -> None:
        """From now on the deployment is missing from `list`; it lives, and `get` still confirms it."""
        self._hidden.add(deployment_id)

    async def vanish(self, deployment_id: str) -> None:
        """The deployment is gone from `list` and `get` without an event; `on_death` is called."""
        self._vanished.add(deployment_id)
        self._update(deployment_id, RunState.STOPPED, "vanished", tell=False)
        await _call(self.on_death, deployment_id)

    async def kill(self, deployment_id: str, reason: str = "killed by signal 9 (SIGKILL)") -> None:
        """The deployment's server dies now."""
        if self._update(deployment_id, RunState.STOPPED, reason):
            await _call(self.on_death, deployment_id)

    def lose_events(self, times: int = 1) -> None:
        """The next `times` events are not sent."""
        self._lost_events += times

    def double_events(self, times: int = 1) -> None:
        """The next `times` events are sent twice."""
        self._doubled_events += times

    def tell(self, event: Deployment) -> None:
        """Send an event to all listeners, true or not."""
        self._publish(event)

    @property
    def living(self) -> list[str]:
        """Ids of the servers that live, whatever `list` returns."""
        return [id for id, known in self._deployments.items() if known.state is not RunState.STOPPED]

    # The interface, see `Orchestrator`.

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """See `Orchestrator`."""
        self._called("deploy", spec.deployment_id)
        known = self._deployments.get(spec.deployment_id)
        if known is None:
            if self.games is not None and (spec.game, spec.version) not in self.games:
                raise NotConfigured(f"{self._name} does not know game {spec.game!r} version {spec.version!r}")
            if self.max_servers is not None and len(self.living) >= self.max_servers:
                raise NoCapacity(
                    f"{self._name} runs {self.max_servers} servers, no more are allowed",
                    retryable=True,
                    retry_after=5,
                )
            known = Deployment(
                spec.deployment_id,
                spec.game,
                spec.version,
                RunState.STARTING,
                native_id=f"{self._name}-{len(self._deployments) + 1}",
                own_key=spec.own_key,
            )
            if self._late:
                self._lives.start(self._start_late(spec, self._late.popleft()), f"late {spec.deployment_id}")
                raise OrchestratorUnavailable(
                    f"no answer from {self._name} in time", retryable=True, may_have_started=True
                )
            if spec.deployment_id in self._stopped_before:
                return replace(known, state=RunState.STOPPED, reason="stopped before it started")
            self._deployments[spec.deployment_id] = known
            self.started[spec.deployment_id] += 1
            if self._never_ready > 0:
                self._never_ready -= 1
            else:
                self._lives.start(self._live(spec, self.start_delay, self.dies_after), spec.deployment_id)
        if self._lost_answers > 0:
            self._lost_answers -= 1
            raise OrchestratorUnavailable(
                f"no answer from {self._name} in time", retryable=True, may_have_started=True
            )
        return known

    async def get(self, deployment_id: str) -> Deployment | None:
        """See `Orchestrator`."""
        self._called("get", deployment_id)
        if deployment_id in self._vanished:
            return None
        return self._deployments.get(deployment_id)

    async def stop(self, deployment_id: str) -> None:
        """See `Orchestrator`."""
        self._called("stop", deployment_id)
        if self._update(deployment_id, RunState.STOPPED, "stopped"):
            await _call(self.on_stop, deployment_id)
        elif deployment_id not in self._deployments:
            self._stopped_before.add(deployment_id)
        await asyncio.sleep(self.stop_delay)

    async def list(self) -> list[Deployment]:
        """See `Orchestrator`."""
        self._called("list", "")
        if self._empty_lists > 0:
            self._empty_lists -= 1
            return []
        gone = self._hidden | self._vanished
        return [
            known
            for id, known in self._deployments.items()
            if known.state is not RunState.STOPPED and id not in gone
        ]

    async def events(self) -> AsyncIterator[Deployment]:
        """See `Orchestrator`."""
        with self._listeners.listen() as queue:
            async for event in queue:
                yield event

    async def close(self) -> None:
        """End the event iterators, the servers' timers and hooks; every server keeps its state."""
        self._listeners.close()
        await self._lives.close()

    # A server's life.

    async def _start_late(self, spec: DeploySpec, delay: float) -> None:
        await asyncio.sleep(delay)
        self._deployments[spec.deployment_id] = Deployment(
            spec.deployment_id,
            spec.game,
            spec.version,
            RunState.STARTING,
            native_id=f"{self._name}-late",
            own_key=spec.own_key,
        )
        self.started[spec.deployment_id] += 1
        await self._live(spec, self.start_delay, self.dies_after)

    async def _live(self, spec: DeploySpec, start_delay: float, dies_after: float | None) -> None:
        await asyncio.sleep(start_delay)
        if not self._update(spec.deployment_id, RunState.RUNNING):
            return  # stopped before it ran
        if self.on_start is not None:
            result = self.on_start(spec)
            if inspect.isawaitable(result):
                await result
        if dies_after is not None:
            await asyncio.sleep(dies_after)
            await self.kill(spec.deployment_id, "exited with code 1")

    def _update(self, deployment_id: str, state: RunState, reason: str = "", *, tell: bool = True) -> bool:
        """Move to `state`; False when it does not exist or is stopped (a stopped one never returns)."""
        known = self._deployments.get(deployment_id)
        if known is None or known.state in (RunState.STOPPED, state):
            return False
        known = self._deployments[deployment_id] = replace(known, state=state, reason=reason)
        if tell:
            self._publish(known)
        return True

    def _publish(self, event: Deployment) -> None:
        if self._lost_events > 0:
            self._lost_events -= 1
            return
        copies = 1
        if self._doubled_events > 0:
            self._doubled_events -= 1
            copies = 2
        for _ in range(copies):
            self._listeners.publish(event)

    def _called(self, operation: Operation, deployment_id: str) -> None:
        self.calls.append((operation, deployment_id))
        if self._errors[operation]:
            raise self._errors[operation].popleft()


async def _call(hook: OnEnd | None, deployment_id: str) -> None:
    if hook is not None:
        result = hook(deployment_id)
        if inspect.isawaitable(result):
            await result
