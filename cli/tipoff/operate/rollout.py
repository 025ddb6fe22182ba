"""Replaces the servers of a game one after another without dropping a player, for `tipoff rollout`.

    for each old server:   start a new one ──ready──> drain the old one: no new players, it ends with its last player

`Rollout` decides, purely; `roll_out` carries it out. Which servers are old is written down by a matchmaker, and all
else is read from the servers' records, so a rollout that was interrupted goes on when it is run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import msgspec

from tipoff.operate.admin import begin_rollout, drain, start_server
from tipoff_shared.errors import OrchestratorFailed, TipoffError, Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentRecord, DeploymentState

_COMING = (DeploymentState.PLANNED, DeploymentState.STARTING)
_TO_REPLACE = (*_COMING, DeploymentState.READY)
_LOOK_EVERY = 0.3
_NOT_FOUND = 404
_REASON = "replaced by a rollout"


class Next(Enum):
    """What to do beside draining a server."""

    START = "start"
    """Start a new server."""
    WAIT = "wait"
    """Look again soon."""
    DONE = "done"
    """No old server takes players."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Drain this server."""

    deployment_id: str


Step: TypeAlias = Next | Drain


class RolledOut(msgspec.Struct, frozen=True):
    """How far it came. `draining`: replaced servers -> seats that are still taken there. `left`: old servers that still
    take players. `problem`: why it ended before its time."""

    game: str
    version: str
    replaced: int
    draining: dict[str, int]
    left: list[str]
    problem: str = ""


class Rollout:
    """Decides what comes next, from the records of one version of a game. `since`: servers made before are old."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._new = ""
        """The server that takes the place of the next old one."""
        self._full = False
        self._old: dict[str, DeploymentRecord] = {}

    def next(self, records: Mapping[str, DeploymentRecord]) -> Step:
        """The next step. Raises `OrchestratorFailed` when a new server has ended before it was ready: the old ones
        go on."""
        self._old.update({id: record for id, record in records.items() if record.created_at < self._since})
        old = [records[id] for id in self._old if id in records and records[id].state in _TO_REPLACE]
        if not old:
            return Next.DONE
        # Those that nobody plays on first: their end disturbs nobody and makes room.
        victim = min(
            old, key=lambda record: (record.state not in _COMING, len(record.seats), record.created_at)
        )
        if victim.state in _COMING:
            return Drain(victim.id)
        if not self._new:
            coming = (r.id for r in records.values() if r.created_at >= self._since and r.state in _COMING)
            self._new = next(coming, "")
        if self._new:
            return self._when_ready(records.get(self._new), victim)
        if not self._full:
            return Next.START
        self._full = False
        if not victim.seats or any(_has_room(r) for r in records.values() if r.id != victim.id):
            return Drain(victim.id)
        return Next.WAIT

    def _when_ready(self, new: DeploymentRecord | None, victim: DeploymentRecord) -> Step:
        if new is None or new.state in (DeploymentState.STOPPING, DeploymentState.GONE):
            why = new.reason if new is not None and new.reason else "it has ended"
            raise OrchestratorFailed(
                f"the new server {self._new} was not ready: {why}. The old servers go on; `tipoff logs {self._new}` "
                "shows what it printed"
            )
        if new.state in _COMING:
            return Next.WAIT
        self._new = ""
        return Drain(victim.id)

    def started(self, deployment_id: str) -> None:
        """A new server was started; "": there may be no further one now."""
        self._new, self._full = deployment_id, not deployment_id

    def outcome(
        self, game: str, version: str, records: Mapping[str, DeploymentRecord], problem: str
    ) -> RolledOut:
        """How far it has come."""
        left = [id for id in self._old if id in records and records[id].state in _TO_REPLACE]
        draining = {
            id: len(records[id].seats)
            for id in self._old
            if id in records and records[id].state is DeploymentState.DRAINING and records[id].seats
        }
        return RolledOut(game, version, len(self._old) - len(left), draining, left, problem)


def _has_room(record: DeploymentRecord) -> bool:
    return record.state is DeploymentState.READY and not record.locked and len(record.seats) < record.capacity


async def roll_out(
    bus: Bus,
    game: str,
    version: str,
    *,
    again: bool = False,
    wait: bool = False,
    timeout: float,
    say: Callable[[str], None],
) -> RolledOut:
    """Replace the servers of one version of a game, for at most `timeout` seconds; with `wait`, return when the old
    ones have ended. `say` hears of each step. Raises a `TipoffError` when it cannot begin. Cancelling leaves every
    server in a state from which the next rollout goes on."""
    rollout = Rollout((await begin_rollout(bus, game, version, again=again)).since)
    deadline = time.monotonic() + timeout
    records: dict[str, DeploymentRecord] = {}
    problem = waiting = ""
    while True:
        try:
            records = await _records(bus, game, version)
            step = rollout.next(records)
            if step is Next.DONE:
                outcome = rollout.outcome(game, version, records, "")
                if not (wait and outcome.draining):
                    return outcome
                waiting = f"{len(outcome.draining)} old server(s) still have players"
            elif step is Next.START:
                rollout.started(started := await start_server(bus, game, version))
                if started:
                    say(f"{started} starts")
                    waiting = f"{started} is not ready yet"
                else:
                    waiting = "max_deployments is reached, and nothing else would take players meanwhile"
                    continue
            elif isinstance(step, Drain):
                await _drain(bus, step.deployment_id, say)
                continue
        except Unavailable as exc:  # NATS or the matchmakers are away for a moment
            waiting = str(exc)
        except OrchestratorFailed as exc:
            problem = str(exc)
            break
        if time.monotonic() >= deadline:
            problem = f"not finished after {timeout:g} s: {waiting}"
            break
        await asyncio.sleep(_LOOK_EVERY)  # for an operator, not on a player's path
    return rollout.outcome(game, version, records, problem)


async def _drain(bus: Bus, deployment_id: str, say: Callable[[str], None]) -> None:
    try:
        done = await drain(bus, deployment_id, _REASON)
    except TipoffError as exc:
        if exc.code != _NOT_FOUND:
            raise
        return  # it has ended meanwhile, as its record says next time
    taken = f": {done.seats} seat(s) are taken" if done.seats else ""
    say(f"{deployment_id} accepts no new players{taken}")


async def versions_of(bus: Bus, game: str) -> list[str]:
    """The versions of which servers run. Raises `Unavailable`."""
    listed = await buckets(bus).deployments.list()
    return sorted(
        {
            entry.value.version
            for entry in listed.values()
            if entry.value.game == game and entry.value.state is not DeploymentState.GONE
        }
    )


async def _records(bus: Bus, game: str, version: str) -> dict[str, DeploymentRecord]:
    listed = await buckets(bus).deployments.list()
    return {
        entry.key: entry.value
        for entry in listed.values()
        if (entry.value.game, entry.value.version) == (game, version)
    }
