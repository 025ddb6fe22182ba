"""What a game is: any object with some of these methods. Subclass `Game` for completion in the editor, or do not."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tipoff_gameserver.players.roster import LeaveReason, Player
    from tipoff_gameserver.server import GameServer

log = logging.getLogger(__name__)


class Game:
    """A game that does nothing yet. Every method may be a plain function or `async def`.

    They are called one at a time, never two at once, so a game needs no locks. An async one is awaited before the
    next is called: do slow things (a database, a web service) by `server.background(...)`.
    """

    tick_rate: float = 30.0
    """Ticks per second, unless `GameServer(..., tick_rate=)` says otherwise."""

    def on_start(self, server: GameServer) -> Any:
        """Get ready: nobody comes in before this is over. If it raises, the server does not start."""

    def on_join(self, player: Player) -> Any:
        """A player is in: `player.send` works. If this raises, the player is kicked."""

    def on_message(self, player: Player, data: bytes) -> Any:
        """1 to 1200 bytes from a player, as soon as they arrive. They are whatever the player chose to send: check
        them before you believe them."""

    def on_leave(self, player: Player, reason: LeaveReason) -> Any:
        """The player is gone, for whatever reason; called once for each `on_join`."""

    def tick(self, server: GameServer, dt: float) -> Any:
        """Move the world on by `dt` seconds (always 1 / tick_rate) and tell the players about it."""

    def on_stop(self, server: GameServer) -> Any:
        """The last call: everybody is gone."""


_ARGUMENTS = {
    "on_start": ("server",),
    "on_join": ("player",),
    "on_message": ("player", "data"),
    "on_leave": ("player", "reason"),
    "tick": ("server", "dt"),
    "on_stop": ("server",),
}


def _nothing(*_: Any) -> None:
    return None


class Callbacks:
    """The methods of one game, looked up once. Raises `TypeError` when one does not take the arguments it gets."""

    def __init__(self, game: object) -> None:
        if isinstance(game, type):
            raise TypeError(f"GameServer wants a game, not its class: GameServer({game.__name__}(), ...)")
        self.on_start = _find(game, "on_start")
        self.on_join = _find(game, "on_join")
        self.on_message = _find(game, "on_message")
        self.on_leave = _find(game, "on_leave")
        self.tick = _find(game, "tick")
        self.on_stop = _find(game, "on_stop")
        for name in dir(game):
            if name.startswith("on_") and name not in _ARGUMENTS:
                meant = difflib.get_close_matches(name, _ARGUMENTS, n=1)
                hint = f"; did you mean {meant[0]}?" if meant else ""
                log.warning("%s.%s is never called%s", type(game).__name__, name, hint)


def _find(game: object, name: str) -> Callable[..., Any]:
    method = getattr(game, name, None)
    if method is None or getattr(type(game), name, None) is getattr(Game, name):
        return _nothing  # not there, or the base class's own that does nothing
    arguments = _ARGUMENTS[name]
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        given = ", ".join(arguments)
        raise TypeError(
            f"{type(game).__name__}.{name} is called as {name}({given}); write def {name}(self, {given})"
        ) from None
    except ValueError:
        pass  # a built-in that has no signature to look at
    return method  # type: ignore[no-any-return]  # getattr knows no types
