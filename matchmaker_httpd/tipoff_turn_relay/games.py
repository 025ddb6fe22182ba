"""Games over a store: each request read, decided and written by compare-and-set, at most one write for each.

The last known state of a game is kept with its revision. A decision that changes it is proved right by its write; one
that changes nothing (an idle poll, an error) by asking the store whether there is something newer. So any number of
httpds serve one game, and every answer is true at the moment it is given.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar

import msgspec

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.messages import Answer, Error, Failed, Updates
from tipoff_turn_relay.store import Abandoned, ClientGone, Patience, RecordStore, StoreFull

log = logging.getLogger(__name__)

ENDED_LIFETIME = 60.0
"""Seconds after which the record of a game that is over goes; longer than the pairing list repeats its start."""
MAX_KNOWN = 10_000
"""Games whose last state is kept in memory."""
_MAX_RACES = 100

AnswerT = TypeVar("AnswerT", bound=Answer)
Step: TypeAlias = Callable[[Game, float, float], tuple[Game, AnswerT]]
"""game, now, heard since -> game after it, answer"""

# Not JSON, as other records are: its escapes can make six bytes of one, and updates may be 16 KB each.
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Game).decode


class _KnownGame:
    """What this process knows of one game. `revision` None: nothing."""

    __slots__ = ("changed", "game", "lock", "revision", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.game: Game | None = None
        self.revision: int | None = None
        self.users = 0
        self.changed: set[asyncio.Event] = set()

    def know(self, value: bytes | None, revision: int) -> None:
        try:
            self.game = None if value is None else _decode(value)
        except (msgspec.DecodeError, UnicodeError):
            log.exception("a game's record in NATS cannot be read; the game is over")
            self.game = None
        self.revision = revision

    def forget(self) -> None:
        self.game, self.revision = None, None

    def tell(self) -> None:
        for event in self.changed:
            event.set()


class SharedGames:
    """All games. `patience` are the seconds a request outlives failures of the store."""

    def __init__(self, store: RecordStore, *, patience: float) -> None:
        self._store = store
        self._patience = patience
        self._known: OrderedDict[str, _KnownGame] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def _enter(self, game_id: int) -> _KnownGame:
        key = str(game_id)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _KnownGame()
            if len(self._known) > MAX_KNOWN:
                self._evict()
        else:
            self._known.move_to_end(key)
        known.users += 1
        return known

    def _evict(self) -> None:
        """The known that was used longest ago, of those nobody is in."""
        for key, known in self._known.items():
            if not known.users:
                del self._known[key]
                return

    def _leave(self, game_id: int, known: _KnownGame) -> None:
        known.users -= 1
        if not known.users and (known.game is None or known.game.over):
            self._known.pop(str(game_id), None)

    async def create(self, game_id: int, game: Game) -> bool:
        """Make the game's record unless it is there. False: the id is another game's.

        Raises `StoreFull` and `Unavailable`.
        """
        known = self._enter(game_id)
        try:
            async with known.lock:
                patience = Patience(self._store, self._patience)
                while True:
                    try:
                        if known.revision is None:
                            stored = await self._store.get(str(game_id))
                            known.know(stored.value, stored.revision)
                        if known.game is not None:
                            return known.game.secrets == game.secrets
                        await self._write(game_id, known, game)
                        return True
                    except LostRace:
                        known.forget()
                    except BaseException as exc:
                        known.forget()
                        if not isinstance(exc, Unavailable) or isinstance(exc, StoreFull):
                            raise
                        await patience.after(exc)
        finally:
            self._leave(game_id, known)

    async def run(
        self, game_id: int, step: Step[AnswerT], *, abandoned: Abandoned | None = None
    ) -> AnswerT | Failed:
        """Carry out one request. Raises `Unavailable`; `ClientGone` where a repetition would give away something new
        and `abandoned` says that nobody waits for it.

        A write that failed may have been carried out: the step is taken again from what is stored then, where it
        finds its own request done and answers it as a repetition.
        """
        known = self._enter(game_id)
        try:
            async with known.lock:
                return await self._run(game_id, known, step, abandoned)
        finally:
            self._leave(game_id, known)

    async def _run(
        self, game_id: int, known: _KnownGame, step: Step[AnswerT], abandoned: Abandoned | None
    ) -> AnswerT | Failed:
        patience: Patience | None = None
        for _ in range(_MAX_RACES):
            proved = False
            try:
                if known.revision is None:
                    stored = await self._store.get(str(game_id))
                    known.know(stored.value, stored.revision)
                    proved = True
                while True:
                    game = known.game
                    after: Game | None = None
                    answer: AnswerT | Failed = Failed(Error.NO_GAME)
                    if game is not None:
                        after, answer = step(game, time.time(), self._store.heard_since)
                    if after is not None and after is not game:
                        # The copy of a request whose client went on long ago would take what is new with it.
                        if (
                            isinstance(answer, Updates)
                            and answer.repeated
                            and abandoned is not None
                            and await abandoned()
                        ):
                            raise ClientGone
                        await self._write(game_id, known, after)
                        return answer
                    if proved:
                        return answer
                    assert known.revision is not None
                    stored_now = await self._store.newer(str(game_id), known.revision)
                    if stored_now is None:
                        return answer
                    known.know(stored_now.value, stored_now.revision)
                    proved = True
            except LostRace:
                known.forget()
            except ClientGone:
                raise
            except (
                BaseException
            ) as exc:  # its write may be carried out, now or later: what is known is not known
                known.forget()
                if not isinstance(exc, Unavailable):
                    raise
                patience = patience or Patience(self._store, self._patience)
                await patience.after(exc)
        raise Unavailable("too many requests for one game at once", retry_after=1)

    async def _write(self, game_id: int, known: _KnownGame, game: Game) -> None:
        ttl = ENDED_LIFETIME if game.over else None
        known.revision = await self._store.set(str(game_id), _encode(game), known.revision or 0, ttl=ttl)
        known.game = game
        known.tell()

    @asynccontextmanager
    async def watching(self, game_id: int) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the game changes, here or at another httpd: a hint."""
        known = self._enter(game_id)
        event = asyncio.Event()
        known.changed.add(event)
        try:
            async with self._store.changes(str(game_id), event.set):
                yield event
        finally:
            known.changed.discard(event)
            self._leave(game_id, known)
