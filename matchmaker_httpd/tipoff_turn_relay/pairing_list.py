"""The pairing list over a store: one record for everybody, so every pairing is one atomic step.

It is written in groups: all requests that wait at one moment are decided one after the other and share one
compare-and-set. A group that changes nothing asks the store whether the list it was decided on is the present one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.primitives.tasks import Tasks
from tipoff_turn_relay.keys import LUCK_BITS
from tipoff_turn_relay.messages import (
    Failed,
    Gone,
    PairingAnswer,
    PairingRequest,
    Unregister,
)
from tipoff_turn_relay.pairing import PairingList, games_full, step, without, without_gone
from tipoff_turn_relay.store import Patience, RecordStore

log = logging.getLogger(__name__)

KEY = "list"
MAX_WAITING = 4000
"""Requests in hand at one time."""
MAX_GROUP = 500
"""Requests decided in one go."""
_MAX_RACES = 100

_decode = msgspec.json.Decoder(PairingList).decode
_encode = msgspec.json.Encoder().encode
_Decide: TypeAlias = Callable[[PairingList, float, float], tuple[PairingList, PairingAnswer]]


@dataclass(slots=True, eq=False)
class _Asked:
    """One request: what decides it, and who waits."""

    decide: _Decide
    answer: asyncio.Future[PairingAnswer]
    uncertain: bool = False
    """A write that held this request failed, and may have been carried out."""


@dataclass(slots=True, eq=False)
class _Watcher:
    """A long poll of the player with `key`; `part` is what it knows of the list."""

    key: str
    part: tuple[object, ...]
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class SharedPairingList:
    """The list as seen from this process. `tasks` owns the work, `patience` are the seconds a request outlives
    failures of the store."""

    def __init__(self, store: RecordStore, tasks: Tasks, *, patience: float) -> None:
        self._store = store
        self._tasks = tasks
        self._patience = patience
        self._asked: list[_Asked] = []
        self._working = False
        self._state = PairingList()
        self._revision: int | None = None
        self._watchers: set[_Watcher] = set()
        self._hints = AsyncExitStack()
        self._hinted = False
        self._looking = False
        self._closed = False

    def __len__(self) -> int:
        """Players in the list, as last seen."""
        return len(self._state.players)

    async def ask(self, request: PairingRequest) -> PairingAnswer:
        """Carry out one request. Raises `Unavailable`. Cancelling is safe; the request may still be carried out."""
        luck = secrets.randbits(LUCK_BITS)
        asked: _Asked

        def decide(state: PairingList, now: float, heard_since: float) -> tuple[PairingList, PairingAnswer]:
            after, answer = step(state, request, now, heard_since=heard_since, luck=luck)
            if asked.uncertain and isinstance(request, Unregister) and isinstance(answer, Failed):
                return after, Gone()  # it is gone because we took it out
            return after, answer

        asked = self._submit(decide)
        return await asked.answer

    async def games_full(self, key: str) -> PairingAnswer:
        """The game of the player with this key cannot be made: both of its players leave the list."""
        return await self._submit(lambda state, *_: games_full(state, key)).answer

    def forget(self, *keys: str) -> None:
        """These players have begun to play. Nobody waits for it; a hint that keeps the list short."""
        self._unheard(lambda state, *_: (without(state, *keys), Gone()))

    def _unheard(self, decide: _Decide, done: Callable[[object], None] | None = None) -> None:
        """A request that nobody waits for. One that fails or finds no place does no harm."""
        if self._closed or len(self._asked) >= MAX_WAITING:
            if done is not None:
                done(None)
            return

        def answered(answer: asyncio.Future[PairingAnswer]) -> None:
            if not answer.cancelled() and (exc := answer.exception()) is not None:
                log.debug("pairing list: %s", exc)
            if done is not None:
                done(answer)

        self._submit(decide).answer.add_done_callback(answered)

    def _submit(self, decide: _Decide) -> _Asked:
        if self._closed or len(self._asked) >= MAX_WAITING:
            raise Unavailable("too many players at once; try again in a moment", retry_after=1)
        asked = _Asked(decide, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if not self._working:
            self._working = True
            self._tasks.start(self._work(), "pairing list")
        return asked

    async def _work(self) -> None:
        """Group after group, as long as there are requests."""
        try:
            while self._asked:
                group, self._asked = self._asked[:MAX_GROUP], self._asked[MAX_GROUP:]
                group = [asked for asked in group if not asked.answer.done()]
                try:
                    await self._carry_out(group)
                except TipoffError as exc:
                    for asked in group:
                        if not asked.answer.done():
                            asked.answer.set_exception(exc)
                except BaseException:
                    self._asked = group + self._asked
                    raise
        finally:
            self._working = False
            for asked in self._asked:  # only when this task was cancelled or broke
                if not asked.answer.done():
                    asked.answer.set_exception(
                        Unavailable("this server is going away; ask again", retry_after=1)
                    )
            self._asked.clear()

    async def _carry_out(self, group: list[_Asked]) -> None:
        patience = Patience(self._store, self._patience)
        for _ in range(_MAX_RACES):
            proved = False
            try:
                if self._revision is None:
                    stored = await self._store.get(KEY)
                    self._know(stored.value, stored.revision)
                    proved = True
                while True:
                    assert self._revision is not None
                    state, answers = self._decide(group)
                    if state is not self._state:
                        data = _encode(state)
                        self._revision = await self._store.set(KEY, data, self._revision)
                        self._adopt(state)
                        break
                    if proved:
                        break
                    stored_now = await self._store.newer(KEY, self._revision)
                    if stored_now is None:
                        break
                    self._know(stored_now.value, stored_now.revision)
                    proved = True
            except LostRace:
                self._revision = None
                continue
            except BaseException as exc:
                self._revision = None
                for asked in group:
                    asked.uncertain = True
                if not isinstance(exc, Unavailable):
                    raise
                await patience.after(exc)
                continue
            for asked, answer in zip(group, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)
            return
        raise Unavailable("too many httpds change the pairing list at once", retry_after=1)

    def _decide(self, group: list[_Asked]) -> tuple[PairingList, list[PairingAnswer]]:
        """All of the group, in order, on the list as it is known. Without a change: the very same list."""
        state, answers = self._state, []
        now, heard_since = time.time(), self._store.heard_since
        for asked in group:
            state, answer = asked.decide(state, now, heard_since)
            answers.append(answer)
        if state is not self._state:
            state = without_gone(state, now, heard_since)
        return state, answers

    def _know(self, value: bytes | None, revision: int) -> None:
        try:
            self._adopt(PairingList() if value is None else _decode(value))
        except (msgspec.DecodeError, UnicodeError):
            log.exception("the pairing list in NATS cannot be read; beginning with an empty one")
            self._adopt(PairingList())
        self._revision = revision

    @asynccontextmanager
    async def watching(self, key: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when a player's own part of the list changes, here or at another httpd: a hint."""
        if not self._hinted:
            self._hinted = True
            try:
                await self._hints.enter_async_context(self._store.changes(KEY, self._look))
            except BaseException:
                self._hinted = False
                raise
        watcher = _Watcher(key, _part(self._state, key))
        self._watchers.add(watcher)
        try:
            yield watcher.changed
        finally:
            self._watchers.discard(watcher)

    def _look(self) -> None:
        """Somebody, perhaps we ourselves, wrote the list: see what it says, once for all who wait."""
        if not self._watchers or self._looking or self._closed:
            return
        self._looking = True

        def seen(_: object) -> None:
            self._looking = False

        self._unheard(lambda state, *_: (state, Gone()), seen)

    def _adopt(self, state: PairingList) -> None:
        self._state = state
        for watcher in self._watchers:
            part = _part(state, watcher.key)
            if part != watcher.part:
                watcher.part = part
                watcher.changed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SharedPairingList]:
        """Leaving takes no more requests; what is in hand is answered by the task that has it."""
        async with self._hints:
            try:
                yield self
            finally:
                self._closed = True


def _part(state: PairingList, key: str) -> tuple[object, ...]:
    """What of the list a player's next step depends on."""
    player = state.players.get(key)
    if player is None:
        return ()
    partner = state.players.get(player.partner)
    return player.stage, player.partner, partner and (partner.stage, partner.partner)
