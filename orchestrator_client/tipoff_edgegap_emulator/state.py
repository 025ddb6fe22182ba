"""Decides what becomes of the emulated account's deployments. Pure.

Every method takes `now` (Unix seconds) and returns effects for `EffectRunner`: a server to start or to stop, a webhook
to send. Applications and versions are in catalogue.py, sessions in sessions.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tipoff_edgegap_emulator.catalogue import Catalogue
from tipoff_edgegap_emulator.deployment import (
    AppKey,
    Deployment,
    Effect,
    Phase,
    Port,
    SendWebhook,
    StartServer,
    StopServer,
)
from tipoff_edgegap_emulator.errors import Refused, RefusedDeployment


@dataclass(frozen=True, slots=True)
class Rules:
    """How this Edgegap behaves. Times are seconds.

    `start_delay`: from the request to the start of the server. `ready_delay`: from there to `ready`; the real service
    takes its time, and the server announces itself before. `capacity`: deployments at once (the free plan has
    one); None is no limit. `forget_after`: how long a stopped deployment is still known by its id. `restart_delay`:
    from the end of a server to its next start, where the version's restart policy asks for one.

    `forget_after` is an assumption (A: stopped-known, A: stopped-forgotten). `deploys_inactive` is how Edgegap is
    assumed not to behave.
    """

    start_delay: float = 1.0
    ready_delay: float = 0.0
    capacity: int | None = None
    forget_after: float = 60.0
    restart_delay: float = 1.0
    deploys_inactive: bool = False


class EmulatorState:
    """The deployments of one account, and the `catalogue` of what can be deployed."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.catalogue = Catalogue()
        self.deployments: dict[str, Deployment] = {}

    def deploy(
        self,
        key: AppKey,
        *,
        now: float,
        environment: Mapping[str, str] | None = None,
        tags: list[str] | None = None,
        users: list[Any] | None = None,
        webhooks: Mapping[str, str] | None = None,
    ) -> tuple[Deployment, list[Effect]]:
        """Add a deployment, which starts at `now + start_delay`. Raises `Refused` 400 for an unknown or inactive
        version, and `RefusedDeployment` above the capacity."""
        version = self.catalogue.deployable(key, inactive=self.rules.deploys_inactive)
        session_config = version.get("session_config") or {}
        made = Deployment(
            secrets.token_hex(6),
            key,
            created_at=now,
            start_at=now + self.rules.start_delay,
            environment=dict(environment or {}),
            tags=list(tags or []),
            users=list(users or []),
            webhooks=dict(webhooks or {}),
            empty_since=now,
            kind=session_config.get("kind", "Default"),
            sockets=session_config.get("sockets", 0),
        )
        full = self.rules.capacity is not None and len(self.living()) >= self.rules.capacity
        self.deployments[made.request_id] = made
        if not full:
            return made, []
        effects = self.fail(made, "No location could take the deployment", now)
        raise RefusedDeployment(made, effects)

    def living(self) -> list[Deployment]:
        """The deployments that have not ended."""
        return [one for one in self.deployments.values() if not one.over]

    def active(self) -> list[Deployment]:
        """What the list shows: every deployment that is not terminated, also those in error, newest first."""
        shown = [one for one in self.deployments.values() if one.phase is not Phase.TERMINATED and one.listed]
        return sorted(shown, key=lambda one: -one.created_at)

    def find(self, request_id: str) -> Deployment | None:
        """The deployment with this id, ended or not; None for an unknown one."""
        return self.deployments.get(request_id)

    def started(self, one: Deployment, ports: Mapping[str, Port], public_ip: str, now: float) -> list[Effect]:
        """Note that its server runs: the deployment becomes ready, `ready_delay` later."""
        one.starting = False
        if one.over:
            return [StopServer(one.request_id)]
        one.ports, one.public_ip, one.restart_at = dict(ports), public_ip, None
        if one.phase is Phase.READY:
            return []  # a restart: Edgegap sends no webhook
        one.ready_due = now + self.rules.ready_delay
        return self._ready_if_due(one, now)

    def _ready_if_due(self, one: Deployment, now: float) -> list[Effect]:
        if one.ready_due is None or now < one.ready_due:
            return []
        one.phase, one.ready_at, one.empty_since, one.ready_due = Phase.READY, now, now, None
        return self._webhook(one, "ready")

    def fail(self, one: Deployment, detail: str, now: float) -> list[Effect]:
        """End it in error."""
        one.phase, one.error_detail, one.ended_at = Phase.ERROR, detail, now
        one.starting, one.ready_due = False, None
        return self._webhook(one, "error")

    def server_ended(self, one: Deployment, code: int | None, now: float) -> list[Effect]:
        """Note that its server ended by itself: the version's restart policy decides what happens."""
        if one.over:
            return []
        policy = self.catalogue.versions.get(one.key, {}).get("restart_policy", "always")
        if policy == "always" or (policy == "on_failure" and code != 0):
            one.restarts += 1
            again = now + self.rules.restart_delay
            one.starting, one.ready_due = False, None
            if one.phase is Phase.READY:
                one.restart_at = again
            else:
                one.start_at = again
            return []
        return self._terminate(one, now)

    def stop(self, one: Deployment, now: float) -> tuple[int, list[Effect]]:
        """Stop it: status 200, or 202 for one that has not started yet and is stopped then. Raises `Refused` 410 for a
        terminated one."""
        if one.phase is Phase.TERMINATED:
            raise Refused(410, f"Instance {one.request_id} already terminated")
        if one.phase is Phase.INITIALIZING:
            one.stop_wanted = True
            return 202, []
        return 200, self._terminate(one, now)

    def due(self, now: float) -> list[Effect]:
        """Do what is due at `now`: starts, restarts, ends by `max_duration`, and forgetting."""
        effects: list[Effect] = []
        for one in list(self.deployments.values()):
            effects += self._due(one, now)
        return effects

    def next_due(self) -> float | None:
        """When `due` next has something to do; None: never."""
        times = [at for one in self.deployments.values() for at in self._times(one)]
        return min(times, default=None)

    def _times(self, one: Deployment) -> Iterator[float]:
        if one.over:
            yield one.ended_at + self.rules.forget_after
            return
        if one.ready_due is not None:
            yield one.ready_due
        elif not one.starting and one.phase is Phase.INITIALIZING:
            yield one.start_at
        if not one.starting and one.restart_at is not None:
            yield one.restart_at
        if one.phase is Phase.READY and (limit := self._longest(one)) is not None:
            yield one.ready_at + limit

    def _due(self, one: Deployment, now: float) -> list[Effect]:
        if one.over:
            if now >= one.ended_at + self.rules.forget_after:
                del self.deployments[one.request_id]
            return []
        if one.ready_due is not None:
            return self._terminate(one, now) if one.stop_wanted else self._ready_if_due(one, now)
        if one.phase is Phase.INITIALIZING and not one.starting and now >= one.start_at:
            if one.stop_wanted:
                return self._terminate(one, now)
            one.starting = True
            return [StartServer(one.request_id)]
        if one.phase is Phase.READY:
            if (limit := self._longest(one)) is not None and now >= one.ready_at + limit:
                return self._terminate(one, now)
            if not one.starting and one.restart_at is not None and now >= one.restart_at:
                one.starting = True
                return [StartServer(one.request_id)]
        return []

    def max_duration(self, one: Deployment) -> int:
        """Minutes that it may run; below 1 is no limit."""
        minutes: int = self.catalogue.versions.get(one.key, {}).get("max_duration", -1)
        return minutes

    def _longest(self, one: Deployment) -> float | None:
        minutes = self.max_duration(one)
        return minutes * 60.0 if minutes > 0 else None

    def _terminate(self, one: Deployment, now: float) -> list[Effect]:
        if one.phase is Phase.TERMINATED:
            return []
        runs = one.starting or one.runs
        one.phase, one.ended_at, one.starting, one.ready_due = Phase.TERMINATED, now, False, None
        return [*([StopServer(one.request_id)] if runs else []), *self._webhook(one, "terminated")]

    def _webhook(self, one: Deployment, event: Literal["ready", "error", "terminated"]) -> list[Effect]:
        url = one.webhooks.get(event)
        return [SendWebhook(url, one.request_id, event)] if url else []
