"""The sweep: every few seconds, and after every reconnect, what is written down is compared with what is.

One matchmaker at a time reconciles: it acts on what differs (reconciler_lease.py). The others only learn from their own
reading which servers live, with seldom a listing of sessions, and of what orchestrators run only when they must know.

This is the truth that all hints (watches, events, timers) only run ahead of. It reads (readings.py), judges (rules.py)
and acts (deeds.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.fleet.liveness import Servers
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.reconciler import actions as acts
from tipoff_matchmaker.reconciler import rules
from tipoff_matchmaker.reconciler.executor import Deeds
from tipoff_matchmaker.reconciler.lease import ReconcilerLease
from tipoff_matchmaker.reconciler.snapshot import Readings
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import GameKey

log = logging.getLogger(__name__)


class Sweep:
    """One pass is `once()`; `run()` makes them for ever. `games`: whose fleets are looked at after each."""

    def __init__(
        self,
        readings: Readings,
        deeds: Deeds,
        fleet: Fleet,
        servers: Servers,
        lease: ReconcilerLease,
        games: Iterable[GameKey],
        metrics: Metrics,
        *,
        interval: float,
        grace: rules.Grace,
    ) -> None:
        self._readings = readings
        self._deeds = deeds
        self._fleet = fleet
        self._servers = servers
        self._lease = lease
        self._games = list(games)
        self._metrics = metrics
        self._interval = interval
        self._grace = grace
        self._memory = rules.Memory()
        self._turn = 0
        self._now_please = asyncio.Event()

    def soon(self) -> None:
        """Do not wait for the next turn (NATS is back)."""
        self._readings.list_sessions_next()
        self._now_please.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval * (0.75 + random.random() / 2)):
                    await self._now_please.wait()
            except TimeoutError:
                pass
            self._now_please.clear()
            try:
                await self.once()
            except TipoffError as exc:
                log.info("this sweep is left out: %s", exc)

    async def once(self) -> None:
        """Read everything, judge, act. Raises `Unavailable` when the store cannot be read."""
        reconciles, turn = self._lease.held, self._lease.turn
        if reconciles and turn != self._turn:
            self._readings.list_sessions_next()
        self._turn = turn
        facts = await self._readings.read(reconciles)
        wanted = rules.judge(facts, self._grace, self._memory, self._fleet.is_busy_with)
        if reconciles:
            await self._act(wanted, facts)
        else:
            self._learn(wanted)
        for key in self._games:
            self._fleet.want(key)

    async def _act(self, wanted: list[acts.Act], facts: rules.Facts) -> None:
        kept, held = rules.brake(wanted, sum(map(deployments.is_live, facts.after.values())))
        if held:
            log.error("the sweep would end %d more servers than it may at once; it looks again first", held)
            self._metrics.brake.inc(held)
        for act in kept:
            if not self._lease.held or self._lease.turn != self._turn:
                # We were stopped, or NATS was away, for so long that others have gone on from here.
                log.warning("the rest of this sweep is left out: reconciling is another one's turn now")
                return
            try:
                await self._deeds.do(act)
            except TipoffError as exc:
                log.info("%s has to wait: %s", type(act).__name__, exc)

    def _learn(self, wanted: list[acts.Act]) -> None:
        """What concerns this process alone: where to send players."""
        for act in wanted:
            match act:
                case acts.Trust(deployment_id):
                    self._servers.trust(deployment_id)
                case acts.Confirm(deployment_id, _) | acts.End(deployment_id, _):
                    self._servers.distrust(deployment_id)
                case _:
                    pass
