"""What NAME_OF_THE_GAME promises. Run it with `pytest`: it plays for real, with nothing else around."""

import asyncio
import json

from server import Game

import tipoff


async def first_dots(player, count):
    """The first message that shows `count` dots."""
    async with asyncio.timeout(10):
        async for message in player:
            dots = json.loads(message)
            if len(dots) == count:
                return dots
    raise AssertionError(f"the match ended before it had {count} dots")


def test_two_players_see_each_other_move():
    async def play():
        async with tipoff.GameServer(Game(), tick_rate=20, stand_alone=True, listen="127.0.0.1:0") as server:
            one = tipoff.connect(server.url, game="NAME_OF_THE_GAME", version="1")
            two = tipoff.connect(server.url, game="NAME_OF_THE_GAME", version="1")
            async with one as ann, two as bob:
                await first_dots(bob, 2)
                await ann.send(b'{"dx": 1, "dy": 0}')
                async with asyncio.timeout(10):
                    async for message in bob:
                        now = json.loads(message)
                        if any(dot["x"] > 340 for dot in now):
                            return

    asyncio.run(play())
