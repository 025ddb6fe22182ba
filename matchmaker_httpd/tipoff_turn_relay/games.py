"""Carries out requests to games that all httpds share: read, decide, compare-and-set, at most one write per request.

The last known state of a game is kept with its revision. A decision that changes the game is confirmed by its write;
one that changes nothing (an idle poll, an error) by reading whether there is anything newer. So any number of httpds
serve one game, and every answer is true at the moment it is given.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeAlias, TypeVar

import msgspec

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import UNREAD, Codec, Entry, Unread
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.keys import GameKey
from tipoff_turn_relay.messages import Answer, Error, Exchange, Failed, GameQuit, GameUpdate, Updates
from tipoff_turn_relay.store import Abandoned, ClientGone, Patience, RecordBucket

log = logging.getLogger(__name__)

ENDED_LIFETIME = 60.0
"""Seconds for which the record of an ended game lives: longer than the pairing list repeats its start."""
MAX_KNOWN = 10_000
"""Games whose last state is kept in memory."""
_MAX_TRIES = 100
_NO_GAME = Failed(Error.NO_GAME)

RequestT = TypeVar("RequestT", bound=GameUpdate | GameQuit | Exchange)
AnswerT = TypeVar("AnswerT", bound=Answer)
Step: TypeAlias = Callable[[Game, int, RequestT, float, float], tuple[Game, AnswerT]]
"""game, the player's secret, request, now, heard since -> game after it, answer"""

_decode_game = msgspec.msgpack.Decoder(Game).decode


def _decode(data: bytes) -> Game | None:
    try:
        return _decode_game(data)
    except (msgspec.DecodeError, UnicodeError):
        log.exception("a game's record in NATS cannot be read; the game is over")
        return None


# Not JSON, as other records are: its escapes can make six bytes of one, and updates may be 16 KB each.
GAME_CODEC: Codec[Game] = Codec(msgspec.msgpack.Encoder().encode, _decode)


