"""What a client says of its player: its login and its name, and what a login that failed raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

import tipoff
from tests.client_sdk.stubs import scripted_matchmaker
from tests.polling import eventually
from tipoff_client_sdk import connect, connect_threaded
from tipoff_gameserver import Game, GameServer, Player
from tipoff_shared.errors import LoginReason, NotAuthenticated

EXPIRED = json.dumps({"Error": [401, "expired: the login token has expired; log in again"]})


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        ("t0ken", {"token": "t0ken"}),
        ({"steam_ticket": "14", "app": 480}, {"steam_ticket": "14", "app": 480}),
        (None, None),
    ],
)
async def test_the_login_and_the_name_are_sent_and_a_401_is_final(
    auth: str | Mapping[str, Any] | None, sent: object
) -> None:
    """Asking again would not help: the player must log in again."""
    asked: list[dict[str, Any]] = []

    async def script(socket: ServerConnection, request: str) -> None:
        asked.append(json.loads(request))
        await socket.send(EXPIRED)

    async with scripted_matchmaker(script) as url:
        with pytest.raises(NotAuthenticated, match="log in again") as caught:
            await connect(
                url, game="duel", version="1", auth=auth, name=" Zoe\u0308\n" + "x" * 99
            ).__aenter__()
    assert caught.value.reason is LoginReason.EXPIRED is tipoff.LoginReason.EXPIRED
    (request,) = asked
    assert request.get("auth") == sent
    assert request["name"] == "Zo\u00eb " + "x" * 43


async def test_a_game_with_a_frame_loop_hears_of_it_as_its_end() -> None:
    """The same options."""

    async def script(socket: ServerConnection, request: str) -> None:
        assert json.loads(request)["auth"] == {"token": "t0ken"}
        await socket.send(EXPIRED)

    async with scripted_matchmaker(script) as url:
        player = connect_threaded(url, game="duel", version="1", auth="t0ken", name="Ann")
        await eventually(lambda: player.ended is not None, "the connection's thread has ended", timeout=20)
        await asyncio.to_thread(player.close)
        assert player.ended is not None
        assert isinstance(player.ended.error, NotAuthenticated)


class Names(Game):
    """Answers each message with what it knows of the player."""

    def on_message(self, player: Player, data: bytes) -> None:
        player.send(json.dumps([player.user_id, player.name]).encode())


@pytest.mark.parametrize("way", ["udp", "websocket"])
async def test_a_stand_alone_server_has_names_and_no_user_ids(way: Any) -> None:
    """Nobody checks a login there, so what a client says of itself is a name only."""
    async with GameServer(Names(), stand_alone=True, listen="127.0.0.1:0") as server:
        for name, seen in (("Ann\x00", "Ann"), ("", "")):
            async with connect(
                server.url, game="duel", version="1", transports=[way], auth={"user_id": "root"}, name=name
            ) as player:
                await player.send(b"who am I?")
                async with asyncio.timeout(20):
                    assert json.loads(await player.receive()) == ["", seen]
