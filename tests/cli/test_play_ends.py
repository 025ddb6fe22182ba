"""`tipoff play` says why a game ended before its time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tipoff.play.players import PlayOptions, play_many
from tipoff_gameserver import Game, GameServer, Player


class Kicks(Game):
    def on_join(self, player: Player) -> None:
        player.kick("no beginners")


class Raises(Game):
    def on_join(self, player: Player) -> None:
        raise ValueError("no such map")


@pytest.mark.parametrize(
    ("game", "reason"),
    [(Kicks, "no beginners"), (Raises, "the game failed: it could not let you in")],
    ids=["kicked", "failed"],
)
@pytest.mark.parametrize("way", ["udp", "websocket"])
async def test_the_reason_of_the_server_is_told(
    capsys: pytest.CaptureFixture[str], way: Any, game: type[Game], reason: str
) -> None:
    async with GameServer(game(), stand_alone=True, listen="127.0.0.1:0") as server:
        options = PlayOptions(server.url, "any", "1", 30, (way,), 10)
        await play_many(options, bots=1, as_json=False)
        assert f"the server ended it: {reason}" in capsys.readouterr().err
        await play_many(options, bots=1, as_json=True)
        result = json.loads(capsys.readouterr().out)
        assert (result["connected"], result["ended"]) == (True, reason)
