"""Answers the requests of both protocols from the pairing list and the games, with long polls for the JSON API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tipoff_shared.kv.bucket import Full
from tipoff_shared.primitives.tasks import Tasks
from tipoff_turn_relay import game as rules
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.games import SharedGames
from tipoff_turn_relay.keys import GameKey
from tipoff_turn_relay.messages import (
    Answer,
    Error,
    Exchange,
    Failed,
    GameQuit,
    GameUpdate,
    Gone,
    MapInit,
    MapReady,
    Paired,
    PairingAnswer,
    PairingRequest,
    PartnerLoading,
    Request,
    RequestPair,
    Start,
    StillPairing,
    Updates,
)
from tipoff_turn_relay.pairing import PairingList
from tipoff_turn_relay.pairing_list import SharedPairingList
from tipoff_turn_relay.store import Abandoned, RecordBucket

PATIENCE = 1.5
"""Seconds for which a request outlives failures of its bucket."""
LOOK_AGAIN = 5.0
"""Seconds after which a long poll asks by itself: news of changes is only a hint, and the poll is a sign of life."""

AnswerT = TypeVar("AnswerT")


class TurnRelay:
    """One process's relay; it holds nothing that another one needs. Every call may raise `Unavailable`."""

    def __init__(
        self,
        pairing: RecordBucket[PairingList],
        games: RecordBucket[Game],
        tasks: Tasks,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self.pairing = SharedPairingList(pairing, tasks, patience=patience)
        # Players of a game that both have begun leave the pairing list.
        self.games = SharedGames(games, patience=patience, on_begun=self.pairing.remove)
        self._polls: set[asyncio.Event] = set()
        self._draining = False

    @property
    def waiting(self) -> int:
        """Long polls that wait for news now."""
        return len(self._polls)

    async def handle(self, request: Request, *, abandoned: Abandoned | None = None) -> Answer:
        """One request of the text protocol. Raises `ClientGone` when the client has disconnected and the
        answer would have taken new updates with it."""
        if isinstance(request, GameUpdate):
            return await self.games.run(GameKey.parse(request.key), request, _update, abandoned=abandoned)
        if isinstance(request, GameQuit):
            return await self.games.run(GameKey.parse(request.key), request, _leave)
        return await self.pair(request)

    async def pair(self, request: PairingRequest) -> PairingAnswer:
        """One request to the pairing list. When the answer is `Start`, the game exists."""
        answer = await self.pairing.handle(request)
        if isinstance(answer, Start) and isinstance(request, MapReady):
            try:
                made = await self.games.create(answer.game_id, rules.new_game(answer, time.time()))
            except Full:
                made = False
            if not made:  # no room, or (once in 2**32) another game's id
                return await self.pairing.games_full(request.key)
        return answer

    async def play(self, key: str, *, loaded: bool, wait: float) -> PairingAnswer:
        """From the list into a game: as far as it goes within `wait` seconds. `loaded` False stops at `Paired`."""

        def unfinished(answer: PairingAnswer) -> bool:
            return isinstance(answer, StillPairing | PartnerLoading)

        answer = await self._advance(key, loaded)
        if wait <= 0 or not unfinished(answer):
            return answer
        async with self.pairing.watching(key) as changed:
            return await self._poll(lambda: self._advance(key, loaded), unfinished, changed, wait)

    async def _advance(self, key: str, loaded: bool) -> PairingAnswer:
        answer = await self.pair(RequestPair(key))
        if isinstance(answer, Paired) and loaded:
            answer = await self.pair(MapInit(key))
            if not isinstance(answer, Failed):
                answer = await self.pair(MapReady(key))
        if isinstance(answer, Failed) and answer.error is Error.PARTNER_DROPPED:
            return StillPairing()  # it is back in the list
        return answer

    async def exchange(self, request: Exchange, *, wait: float) -> Updates | Failed:
        """Hand over and fetch. With `wait`, until there is something to fetch, or room for what is handed over."""
        key = GameKey.parse(request.key)
        if key is None:
            return Failed(Error.NO_GAME)

        def unfinished(answer: Updates | Failed) -> bool:
            if isinstance(answer, Failed):
                return answer.error is Error.CACHE_FULL
            return request.after is not None and not answer.updates

        answer = await self.games.run(key, request, _exchange)
        if wait <= 0 or not unfinished(answer):
            return answer
        async with self.games.watching(key.game_id) as changed:
            return await self._poll(
                lambda: self.games.run(key, request, _exchange), unfinished, changed, wait
            )

    async def _poll(
        self,
        ask: Callable[[], Awaitable[AnswerT]],
        unfinished: Callable[[AnswerT], bool],
        changed: asyncio.Event,
        wait: float,
    ) -> AnswerT:
        """Ask at each change, until the answer is finished or `wait` seconds are over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while True:
            changed.clear()  # before asking: what changes from here on is not missed
            answer = await ask()
            left = until - loop.time()
            if left <= 0 or self._draining or not unfinished(answer):
                return answer
            self._polls.add(changed)
            try:
                async with asyncio.timeout(min(left, LOOK_AGAIN)):
                    await changed.wait()
            except TimeoutError:
                pass
            finally:
                self._polls.discard(changed)

    def drain(self) -> None:
        """Answer all long polls now, with what there is."""
        self._draining = True
        for event in self._polls:
            event.set()


def _update(
    game: Game, secret: int, request: GameUpdate, now: float, heard_since: float
) -> tuple[Game, Updates | Failed]:
    if game.player_of(secret) != request.player:
        return game, Failed(Error.NOT_IN_GAME)
    return rules.update(game, request.player, request, now, heard_since=heard_since)


def _leave(
    game: Game, secret: int, request: GameQuit, now: float, heard_since: float
) -> tuple[Game, Gone | Failed]:
    player = game.player_of(secret)
    if player is None or request.player not in (None, player):
        return game, Failed(Error.NOT_IN_GAME)
    return rules.leave(game, player, now, heard_since=heard_since)


def _exchange(
    game: Game, secret: int, request: Exchange, now: float, heard_since: float
) -> tuple[Game, Updates | Failed]:
    player = game.player_of(secret)
    if player is None:
        return game, Failed(Error.NOT_IN_GAME)
    return rules.exchange(game, player, request, now, heard_since=heard_since)
