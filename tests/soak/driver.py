"""Drives one soak: players come and go, faults are injected on schedule, rules are checked, usage is measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.soak.bots import Crowd, Loss
from tests.soak.invariants import SETTLED, Finding, Injury, Look, Standing, Violation, findings, is_excused
from tests.soak.observe import AWAY, consumers_without_reader, counts, look
from tests.soak.processes import Usage, game_servers, usage
from tests.soak.schedule import LASTING_SERVER, NATS, SERVER, Fault, Kind, schedule, warm_up
from tests.soak.stack import CHURN, LASTING, TOKEN_TIMEOUT, Stack
from tests.soak.trends import Point

LOOK_EVERY = 1.0
MEASURE_EVERY = 5.0
GIVEN_BACK = 90.0
"""Seconds after the last player in which everything must have been given back."""
_STANDS = 2.5
"""Seconds for which a finding stands that is not only the time between two reads."""
_CALM = 5.0
"""Seconds without such a finding after which the stack is clean again."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the stack came out of a fault. Times are seconds.

    `began` and `ended` count from the start of the run. `clean`: from the fault's end to the last look that
    showed a rule broken for longer than a moment; 0 if there was none, None if it took too long.
    `play`: from the fault's beginning until a request for a seat that began after it was answered with one.
    """

    fault: Fault
    began: float
    ended: float
    clean: float | None
    play: float | None
    broken: tuple[str, ...] = ()
    """The rules that were broken for longer than a moment meanwhile."""


@dataclass(slots=True)
class Result:
    """All that a run of one stack has shown."""

    profile: str
    seed: int
    seconds: float
    measured_from: float = 0.0
    usages: list[Usage] = field(default_factory=list)
    counts: dict[str, list[Point]] = field(default_factory=dict)
    """What `observe.counts` has counted, over time."""
    sessions: list[tuple[float, int]] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    """Players whom the game has ended without an excuse."""
    outcomes: dict[str, int] = field(default_factory=dict)
    plays: int = 0
    longest_gap: float = 0.0
    left: list[str] = field(default_factory=list)
    """What was not given back in the end."""


class Driver:
    """Runs the schedule of one seed against one stack; `run` is its life."""

    def __init__(
        self,
        stack: Stack,
        seed: int,
        seconds: float,
        *,
        comers: int,
        stayers: int,
        say: Callable[[str], None],
    ) -> None:
        self._stack = stack
        self._crowd = Crowd(stack.url, seed)
        self._comers, self._stayers = comers, stayers
        self._say = say
        self._faults = schedule(seed, seconds, stack.replicas)
        self._standing = Standing()
        self._injuries: list[Injury] = []
        self._faulty = False
        self._calm_since = self._looked = 0.0
        self._began = 0.0
        self.result = Result(stack.profile, seed, seconds, warm_up(seconds))

    def _now(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> Result:
        """One run, to the check of what is left in NATS. Cancelling is safe: the result holds what was seen."""
        self._began = time.monotonic()
        ends = self._began + self.result.seconds
        try:
            async with asyncio.TaskGroup() as observers:
                watched = [observers.create_task(self._measure()), observers.create_task(self._watch())]
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._inject())
                    for number in range(self._comers):
                        group.create_task(self._crowd.come_and_go(number, ends))
                    for number in range(self._stayers):
                        group.create_task(self._crowd.stay(number, ends))
                self._say("the players have left")
                await self._given_back()
                for task in watched:
                    task.cancel()
        finally:
            self._conclude()
        return self.result

    def _conclude(self) -> None:
        crowd, result = self._crowd, self.result
        result.outcomes, result.plays, result.longest_gap = (
            dict(crowd.outcomes),
            len(crowd.served),
            crowd.longest_gap,
        )
        result.losses = [
            Loss(loss.deployment_id, loss.at - self._began, loss.reason, loss.lasting)
            for loss in crowd.losses
            if not is_excused(loss.deployment_id, loss.at - self._began, self._injuries)
        ]
        for number, recovery in enumerate(result.recoveries):
            began = recovery.began + self._began
            after = [served.ended - began for served in crowd.served if served.began >= began]
            result.recoveries[number] = Recovery(
                recovery.fault,
                recovery.began,
                recovery.ended,
                recovery.clean,
                min(after, default=None),
                recovery.broken,
            )

    # What is seen.

    async def _watch(self) -> None:
        """Look at everything once a second."""
        while True:
            began = self._now()
            found = await self._found()
            now = self._now()
            over = self._standing.observe(now, found, calm_since=now if self._faulty else self._calm_since)
            for violation in over:
                self._say(f"VIOLATION after {violation.lasted:.0f} s: {violation.rule}: {violation.subject}")
            self.result.violations += over
            self._looked = began
            await asyncio.sleep(max(0.1, LOOK_EVERY - (now - began)))  # the rhythm of looks

    async def _found(self) -> set[Finding]:
        try:
            seen = await look(self._stack, self._crowd)
        except AWAY as exc:
            return {Finding("the records cannot be read", type(exc).__name__)}
        self.result.sessions.append((self._now(), len(seen.sessions)))
        return findings(seen)

    async def _measure(self) -> None:
        """Measure processes, and count what should stay steady, every five seconds."""
        stack, result = self._stack, self.result
        while True:
            at = self._now()
            pids = [(name, part.pid) for name, part in stack.parts.items()] + [(NATS, stack.nats.pid)]
            servers = await asyncio.to_thread(game_servers, stack.launcher_dir.parent)
            pids += [(f"{server.game} game server", server.pid) for server in servers]
            result.usages += [used for name, pid in pids if (used := usage(name, pid, at))]
            counted = await counts(stack) | {"processes": len(pids)}
            for name, value in counted.items():
                result.counts.setdefault(name, []).append((at, value))
            await asyncio.sleep(max(0.1, MEASURE_EVERY - (self._now() - at)))  # the rhythm of measurements

    # What is done.

    async def _inject(self) -> None:
        """Inject the faults, each when its time has come and nothing of the one before is left."""
        for fault in self._faults:
            await asyncio.sleep(max(0.0, fault.at - self._now()))  # the schedule
            if self._now() > self.result.seconds - 10:
                return  # recoveries took longer than planned
            began = self._now()
            self._faulty = True
            try:
                done = await self._carry_out(fault)
            finally:
                self._faulty = False
                self._calm_since = self._now()
            if not done:
                continue  # no such server runs now
            ended = self._calm_since
            clean, broken = await self._clean_after(ended)
            self.result.recoveries.append(Recovery(fault, began, ended, clean, None, broken))
            took = "not clean" if clean is None else f"clean after {clean:.1f} s"
            took += f" ({'; '.join(broken)})" if broken else ""
            self._say(f"{began:6.0f} s  {fault.kind} of {fault.target}, {fault.seconds:g} s: {took}")

    async def _clean_after(self, ended: float) -> tuple[float | None, tuple[str, ...]]:
        """`clean` and `broken` of `Recovery`; waits until nothing was wrong for `_CALM` seconds."""
        last, broken = ended, set[str]()
        while (now := self._now()) < ended + SETTLED + 15:
            if pending := self._standing.pending(now, _STANDS):
                last = now
                broken |= {finding.rule for finding in pending}
            elif self._looked > last + _CALM:
                return last - ended, tuple(sorted(broken))
            await asyncio.sleep(0.2)  # until the next look may have been
        return None, tuple(sorted(broken))

    async def _carry_out(self, fault: Fault) -> bool:
        """Inject the fault and undo it; False when there is no such target now."""
        if fault.target in (SERVER, LASTING_SERVER):
            return await self._hurt_server(fault)
        if fault.target == NATS:
            nats_server = self._stack.nats
            if fault.kind is Kind.KILL:
                nats_server.down = fault.seconds
                nats_server.signal(signal.SIGKILL)
                await asyncio.sleep(fault.seconds)  # the fault
            else:
                await self._paused(nats_server.signal, fault.seconds)
            return True
        part, link = self._stack.parts[fault.target], self._stack.links[fault.target]
        match fault.kind:
            case Kind.KILL:
                part.signal(signal.SIGKILL)
            case Kind.TERMINATE:
                part.signal(signal.SIGTERM)
            case Kind.STOP:
                await self._paused(part.signal, fault.seconds)
            case _:
                link.freeze()
                try:
                    await asyncio.sleep(fault.seconds)  # the fault
                    if fault.kind is Kind.CUT:
                        link.lose_what_waits()
                finally:
                    link.thaw()
        return True

    async def _hurt_server(self, fault: Fault) -> bool:
        game = CHURN if fault.target == SERVER else LASTING
        servers = await asyncio.to_thread(game_servers, self._stack.launcher_dir.parent)
        candidates = [server for server in servers if server.game == game]
        if not candidates:
            return False
        server = candidates[int(fault.pick * len(candidates))]
        at = self._now()
        self._injuries.append(Injury(server.deployment_id, at, at + fault.seconds + 2 * TOKEN_TIMEOUT))
        if fault.kind is Kind.KILL:
            _signal(server.pid, signal.SIGKILL)
        else:
            await self._paused(lambda number: _signal(server.pid, number), fault.seconds)
        return True

    async def _paused(self, send: Callable[[signal.Signals], None], seconds: float) -> None:
        send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)  # the fault
        finally:
            send(signal.SIGCONT)

    async def _given_back(self) -> None:
        """Wait until nobody holds anything; what stays is written into the result."""
        end = self._now() + GIVEN_BACK
        left = ["not looked at"]
        while left and self._now() < end:
            try:
                seen = await look(self._stack, self._crowd)
                left = _left(seen)
                left += [f"consumer {name}" for name in await consumers_without_reader(self._stack)]
            except AWAY as exc:
                left = [f"NATS cannot be read: {exc}"]
            await asyncio.sleep(1)  # until the next look at all of it
        self.result.left = left


def _left(seen: Look) -> list[str]:
    left = [f"session {session.id} {session.state}" for session in seen.sessions.values()]
    left += [f"seat {seat} on {server.id}" for server in seen.deployments.values() for seat in server.seats]
    left += [f"connection {key}" for key in seen.connections]
    games = Counter(server.game for server in seen.deployments.values())
    if dict(games) != {CHURN: 1, LASTING: 1} or len(seen.servers) != 2:
        left.append(f"servers {dict(games)}, {len(seen.servers)} processes, not one of each game")
    return left + [f"{finding.rule}: {finding.subject}" for finding in findings(seen)]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
