"""What was last heard of each deployment, and who is told when it changes. Times are seconds of the caller's clock."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.event_queue import EventQueue

_FRESH = 0.5
"""Seconds for which what was just read from Edgegap answers a `get`, too: a look that finds news is followed by one."""


class News:
    """Told are starts that have come to an end, and ends; what is news is judged by what was heard before."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[Deployment, float]] = {}
        self._met: set[str] = set()
        self._listeners: set[EventQueue] = set()

    def hear(self, deployment: Deployment, now: float) -> None:
        """Just read from Edgegap, or just done."""
        before = self._heard.get(deployment.deployment_id)
        self._heard[deployment.deployment_id] = (deployment, now)
        if deployment.state is RunState.STARTING:
            return
        if before is None or before[0].state is not deployment.state:
            for queue in self._listeners:
                queue.tell(deployment)

    def fresh(self, deployment_id: str, now: float) -> Deployment | None:
        """One heard of a moment ago; None when it has ended."""
        heard = self._heard.get(deployment_id)
        if heard is None or now - heard[1] > _FRESH or heard[0].state is RunState.STOPPED:
            return None
        return heard[0]

    def was_running(self, deployment_id: str, now: float) -> bool:
        """When it was last heard of, which is not just now."""
        heard = self._heard.get(deployment_id)
        return heard is not None and heard[0].state is RunState.RUNNING and now - heard[1] > _FRESH

    def meet(self, deployment_id: str) -> None:
        """Edgegap has told of it: should it not know it any more, it is gone."""
        self._met.add(deployment_id)

    def has_met(self, deployment_id: str) -> bool:
        return deployment_id in self._met

    def named(self, native_id: str) -> str | None:
        """The deployment with this request id of Edgegap's."""
        for deployment_id, (deployment, _) in self._heard.items():
            if deployment.native_id == native_id:
                return deployment_id
        return None

    def __contains__(self, deployment_id: str) -> bool:
        return deployment_id in self._heard

    def forget_all_but(self, deployment_ids: Set[str], *, before: float) -> None:
        """All others of which nothing was heard since `before`."""
        self._heard = {
            id: heard for id, heard in self._heard.items() if id in deployment_ids or heard[1] > before
        }
        self._met &= deployment_ids

    @contextmanager
    def listener(self) -> Iterator[EventQueue]:
        """Hears what is news for the time of the block; the queue ends with `end_all`."""
        queue = EventQueue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def end_all(self) -> None:
        """Whoever listens hears the end."""
        for queue in self._listeners:
            queue.close()
