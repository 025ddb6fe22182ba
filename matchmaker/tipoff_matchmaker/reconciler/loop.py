"""Reconciles: every few seconds, and after every reconnect, what is written down is compared with what runs.

One matchmaker at a time acts on what differs (lease.py). The others only learn which servers live from their own
reading; they list sessions seldom, and ask orchestrators only when they must know.

This is the truth that all hints (watches, events, timers) only run ahead of. It reads (snapshot.py), judges (rules.py)
and acts (executor.py).
"""

from __future__ import annotations

import asyncio
import logging
import random

from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.fleet.planner import Planner
from tipoff_matchmaker.fleet.start import Starter
from tipoff_matchmaker.fleet.stop import Stopper
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.reconciler import actions, rules
from tipoff_matchmaker.reconciler.executor import Executor
from tipoff_matchmaker.reconciler.lease import ReconcilerLease
from tipoff_matchmaker.reconciler.snapshot import SnapshotReader
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import TipoffError
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)


class Reconciler:
    """One cycle is `once()`; `run()` repeats it. After each the planner looks at every fleet."""

    def __init__(
        self,
        reader: SnapshotReader,
        executor: Executor,
        lease: ReconcilerLease,
        trust: Trust,
        starter: Starter,
        stopper: Stopper,
        planner: Planner,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._reader = reader
        self._executor = executor
        self._lease = lease
        self._trust = trust
        self._starter = starter
        self._stopper = stopper
        self._planner = planner
        self._metrics = metrics
        self._interval = settings.sweep_interval
        self._grace = rules.Grace(settings.lease_grace, settings.orphan_grace, settings.claim_slack)
        self._memory = rules.Memory()
        self._turn = 0
        self._at_once = asyncio.Event()

    def soon(self) -> None:
        """Begin the next cycle at once (NATS is back)."""
        self._reader.list_sessions_next()
        self._at_once.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await wait_for_event(self._at_once, self._interval * (0.75 + random.random() / 2))
            self._at_once.clear()
            try:
                await self.once()
            except TipoffError as exc:
                log.info("this cycle is left out: %s", exc)

    async def once(self) -> None:
        """Read everything, judge, act. Raises `Unavailable` when NATS cannot be read."""
        reconciles, turn = self._lease.held, self._lease.turn
        if reconciles and turn != self._turn:
            self._reader.list_sessions_next()
        self._turn = turn
        snapshot = await self._reader.read(reconciles)
        wanted = rules.judge(snapshot, self._grace, self._memory, self._is_busy_with)
        if reconciles:
            await self._act(wanted, snapshot)
        else:
            self._learn(wanted)
        self._planner.want_all()

    def _is_busy_with(self, deployment_id: str) -> bool:
        return self._starter.is_starting(deployment_id) or self._stopper.is_stopping(deployment_id)

    async def _act(self, wanted: list[actions.Action], snapshot: rules.Snapshot) -> None:
        kept, held = rules.brake(wanted, sum(map(state_machine.is_live, snapshot.after.values())))
        if held:
            log.error(
                "%d more servers would be stopped than may be at once; the next cycle checks them", held
            )
            self._metrics.brake.inc(held)
        for action in kept:
            if not self._lease.held or self._lease.turn != self._turn:
                # We were stopped, or NATS was away, for so long that others have gone on from here.
                log.warning("the rest of this cycle is left out: another matchmaker may reconcile now")
                return
            try:
                await self._executor.execute(action)
            except TipoffError as exc:
                log.info("%s has to wait: %s", type(action).__name__, exc)

    def _learn(self, wanted: list[actions.Action]) -> None:
        """Take only what concerns this process: where to send players."""
        for action in wanted:
            match action:
                case actions.Trust(deployment_id):
                    self._trust.add(deployment_id)
                case actions.Confirm(deployment_id, _) | actions.StopServer(deployment_id, _):
                    self._trust.remove(deployment_id)
                case _:
                    pass
