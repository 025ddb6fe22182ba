"""Reaches the launcher of a host over NATS: an `Orchestrator` that any number of matchmakers share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence

from nats.aio.msg import Msg

from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    OrchestratorError,
    OrchestratorUnavailable,
)
from tipoff_orchestrator_client.events import EventListeners
from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import NoListener, NotSent, PermissionDenied

log = logging.getLogger(__name__)


class LauncherOrchestrator:
    """The launcher named `host`, on `bus`, within the bus's namespace.

    Deadlines are seconds. `stop_deadline` must be longer than the launcher's grace, because the launcher answers `stop`
    when the server has ended.
    """

    def __init__(
        self,
        bus: Bus,
        host: str = "local",
        *,
        deadline: float = 3.0,
        deploy_deadline: float = 10.0,
        stop_deadline: float = 15.0,
    ) -> None:
        self._bus = bus
        self._host = host
        self._deadline = deadline
        self._deploy_deadline = deploy_deadline
        self._stop_deadline = stop_deadline
        self._listeners = EventListeners()
        self._start_listeners: list[Callable[[], None]] = []
        self.problems: Sequence[str] = ()
        """What keeps the launcher from starting servers, as its latest list said."""

    @property
    def name(self) -> str:
        """`launcher`."""
        return "launcher"

    def subscribe_starts(self, listener: Callable[[], None]) -> None:
        """See `TellsStarts`."""
        self._start_listeners.append(listener)

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """See `Orchestrator`. `may_have_started` of an error is False only when the request reached no launcher."""
        try:
            answer = await self._request("deploy", wire.encode_deploy(spec), self._deploy_deadline)
        except OrchestratorUnavailable as exc:
            exc.may_have_started = not isinstance(exc.__cause__, NoListener | NotSent | PermissionDenied)
            raise
        deployment = wire.decode_deployment(answer)
        if deployment is None:
            raise OrchestratorUnavailable(
                "the launcher's answer to deploy names no deployment", retryable=True, may_have_started=True
            )
        return deployment

    async def get(self, deployment_id: str) -> Deployment | None:
        """See `ServerDirectory`."""
        answer = await self._request("get", wire.encode_one(deployment_id), self._deadline)
        return wire.decode_deployment(answer)

    async def stop(self, deployment_id: str) -> None:
        """See `ServerDirectory`; returns when the server has ended."""
        wire.decode_done(await self._request("stop", wire.encode_one(deployment_id), self._stop_deadline))

    async def kill(self, deployment_id: str) -> None:
        """Send SIGKILL to the server's process, as a crash would. Only a launcher in demo mode does so."""
        wire.decode_done(await self._request("kill", wire.encode_one(deployment_id), self._deadline))

    async def logs(self, request: wire.LogRequest) -> Sequence[wire.ServerLog]:
        """New lines of the logs of its servers, also of those that ended lately. Waits for them as `request` says.
        Raises `OrchestratorError`."""
        payload = wire.encode_log_request(request)
        return wire.decode_logs(await self._request("logs", payload, request.wait + self._deadline))

    async def games(self) -> tuple[int, Sequence[str]]:
        """The published revision of games.toml that it follows (0: none), and what keeps it from starting servers of
        those games. Raises `OrchestratorError`."""
        return wire.decode_games(await self._request("games", b"{}", self._deadline))

    async def list(self) -> list[Deployment]:
        """See `ServerDirectory`."""
        deployments, self.problems = wire.decode_deployments(
            await self._request("list", b"{}", self._deadline)
        )
        return deployments

    async def events(self) -> AsyncIterator[Deployment]:
        """See `ServerDirectory`. Events are lost while NATS is away, and when the listener is a thousand events
        behind. Ends with `close`."""
        with self._listeners.listen() as queue:

            async def received(msg: Msg) -> None:
                try:
                    event, started = wire.decode_event(msg.data)
                except OrchestratorError as exc:
                    log.warning("an event on %s cannot be read: %s", msg.subject, exc)
                    return
                if event is not None:
                    queue.put(event)
                if started:
                    for listener in self._start_listeners:
                        listener()

            try:
                subscription = await self._bus.subscribe(
                    self._bus.subjects.launcher(self._host, "events"), received
                )
            except Unavailable as exc:
                raise OrchestratorUnavailable(str(exc), retryable=True) from exc
            try:
                async for event in queue:
                    yield event
            finally:
                await subscription.unsubscribe()

    async def close(self) -> None:
        """End the iterators of `events`."""
        self._listeners.close()

    async def _request(self, operation: str, payload: bytes, deadline: float) -> bytes:
        subject = self._bus.subjects.launcher(self._host, operation)
        try:
            return (await self._bus.request(subject, payload, timeout=deadline)).data
        except Unavailable as exc:
            raise OrchestratorUnavailable(
                f"the launcher of host {self._host!r} does not answer: {exc}",
                retryable=True,
                retry_after=exc.retry_after,
            ) from exc
