"""Defines the interface to services that run game servers: `Orchestrator`, its values and its errors.

    ServerDirectory      get, stop, list, events
    └── Orchestrator     deploy

    OrchestratorError
    ├── NoCapacity               nothing more can be started now
    ├── GameUnavailable          this game cannot be started now, others can
    ├── NotConfigured            the orchestrator does not know this game or version
    └── OrchestratorUnavailable  no answer, or an unusable one

Fake and real orchestrators pass one contract suite: tests/orchestrator/test_orchestrator_contract.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

MAX_PORTS = 64
MAX_HOST = 255
MAX_REASON = 2000
"""Bounds of what a `Deployment` may hold: ports, characters of its host, characters of its reason."""


@dataclass(frozen=True, slots=True)
class DeploySpec:
    """What to start. `deployment_id` is our id: a second deploy with it returns the same deployment, even after that
    has stopped (it is then `STOPPED` and stays so).

    The command, image or application that starts the game, and the game's private key, belong to the orchestrator's
    configuration: a spec cannot start anything else. `near`: addresses or regions of the waiting players. `environment`
    holds no secrets. `websocket_url`: the URL that browsers dial where a reverse proxy stands in front of the servers'
    WebSocket listeners; the server then listens without TLS and announces this URL. `event_key`, a secret of 64 hex
    digits: the key by which the server authenticates its events in the isolated profile, "" in the trusted one; the
    server reads it from `environment_of(event_key)`. `own_key`: the server gets the key that `PrivateKey.of_deployment`
    derives from the game's, not the game's key itself; what it got is said by `Deployment.own_key`. `nats_password`, a
    secret too: with it the server of the isolated profile connects to NATS as itself; it gets the variables of
    `tipoff_shared.settings.server_credentials`. "" where all servers share one NATS user.
    `games_revision`: the published revision of games.toml that is meant; 0 without one.
    """

    deployment_id: str
    game: str
    version: str
    capacity: int
    near: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    websocket_url: str = ""
    event_key: str = field(default="", repr=False)
    own_key: bool = False
    nats_password: str = field(default="", repr=False)
    games_revision: int = 0


def environment_of(event_key: str) -> dict[str, str]:
    """The environment variables that set a server's profile. They hold a secret."""
    return {"TIPOFF_PROFILE": "isolated", "TIPOFF_EVENT_KEY": event_key} if event_key else {}


LAST_WORDS = "; its last words: "
"""In a reason, what follows is a server's output: operators read it, players do not."""
STOPPED_BY_FORCE = "stopped, by force"
"""The reason of a server that did not end when it was asked to."""


class RunState(StrEnum):
    """`STARTING`: not running yet. `RUNNING`: the process or container runs. `STOPPED`: it has ended."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Port:
    """The server listens on `internal`, players dial `external`. `protocol` in lower case: `udp`, `tcp`, `wss`, ..."""

    internal: int
    external: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the orchestrator knows of one server.

    `native_id`: the orchestrator's own id of it. `host`: the IPv4 address or name that players dial; `ports`: its ports
    by name. Both are empty where the server announces them itself. `reason`, for people: why it stopped, or what a slow
    start is doing. `proxy`: where our reverse proxy reaches the WebSocket listener, as `host:port`; "" where it cannot.
    Launchers of an earlier release report only `host` where the server announces the port. `digest_key`: the key of
    `cert_digests` that only this server writes its certificate's digest to; "" where it shares that key (its public
    address) with others. `own_key`: whether it got its own netcode key (`DeploySpec.own_key`), None where the
    orchestrator does not say: in the answer to `deploy` that means the game's key.
    """

    deployment_id: str
    game: str
    version: str
    state: RunState
    native_id: str = ""
    host: str = ""
    ports: Mapping[str, Port] = field(default_factory=dict)
    reason: str = ""
    proxy: str = ""
    digest_key: str = ""
    own_key: bool | None = None


class OrchestratorError(Exception):
    """Base of the errors of orchestrators. `retryable`: the same call may succeed later, after `retry_after` seconds.
    `may_have_started`: the server may exist in spite of the error."""

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        may_have_started: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.may_have_started = may_have_started
        self.retry_after = retry_after


class NoCapacity(OrchestratorError):
    """The orchestrator can start nothing more now: no ports, no memory, or the quota is reached."""


class GameUnavailable(OrchestratorError):
    """This game cannot be started now (its image cannot be fetched, for example). Other games can."""


