"""Answers the launcher's requests over NATS, and publishes what happens to its servers."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg

from tipoff_launcher.settings import Settings
from tipoff_launcher.supervisor import Supervisor
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import Deployment, OrchestratorError, OrchestratorUnavailable
from tipoff_shared.errors import ConfigError, Malformed, Unavailable
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.nats.connection import Bus, Subscription
from tipoff_shared.nats.errors import NoListener
from tipoff_shared.primitives.tasks import BoundedHandlers

log = logging.getLogger(__name__)

_QUEUE = "launchers"
_DRAIN = 1.0
"""Seconds for requests in hand when the launcher ends."""

_LOG_READERS = 16
"""Readers of logs at once: they wait for new lines, and must not keep the places of other requests."""
_LOG_BYTES = 256 * 1024
"""Bytes of lines in one answer."""
_LOOK_FOR_LINES_EVERY = 0.2

_Operation = Callable[[bytes], Awaitable[bytes]]


class Launcher:
    """The service of one launcher, from `serve` to `stop_serving`.

    `failed` is set when the launcher can no longer work (NATS is gone for good, or a task failed): the process should
    end, and the next launcher takes over.
    """

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        supervisor: Supervisor,
        published: GamesFollower,
        failed: asyncio.Event,
    ) -> None:
        self.settings = settings
        self.bus = bus
        self.supervisor = supervisor
        self.published = published
        self.failed = failed
        self._handlers = BoundedHandlers("launcher request", settings.max_requests)
        self._subscriptions: list[Subscription] = []
        self._operations: dict[str, _Operation] = {
            "deploy": self._deploy,
            "get": self._get,
            "stop": self._stop,
            "list": self._list,
            "logs": self._logs,
            "games": self._games,
        }
        self._log_readers = BoundedHandlers("log reader", _LOG_READERS)
        if settings.demo:
            self._operations["kill"] = self._kill

    async def refuse_to_be_second(self) -> None:
        """Raises `ConfigError` when a launcher of this name answers: each would start what the other has."""
        try:
            await self.bus.request(self._subject("list"), b"{}", timeout=2)
        except NoListener:
            return
        except Unavailable:
            if not self.bus.connected:
                raise
        raise ConfigError(
            f"a launcher of host {self.settings.host!r} is running already in namespace "
            f"{self.bus.settings.namespace!r}; stop it, or give this one another TIPOFF_LAUNCHER_HOST"
        )

    async def serve(self) -> None:
        """Answer requests from now on, and tell those who asked in vain before. Raises `Unavailable`."""
        for name, operation in self._operations.items():
            self._subscriptions.append(
                await self.bus.serve(
                    self._subject(name),
                    functools.partial(self._answer, operation),
                    queue=_QUEUE,
                    handlers=self._log_readers if name == "logs" else self._handlers,
                    busy=self._busy,
                )
            )
        await self.bus.publish(self._subject("events"), wire.encode_started())
        await self.bus.flush()

    async def stop_serving(self) -> None:
        """Take no more requests, and wait for those in hand."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._log_readers.drain(0)
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
        return wire.encode_deployment(await self.supervisor.deploy(wire.decode_deploy(data)))

    async def _get(self, data: bytes) -> bytes:
        return wire.encode_deployment(self.supervisor.get(wire.decode_one(data)))

    async def _stop(self, data: bytes) -> bytes:
        await self.supervisor.stop(wire.decode_one(data))
        return wire.encode_done()

    async def _logs(self, data: bytes) -> bytes:
        """Files tell nobody that they grow, so they are looked at several times a second while somebody reads."""
        request = wire.decode_log_request(data)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.wait
        while True:
            found = await asyncio.to_thread(self.supervisor.read_logs, request, _LOG_BYTES)
            news = any(part.lines or part.deployment_id not in request.cursors for part in found)
            if news or (left := deadline - loop.time()) <= 0:
                return wire.encode_logs(found)
            await asyncio.sleep(min(left, _LOOK_FOR_LINES_EVERY))

    async def _games(self, data: bytes) -> bytes:
        return wire.encode_games(self.published.revision, self.published.problems)

    async def _kill(self, data: bytes) -> bytes:
        await self.supervisor.kill(wire.decode_one(data))
        return wire.encode_done()

    async def _list(self, data: bytes) -> bytes:
        return wire.encode_deployments(self.supervisor.living(), self.supervisor.problems)


def event_publisher(bus: Bus, host: str) -> Callable[[Deployment], Awaitable[None]]:
    """A function that publishes a deployment's state as an event; it raises nothing."""
    subject = bus.subjects.launcher(host, "events")

    async def publish(deployment: Deployment) -> None:
        try:
            await bus.publish(subject, wire.encode_deployment(deployment))
        except Unavailable as exc:
            log.warning(
                "the event that %s is %s is lost: %s", deployment.deployment_id, deployment.state, exc
            )

    return publish
