"""What the emulator knows: applications, versions, deployments, and what becomes of them. Pure.

Every method takes `now` (Unix seconds) and returns what is to be done outside as effects: a server to start or to
stop, a webhook to send. Sessions are in sessions.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

AppKey: TypeAlias = tuple[str, str]
"""(application, version)."""


class Phase(StrEnum):
    INITIALIZING = "INITIALIZING"
    SEEKING = "SEEKING"
    DEPLOYING = "DEPLOYING"
    READY = "READY"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class StartServer:
    request_id: str


@dataclass(frozen=True, slots=True)
class StopServer:
    request_id: str


@dataclass(frozen=True, slots=True)
class SendWebhook:
    """`about`: a deployment's request id or a session's id, of which it tells what holds when it is sent."""

    url: str
    about: str
    event: Literal["ready", "error", "terminated", "session"]


Effect: TypeAlias = StartServer | StopServer | SendWebhook


class Refused(Exception):
    """An answer with a status of its own. `body` replaces the usual `{"message": ...}`."""

    def __init__(self, status: int, message: str, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = dict(body) if body is not None else {"message": message}


@dataclass(frozen=True, slots=True)
class Port:
    """`internal` is where the server listens, `external` where players dial."""

    name: str
    internal: int
    external: int
    protocol: str
    tls_upgrade: bool = False


@dataclass(slots=True, eq=False)
class Deployment:
    request_id: str
    key: AppKey
    created_at: float
    start_at: float
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    tags: list[str] = field(default_factory=list)
    users: list[Any] = field(default_factory=list)
    webhooks: dict[str, str] = field(default_factory=dict, repr=False)
    phase: Phase = Phase.INITIALIZING
    error_detail: str = ""
    ports: dict[str, Port] = field(default_factory=dict)
    public_ip: str = ""
    starting: bool = False
    restart_at: float | None = None
    stop_wanted: bool = False
    ready_at: float = 0.0
    ended_at: float = 0.0
    empty_since: float = 0.0
    restarts: int = 0
    kind: str = "Default"
    sockets: int = 0
    listed: bool = True
    delete_token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    context_token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def over(self) -> bool:
        return self.phase in (Phase.TERMINATED, Phase.ERROR)

    def phase_at(self, now: float) -> Phase:
        """With the steps that a deployment passes on its way."""
        if self.phase is not Phase.INITIALIZING or self.start_at <= self.created_at:
            return self.phase
        gone = (now - self.created_at) / (self.start_at - self.created_at)
        return Phase.INITIALIZING if gone < 0.2 else Phase.SEEKING if gone < 0.5 else Phase.DEPLOYING


@dataclass(frozen=True, slots=True)
class Rules:
    """How this Edgegap behaves. Times are seconds.

    `start_delay`: from the request to the start of the server. `capacity`: deployments at once (the free plan has
    one); beyond it nothing can be placed. `forget_after`: how long a stopped deployment is still known by its id.
    `restart_delay`: between the death of a server whose version wants it restarted and its next start.
    """

    start_delay: float = 1.0
    capacity: int | None = None
    forget_after: float = 60.0
    restart_delay: float = 1.0


class World:
    """Applications, versions and deployments of one account."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.applications: dict[str, dict[str, Any]] = {}
        self.versions: dict[AppKey, dict[str, Any]] = {}
        self.deployments: dict[str, Deployment] = {}

    # Applications and versions.

    def add_application(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        if body["name"] in self.applications:
            raise Refused(409, f"Application {body['name']} already exists")
        made = {**body, "create_time": stamp(now), "last_updated": stamp(now)}
        self.applications[body["name"]] = made
        return made

    def application(self, name: str) -> dict[str, Any]:
        try:
            return self.applications[name]
        except KeyError:
            raise Refused(404, f"Application {name} not found") from None

    def add_version(self, app: str, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        self.application(app)
        if (app, body["name"]) in self.versions:
            raise Refused(409, f"Version {body['name']} already exists")
        defaults: dict[str, Any] = {
            "is_active": True,
            "req_video": 0,
            "verify_image": False,
            "force_cache": False,
            "time_to_deploy": 120,
            "max_duration": 1440,
            "restart_policy": "always",
            "termination_grace_period_seconds": 5,
            "ports": [],
            "envs": [],
            "arguments": None,
        }
        made = defaults | dict(body) | {"create_time": stamp(now), "last_updated": stamp(now)}
        self.versions[app, body["name"]] = made
        return made

    def version(self, app: str, name: str) -> dict[str, Any]:
        self.application(app)
        try:
            return self.versions[app, name]
        except KeyError:
            raise Refused(404, f"Version {name} of application {app} not found") from None

    def newest_version(self, app: str) -> str:
        """What a session without a version gets: the one created last."""
        self.application(app)
        names = [name for of, name in self.versions if of == app]
        if not names:
            raise Refused(400, f"Application {app} has no version")
        return names[-1]

    def change_version(self, app: str, name: str, changes: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Members that are there replace what was there, whole lists too."""
        version = self.version(app, name)
        version |= dict(changes) | {"last_updated": stamp(now)}
        if (new := changes.get("name", name)) != name:
            self.versions[app, new] = self.versions.pop((app, name))
        return version

    # Deployments.

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
        """A new deployment on its way. Raises `Refused`: 400 when it cannot be, 422 when there is no room, and then
        a deployment in error stays behind, as with Edgegap."""
        app, name = key
        if app not in self.applications or key not in self.versions:
            raise Refused(400, f"Application {app} or version {name} does not exist")
        version = self.versions[key]
        if not self.applications[app]["is_active"] or not version["is_active"]:
            raise Refused(400, f"Application {app} or version {name} is not active")
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
        return [one for one in self.deployments.values() if not one.over]

    def active(self) -> list[Deployment]:
        """What the list shows: everything that is not terminated, errors too, the newest first."""
        shown = [one for one in self.deployments.values() if one.phase is not Phase.TERMINATED and one.listed]
        return sorted(shown, key=lambda one: -one.created_at)

    def find(self, request_id: str) -> Deployment | None:
        return self.deployments.get(request_id)

    def started(self, one: Deployment, ports: Mapping[str, Port], public_ip: str, now: float) -> list[Effect]:
        """Its server runs."""
        one.starting = False
        if one.over:
            return [StopServer(one.request_id)]
        one.ports, one.public_ip, one.restart_at = dict(ports), public_ip, None
        if one.phase is Phase.READY:
            return []  # started again: Edgegap tells nobody
        one.phase, one.ready_at, one.empty_since = Phase.READY, now, now
        return self._webhook(one, "ready")

    def fail(self, one: Deployment, detail: str, now: float) -> list[Effect]:
        one.phase, one.error_detail, one.ended_at, one.starting = Phase.ERROR, detail, now, False
        return self._webhook(one, "error")

    def server_ended(self, one: Deployment, code: int | None, now: float) -> list[Effect]:
        """Its server has ended by itself: what then is the version's restart policy."""
        if one.over:
            return []
        policy = self.versions.get(one.key, {}).get("restart_policy", "always")
        if policy == "always" or (policy == "on_failure" and code != 0):
            one.restarts += 1
            one.starting, one.restart_at = False, now + self.rules.restart_delay
            return []
        return self._terminate(one, now)

    def stop(self, one: Deployment, now: float) -> tuple[int, list[Effect]]:
        """200: it is stopped. 202: it is on its way and will be stopped when it is there. Raises `Refused` 410."""
        if one.phase is Phase.TERMINATED:
            raise Refused(410, f"Instance {one.request_id} already terminated")
        if one.phase is Phase.INITIALIZING:
            one.stop_wanted = True
            return 202, []
        return 200, self._terminate(one, now)

    def due(self, now: float) -> list[Effect]:
        """What time has brought."""
        effects: list[Effect] = []
        for one in list(self.deployments.values()):
            effects += self._due(one, now)
        return effects

    def next_due(self) -> float | None:
        """When `due` has something to do next."""
        times = [at for one in self.deployments.values() for at in self._times(one)]
        return min(times, default=None)

    def _times(self, one: Deployment) -> Iterator[float]:
        if one.over:
            yield one.ended_at + self.rules.forget_after
            return
        if not one.starting and one.phase is Phase.INITIALIZING:
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
        """Minutes; below 1 is for ever."""
        minutes: int = self.versions.get(one.key, {}).get("max_duration", -1)
        return minutes

    def _longest(self, one: Deployment) -> float | None:
        minutes = self.max_duration(one)
        return minutes * 60.0 if minutes > 0 else None

    def _terminate(self, one: Deployment, now: float) -> list[Effect]:
        if one.phase is Phase.TERMINATED:
            return []
        runs = one.starting or one.phase is Phase.READY
        one.phase, one.ended_at, one.starting = Phase.TERMINATED, now, False
        return [*([StopServer(one.request_id)] if runs else []), *self._webhook(one, "terminated")]

    def _webhook(self, one: Deployment, event: Literal["ready", "error", "terminated"]) -> list[Effect]:
        url = one.webhooks.get(event)
        return [SendWebhook(url, one.request_id, event)] if url else []


class RefusedDeployment(Refused):
    """422: nothing could be placed, but the deployment exists, in error."""

    def __init__(self, made: Deployment, effects: list[Effect]) -> None:
        message = made.error_detail
        super().__init__(422, message, {"request_id": made.request_id, "message": message})
        self.effects = effects


def stamp(at: float) -> str:
    """As Edgegap writes times: `2026-04-22 12:00:46.444265`, UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
