"""One deployment of the emulated account, and the effects that a change of the state asks for."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

AppKey: TypeAlias = tuple[str, str]
"""(application, version)."""


class Phase(StrEnum):
    """Where a deployment is in its life, in Edgegap's words."""

    INITIALIZING = "INITIALIZING"
    SEEKING = "SEEKING"
    DEPLOYING = "DEPLOYING"
    READY = "READY"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"


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
    """`request_id` is Edgegap's name for it, `key` its application and version. Times are Unix seconds; 0: not yet.

    `starting`: its server is being started. `ready_due`: when a server that runs becomes ready; None: it does not run,
    or is ready. `stop_wanted`: stop it as soon as it is ready. `listed`: the list shows it.
    """

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
    ready_due: float | None = None
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
        """Whether it has ended, in order or in error."""
        return self.phase in (Phase.TERMINATED, Phase.ERROR)

    @property
    def runs(self) -> bool:
        """Whether its server runs, ready or not yet."""
        return self.phase is Phase.READY or self.ready_due is not None

    def phase_at(self, now: float) -> Phase:
        """The phase that a status shows: a start passes through three."""
        if self.phase is not Phase.INITIALIZING or self.start_at <= self.created_at:
            return self.phase
        gone = (now - self.created_at) / (self.start_at - self.created_at)
        return Phase.INITIALIZING if gone < 0.2 else Phase.SEEKING if gone < 0.5 else Phase.DEPLOYING


@dataclass(frozen=True, slots=True)
class StartServer:
    """Start the deployment's game server."""

    request_id: str


@dataclass(frozen=True, slots=True)
class StopServer:
    """Stop the deployment's game server."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SendWebhook:
    """Post to `url` what is then known of `about`: a deployment's request id, or a session's id."""

    url: str
    about: str
    event: Literal["ready", "error", "terminated", "session"]


Effect: TypeAlias = StartServer | StopServer | SendWebhook
