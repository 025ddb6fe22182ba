"""One deployment as the emulator knows it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

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
