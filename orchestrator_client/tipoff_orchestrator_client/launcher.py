"""The launcher of a host as an `Orchestrator`: any number of matchmakers share it over NATS."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.msg import Msg

from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    OrchestratorError,
    OrchestratorUnavailable,
)
from tipoff_orchestrator_client.event_queue import EventQueue
from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied

log = logging.getLogger(__name__)


class LauncherOrchestrator:
    """Speaks to the launcher that calls itself `host`, on `bus`, within the bus's namespace.

    Deadlines are seconds. `stop_deadline` must be longer than the launcher's grace, because its answer to `stop`
    comes when the server has ended.
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
        self._listeners: set[EventQueue] = set()

    @property
    def name(self) -> str:
        return "launcher"

    async def deploy(self, spec: DeploySpec) -> Deployment:
        try:
            answer = await self._ask("deploy", wire.encode_deploy(spec), self._deploy_deadline)
        except OrchestratorUnavailable as exc:
            # Only when the question certainly reached nobody is it certain that nothing was started.
            exc.may_have_started = not isinstance(
                _origin(exc),
                nats.errors.NoRespondersError | nats.errors.OutboundBufferLimitError | PermissionDenied,
            )
            raise
        deployment = wire.decode_deployment(answer)
        if deployment is None:
            raise OrchestratorUnavailable(
                "the launcher's answer to deploy names no deployment", retryable=True, may_have_started=True
            )
        return deployment

    async def get(self, deployment_id: str) -> Deployment | None:
        return wire.decode_deployment(await self._ask("get", wire.encode_one(deployment_id), self._deadline))

    async def stop(self, deployment_id: str) -> None:
        wire.decode_done(await self._ask("stop", wire.encode_one(deployment_id), self._stop_deadline))

    async def kill(self, deployment_id: str) -> None:
        """SIGKILL to the server's process, as a crash would be: only where the launcher runs in demo mode."""
        wire.decode_done(await self._ask("kill", wire.encode_one(deployment_id), self._deadline))

    async def list(self) -> list[Deployment]:
        return wire.decode_deployments(await self._ask("list", b"{}", self._deadline))

    async def events(self) -> AsyncIterator[Deployment]:
        """Lost while NATS is away or the listener is a thousand events behind; ends with `close`."""
        queue = EventQueue()

        async def received(msg: Msg) -> None:
            try:
                event = wire.decode_deployment(msg.data)
            except OrchestratorError as exc:
                log.warning("an event on %s cannot be read: %s", msg.subject, exc)
                return
            if event is not None:
                queue.tell(event)

        subject = self._bus.subjects.launcher(self._host, "events")
        try:
            subscription = await self._bus.nc.subscribe(subject, cb=received)
        except nats.errors.Error as exc:
            raise OrchestratorUnavailable(
                f"NATS is away: {exc or type(exc).__name__}", retryable=True
            ) from exc
        self._listeners.add(queue)
        try:
            async for event in queue:
                yield event
        finally:
            self._listeners.discard(queue)
            if not self._bus.nc.is_closed:
                await subscription.unsubscribe()

    async def close(self) -> None:
        for queue in self._listeners:
            queue.close()

    async def _ask(self, operation: str, payload: bytes, deadline: float) -> bytes:
        subject = self._bus.subjects.launcher(self._host, operation)
        try:
            return (await self._bus.request(subject, payload, timeout=deadline)).data
        except Unavailable as exc:
            raise OrchestratorUnavailable(
                f"the launcher of host {self._host!r} does not answer: {exc}",
                retryable=True,
                retry_after=exc.retry_after,
            ) from exc


def _origin(exc: BaseException) -> BaseException:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc
