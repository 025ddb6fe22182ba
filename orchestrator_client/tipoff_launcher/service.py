"""The launcher as a service: requests come over NATS, and what becomes of servers is told there."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.msg import Msg

from tipoff_launcher.settings import Settings
from tipoff_launcher.supervisor import Servers
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import Deployment, OrchestratorError, OrchestratorUnavailable
from tipoff_shared.errors import ConfigError, Malformed, Unavailable
from tipoff_shared.nats.connection import Bus, Subscription
from tipoff_shared.primitives.tasks import BoundedHandlers

log = logging.getLogger(__name__)

_QUEUE = "launchers"
_DRAIN = 1.0

_Operation = Callable[[bytes], Awaitable[bytes]]


class Launcher:
    """A launcher that answers. `failed` is set when it can no longer do its work (NATS is gone for good, or there
    is a bug) and the process should end; the next launcher takes over."""

    def __init__(self, settings: Settings, bus: Bus, servers: Servers, failed: asyncio.Event) -> None:
        self.settings = settings
        self.bus = bus
        self.servers = servers
        self.failed = failed
        self._handlers = BoundedHandlers("launcher request", settings.max_requests)
        self._subscriptions: list[Subscription] = []
        self._operations: dict[str, _Operation] = {
            "deploy": self._deploy,
            "get": self._get,
            "stop": self._stop,
            "list": self._list,
        }
        if settings.demo:
            self._operations["kill"] = self._kill

    async def refuse_to_be_second(self) -> None:
        """Raises `ConfigError` when a launcher of this name answers already: each would start what the other has."""
        subject = self._subject("list")
        try:
            await self.bus.request(subject, b"{}", timeout=2)
        except Unavailable as exc:
            if isinstance(exc.__cause__, nats.errors.NoRespondersError):
                return
            if not self.bus.connected:
                raise
        raise ConfigError(
            f"a launcher of host {self.settings.host!r} is running already in namespace "
            f"{self.bus.settings.namespace!r}; stop it, or give this one another TIPOFF_LAUNCHER_HOST"
        )

    async def serve(self) -> None:
        for name, operation in self._operations.items():
            self._subscriptions.append(
                await self.bus.serve(
                    self._subject(name),
                    functools.partial(self._answer, operation),
                    queue=_QUEUE,
                    handlers=self._handlers,
                    busy=self._busy,
                )
            )
        await self.bus.flush()

    async def quiet(self) -> None:
        """Take no more requests; wait for those in hand."""
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as exc:
                log.debug("unsubscribing: %s", exc)
        await self._handlers.drain(_DRAIN)

    def _subject(self, operation: str) -> str:
        return self.bus.subjects.launcher(self.settings.host, operation)

    async def _answer(self, operation: _Operation, msg: Msg) -> None:
        try:
            answer = await operation(msg.data)
        except Malformed as exc:
            answer = wire.encode_error(OrchestratorError(str(exc)))
        except OrchestratorError as exc:
            answer = wire.encode_error(exc)
        except Exception:
            log.exception("a request on %s failed", msg.subject)
            answer = wire.encode_error(
                OrchestratorError("the launcher failed; its log says why", may_have_started=True)
            )
        await self._reply(msg, answer)

    async def _busy(self, msg: Msg) -> None:
        error = OrchestratorUnavailable("the launcher is busy", retryable=True, retry_after=1)
        await self._reply(msg, wire.encode_error(error))

    async def _reply(self, msg: Msg, answer: bytes) -> None:
        if not msg.reply:
            return
        try:
            await self.bus.publish(msg.reply, answer)
        except Unavailable as exc:
            log.warning("an answer is lost: %s", exc)

    async def _deploy(self, data: bytes) -> bytes:
        return wire.encode_deployment(await self.servers.deploy(wire.decode_deploy(data)))

    async def _get(self, data: bytes) -> bytes:
        return wire.encode_deployment(self.servers.get(wire.decode_one(data)))

    async def _stop(self, data: bytes) -> bytes:
        await self.servers.stop(wire.decode_one(data))
        return wire.encode_done()

    async def _kill(self, data: bytes) -> bytes:
        await self.servers.kill(wire.decode_one(data))
        return wire.encode_done()

    async def _list(self, data: bytes) -> bytes:
        return wire.encode_deployments(self.servers.living())


def publisher(bus: Bus, host: str) -> Callable[[Deployment], Awaitable[None]]:
    """Tells whoever listens of every start and end; raises nothing."""
    subject = bus.subjects.launcher(host, "events")

    async def tell(deployment: Deployment) -> None:
        try:
            await bus.publish(subject, wire.encode_deployment(deployment))
        except Unavailable as exc:
            log.warning("nobody hears that %s is %s: %s", deployment.deployment_id, deployment.state, exc)

    return tell
