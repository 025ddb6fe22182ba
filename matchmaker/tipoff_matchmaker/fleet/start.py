"""Starts servers: orchestrator called -> record starting -> the server announces itself -> record ready.

Each step may be the last one before the process dies: the record then says `planned` or `starting`, and after its
deadline the reconciler of any matchmaker stops it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord
from tipoff_matchmaker.event_secret import EventSecret
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.orchestrators.retry import retried
from tipoff_matchmaker.seats.waiting_line import WaitingLines
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NotConfigured,
    Orchestrator,
    OrchestratorError,
    RunState,
)
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.games import Game, SomeGames
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import one_line
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[Game, str, OrchestratorError], None]
"""Called with the game, the deployment's id and the reason when a start has failed."""


class Starter:
    """The deployments that this process starts, and what all starts that take long are doing.

    A start waits for its record: `ready` or `draining` ends it well; `stopping` or `gone`, whoever wrote that, is its
    failure.
    """

    def __init__(
        self,
        deployments: DeploymentStore,
        orchestrators: Mapping[str, Orchestrator],
        games: SomeGames,
        lines: WaitingLines,
        readiness: Readiness,
        event_secret: EventSecret | None,
        hearing: Hearing,
        published: GamesFollower,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._deployments = deployments
        self._orchestrators = orchestrators
        self._games = games
        self._lines = lines
        self._readiness = readiness
        self._event_secret = event_secret
        self._published = published
        self._tasks = tasks
        self._settings = settings
        self._clock = clock
        self._listeners: list[Listener] = []
        self._outcomes: dict[str, asyncio.Future[str]] = {}
        """Done with "" when the server is ready, else with why it stopped."""
        self._timeouts: dict[str, asyncio.Timeout] = {}
        self._progress: dict[str, str] = {}
        """What starts that take long are doing, as their orchestrators tell; also of other matchmakers' starts."""
        deployments.subscribe_states(self._state_changed)
        hearing.subscribe(self._not_heard)

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` for every start of this process that has failed."""
        self._listeners.append(listener)

    def start(self, game: Game, deployment_id: str, near: tuple[str, ...]) -> None:
        """Start a server whose record says `planned`. `near`: addresses of those who wait for it."""
        self._outcomes[deployment_id] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._run(game, deployment_id, near), f"start/{deployment_id}")

    def is_starting(self, deployment_id: str) -> bool:
        """Whether this process starts it right now, and keeps its start deadline."""
        return deployment_id in self._outcomes

    def _not_heard(self, seconds: float) -> None:
        """Servers may say that they are ready, and are not heard: no start ends within these seconds."""
        earliest = asyncio.get_running_loop().time() + seconds
        for timeout in self._timeouts.values():
            when = timeout.when()
            if when is not None and not timeout.expired():
                timeout.reschedule(max(when, earliest))

    def doing(self, fleet: Iterable[DeploymentRecord]) -> str:
        """What the first of these that takes long is doing; "" when that is not known."""
        return next((text for record in fleet if (text := self._progress.get(record.id, ""))), "")

    def progress(self, deployment_id: str, text: str) -> None:
        """Note what a start that takes long is doing (an image is fetched), as its orchestrator tells: players are
        told, and every change renews `start_timeout`. "": that is over."""
        record = self._deployments.get(deployment_id)
        game = None if record is None else self._games.get(record.game, record.version)
        text = one_line("".join(c if c.isprintable() else " " for c in text))
        if record is None or game is None or not state_machine.is_coming(record):
            return
        if not text:
            self._progress.pop(deployment_id, None)
            return
        if self._progress.get(deployment_id) == text:
            return
        self._progress[deployment_id] = text
        timeout = self._timeouts.get(deployment_id)
        if timeout is not None and not timeout.expired() and timeout.when() is not None:
            timeout.reschedule(asyncio.get_running_loop().time() + game.start_timeout)
            now = self._clock()
            if record.deadline < now + game.start_timeout / 2:
                deadline = now + game.start_timeout
                self._tasks.start(self._give_time(deployment_id, deadline), f"time/{deployment_id}")
        self._lines[game.key].announce()

    def _state_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """Any matchmaker may have moved it on."""
        if not state_machine.is_coming(after):
            self._progress.pop(after.id, None)
        if state_machine.serves(after):  # also `draining` at once: what is seen of a record may skip states
            self._resolve(after.id, "")
        elif after.state is DeploymentState.STOPPING:
            self._resolve(after.id, after.reason or "it was stopped")
        elif after.state is DeploymentState.GONE and (before is None or state_machine.is_live(before)):
            self._resolve(after.id, after.reason)

    def _resolve(self, deployment_id: str, outcome: str) -> None:
        future = self._outcomes.get(deployment_id)
        if future is not None and not future.done():
            future.set_result(outcome)

    async def _run(self, game: Game, deployment_id: str, near: tuple[str, ...]) -> None:
        """One server, from planned to ready or failed."""
        outcome = self._outcomes[deployment_id]
        try:
            try:
                async with asyncio.timeout(game.start_timeout) as timeout:
                    self._timeouts[deployment_id] = timeout
                    deployment = await self._deploy(game, deployment_id, near)
                    failpoints.reach("F3")
                    await self._note_started(deployment)
                    failpoints.reach("F4")
                    if deployment.state is RunState.STOPPED:
                        raise OrchestratorError(deployment.reason or "it ended at once", retryable=True)
                    if deployment.state is RunState.STARTING and deployment.reason:
                        self.progress(deployment_id, deployment.reason)
                    if game.ready == "running" and deployment.state is RunState.RUNNING:
                        await self._note_running(deployment)
                    if reason := await outcome:
                        raise OrchestratorError(reason, retryable=True)
            except TimeoutError:
                raise OrchestratorError(
                    f"it was not ready within {game.start_timeout:g} s", retryable=True
                ) from None
        except OrchestratorError as exc:
            for listener in self._listeners:
                listener(game, deployment_id, exc)
        except NoRecord:
            log.info("deployment %s was stopped by another matchmaker while it started", deployment_id)
        finally:
            self._outcomes.pop(deployment_id, None)
            self._timeouts.pop(deployment_id, None)
            self._progress.pop(deployment_id, None)

    async def _note_started(self, deployment: Deployment) -> None:
        try:
            await self._deployments.change(
                deployment.deployment_id,
                lambda record: state_machine.placed(
                    state_machine.started(record), deployment, just_started=True
                ),
            )
        except Unavailable as exc:  # a server that is only `planned` becomes ready all the same
            log.warning("the start of %s could not be written down: %s", deployment.deployment_id, exc)

    async def _note_running(self, deployment: Deployment) -> None:
        try:
            await self._readiness.runs(deployment)
        except Unavailable as exc:
            log.warning("that %s runs is left to the reconciler: %s", deployment.deployment_id, exc)

    async def _deploy(self, game: Game, deployment_id: str, near: tuple[str, ...]) -> Deployment:
        """Call the orchestrator, several times if need be; safe to repeat, because the id is the tag."""
        orchestrator = self._orchestrators.get(game.orchestrator)
        if orchestrator is None:
            raise NotConfigured(f"there is no orchestrator {game.orchestrator!r} here")
        secret = self._event_secret
        record = self._deployments.get(deployment_id)
        spec = DeploySpec(
            deployment_id,
            game.name,
            game.version,
            game.seats,
            near,
            websocket_url=self._settings.websocket_url(deployment_id),
            event_key="" if secret is None else secret.key_of(deployment_id).reveal(),
            own_key=record is not None and record.own_key,
            nats_password=""
            if secret is None or self._settings.server_auth_seed_file is None
            else secret.password_of(deployment_id).reveal(),
            games_revision=self._published.revision,
        )
        return await retried(
            lambda: orchestrator.deploy(spec),
            tries=self._settings.deploy_tries,
            first=self._settings.backoff,
            on_failure=lambda number, exc: log.warning("deploy %s, try %d: %s", deployment_id, number, exc),
        )

    async def _give_time(self, deployment_id: str, deadline: float) -> None:
        """Extend the record's deadline, so that no other matchmaker stops the server."""
        try:
            await self._deployments.change(
                deployment_id, lambda record: state_machine.given_time(record, deadline)
            )
        except TipoffError as exc:
            log.info("%s keeps its old deadline: %s", deployment_id, exc)
