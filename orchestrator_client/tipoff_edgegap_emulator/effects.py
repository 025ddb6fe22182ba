"""What is to be done outside when the state has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


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