class NotConfigured(OrchestratorError):
    """The orchestrator does not know this game or version. Retrying does not help."""


class OrchestratorUnavailable(OrchestratorError):
    """The orchestrator does not answer, or its answer cannot be used."""


@runtime_checkable
class ServerDirectory(Protocol):
    """Finds and stops our game servers at one service. Every call has its own deadline and raises `OrchestratorError`
    only. Cancelling a call is safe: repeat it."""

    @property
    def name(self) -> str:
        """The orchestrator's name in games.toml: `launcher`, `edgegap`, ..."""
        ...

    async def get(self, deployment_id: str) -> Deployment | None:
        """The current state of one deployment; None for one that is unknown, or stopped and forgotten."""
        ...

    async def stop(self, deployment_id: str) -> None:
        """Stop a deployment, gracefully, then by force. Idempotent: one that is gone already is a success.

        Returns when it has stopped or is certain to stop. A deploy that arrives after the stop starts nothing.
        """
        ...

    async def list(self) -> list[Deployment]:
        """Every deployment with our namespace's tag that is not stopped: the ground truth."""
        ...

    def events(self) -> AsyncIterator[Deployment]:
        """Starts and stops as they happen, from the first `anext` on. They are hints: some may be lost or repeated.
        A service without events ends the iterator at once."""
        ...

    async def close(self) -> None:
        """Release connections; starts and stops nothing. Idempotent."""
        ...


@runtime_checkable
class Orchestrator(ServerDirectory, Protocol):
    """Starts game servers as well."""

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """Start a deployment, once for each `spec.deployment_id`. Returns as soon as the start is under way. After a
        cancelled call repeat it, or call `stop`."""
        ...


@runtime_checkable
class KnowsNativeIds(Protocol):
    """A `ServerDirectory` whose servers may report its own ids of them (`Deployment.native_id`), as bevygap's servers
    do at Edgegap."""

    async def deployment_named(self, native_id: str) -> str | None:
        """The id of the deployment with this native id; None for one that is not ours. Raises `OrchestratorError`."""
        ...


@runtime_checkable
class TellsProblems(Protocol):
    """A `ServerDirectory` that knows what keeps its service from starting servers (a full disk)."""

    @property
    def problems(self) -> Sequence[str]:
        """Texts for people, as of the latest `list`."""
        ...


@runtime_checkable
class TellsStarts(Protocol):
    """A `ServerDirectory` whose service says when it has started, to those who read its events. A hint, as they are."""

    def subscribe_starts(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time the service has started: it can be asked again."""
        ...


def usable(deployment: Deployment, deployment_id: str) -> Deployment:
    """An orchestrator's answer about `deployment_id`, its reason cut to `MAX_REASON`. Raises `OrchestratorUnavailable`
    for an answer about another deployment, or with an impossible host or port."""
    if deployment.deployment_id != deployment_id:
        raise _unusable(f"it is about {deployment.deployment_id[:80]!r}")
    if problem := _address_problem(deployment):
        raise _unusable(problem)
    return _short(deployment)


def usable_list(deployments: Iterable[Deployment]) -> list[Deployment]:
    """The answer to `list`. All of them run, so one with an impossible host or port is kept, without its address."""
    return [
        _short(replace(deployment, host="", ports={}) if _address_problem(deployment) else deployment)
        for deployment in deployments
    ]


def _address_problem(deployment: Deployment) -> str:
    host = deployment.host
    if len(host) > MAX_HOST or not host.isprintable() or any(c.isspace() or c in "/@?#" for c in host):
        return "its host is no address and no name"
    if len(deployment.ports) > MAX_PORTS:
        return f"it has over {MAX_PORTS} ports"
    for name, port in deployment.ports.items():
        if not (0 <= port.internal <= 65535 and 1 <= port.external <= 65535):
            return f"port {name[:40]!r} is {port.internal} inside, {port.external} outside; 1 to 65535 is possible"
    return ""


def _short(deployment: Deployment) -> Deployment:
    if len(deployment.reason) <= MAX_REASON:
        return deployment
    return replace(deployment, reason=deployment.reason[: MAX_REASON - 1] + "…")


def _unusable(why: str) -> OrchestratorUnavailable:
    return OrchestratorUnavailable(f"the answer cannot be used: {why}", retryable=True, may_have_started=True)
