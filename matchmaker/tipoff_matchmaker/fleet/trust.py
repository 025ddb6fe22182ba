"""Holds which servers may get players now: those confirmed to live."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tipoff_matchmaker.deployments.state_machine import is_coming
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_shared.records import DeploymentRecord, DeploymentState

Listener: TypeAlias = Callable[[str], None]
"""Called with the id of a deployment whose trust has changed."""


class Trust:
    """In memory: each matchmaker trusts a server by what it has seen itself. A server that becomes ready is trusted at
    once; one that is gone is forgotten."""

    def __init__(self, deployments: DeploymentStore) -> None:
        self._trusted: set[str] = set()
        self._listeners: list[Listener] = []
        deployments.subscribe_states(self._state_changed)

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` whenever the trust in a server changes."""
        self._listeners.append(listener)

    def __contains__(self, deployment_id: str) -> bool:
        return deployment_id in self._trusted

    def add(self, deployment_id: str) -> None:
        """Players may be sent there; idempotent."""
        if deployment_id not in self._trusted:
            self._trusted.add(deployment_id)
            self._publish(deployment_id)

    def remove(self, deployment_id: str) -> None:
        """No new players there until it is known to live; idempotent."""
        if deployment_id in self._trusted:
            self._trusted.discard(deployment_id)
            self._publish(deployment_id)

    def _publish(self, deployment_id: str) -> None:
        for listener in self._listeners:
            listener(deployment_id)

    def _state_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """Any matchmaker may have moved it on."""
        if after.state is DeploymentState.READY and before is not None and is_coming(before):
            self.add(after.id)
        elif after.state is DeploymentState.GONE:
            self.remove(after.id)
