"""The loop that looks at deployments when they are due (looks.py), or when a webhook of Edgegap's calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tipoff_orchestrator_client.base import Deployment, OrchestratorError, RunState
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import Looks
from tipoff_orchestrator_client.edgegap.poller.status_cache import News
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)

_HOOK_PAUSE = 0.005


class Watch:
    """`look` may raise `OrchestratorError`: the loop goes on, after the pause that it asks for. `hooked`: Edgegap
    calls; of calls, those are heeded that are of a deployment in the `news`."""

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        look: Callable[[Iterable[str]], Awaitable[None]],
        news: News,
        *,
        hooked: bool,
    ) -> None:
        self._bus = bus
        self._look = look
        self._hooked = hooked
        self.news = news
        first = settings.poll_slowest if hooked else settings.poll_first
        self._looks = Looks(min(first, settings.poll_slowest), settings.poll_slowest)
        self._look_now = asyncio.Event()

    def follow(self, deployment: Deployment) -> Deployment:
        """Look at it until it is more than on its way."""
        if deployment.state is RunState.STARTING:
            self._looks.wait_for(deployment.deployment_id, _now())
            self._look_now.set()
        return deployment

    def heard(self, deployment: Deployment) -> Deployment:
        """Just read from Edgegap (or just done): remembered, and told to those who listen if it is news."""
        if deployment.state is not RunState.STARTING:
            self._looks.done(deployment.deployment_id)
        self.news.hear(deployment, _now())
        return deployment

    def call(self, deployment_id: str) -> None:
        """Look at it now."""
        self._looks.call(deployment_id)
        self._look_now.set()

    def done(self, deployment_id: str) -> None:
        self._looks.done(deployment_id)

    async def run(self) -> None:
        """Until it is cancelled."""
        subscription = await self._listen_to_hooks() if self._hooked else None
        try:
            while True:
                self._look_now.clear()
                await self._until(self._looks.next_at())
                due = self._looks.due(_now())
                if not due:
                    continue
                try:
                    await self._look(due)
                except OrchestratorError as exc:
                    log.info("looking at %d deployment(s): %s", len(due), exc)
                    await asyncio.sleep(min(exc.retry_after or 0.0, 10.0))
                if self._hooked:
                    await asyncio.sleep(_HOOK_PAUSE)  # what is called meanwhile is looked at together
        finally:
            if subscription is not None and not self._bus.nc.is_closed:
                await subscription.unsubscribe()

    async def _until(self, when: float | None) -> None:
        """Until then, or something new is to be looked at."""
        if when is not None and when <= _now():
            return
        try:
            async with asyncio.timeout(None if when is None else when - _now()):
                await self._look_now.wait()
        except TimeoutError:
            return

    async def _listen_to_hooks(self) -> Subscription | None:
        async def called(msg: Msg) -> None:
            id = msg.subject.rpartition(".")[2]
            # Of another matchmaker's, or nobody's: its own looks, or the sweep, see to it.
            if id in self.news:
                self.call(id)

        try:
            return await self._bus.nc.subscribe(self._bus.subjects.all_webhooks, cb=called)
        except nats.errors.Error as exc:
            log.warning("webhooks cannot be heard, looking from time to time instead: %s", exc)
            return None


def _now() -> float:
    return asyncio.get_running_loop().time()
