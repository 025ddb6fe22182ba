"""The turn relay's domain for tests: the pairing list, a game, buckets in memory (some fail), relays on them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Codec, LostRace
from tipoff_shared.kv.changes import Change
from tipoff_shared.primitives.tasks import Tasks
from tipoff_turn_relay import game as rules
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.games import GAME_CODEC
from tipoff_turn_relay.keys import RANDOM_BITS
from tipoff_turn_relay.messages import (
    Exchange,
    Failed,
    GameUpdate,
    MapInit,
    PairingAnswer,
    PairingRequest,
    Register,
    Registered,
    RequestPair,
    Start,
    Updates,
)
from tipoff_turn_relay.pairing import PairingList, step
from tipoff_turn_relay.pairing_list import LIST_CODEC
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.store import MemoryBucket, RecordBucket
from tipoff_turn_relay.text import encode_answer

T = TypeVar("T")


class PairingWorld:
    """The list, a clock that tests move, and random bits that never repeat."""

    def __init__(self) -> None:
        self.state = PairingList()
        self.now = 1000.0
        self.heard_since = 0.0
        self._drawn = 0

    def ask(self, request: PairingRequest, random_bits: int | None = None) -> PairingAnswer:
        self._drawn += 1
        random_bits = random_bits or (self._drawn * 0x9E3779B97F4A7C15F39CC0605CEDC834) % (1 << RANDOM_BITS)
        self.state, answer = step(
            self.state, request, self.now, heard_since=self.heard_since, random_bits=random_bits
        )
        return answer

    def register(self, name: str, partner: str = "", patience: float = 25.0, origin: str = "") -> str:
        answer = self.ask(Register(name, partner, patience, origin))
        assert isinstance(answer, Registered)
        return answer.key

    def say(self, request: PairingRequest) -> str:
        return encode_answer(self.ask(request))

    def pair(self, one: str, other: str) -> None:
        """`other` becomes the server."""
        assert self.say(RequestPair(one)) == "0/2/*"
        assert self.say(RequestPair(other)).startswith("0/3/")

    def load(self, *keys: str) -> None:
        for key in keys:
            assert self.say(MapInit(key)).startswith(("0/5/", "0/6/"))


START = Start(7, (11, 22), ("Ada", "Bob"), ("1", "2"), 0)


class GameWorld:
    """One game, a clock that tests move, and what it was written."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard_since = 0.0
        self.game = rules.new_game(START, self.now)
        self.writes = 0

    def _keep(self, game: Game) -> None:
        self.writes += game is not self.game
        self.game = game

    def update(self, player: int, number: int, data: str | None = None) -> Updates | Failed:
        request = GameUpdate("", player, number, data)
        game, answer = rules.update(self.game, player, request, self.now, heard_since=self.heard_since)
        self._keep(game)
        return answer

    def say(self, player: int, number: int, data: str | None = None) -> str:
        return encode_answer(self.update(player, number, data))

    def exchange(
        self, player: int, number: int | None = None, data: str = "", after: int | None = None
    ) -> Updates | Failed:
        request = Exchange("", number, data, after)
        game, answer = rules.exchange(self.game, player, request, self.now, heard_since=self.heard_since)
        self._keep(game)
        return answer

    def leave(self, player: int) -> str:
        game, answer = rules.leave(self.game, player, self.now, heard_since=self.heard_since)
        self._keep(game)
        return encode_answer(answer)


def list_bucket() -> MemoryBucket[PairingList]:
    """An empty bucket for the pairing list."""
    return MemoryBucket(LIST_CODEC)


def games_bucket(max_records: int = 1_000_000) -> MemoryBucket[Game]:
    """An empty bucket for games."""
    return MemoryBucket(GAME_CODEC, max_records)


class UnreliableBucket(MemoryBucket[T]):
    """Fails as JetStream does: a write that raises may have been carried out, or be carried out later."""

    def __init__(self, codec: Codec[T], seed: int, failures: float) -> None:
        super().__init__(codec)
        self.random = random.Random(seed)
        self.failures = failures
        self.writes = 0
        self._later: list[tuple[str, T, int, float | None]] = []

    async def _disturb(self) -> None:
        await asyncio.sleep(0)
        for write in self._later[:]:
            if write in self._later and self.random.random() < 0.5:
                self._later.remove(write)
                await self._write(*write)
        if self.random.random() < self.failures / 2:
            raise Unavailable("the bucket failed, as ordered")

    async def _write(self, key: str, value: T, revision: int, ttl: float | None) -> None:
        with suppress(LostRace):
            await super().update(key, value, revision, ttl=ttl)

    async def latest(self, key: str) -> Change[T] | None:
        await self._disturb()
        return await super().latest(key)

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> int:
        await self._disturb()
        if self.random.random() < self.failures:
            if self.random.random() < 0.5:
                self._later.append((key, value, revision, ttl))
            else:
                await self._write(key, value, revision, ttl)
            raise Unavailable("the write failed, as ordered", retry_after=1)
        self.writes += 1
        return await super().update(key, value, revision, ttl=ttl)


@asynccontextmanager
async def relays(
    pairing: RecordBucket[PairingList], games: RecordBucket[Game], count: int = 2
) -> AsyncIterator[list[TurnRelay]]:
    """Several relays on the same buckets, as several httpds are."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            tasks = await stack.enter_async_context(Tasks("relay"))
            relay = TurnRelay(pairing, games, tasks, patience=5.0)
            await stack.enter_async_context(relay.pairing.running())
            made.append(relay)
        yield made
