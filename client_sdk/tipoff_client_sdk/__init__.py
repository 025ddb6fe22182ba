"""The client SDK: `connect` for asyncio, `connect_threaded` for games with a frame loop.

from tipoff_client_sdk import connect

async with connect("http://localhost:3000", game="arena", version="1") as player:
    await player.send(b"hello")
    async for message in player:
        ...
"""

from tipoff_client_sdk.connect import ConnectOptions, Transport, connect
from tipoff_client_sdk.connection import MAX_MESSAGE, Player
from tipoff_client_sdk.errors import (
    Closed,
    ConnectionFailed,
    ConnectionOver,
    PlayerError,
    Refused,
    ServerLost,
)
from tipoff_client_sdk.inbox import Ending
from tipoff_client_sdk.matchmaking import Progress, ProgressCallback, Stage
from tipoff_client_sdk.threaded import (
    Dropped,
    Ended,
    Event,
    Joined,
    Message,
    Resumed,
    ThreadedPlayer,
    connect_threaded,
)

__all__ = [
    "MAX_MESSAGE",
    "Closed",
    "ConnectOptions",
    "ConnectionFailed",
    "ConnectionOver",
    "Dropped",
    "Ended",
    "Ending",
    "Event",
    "Joined",
    "Message",
    "Player",
    "PlayerError",
    "Progress",
    "ProgressCallback",
    "Refused",
    "Resumed",
    "ServerLost",
    "Stage",
    "ThreadedPlayer",
    "Transport",
    "connect",
    "connect_threaded",
]
