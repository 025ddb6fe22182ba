"""The game server SDK. Start reading at server.py; a game is any object with some methods of `Game` (game.py)."""

from tipoff_gameserver.context import Context
from tipoff_gameserver.environment import deployed_context, stand_alone_context
from tipoff_gameserver.game import Game
from tipoff_gameserver.lifecycle import GameFailed
from tipoff_gameserver.players.roster import MAX_MESSAGE_BYTES, LeaveReason, Player, Players
from tipoff_gameserver.server import GameServer
from tipoff_shared.errors import ConfigError
from tipoff_shared.netcode import Dialect, PrivateKey
from tipoff_shared.records import LeaseState

__all__ = [
    "MAX_MESSAGE_BYTES",
    "ConfigError",
    "Context",
    "Dialect",
    "Game",
    "GameFailed",
    "GameServer",
    "LeaseState",
    "LeaveReason",
    "Player",
    "Players",
    "PrivateKey",
    "deployed_context",
    "stand_alone_context",
]
