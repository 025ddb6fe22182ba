"""The two seams to whatever runs game servers: `Orchestrator` starts and stops them, `Allocator` finds seats.

Everything behind these interfaces passes one contract suite (`tests/orchestrator/`): fake and real alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class DeploySpec:
    """What to start. `deployment_id` is ours and is the tag: a second deploy with it returns the same one,
    also after it has stopped (it is then `STOPPED` and stays so).

    How the game is started (command, image, application) and its private key are the orchestrator's own
    configuration: nobody who can send a spec can start anything else. `near`: addresses or regions of the
    waiting players. `environment` holds no secrets. `websocket_url`: what browsers dial, where a reverse proxy
    stands in front of the servers' WebSocket listeners; such a server listens without TLS and announces this.
    `event_key`, a secret: what the server seals its events with (64 hex digits) in the isolated profile, "" in the
    trusted one; the server finds `environment_of(event_key)`.
    """

    deployment_id: str
    game: str
    version: str
    capacity: int
    near: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    websocket_url: str = ""
    event_key: str = field(default="", repr=False)


def environment_of(event_key: str) -> dict[str, str]:
    """The variables that tell a server its profile; secret."""
    return {"TIPOFF_PROFILE": "isolated", "TIPOFF_EVENT_KEY": event_key} if event_key else {}


class RunState(StrEnum):
    """`STARTING`: on its way. `RUNNING`: the process or container runs. `STOPPED`: it has ended."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Port:
    internal: int
    external: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the orchestrator knows of one server. `host`: IPv4 address (or name) that players reach it at, ""
    where the server announces it itself. `ports`: name -> port, empty where the server announces them itself.
    `reason` says, for people, why it stopped, or what a start that takes long is busy with; `native_id` is the
    orchestrator's own name for it. `proxy`: where a reverse proxy of ours reaches the WebSocket listener,
    `host:port`, or `host` where the server picks the port and announces it; "" where none of ours can. `digest_key`:
    under which key of `cert_digests` this server alone writes its certificate's digest, "" where it shares that key
    (its public address) with others."""

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


class OrchestratorError(Exception):
    """Base. `retryable`: the same call may work later. `may_have_started`: the server may exist all the same.
    `retry_after`: seconds."""

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
    """Nothing more can be started here now (ports, memory, quota)."""


class GameUnavailable(OrchestratorError):
    """This one game cannot be started now (its image cannot be fetched); the orchestrator is well, and others can."""


class NotConfigured(OrchestratorError):
    """The orchestrator does not know this game or version; retrying does not help."""


class OrchestratorUnavailable(OrchestratorError):
    """No answer, or an answer nobody can use."""


@runtime_checkable
class Orchestrator(Protocol):
    """Starts and stops game servers. Every call has a deadline of its own and raises `OrchestratorError`
    only. Cancelling a call is safe: repeat it, or `stop`."""

    @property
    def name(self) -> str:
        """As in games.toml: `launcher`, `edgegap`, ..."""
        ...

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """Start one; idempotent in `spec.deployment_id`. Returns as soon as it is on its way."""
        ...

    async def get(self, deployment_id: str) -> Deployment | None:
        """What it knows of one; None when there is no such (or it has been stopped and forgotten)."""
        ...

    async def stop(self, deployment_id: str) -> None:
        """Stop one (gracefully, then by force); idempotent: already gone is success. Returns when it is
        stopped or certain to stop. A deploy that arrives after the stop starts nothing."""
        ...

    async def list(self) -> list[Deployment]:
        """Everything that carries our namespace's tag and is not stopped: the ground truth."""
        ...

    def events(self) -> AsyncIterator[Deployment]:
        """Changes as they happen (started, stopped), from the first `anext` on; hints: some may be lost or
        come twice. An orchestrator without a source of events ends the iterator at once."""
        ...

    async def close(self) -> None:
        """Let go of connections; starts and stops nothing. Idempotent."""
        ...


@runtime_checkable
class KnowsNativeIds(Protocol):
    """An orchestrator whose servers may call themselves by its own names for them (`Deployment.native_id`), as
    bevygap's do at Edgegap."""

    async def deployment_named(self, native_id: str) -> str | None:
        """The deployment id; None for what is not ours. Raises `OrchestratorError`."""
        ...
