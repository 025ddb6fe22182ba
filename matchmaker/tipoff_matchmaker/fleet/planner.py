"""The fleet: how many servers there are. Starts some when players wait or too few are warm, and ends them when they are
done.

Planning: reserve (fleets) -> record planned -> started (starts.py). Each line may be the last one before the process
dies: the sweep of any matchmaker goes on from what is written down. How a server ends is told in endings.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.deployments.fleet_limit import Reservations
from tipoff_matchmaker.deployments.store import Ledger
from tipoff_matchmaker.fleet.start import Starts
from tipoff_matchmaker.fleet.start_backoff import Outlook, brief, explain
from tipoff_matchmaker.fleet.stop import Endings
from tipoff_matchmaker.orchestrators.resilient import Guarded
from tipoff_matchmaker.seats.waiting_line import Line
from tipoff_orchestrator_client.base import (
    Deployment,
    NoCapacity,
    NotConfigured,
    Orchestrator,
    OrchestratorError,
)
from tipoff_shared.errors import OrchestratorFailed, TipoffError
from tipoff_shared.games import Game, GameKey
from tipoff_shared.names import new_deployment_id
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

_RETRY_AFTER = 5.0
"""Seconds after which those who were told that nothing can be started may ask again, at the earliest."""


class Fleet:
    """All deployments of all games, as one matchmaker drives them."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        orchestrators: Mapping[str, Guarded],
        games: Iterable[Game],
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        backoff: float,
        deploy_tries: int,
        start_failures: int,
        tell_reasons: bool,
        gs_proxy_url: str,
        end_sessions: Callable[[DeploymentRecord, str], Coroutine[Any, Any, None]],
        runs: Callable[[Deployment], Coroutine[Any, Any, None]],
        trust: Callable[[str], None],
        event_key: Callable[[str], str] = lambda deployment_id: "",
    ) -> None:
        self.games = list(games)
        self._by_key: dict[GameKey, Game] = {game.key: game for game in self.games}
        self._ledger = ledger
        self._reservations = reservations
        self._orchestrators = orchestrators
        self._clock = clock
        self._backoff = backoff
        self._start_failures = start_failures
        self._tell_reasons = tell_reasons
        self._trust = trust
        self._lines: Callable[[GameKey], Line] | None = None
        self._outlooks = {game.key: Outlook() for game in self.games}
        self._wanted = {game.key: asyncio.Event() for game in self.games}
        self._later: dict[GameKey, asyncio.TimerHandle] = {}
        self.starts = Starts(
            ledger,
            orchestrators,
            self._by_key,
            tasks,
            clock=clock,
            backoff=backoff,
            tries=deploy_tries,
            gs_proxy_url=gs_proxy_url,
            event_key=event_key,
            runs=runs,
            failed=self._start_failed,
            on_progress=self._announce,
        )
        self._endings = Endings(
            ledger,
            reservations,
            orchestrators,
            tasks,
            clock=clock,
            backoff=backoff,
            tries=deploy_tries,
            end_sessions=end_sessions,
        )
        ledger.listen(self._ledger_changed)

    def run(self, lines: Callable[[GameKey], Line], loops: Tasks) -> None:
        """Begin to plan; `lines` are who waits for each game."""
        self._lines = lines
        for game in self.games:
            loops.start(self._plan_for_ever(game), f"fleet/{game.name}/{game.version}")

    def _ledger_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """Any matchmaker may have moved it on."""
        key = (after.game, after.version)
        if after.state is DeploymentState.READY and before is not None and deployments.is_coming(before):
            if key in self._outlooks:
                self._outlooks[key].ready()
            self._trust(after.id)
            self.want(key)
        elif after.state is DeploymentState.GONE and (before is None or deployments.is_live(before)):
            self.want(key)

    def orchestrator(self, name: str) -> Orchestrator | None:
        return self._orchestrators.get(name)

    def want(self, key: GameKey) -> None:
        """Something changed: look whether servers are to be started."""
        if key in self._wanted:
            self._wanted[key].set()

    def is_busy_with(self, deployment_id: str) -> bool:
        """Whether this process is starting or ending it right now."""
        return self.starts.is_running(deployment_id) or self.is_ending_here(deployment_id)

    def is_ending_here(self, deployment_id: str) -> bool:
        return self._endings.is_running(deployment_id)

    # Planning.

    async def _plan_for_ever(self, game: Game) -> None:
        outlook, wanted = self._outlooks[game.key], self._wanted[game.key]
        tries = 0
        while True:
            await wanted.wait()
            if (early := outlook.not_before - time.monotonic()) > 0:
                await asyncio.sleep(early)
            wanted.clear()
            if self._held_back(game):
                continue
            try:
                await self._plan(game)
                tries = 0
            except TipoffError as exc:
                tries += 1
                log.warning("planning servers for %s %s: %s", game.name, game.version, exc)
                await asyncio.sleep(pause(tries, self._backoff))
                wanted.set()

    def _held_back(self, game: Game) -> bool:
        """While its orchestrator cannot start anything, no start is begun; those who wait are told so once it has
        been tried often enough."""
        wait = self._trouble(game)
        if wait <= 0:
            return False
        if (later := self._later.get(game.key)) is not None:
            later.cancel()
        self._later[game.key] = asyncio.get_running_loop().call_later(wait, self.want, game.key)
        if self._outlooks[game.key].failures >= self._start_failures:
            self._give_up_hope(game, f"{game.orchestrator} cannot start servers now", retry_after=wait)
        return True

    def _trouble(self, game: Game) -> float:
        """Seconds until its orchestrator is asked again to start something; 0: it may be asked."""
        orchestrator = self._orchestrators.get(game.orchestrator)
        return 0.0 if orchestrator is None else orchestrator.wait("deploy")

    async def _plan(self, game: Game) -> None:
        assert self._lines is not None
        line = self._lines(game.key)
        if deployments.starts_wanted(game, line.players, self._ledger.of(*game.key)) <= 0:
            return  # the usual case, and more than we know of would only mean fewer
        known = await self._fleet(game)
        count = deployments.starts_wanted(game, line.players, known.values())
        if count <= 0:
            return
        wished = [new_deployment_id(game.name) for _ in range(count)]
        now = self._clock()
        reserved, record = await self._reservations.add(game, wished, known, now)
        if not reserved:
            if not set(known).issuperset(record.deployments):
                self.want(game.key)  # somebody else has planned meanwhile: look at theirs, then again
            return
        near = line.client_ips(10)
        for deployment_id in reserved:
            await self._ledger.create(deployments.planned(deployment_id, game, now))
            self.starts.start(game, deployment_id, near)
        log.info("starting %d server(s) of %s %s", len(reserved), game.name, game.version)

    async def _fleet(self, game: Game) -> dict[str, DeploymentRecord]:
        """Every deployment of the game that is or may come to be, those reserved by others included."""
        known = {
            record.id: record
            for record in self._ledger.of(game.name, game.version)
            if deployments.is_live(record)
        }
        reserved = (await self._reservations.read(game.name, game.version)).deployments
        for deployment_id, at in reserved.items():
            if deployment_id not in known:
                record = await self._ledger.fetch(deployment_id)
                known[deployment_id] = record or deployments.planned(deployment_id, game, at)
        return known

    def _start_failed(self, game: Game, deployment_id: str, exc: OrchestratorError) -> None:
        outlook = self._outlooks[game.key]
        reason = brief(str(exc) or type(exc).__name__)
        record = self._ledger.get(deployment_id)
        self.end(deployment_id, f"did not start: {reason}")
        if isinstance(exc, NoCapacity):
            outlook.no_capacity(reason, time.monotonic(), exc.retry_after)
        else:
            now = self._clock()
            planned_at = now if record is None else record.created_at
            outlook.failed(planned_at, now, time.monotonic(), self._backoff, exc.retry_after)
        log.warning("deployment %s did not start: %s", deployment_id, reason)
        assert self._lines is not None
        line = self._lines(game.key)
        hopeless = isinstance(exc, NotConfigured) or outlook.failures >= self._start_failures
        if not (hopeless and self._give_up_hope(game, reason, retry_after=self._trouble(game))):
            line.announce(reason)
        if line or game.min_ready:
            self.want(game.key)

    def _announce(self, key: GameKey) -> None:
        if self._lines is not None:
            self._lines(key).announce()

    def _give_up_hope(self, game: Game, reason: str, *, retry_after: float) -> bool:
        """Tell those who wait that no server can be started; not while there is one whose seats come free."""
        if any(r.state is DeploymentState.READY for r in self._ledger.of(game.name, game.version)):
            return False
        assert self._lines is not None
        why = f": {reason}" if self._tell_reasons else ""
        error = OrchestratorFailed(
            f"no server could be started{why}", retry_after=math.ceil(max(_RETRY_AFTER, retry_after))
        )
        if told := self._lines(game.key).fail(error):
            log.error("%d waiting for %s %s were told: %s", told, game.name, game.version, reason)
        return True

    # Ending and telling.

    def end(self, deployment_id: str, reason: str, *, confirmed_gone: bool = False) -> None:
        """Stop the server, end its sessions, give back what it held; idempotent. `confirmed_gone`: the
        orchestrator has said that it runs no more."""
        record = self._ledger.get(deployment_id)
        task = self._endings.start(deployment_id, reason, confirmed_gone=confirmed_gone)
        if record is not None:
            key = (record.game, record.version)
            task.add_done_callback(lambda _: self.want(key))

    def explain(self, key: GameKey, *, waited: float, position: int, start_failed: str) -> str:
        """Why one waits, for people."""
        if (wait := self._trouble(self._by_key[key])) > 0 and not any(
            deployments.is_coming(record) for record in self._ledger.of(*key)
        ):
            return f"No server can be started just now, trying again in {math.ceil(wait)} s"
        return explain(
            self._by_key[key],
            self._ledger.of(*key),
            self._outlooks[key],
            waited=waited,
            position=position,
            start_failed=start_failed,
            progress=self.starts.busy_with(self._ledger.of(*key)),
        )
