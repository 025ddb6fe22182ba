"""The game server SDK. A game is any object with some methods of `Game`; `GameServer` runs it. Start at server.py."""

from tipoff_gameserver.context import Context, deployed_context, stand_alone_context
from tipoff_gameserver.failures import GameFailed
from tipoff_gameserver.players.expected import ExpectedPlayer
from tipoff_gameserver.players.player import LeaveReason, Player, Players
from tipoff_gameserver.server import Game, GameServer
from tipoff_shared.errors import ConfigError
from tipoff_shared.framing import MAX_MESSAGE_BYTES
from tipoff_shared.netcode import Dialect, PrivateKey
from tipoff_shared.records import LeaseState

__all__ = [
    "MAX_MESSAGE_BYTES",
    "ConfigError",
    "Context",
    "Dialect",
    "ExpectedPlayer",
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
