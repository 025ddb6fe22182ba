"""Polls deployments or sessions when they are due (poll_schedule.py), or when one of Edgegap's webhooks arrives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn

from nats.aio.msg import Msg

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import PollSchedule
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus, Subscription
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

_GATHER = 0.005
"""Seconds in which ids that become due are collected, so that one list answers for them."""
_LONGEST_PAUSE = 10.0


class PollLoop:
    """The ids that are polled, and the loop that polls them: nothing is polled unless `run` runs.

    `what` names the ids in the log. With `hook_url` in `settings`, Edgegap posts webhooks to httpd, which publishes
    them on NATS. They carry no state that is trusted: a webhook makes its id due at once.
    """

    def __init__(self, bus: Bus, settings: Settings, what: str) -> None:
        self._bus = bus
        self._what = what
        self._hooked = bool(settings.hook_url)
        first = settings.poll_slowest if self._hooked else settings.poll_first
        self._schedule = PollSchedule(min(first, settings.poll_slowest), settings.poll_slowest)
        self._wake = asyncio.Event()

    def add(self, id: str) -> None:
        """Poll `id` from time to time until it is removed."""
        self._schedule.add(id, _now())
        self._wake.set()

    def poll_now(self, id: str) -> None:
        """Poll `id` once, at once."""
        self._schedule.poll_now(id)
        self._wake.set()

    def remove(self, id: str) -> None:
        """Stop polling `id`; idempotent."""
        self._schedule.remove(id)

    async def run(
        self, poll: Callable[[list[str]], Awaitable[None]], hook_id: Callable[[str], str | None]
    ) -> NoReturn:
        """Poll until cancelled.

        `poll(ids)` polls the ids that are due. The loop logs an `OrchestratorError` that it raises, waits for its
        `retry_after` (at most 10 s), and goes on. `hook_id(name)` returns the id that a webhook's name stands for, or
        None for a name that is not ours.
        """
        subscription = await self._subscribe(hook_id) if self._hooked else None
        try:
            while True:
                self._wake.clear()
                await self._wait_until(self._schedule.next_at())
                due = self._schedule.due(_now())
                if not due:
                    continue
                try:
                    await poll(due)
                except OrchestratorError as exc:
                    log.info("polling %d %s(s): %s", len(due), self._what, exc)
                    await asyncio.sleep(min(exc.retry_after or 0.0, _LONGEST_PAUSE))
                await asyncio.sleep(_GATHER)
        finally:
            if subscription is not None:
                await subscription.unsubscribe()

    async def _wait_until(self, when: float | None) -> None:
        if when is None or when > _now():
            await wait_for_event(self._wake, None if when is None else when - _now())

    async def _subscribe(self, hook_id: Callable[[str], str | None]) -> Subscription | None:
        async def received(msg: Msg) -> None:
            # A webhook for another matchmaker is left to that one's polls, or to the reconciler.
            if (id := hook_id(msg.subject.rpartition(".")[2])) is not None:
                self.poll_now(id)

        try:
            return await self._bus.subscribe(self._bus.subjects.all_webhooks, received)
        except Unavailable as exc:
            log.warning("webhooks cannot be received, polling instead: %s", exc)
            return None


async def poll_each(ids: Iterable[str], poll: Callable[[str], Awaitable[object]]) -> None:
    """Poll one id after another. An `OrchestratorError` of one keeps no other from being polled; the last one is raised
    after all."""
    error: OrchestratorError | None = None
    for id in ids:
        try:
            await poll(id)
        except OrchestratorError as exc:
            error = exc
    if error is not None:
        raise error


def _now() -> float:
    return asyncio.get_running_loop().time()
