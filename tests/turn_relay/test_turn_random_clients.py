"""Random clients at two real httpds: they hang up, cut requests in half, repeat, and count wrongly."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tipoff_matchmaker_httpd.server.run import RunningHttpd

Start = Callable[..., Awaitable[RunningHttpd]]

UPDATES = 40
GAMES = 8


class Player:
    """Speaks the text protocol on a new connection each time, at any of the httpds."""

    def __init__(self, ports: list[int], key: str, player: int, chance: random.Random) -> None:
        self._ports = ports
        self._key = key
        self._player = player
        self._chance = chance
        self._number = 0
        self.handed_over: list[str] = []
        self.got: list[str] = []

    async def _post(self, body: str, fate: str = "fine") -> str | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._chance.choice(self._ports))
        try:
            data = body.encode()
            head = f"POST /turn HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            if fate == "cut":
                writer.write(head + data[: len(data) // 2])
            else:
                writer.write(head + data)
            if fate != "fine":
                await asyncio.sleep(self._chance.choice([0, 0, 0.001, 0.003]))  # the moment of the fault
                return None
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            text = (await reader.readexactly(length)).decode()
            assert answer.startswith(b"HTTP/1.1 200" if text.startswith("0/") else b"HTTP/1.1 400")
            return text
        finally:
            writer.transport.abort()

    async def step(self, data: str | None) -> None:
        """One number, until its answer is here. The client hangs up now and then before it comes."""
        if data is not None:
            self.handed_over.append(data)
        while self._chance.random() < 0.4:
            await self._post(self._update(self._number, data), self._chance.choice(["hang up", "cut"]))
            if self._chance.random() < 0.2:
                assert await self._post(self._update(self._number + 2, "ahead")) == "19/*/*"
            if self._number and self._chance.random() < 0.2:
                assert await self._post(self._update(self._number - 2, "behind")) in ("18/*/*", "4/2/*")
        answer = await self._post(self._update(self._number, data))
        assert answer is not None
        assert answer.startswith(("0/9/", "0/10/")), answer
        if answer.startswith("0/9/"):
            self.got += answer.removeprefix("0/9/").split("|")
        self._number += 1

    def _update(self, number: int, data: str | None) -> str:
        return f"6,{'*' if data is None else data},{self._key},{self._player},{number}"


async def play(one: Player, other: Player, chance: random.Random) -> None:
    async def side(player: Player) -> None:
        for n in range(UPDATES):
            await player.step(None if chance.random() < 0.2 else f"{n}")

    await asyncio.gather(side(one), side(other))
    for player in (one, other):
        await player.step(None)
    assert one.got == other.handed_over
    assert other.got == one.handed_over


@pytest.mark.parametrize("seed", [int(os.environ.get("TURN_SEED", "20261"))])
async def test_random_clients_get_every_update_once_and_in_order(
    start: Start, say: Any, paired: Any, seed: int
) -> None:
    """`TURN_SEED` chooses another run."""
    print(f"seed {seed}")
    httpds = [await start(), await start()]
    ports = [httpd.port for httpd in httpds]
    games = []
    for number in range(GAMES):
        keys = await paired(say(httpds[0]), say(httpds[1]), (f"a{number}", f"b{number}"))
        chance = random.Random(f"{seed} {number}")
        games.append(play(Player(ports, keys[0], 0, chance), Player(ports, keys[1], 1, chance), chance))
    await asyncio.gather(*games)
