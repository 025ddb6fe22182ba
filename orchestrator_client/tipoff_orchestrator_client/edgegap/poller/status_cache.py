"""Keeps the last status of each deployment, and publishes its changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Set

from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.edgegap.poller.poll_loop import PollLoop
from tipoff_orchestrator_client.events import EventListeners

_FRESH = 0.5
"""Seconds for which a status is current: a `get` that follows an event is answered from here."""


class StatusCache:
    """What was last heard of each deployment, from Edgegap or by our own calls.

    `listeners` get deployments that run or have stopped, when that is news. `poll` polls those that are followed.
    `monotonic`: the clock by which a status ages.
    """

    def __init__(self, poll: PollLoop, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._poll = poll
        self._now = monotonic
        self._heard: dict[str, tuple[Deployment, float]] = {}
        self._confirmed: set[str] = set()
        self.listeners = EventListeners()

    def hear(self, deployment: Deployment) -> Deployment:
        """Note a status that was just read, or is the result of a call; returns it."""
        before = self._heard.get(deployment.deployment_id)
        self._heard[deployment.deployment_id] = (deployment, self._now())
        if deployment.state is not RunState.STARTING:
            self._poll.remove(deployment.deployment_id)
            if before is None or before[0].state is not deployment.state:
                self.listeners.publish(deployment)
        return deployment

    def follow(self, deployment: Deployment) -> Deployment:
        """Poll a deployment that is starting until it runs or has stopped; returns it."""
        if deployment.state is RunState.STARTING:
            self._poll.add(deployment.deployment_id)
        return deployment

    def fresh(self, deployment_id: str) -> Deployment | None:
        """Its status where that is current and it has not stopped."""
        deployment, at = self._heard.get(deployment_id, (None, 0.0))
        if deployment is None or self._now() - at > _FRESH or deployment.state is RunState.STOPPED:
            return None
        return deployment

    def was_running(self, deployment_id: str) -> bool:
        """Whether its last status, which is no longer current, says that it runs."""
        deployment, at = self._heard.get(deployment_id, (None, 0.0))
        return deployment is not None and deployment.state is RunState.RUNNING and self._now() - at > _FRESH

    def confirm(self, deployment_id: str) -> None:
        """Note that Edgegap knows it: when Edgegap says later that it is unknown, it is gone."""
        self._confirmed.add(deployment_id)

    def is_confirmed(self, deployment_id: str) -> bool:
        """Whether Edgegap has ever known it."""
        return deployment_id in self._confirmed

    def named(self, native_id: str) -> str | None:
        """The id of the deployment with this request id at Edgegap."""
        for deployment_id, (deployment, _) in self._heard.items():
            if deployment.native_id == native_id:
                return deployment_id
        return None

    def __contains__(self, deployment_id: str) -> bool:
        return deployment_id in self._heard

    def keep(self, deployment_ids: Set[str], *, younger_than: float) -> None:
        """Forget all others, except those heard of in the last `younger_than` seconds."""
        since = self._now() - younger_than
        self._heard = {
            id: heard for id, heard in self._heard.items() if id in deployment_ids or heard[1] > since
        }
        self._confirmed &= deployment_ids
