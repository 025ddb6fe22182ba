"""How a server starts: orchestrator told -> record starting -> it announces itself -> record ready.

Each line may be the last one before the process dies: the record then says `planned` or `starting`, and after its
deadline the sweep of any matchmaker ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.backoff import retried
from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.deployments.readiness import Arrival
from tipoff_matchmaker.deployments.store import Ledger, NoRecord
from tipoff_matchmaker.fleet.start_backoff import brief
from tipoff_matchmaker.gs_proxy import websocket_url
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NotConfigured,
    Orchestrator,
    OrchestratorError,
    RunState,
)
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.games import Game, GameKey
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)


class Starts:
    """The deployments that this process is starting. `failed(game, id, error)`: one of them did not; `on_progress` is
    called when what starts of a game are busy with has changed."""

    def __init__(
        self,
        ledger: Ledger,
        orchestrators: Mapping[str, Orchestrator],
        games: Mapping[GameKey, Game],
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        backoff: float,
        tries: int,
        gs_proxy_url: str,
        event_key: Callable[[str], str],
        runs: Callable[[Deployment], Coroutine[Any, Any, None]],
        failed: Callable[[Game, str, OrchestratorError], None],
        on_progress: Callable[[GameKey], None],
    ) -> None:
        self._ledger = ledger
        self._orchestrators = orchestrators
        self._games = games
        self._tasks = tasks
        self._clock = clock
        self._backoff = backoff
        self._tries = tries
        self._gs_proxy_url = gs_proxy_url
        self._event_key = event_key
        self._runs = runs
        self._failed = failed
        self._on_progress = on_progress
        self._arrivals: dict[str, asyncio.Future[str]] = {}
        """Done with "" when it is ready, else with why it ended."""
        self._patience: dict[str, asyncio.Timeout] = {}
        self._progress: dict[str, str] = {}
        """What starts that take long are busy with, as their orchestrators tell; for all matchmakers' starts."""
        ledger.listen(self._ledger_changed)

    def start(self, game: Game, deployment_id: str, near: tuple[str, ...]) -> None:
        """Its record is there, as `planned`."""
        self._arrivals[deployment_id] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._run(game, deployment_id, near), f"start/{deployment_id}")

    def is_running(self, deployment_id: str) -> bool:
        """Whether this process itself looks after its start (and its start deadline)."""
        return deployment_id in self._arrivals

    def _ledger_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """Any matchmaker may have moved it on."""
        if not deployments.is_coming(after):
            self._progress.pop(after.id, None)
        if after.state is DeploymentState.READY and before is not None and deployments.is_coming(before):
            self._end(after.id, "")
        elif after.state is DeploymentState.GONE and (before is None or deployments.is_live(before)):
            self._end(after.id, after.reason)

    def died(self, deployment_id: str, reason: str) -> bool:
        """The server ended before it was ready; whether this process was waiting for it (and sees to the rest)."""
        return self._end(deployment_id, reason)

    def _end(self, deployment_id: str, outcome: str) -> bool:
        arrived = self._arrivals.get(deployment_id)
        if arrived is None or arrived.done():
            return False
        arrived.set_result(outcome)
        return True

    def busy_with(self, fleet: Iterable[DeploymentRecord]) -> str:
        """What the first of these that takes long is busy with."""
        return next((text for record in fleet if (text := self._progress.get(record.id, ""))), "")

    async def _run(self, game: Game, deployment_id: str, near: tuple[str, ...]) -> None:
        """One server, from planned to ready or failed."""
        arrived = self._arrivals[deployment_id]
        try:
            try:
                async with asyncio.timeout(game.start_timeout) as patience:
                    self._patience[deployment_id] = patience
                    deployment = await self._deploy(game, deployment_id, near)
                    failpoints.reach("F3")
                    await self._note_started(deployment)
                    failpoints.reach("F4")
                    if deployment.state is RunState.STOPPED:
                        raise OrchestratorError(deployment.reason or "it ended at once", retryable=True)
                    if deployment.state is RunState.STARTING and deployment.reason:
                        self.progress(deployment_id, deployment.reason)
                    if game.ready == "running" and deployment.state is RunState.RUNNING:
                        await self._runs(deployment)
                    if died := await arrived:
                        raise OrchestratorError(died, retryable=True)
            except TimeoutError:
                raise OrchestratorError(
                    f"it was not ready within {game.start_timeout:g} s", retryable=True
                ) from None
        except OrchestratorError as exc:
            self._failed(game, deployment_id, exc)
        except NoRecord:
            log.info("deployment %s was ended by somebody else while it started", deployment_id)
        finally:
            self._arrivals.pop(deployment_id, None)
            self._patience.pop(deployment_id, None)
            self._progress.pop(deployment_id, None)

    async def _note_started(self, deployment: Deployment) -> None:
        try:
            await self._ledger.change(
                deployment.deployment_id,
                lambda record: deployments.placed(deployments.started(record), deployment),
            )
        except Unavailable as exc:  # a server that is only `planned` becomes ready all the same
            log.warning("that %s was started could not be written down: %s", deployment.deployment_id, exc)

    async def note_place(self, deployment: Deployment) -> None:
        """Its orchestrator says of it what the record does not."""
        await self._ledger.change(
            deployment.deployment_id, lambda record: deployments.placed(record, deployment)
        )

    async def _deploy(self, game: Game, deployment_id: str, near: tuple[str, ...]) -> Deployment:
        """Tell the orchestrator, a few times if need be; safe to repeat, because the id is the tag."""
        orchestrator = self._orchestrators.get(game.orchestrator)
        if orchestrator is None:
            raise NotConfigured(f"there is no orchestrator {game.orchestrator!r} here")
        spec = DeploySpec(
            deployment_id,
            game.name,
            game.version,
            game.seats,
            near,
            websocket_url=websocket_url(self._gs_proxy_url, deployment_id),
            event_key=self._event_key(deployment_id),
        )
        return await retried(
            lambda: orchestrator.deploy(spec),
            tries=self._tries,
            first=self._backoff,
            on_failure=lambda number, exc: log.warning("deploy %s, try %d: %s", deployment_id, number, exc),
        )

    async def arrived(self, deployment_id: str, arrival: Arrival) -> DeploymentRecord | None:
        """The server serves. Returns the record as it now is, None when there is none."""
        now = self._clock()
        try:
            return await self._ledger.change(
                deployment_id, lambda record: deployments.arrived(record, arrival, now)
            )
        except NoRecord:
            return None

    def progress(self, deployment_id: str, text: str) -> None:
        """What a start that takes long is busy with (an image is fetched), as its orchestrator tells: players hear of
        it, and with every change `start_timeout` begins anew. "": that is over."""
        record = self._ledger.get(deployment_id)
        game = None if record is None else self._games.get((record.game, record.version))
        text = brief("".join(c if c.isprintable() else " " for c in text))
        if record is None or game is None or not deployments.is_coming(record):
            return
        if not text:
            self._progress.pop(deployment_id, None)
            return
        if self._progress.get(deployment_id) == text:
            return
        self._progress[deployment_id] = text
        patience = self._patience.get(deployment_id)
        if patience is not None and not patience.expired() and patience.when() is not None:
            patience.reschedule(asyncio.get_running_loop().time() + game.start_timeout)
            now = self._clock()
            if record.deadline < now + game.start_timeout / 2:
                deadline = now + game.start_timeout
                self._tasks.start(self._give_time(deployment_id, deadline), f"time/{deployment_id}")
        self._on_progress(game.key)

    async def _give_time(self, deployment_id: str, deadline: float) -> None:
        """So that no other matchmaker ends it."""
        try:
            await self._ledger.change(deployment_id, lambda record: deployments.given_time(record, deadline))
        except (NoRecord, TipoffError) as exc:
            log.info("%s keeps its old deadline: %s", deployment_id, exc)
