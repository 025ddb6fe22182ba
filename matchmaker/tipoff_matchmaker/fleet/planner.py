"""Plans how many servers there are: starts some when players wait or too few are warm.

    reserve (fleets) -> record planned -> started (start.py)

Each step may be the last one before the process dies: the reconciler of any matchmaker goes on from what is written
down, and stops servers that are no longer needed (stop.py).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress

from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.fleet.progress import explain
from tipoff_matchmaker.fleet.start import Starter
from tipoff_matchmaker.fleet.start_backoff import SHORT_LIFE, StartBackoff
from tipoff_matchmaker.fleet.stop import Stopper
from tipoff_matchmaker.orchestrators.resilient import ResilientOrchestrator
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.seats.waiting_line import WaitingLines
from tipoff_matchmaker.sessions.claim_limit import ClaimLimit
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import LAST_WORDS, NoCapacity, NotConfigured, OrchestratorError
from tipoff_shared.errors import OrchestratorFailed, TipoffError, Unavailable
from tipoff_shared.games import Game, GameKey, GamesChange, SomeGames
from tipoff_shared.names import new_deployment_id
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import describe, one_line
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

_RETRY_AFTER = 5.0
"""Seconds after which players may ask again, at the earliest, when nothing can be started."""


_TRIES = 8


class Planner:
    """The fleets of all games whose servers we start, as one matchmaker plans them."""

    def __init__(
        self,
        deployments: DeploymentStore,
        fleet_limit: FleetLimit,
        orchestrators: Mapping[str, ResilientOrchestrator],
        games: SomeGames,
        lines: WaitingLines,
        claims: ClaimLimit,
        starter: Starter,
        stopper: Stopper,
        liveness: Liveness,
        peers: Peers,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._deployments = deployments
        self._fleet_limit = fleet_limit
        self._orchestrators = orchestrators
        self._games = games
        self._lines = lines
        self._claims = claims
        self._starter = starter
        self._stopper = stopper
        self._peers = peers
        self._settings = settings
        self._clock = clock
        self._backoffs: defaultdict[GameKey, StartBackoff] = defaultdict(StartBackoff)
        self._wanted: dict[GameKey, asyncio.Event] = {}
        """The games that are planned -> that there may be something to do."""
        self._loops: Tasks | None = None
        self._later: dict[GameKey, asyncio.TimerHandle] = {}
        self._ready_at: dict[str, float] = {}
        """Server -> monotonic seconds when it became ready, while it is."""
        deployments.subscribe_states(self._state_changed)
        deployments.subscribe(self._lock_changed)
        liveness.subscribe(self._ended)
        starter.subscribe(self._start_failed)
        stopper.subscribe(self.want)
        for name, orchestrator in orchestrators.items():
            orchestrator.subscribe_back(functools.partial(self._is_back, name))
        games.subscribe(self._games_changed)

    def run(self, loops: Tasks) -> None:
        """Begin to plan, the games that there are and those that come."""
        self._loops = loops
        for game in self._games.all():
            self._begin(loops, game)

    def _begin(self, loops: Tasks, game: Game) -> None:
        if game.key not in self._wanted:
            self._wanted[game.key] = asyncio.Event()
            loops.start(self._plan_while_there(game.key), f"fleet/{game.name}/{game.version}")

    def _games_changed(self, change: GamesChange) -> None:
        for game in change.present:
            if self._loops is not None:
                self._begin(self._loops, game)
            self.forget_failures(game.key)
        for game in change.removed:
            self.want(game.key)

    def want(self, key: GameKey) -> None:
        """Something changed: plan anew whether servers are to be started."""
        if key in self._wanted:
            self._wanted[key].set()

    def want_all(self) -> None:
        """Plan all fleets anew."""
        for wanted in self._wanted.values():
            wanted.set()

    def forget_failures(self, key: GameKey) -> None:
        """Start servers of the game at once, although starts failed before: what made them fail has changed."""
        if key in self._games:
            self._backoffs[key] = StartBackoff()
            self.want(key)

    def explain(self, key: GameKey, *, waited: float, position: int, start_failed: str) -> str:
        """Why a player waits, for people; see `progress.explain`."""
        game = self._games.get(*key)
        if game is None:
            return ""
        fleet = self._deployments.of(*key)
        return explain(
            game,
            fleet,
            self._backoffs[key],
            waited=waited,
            position=position,
            start_failed=start_failed,
            progress=self._starter.doing(fleet),
            blocked=self._blocked(game),
        )

    def _is_back(self, orchestrator: str) -> None:
        """An orchestrator answers again: what waits for it is tried now."""
        for game in self._games.all():
            if game.orchestrator == orchestrator:
                self._backoffs[game.key].orchestrator_is_back()
                self.want(game.key)

    def _state_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """Any matchmaker may have moved it on."""
        key = (after.game, after.version)
        if after.state is not DeploymentState.READY:
            self._ready_at.pop(after.id, None)
        if after.state is DeploymentState.READY and before is not None and state_machine.is_coming(before):
            self._ready_at[after.id] = time.monotonic()
            if key in self._games:
                self._backoffs[key].ready()
            self.want(key)
        elif after.state is DeploymentState.GONE and (before is None or state_machine.is_live(before)):
            self.want(key)

    def _lock_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """A server that closes to new players is no reserve any more."""
        if before is not None and before.locked != after.locked:
            self.want((after.game, after.version))

    def _ended(self, record: DeploymentRecord, reason: str) -> None:
        """A ready server has ended by itself."""
        key, now = (record.game, record.version), time.monotonic()
        if key in self._games:
            lived = now - self._ready_at.get(record.id, float("-inf"))
            self._backoffs[key].ended(lived, one_line(reason), now, self._settings.backoff)

    def crashing(self, key: GameKey) -> str:
        """Why no server of the game stays up, for people; "" while one has been ready for a while, and until enough of
        them have failed one after another."""
        starts, now = self._backoffs[key], time.monotonic()
        if max(starts.failures, starts.crashes) < self._settings.start_failures:
            return ""
        if any(
            record.state is DeploymentState.READY
            and now - self._ready_at.get(record.id, float("-inf")) >= SHORT_LIFE
            for record in self._deployments.of(*key)
        ):
            return ""
        what = (
            "do not start"
            if starts.failures >= self._settings.start_failures
            else "end soon after their start"
        )
        return f"its servers {what}: {starts.reason}"

    async def _plan_while_there(self, key: GameKey) -> None:
        wanted = self._wanted[key]
        tries = 0
        while True:
            await wanted.wait()
            while (early := self._backoffs[key].not_before - time.monotonic()) > 0 and key in self._games:
                wanted.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(early):
                        await wanted.wait()  # the orchestrator may be back before
            wanted.clear()
            game = self._games.get(*key)
            if game is None:
                del self._wanted[key]
                self._backoffs.pop(key, None)
                return
            if self._held_back(game):
                continue
            try:
                await self._plan(game)
                tries = 0
            except TipoffError as exc:
                tries += 1
                log.warning("planning servers for %s %s: %s", game.name, game.version, exc)
                await asyncio.sleep(backoff(tries, self._settings.backoff))
                wanted.set()

    def _held_back(self, game: Game) -> bool:
        """While its orchestrator cannot start anything, no start is begun; waiting players are told so once starts
        have failed often enough."""
        wait = self._blocked(game)
        if wait <= 0:
            return False
        if (later := self._later.get(game.key)) is not None:
            later.cancel()
        self._later[game.key] = asyncio.get_running_loop().call_later(wait, self.want, game.key)
        if self._backoffs[game.key].failures >= self._settings.start_failures:
            self._give_up(game, f"{game.orchestrator} cannot start servers now", retry_after=wait)
        return True

    def _blocked(self, game: Game) -> float:
        """Seconds until its orchestrator may be called again to start a server; 0: now."""
        orchestrator = self._orchestrators.get(game.orchestrator)
        return 0.0 if orchestrator is None else orchestrator.wait("deploy")

    async def _plan(self, game: Game) -> None:
        line = self._lines[game.key]
        # One address makes no more servers start than its share of unclaimed seats fills.
        waiting = line.players_within(lambda address: self._claims.room(address, game.key))
        if state_machine.starts_wanted(game, waiting, self._deployments.of(*game.key)) <= 0:
            return  # the usual case, and records that we do not know yet would only mean fewer
        known = await self._fleet(game)
        count = state_machine.starts_wanted(game, waiting, known.values())
        if count <= 0:
            return
        wished = [new_deployment_id(game.name) for _ in range(count)]
        now = self._clock()
        reserved, record = await self._fleet_limit.add(game, wished, known, now)
        if not reserved:
            if not set(known).issuperset(record.deployments):
                self.want(
                    game.key
                )  # another matchmaker has planned meanwhile: read its records, then plan again
            return
        await self._start(game, reserved, line.client_ips(10), now)
        log.info("starting %d server(s) of %s %s", len(reserved), game.name, game.version)

    async def _start(self, game: Game, reserved: list[str], near: tuple[str, ...], now: float) -> None:
        own_key = self._settings.gives_own_keys and not game.bevygap and self._peers.know_own_keys
        for deployment_id in reserved:
            planned = state_machine.planned(deployment_id, game, now, own_key=own_key)
            await self._deployments.create(planned)
            self._starter.start(game, deployment_id, near)

    async def start_one(self, game: Game) -> str:
        """Start one server more than the players need, for an operator; its id, "" where there are `max_deployments`
        already. Raises `Unavailable`."""
        for _ in range(_TRIES):
            known = await self._fleet(game)
            now = self._clock()
            reserved, record = await self._fleet_limit.add(game, [new_deployment_id(game.name)], known, now)
            if reserved:
                await self._start(game, reserved, (), now)
                return reserved[0]
            if set(known).issuperset(record.deployments):
                return ""  # else another matchmaker has planned meanwhile
        raise Unavailable("other servers of the game are planned all the time; try again", retry_after=1)

    async def begin_rollout(self, game: Game, *, again: bool) -> float:
        """When the rollout of the game's servers began that goes on, else now. Raises `Unavailable`."""
        known = await self._fleet(game)

        def unfinished(since: float) -> bool:
            return not again and any(record.created_at < since for record in known.values())

        return await self._fleet_limit.begin_rollout(game, unfinished, self._clock())

    async def _fleet(self, game: Game) -> dict[str, DeploymentRecord]:
        """Every deployment of the game that exists or may come to exist, those reserved by others included."""
        known = {
            record.id: record
            for record in self._deployments.of(game.name, game.version)
            if state_machine.is_live(record)
        }
        reserved = (await self._fleet_limit.read(game.name, game.version)).deployments
        for deployment_id, at in reserved.items():
            if deployment_id not in known:
                record = await self._deployments.fetch(deployment_id)
                known[deployment_id] = record or state_machine.planned(deployment_id, game, at)
        return known

    def _start_failed(self, game: Game, deployment_id: str, exc: OrchestratorError) -> None:
        starts = self._backoffs[game.key]
        reason = one_line(describe(exc))
        record = self._deployments.get(deployment_id)
        self._stopper.stop(deployment_id, f"did not start: {reason}")
        if isinstance(exc, NoCapacity):
            starts.no_capacity(reason, time.monotonic(), exc.retry_after)
        else:
            now = self._clock()
            planned_at = now if record is None else record.created_at
            starts.failed(planned_at, now, time.monotonic(), self._settings.backoff, exc.retry_after)
            starts.reason = reason
        log.warning("deployment %s did not start: %s", deployment_id, reason)
        line = self._lines[game.key]
        hopeless = isinstance(exc, NotConfigured) or starts.failures >= self._settings.start_failures
        if not (hopeless and self._give_up(game, reason, retry_after=self._blocked(game))):
            line.announce(reason)
        if line or game.min_ready:
            self.want(game.key)

    def _give_up(self, game: Game, reason: str, *, retry_after: float) -> bool:
        """Tell waiting players that no server can be started; not while a ready server may get free seats."""
        if any(r.state is DeploymentState.READY for r in self._deployments.of(game.name, game.version)):
            return False
        why = f": {reason.partition(LAST_WORDS)[0]}" if self._settings.tell_reasons else ""
        error = OrchestratorFailed(
            f"no server could be started{why}", retry_after=math.ceil(max(_RETRY_AFTER, retry_after))
        )
        if told := self._lines[game.key].fail(error):
            log.error("%d waiting for %s %s were told: %s", told, game.name, game.version, reason)
        return True
