"""Carries out requests to the pairing list that all httpds share: one record, so every pairing is one atomic step.

Requests are carried out in groups: all that wait at one moment are decided one after the other and share one
compare-and-set. A group that changes nothing only reads whether the list it was decided on is the current one.
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
from tipoff_shared.kv.bucket import UNREAD, Codec, Entry, Unread
from tipoff_shared.primitives.tasks import Tasks
from tipoff_turn_relay.keys import RANDOM_BITS
from tipoff_turn_relay.messages import (
    Failed,
    Gone,
    PairingAnswer,
    PairingRequest,
    Unregister,
)
from tipoff_turn_relay.pairing import PairingList, games_full, step, without, without_gone
from tipoff_turn_relay.store import Patience, RecordBucket

log = logging.getLogger(__name__)

KEY = "list"
MAX_PENDING = 4000
"""Requests that may wait at one time."""
MAX_GROUP = 500
"""Requests decided in one go."""
_MAX_TRIES = 100

_decode_list = msgspec.json.Decoder(PairingList).decode
_Decide: TypeAlias = Callable[[PairingList, float, float], tuple[PairingList, PairingAnswer]]
"""list, now, heard since -> list after it, answer"""


def _decode(data: bytes) -> PairingList | None:
    try:
        return _decode_list(data)
    except (msgspec.DecodeError, UnicodeError):
        log.exception("the pairing list in NATS cannot be read; beginning with an empty one")
        return None


LIST_CODEC: Codec[PairingList] = Codec(msgspec.json.Encoder().encode, _decode)


@dataclass(slots=True, eq=False)
class _Pending:
    """One request: the function that decides it, and the future of its answer."""

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
    """The pairing list as this process sees it. `tasks` owns the work; `patience`: the seconds for which a request
    outlives failures of the bucket."""

    def __init__(self, bucket: RecordBucket[PairingList], tasks: Tasks, *, patience: float) -> None:
        self._bucket = bucket
        self._tasks = tasks
        self._patience = patience
        self._pending: list[_Pending] = []
        self._working = False
        self._known: Entry[PairingList] | Unread | None = UNREAD
        self._state = PairingList()
        """The list as last seen."""
        self._watchers: set[_Watcher] = set()
        self._listening = AsyncExitStack()
        self._listens = False
        self._refreshing = False
        self._closed = False

    def __len__(self) -> int:
        """Players in the list, as last seen."""
        return len(self._state.players)

    async def handle(self, request: PairingRequest) -> PairingAnswer:
        """Carry out one request. Raises `Unavailable`. Cancelling is safe; the request may still be carried out."""
        random_bits = secrets.randbits(RANDOM_BITS)
        pending: _Pending

        def decide(state: PairingList, now: float, heard_since: float) -> tuple[PairingList, PairingAnswer]:
            after, answer = step(state, request, now, heard_since=heard_since, random_bits=random_bits)
            if pending.uncertain and isinstance(request, Unregister) and isinstance(answer, Failed):
                return after, Gone()  # an earlier try of this request has removed it
            return after, answer

        pending = self._submit(decide)
        return await pending.answer

    async def games_full(self, key: str) -> PairingAnswer:
        """Remove the player with this key and its partner, whose game cannot be created."""
        return await self._submit(lambda state, *_: games_full(state, key)).answer

    def remove(self, *keys: str) -> None:
        """Remove these players, who have begun to play. Returns at once; a hint that keeps the list short."""
        self._submit_unawaited(lambda state, *_: (without(state, *keys), Gone()))

    def _submit_unawaited(self, decide: _Decide, done: Callable[[object], None] | None = None) -> None:
        """Submit a request that nobody waits for. One that fails or finds no room does no harm."""
        if self._closed or len(self._pending) >= MAX_PENDING:
            if done is not None:
                done(None)
            return

        def answered(answer: asyncio.Future[PairingAnswer]) -> None:
            if not answer.cancelled() and (exc := answer.exception()) is not None:
                log.debug("pairing list: %s", exc)
            if done is not None:
                done(answer)

        self._submit(decide).answer.add_done_callback(answered)

    def _submit(self, decide: _Decide) -> _Pending:
        if self._closed or len(self._pending) >= MAX_PENDING:
            raise Unavailable("too many players at once; try again in a moment", retry_after=1)
        pending = _Pending(decide, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if not self._working:
            self._working = True
            self._tasks.start(self._work(), "pairing list")
        return pending

    async def _work(self) -> None:
        """Carry out group after group, until no request is left."""
        try:
            while self._pending:
                group, self._pending = self._pending[:MAX_GROUP], self._pending[MAX_GROUP:]
                group = [pending for pending in group if not pending.answer.done()]
                try:
                    await self._carry_out(group)
                except TipoffError as exc:
                    for pending in group:
                        if not pending.answer.done():
                            pending.answer.set_exception(exc)
                except BaseException:
                    self._pending = group + self._pending
                    raise
        finally:
            self._working = False
            for pending in self._pending:  # only when this task was cancelled or failed
                if not pending.answer.done():
                    pending.answer.set_exception(
                        Unavailable("this server is stopping; ask again", retry_after=1)
                    )
            self._pending.clear()

    async def _carry_out(self, group: list[_Pending]) -> None:
        patience = Patience(self._bucket, self._patience)
        answers: list[PairingAnswer] = []

        def decide(present: PairingList | None) -> PairingList | None:
            nonlocal answers
            before = PairingList() if present is None else present
            after, answers = self._decide(group, before)
            return None if after is before else after

        async def failed(failure: Unavailable) -> None:
            for pending in group:
                pending.uncertain = True
            await patience.after(failure)

        try:
            result = await self._bucket.change(
                KEY,
                decide,
                known=self._known,
                on_unavailable=failed,
                confirm_by_newer=True,
                tries=_MAX_TRIES,
                what="the pairing list",
            )
        except BaseException:  # a write may still be carried out: nothing is known any more
            self._known = UNREAD
            raise
        self._known = result.entry
        self._adopt(PairingList() if result.entry is None else result.entry.value)
        for pending, answer in zip(group, answers, strict=True):
            if not pending.answer.done():
                pending.answer.set_result(answer)

    def _decide(self, group: list[_Pending], before: PairingList) -> tuple[PairingList, list[PairingAnswer]]:
        """Decide the requests of the group in order. A group without a change returns the very same list."""
        state, answers = before, []
        now, heard_since = time.time(), self._bucket.heard_since
        for pending in group:
            state, answer = pending.decide(state, now, heard_since)
            answers.append(answer)
        if state is not before:
            state = without_gone(state, now, heard_since)
        return state, answers

    @asynccontextmanager
    async def watching(self, key: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when a player's own part of the list changes, here or at another httpd: a hint."""
        if not self._listens:
            self._listens = True
            try:
                await self._listening.enter_async_context(self._bucket.listen(KEY, self._refresh))
            except BaseException:
                self._listens = False
                raise
        watcher = _Watcher(key, _part(self._state, key))
        self._watchers.add(watcher)
        try:
            yield watcher.changed
        finally:
            self._watchers.discard(watcher)

    def _refresh(self) -> None:
        """Read the list, which a process (perhaps this one) has written, once for all long polls."""
        if not self._watchers or self._refreshing or self._closed:
            return
        self._refreshing = True

        def refreshed(_: object) -> None:
            self._refreshing = False

        self._submit_unawaited(lambda state, *_: (state, Gone()), refreshed)

    def _adopt(self, state: PairingList) -> None:
        self._state = state
        for watcher in self._watchers:
            part = _part(state, watcher.key)
            if part != watcher.part:
                watcher.part = part
                watcher.changed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SharedPairingList]:
        """Accept requests within the block. Those that wait when it ends are answered by the task that has them."""
        async with self._listening:
            try:
                yield self
            finally:
                self._closed = True


def _part(state: PairingList, key: str) -> tuple[object, ...]:
    """The part of the list on which a player's next step depends."""
    player = state.players.get(key)
    if player is None:
        return ()
    partner = state.players.get(player.partner)
    return player.stage, player.partner, partner and (partner.stage, partner.partner)
