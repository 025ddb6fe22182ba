"""A scripted matchmaker, a game that echoes, and the polling of a frame loop."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from websockets.asyncio.client import connect as open_websocket
from websockets.asyncio.server import ServerConnection, serve

from tipoff_gameserver import Game, LeaveReason, Player

_quiet = logging.getLogger("tests.client_sdk.upstream")
_quiet.setLevel(logging.INFO)  # frames hold tokens, of which the SDK logs none

Script = Callable[[ServerConnection, str], Awaitable[None]]


class Echo(Game):
    """Sends everything back, and remembers who came and went."""

    def __init__(self) -> None:
        self.joined: asyncio.Queue[Player] = asyncio.Queue(64)
        self.left: asyncio.Queue[LeaveReason] = asyncio.Queue(64)

    def on_join(self, player: Player) -> None:
        self.joined.put_nowait(player)

    def on_message(self, player: Player, data: bytes) -> None:
        player.send(data)

    def on_leave(self, player: Player, reason: LeaveReason) -> None:
        self.left.put_nowait(reason)


@asynccontextmanager
async def scripted_matchmaker(script: Script) -> AsyncIterator[str]:
    """A WebSocket server that gives each request to `script`; yields its URL for `connect`."""

    async def handler(socket: ServerConnection) -> None:
        await script(socket, str(await socket.recv()))

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        yield f"http://{host}:{port}"


async def ask_upstream(url: str, request: str) -> list[str]:
    """What a stand-alone server answers to `request`."""
    async with open_websocket(url, logger=_quiet) as upstream:
        await upstream.send(request)
        return [str(message) async for message in upstream]


def with_transports(message: str, **transports: object) -> str:
    """A SessionReady message that offers other transports; None takes one away. Other messages stay as they are."""
    feedback = json.loads(message)
    if not isinstance(feedback, dict) or "SessionReady" not in feedback:
        return message
    offered = feedback["SessionReady"]["transports"]
    for name, value in transports.items():
        offered.pop(name, None)
        if value is not None:
            offered[name] = value
    return json.dumps(feedback)
