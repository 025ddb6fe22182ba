"""The players of a soak: most play, some stay, and some do what players do: leave at once, vanish, never claim a seat,
give up while they wait."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.gameserver.players import by_udp
from tests.soak.stack import CHURN, LASTING
from tipoff_client_sdk import Player, connect
from tipoff_client_sdk.connect import Transport
from tipoff_client_sdk.errors import ServerLost
from tipoff_client_sdk.matchmaking import Progress, matchmaker_url, request_seat
from tipoff_shared.errors import TipoffError
from tipoff_shared.messages import PlayRequest, SessionReady
from tipoff_shared.names import new_request_id

DEADLINE = 45.0
"""Seconds a player waits for a seat."""
_ANSWERED = DEADLINE + 15.0
"""Seconds after which a player without any answer is a fault of the product."""
_INPUT = struct.Struct("<BIB")
_STATES = ("play", "play", "play", "play", "play", "leave at once", "vanish", "never claim", "give up")


@dataclass(frozen=True, slots=True)
class Loss:
    """A player whom the game has ended: on which server, when (monotonic seconds), why, on the lasting game or not."""

    deployment_id: str
    at: float
    reason: str
    lasting: bool


@dataclass(frozen=True, slots=True)
class Served:
    """A request for a seat that was answered with one: when it began and ended, in monotonic seconds."""

    began: float
    ended: float


class Crowd:
    """All players of one stack. Its fields say how they fared.

    `players`: session -> deployment of those who are connected now. `outcomes` counts how requests came out.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.players: dict[str, str] = {}
        self._vanished: dict[str, float] = {}
        self.outcomes: Counter[str] = Counter()
        self.losses: list[Loss] = []
        self.served: list[Served] = []
        self.longest_gap = 0.0
        """Most seconds between two messages of a server to a player who stays."""
        self._url = url
        self._seed = seed

    def vanished(self, within: float) -> frozenset[str]:
        """The sessions of players who vanished at most `within` seconds ago."""
        now = time.monotonic()
        self._vanished = {key: at for key, at in self._vanished.items() if now - at <= within}
        return frozenset(self._vanished)

    async def come_and_go(self, number: int, ends: float) -> None:
        """One player who asks again and again until `ends` (monotonic), each time to do something else."""
        dice = random.Random(f"{self._seed} {number}")
        while time.monotonic() < ends:
            what = dice.choice(_STATES)
            game = CHURN if dice.random() < 0.9 else LASTING
            transport: Transport = dice.choice(("udp", "udp", "websocket"))
            seconds = dice.uniform(0.5, 6)
            await self._tried(what, self._one(what, game, transport, seconds, ends))
            await asyncio.sleep(dice.uniform(0.1, 0.8))  # between two plays, as a player would

    async def stay(self, number: int, ends: float) -> None:
        """One player who stays in the lasting game until `ends`, and comes back when a fault has ended it."""
        transport: Transport = "websocket" if number % 2 else "udp"
        while time.monotonic() < ends:
            await self._tried("stay", self._play(LASTING, transport, ends - time.monotonic(), stays=True))
            await asyncio.sleep(0.5)  # as a player would

    async def _tried(self, what: str, play: Awaitable[None]) -> None:
        """Count how it came out. Every failure must be a typed error, before the deadline."""
        try:
            await play
        except TipoffError as exc:
            self.outcomes[f"{what}: {type(exc).__name__}"] += 1
            await asyncio.sleep(min(exc.retry_after or 0.5, 3))  # as a player would
        except TimeoutError:
            self.outcomes[f"{what}: no answer"] += 1
        else:
            self.outcomes[f"{what}: done"] += 1

    async def _one(self, what: str, game: str, transport: Transport, seconds: float, ends: float) -> None:
        match what:
            case "play":
                await self._play(game, transport, min(seconds, max(0.1, ends - time.monotonic())))
            case "leave at once":
                async with self._connected(game, transport):
                    pass
            case "vanish":
                await self._vanish(game)
            case "never claim":
                await self._seat(game)
            case _:
                try:
                    async with asyncio.timeout(seconds / 20):
                        await self._seat(game)
                except TimeoutError:
                    pass  # the player gave up, in the middle of the request

    async def _play(self, game: str, transport: Transport, seconds: float, *, stays: bool = False) -> None:
        async with self._connected(game, transport) as player:
            driver = asyncio.create_task(_inputs(player))
            reason = ""
            try:
                async with asyncio.timeout(seconds):
                    last = time.monotonic()
                    async for _ in player:
                        now = time.monotonic()
                        if stays:
                            self.longest_gap = max(self.longest_gap, now - last)
                        last = now
                    reason = player.end_reason or "ended"
            except TimeoutError:
                pass  # enough played
            except ServerLost as exc:
                reason = str(exc)
            finally:
                driver.cancel()
                with suppress(asyncio.CancelledError, TipoffError):  # its connection has ended
                    await driver
            if reason:
                self.losses.append(Loss(player.deployment_id, time.monotonic(), reason, stays))

    @asynccontextmanager
    async def _connected(self, game: str, transport: Transport) -> AsyncIterator[Player]:
        began = time.monotonic()
        async with asyncio.timeout(_ANSWERED) as deadline:
            async with connect(
                self._url, game=game, version="1", transports=(transport,), timeout=DEADLINE
            ) as player:
                deadline.reschedule(None)
                self.served.append(Served(began, time.monotonic()))
                self.players[player.session_id] = player.deployment_id
                try:
                    yield player
                finally:
                    del self.players[player.session_id]

    async def _seat(self, game: str) -> SessionReady:
        request = PlayRequest(game, "1", request_id=new_request_id())
        async with asyncio.timeout(_ANSWERED):
            where = matchmaker_url(self._url)
            return await request_seat(where, request, progress=_ignore, timeout=DEADLINE, ssl=None)

    async def _vanish(self, game: str) -> None:
        """Connect, and from then on send nothing, not even a farewell."""
        seat = await self._seat(game)
        try:
            async with by_udp(base64.b64decode(seat.token)) as player:
                player.silent = True
                self._vanished[seat.session_id] = time.monotonic()
        except AssertionError as exc:
            raise TipoffError(f"the server did not let the player in: {exc}") from exc


async def _inputs(player: Player) -> None:
    """Send a move every second, as long as the connection is up."""
    sequence = 0
    while player.connected:
        sequence += 1
        await player.send(_INPUT.pack(2, sequence, 0))
        await asyncio.sleep(1)  # the rhythm of the game


def _ignore(progress: Progress) -> None:
    """Nobody watches."""
