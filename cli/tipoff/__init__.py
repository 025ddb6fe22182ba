"""The public names for games: `tipoff.GameServer`, `tipoff.connect`, `tipoff.connect_threaded`.

Each is loaded when it is first used, so that a game client runs without the packages of a game server, and the other
way round. When a package is missing, the error names the extra that installs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tipoff_client_sdk import connect, connect_threaded
    from tipoff_gameserver import GameServer, Player
    from tipoff_shared.errors import TipoffError

__all__ = ["GameServer", "Player", "TipoffError", "connect", "connect_threaded"]
__version__ = "0.1.0"

_HOMES = {
    "connect": ("tipoff_client_sdk", "client"),
    "connect_threaded": ("tipoff_client_sdk", "client"),
    "GameServer": ("tipoff_gameserver", "gameserver"),
    "Player": ("tipoff_gameserver", "gameserver"),
    "TipoffError": ("tipoff_shared.errors", ""),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tipoff' has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0].startswith("tipoff"):
            raise
        raise ImportError(
            f"tipoff.{name} needs {exc.name}, which is not installed: pip install 'tipoff[{extra}]'"
        ) from exc


def __dir__() -> list[str]:
    return sorted(__all__)