class _KnownGame:
    """What this process knows of one game; `users` counts the requests and long polls that use it."""

    __slots__ = ("changed", "entry", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.entry: Entry[Game] | Unread | None = UNREAD
        self.users = 0
        self.changed: set[asyncio.Event] = set()

    @property
    def worth_keeping(self) -> bool:
        return isinstance(self.entry, Entry) and not self.entry.value.over


class _Request(Patience[Game], Generic[RequestT, AnswerT]):
    """One request: the function that decides it, and the answer of its last try.

    One object instead of closures: Python's garbage collector runs when 700 objects have come to life, so the fewer a
    request holds while it waits for NATS, the more requests may wait at a time without a collection for each round.
    """

    __slots__ = ("_abandoned", "_request", "_secret", "_step", "answer", "begun")

    def __init__(
        self,
        secret: int,
        request: RequestT,
        step: Step[RequestT, AnswerT],
        abandoned: Abandoned | None,
        bucket: RecordBucket[Game],
        patience: float,
    ) -> None:
        super().__init__(bucket, patience)
        self._secret = secret
        self._request = request
        self._step = step
        self._abandoned = abandoned
        self.answer: AnswerT | Failed = _NO_GAME
        self.begun: Game | None = None
        """The game, when this request is the first of the second player."""

    def decide(self, game: Game | None) -> Game | None:
        """The game after the request; the very same one when there is nothing to write."""
        if game is None:
            self.answer = _NO_GAME
            return None
        after, self.answer = self._step(
            game, self._secret, self._request, time.time(), self._bucket.heard_since
        )
        if after.both_began and not game.both_began:
            self.begun = after
        return after

    async def keep_news(self) -> None:
        """Raise `ClientGone` for a late copy of a request: it would take new updates with it."""
        answer = self.answer
        if (
            isinstance(answer, Updates)
            and answer.repeated
            and self._abandoned is not None
            and await self._abandoned()
        ):
            raise ClientGone


class SharedGames:
    """All games. `patience`: the seconds for which a request outlives failures of the bucket; `on_begun` is called with
    both pairing keys of a game when both players have sent an update."""

    def __init__(
        self, bucket: RecordBucket[Game], *, patience: float, on_begun: Callable[[str, str], None]
    ) -> None:
        self._bucket = bucket
        self._patience = patience
        self._on_begun = on_begun
        self._known: OrderedDict[int, _KnownGame] = OrderedDict()

    def __len__(self) -> int:
        """Games whose last state is kept."""
        return len(self._known)

    def _enter(self, game_id: int) -> _KnownGame:
        known = self._known.get(game_id)
        if known is None:
            known = self._known[game_id] = _KnownGame()
            if len(self._known) > MAX_KNOWN:
                self._evict()
        else:
            self._known.move_to_end(game_id)
        known.users += 1
        return known

    def _evict(self) -> None:
        """Forget the game that was used longest ago, of those without users."""
        for game_id, known in self._known.items():
            if not known.users:
                del self._known[game_id]
                return

    def _leave(self, game_id: int, known: _KnownGame) -> None:
        known.users -= 1
        if not known.users and not known.worth_keeping:
            self._known.pop(game_id, None)

    async def create(self, game_id: int, game: Game) -> bool:
        """Write the game's record unless there is one. False: the id is another game's.

        Raises `Full` and `Unavailable`.
        """
        patience = Patience(self._bucket, self._patience)
        present = await self._change(
            game_id, lambda present: game if present is None else None, None, patience.after
        )
        return present is not None and present.secrets == game.secrets

    async def run(
        self,
        key: GameKey | None,
        request: RequestT,
        step: Step[RequestT, AnswerT],
        *,
        abandoned: Abandoned | None = None,
    ) -> AnswerT | Failed:
        """Carry out one request of the player with this key (None: one that cannot be a key). Raises `Unavailable`;
        `ClientGone` where a repetition would give away something new and `abandoned` says that its client has
        disconnected.

        A write that failed may have been carried out: then `step` runs again on what is stored, finds its own request
        done and answers it as a repetition.
        """
        if key is None:
            return _NO_GAME
        this = _Request(key.secret, request, step, abandoned, self._bucket, self._patience)
        await self._change(key.game_id, this.decide, this.keep_news, this.after)
        if this.begun is not None:
            self._on_begun(*this.begun.pairing_keys)
        return this.answer

    async def _change(
        self,
        game_id: int,
        decide: Callable[[Game | None], Game | None],
        before_write: Callable[[], Awaitable[None]] | None,
        on_unavailable: Callable[[Unavailable], Awaitable[None]],
    ) -> Game | None:
        """Change the record by `decide`, one request at a time; the game after it."""
        known = self._enter(game_id)
        try:
            async with known.lock:
                try:
                    result = await self._bucket.change(
                        str(game_id),
                        decide,
                        known=known.entry,
                        ttl=_lifetime,
                        on_unavailable=on_unavailable,
                        confirm_by_newer=True,
                        before_write=before_write,
                        tries=_MAX_TRIES,
                        what="the game",
                    )
                except BaseException:  # a write may still be carried out: nothing is known any more
                    known.entry = UNREAD
                    raise
                known.entry = result.entry
                if result.written:
                    for event in known.changed:
                        event.set()
                return None if result.entry is None else result.entry.value
        finally:
            self._leave(game_id, known)

    @asynccontextmanager
    async def watching(self, game_id: int) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the game changes, here or at another httpd: a hint."""
        known = self._enter(game_id)
        event = asyncio.Event()
        known.changed.add(event)
        try:
            async with self._bucket.listen(str(game_id), event.set):
                yield event
        finally:
            known.changed.discard(event)
            self._leave(game_id, known)


def _lifetime(game: Game) -> float | None:
    return ENDED_LIFETIME if game.over else None
