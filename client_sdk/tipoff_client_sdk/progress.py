"""What a player is told while waiting: one `Progress` for every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Stage(StrEnum):
    """In the order in which a request meets them; `WAITING` and `DIALLING` may come several times."""

    ASKING = "asking"
    ACKNOWLEDGED = "acknowledged"
    ACCEPTED = "accepted"
    WAITING = "waiting"
    READY = "ready"
    DIALLING = "dialling"
    CONNECTED = "connected"


@dataclass(frozen=True, slots=True)
class Progress:
    """`text` is for people. `session_id` is known from `ACCEPTED` on."""

    stage: Stage
    text: str
    session_id: str = ""

    def __str__(self) -> str:
        return self.text


ProgressCallback: TypeAlias = Callable[[Progress], None]
"""Called from the event loop: do not block in it."""
