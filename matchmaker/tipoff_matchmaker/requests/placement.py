"""Places one play request, step by step: from "I want to play" to a session record, a seat and a token.

    a seat is free:   seat written ──> record created `ready`, token beside it ──> answer
    none is free:     record created `requested` ──> a seat, or a server is started ──> record `ready` ──> answer

Every step is a compare-and-set on what is written down; the loser of one undoes its own effect and answers from the
winner's record. So the same request id may arrive twenty times, here or at other matchmakers, at once or later: there
is one session, one client id, one seat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.allocators.router import Router
from tipoff_matchmaker.bans import BanEnforcer
from tipoff_matchmaker.errors import AnsweredElsewhere, ShuttingDown
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.requests.answers import Answers
from tipoff_matchmaker.requests.pending import PendingRequest
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_matchmaker.sessions.state_machine import AskedAgain, SeatFound, StartFailed, TakenOver
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import Issued, Tokens, new_client_id
from tipoff_shared.errors import (
    Conflict,
    Internal,
    OrchestratorFailed,
    Unavailable,
)
from tipoff_shared.kv.bucket import DoesNotWrite, LostRace
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.records import SessionRecord, SessionState

log = logging.getLogger(__name__)

_STORE_TRIES = 6
"""Failed writes or reads after which a request is answered 503: some ten seconds, more while NATS is away."""
_FOLLOW_LOOK = 1.0
"""Seconds after which a record that another matchmaker handles is read again, in case its change was missed."""


class Placement:
    """The steps of every play request of one matchmaker; pending.py begins them."""

    def __init__(
        self,
        buckets: Buckets,
        router: Router,
        sessions: SessionStore,
        bans: BanEnforcer,
        tokens: Tokens,
        answers: Answers,
        peers: Peers,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._buckets = buckets
        self._router = router
        self._sessions = sessions
        self._bans = bans
        self._tokens = tokens
        self._answers = answers
        self._peers = peers
        self._settings = settings
        self._instance = settings.instance
        self._clock = clock

    async def place(self, request: PendingRequest) -> SessionReady:
        """The answer, from whatever is written down about the request. Raises a `TipoffError`, `AnsweredElsewhere` when
        a broadcast request is another matchmaker's to answer, or `TimeoutError` when there is no time left. Cancelling
        is safe: a seat on its way is undone, and a waiting record is left to the caller (`request.waits`)."""
        self._bans.check(request.client_ip, request.user_id)
        look_first = request.repeated or request.broadcast
        tries = 0
        while True:
            request.check_deadline()
            self._require_writable()
            try:
                if not look_first:
                    return await self._allocate(request, None)
                record = await self._sessions.read(request.session_id)
                if record is None and request.broadcast:
                    record = await self._note(request)  # one of those that got it; the others watch
                if record is None or (
                    record.state is SessionState.REQUESTED and await self._take(request, record)
                ):
                    return await self._allocate(request, record)
                if (ready := await self._from_record(request, record)) is not None:
                    return ready
            except LostRace:
                look_first = True
            except (ShuttingDown, DoesNotWrite):
                raise
            except Unavailable as exc:
                # Whether the last write happened is not known: read, then go on from what is written.
                tries += 1
                if tries >= _STORE_TRIES:
                    raise
                look_first = True
                log.warning("session %s has to wait: %s", request.session_id, exc)
                await request.report("One moment: the matchmaker cannot reach its store")
                await asyncio.sleep(backoff(tries, self._settings.backoff))

    def _require_writable(self) -> None:
        """Raise `DoesNotWrite` while one of the buckets takes no writes that a play writes to: before a seat is taken
        for nothing, and while a player waits for one."""
        self._buckets.sessions.require_writable()
        self._buckets.deployments.require_writable()
        self._buckets.connect_tokens.require_writable()

    async def _note(self, request: PendingRequest) -> SessionRecord:
        """Write down that this matchmaker looks for a seat. Raises `LostRace` when another one does already."""
        record = self._new_record(request, SessionState.REQUESTED, self._clock() + request.timeout)
        await self._sessions.create(record)
        request.waits = True
        return record

    # A session that has a record already.

    async def _take(self, request: PendingRequest, record: SessionRecord) -> bool:
        """Take over a waiting record, unless its owner lives; returns whether it is ours."""
        _require_same(request, record)
        if record.owner != self._instance and self._peers.is_alive(record.owner):
            return False
        until = self._clock() + request.timeout
        outcome = await self._sessions.apply(record.id, TakenOver(self._instance, record.owner, until))
        after = outcome.record
        request.waits = (
            after is not None and after.state is SessionState.REQUESTED and after.owner == self._instance
        )
        return request.waits

    async def _from_record(self, request: PendingRequest, record: SessionRecord) -> SessionReady | None:
        """The answer that follows from a record that exists; None: read it again."""
        _require_same(request, record)
        if request.broadcast and record.owner != self._instance and self._peers.is_alive(record.owner):
            # Its owner got the request, too, and answers if it lives: wait only until that is known.
            if (
                not await self._peers.falls_silent(record.owner)
                and record.state is not SessionState.REQUESTED
            ):
                raise AnsweredElsewhere(f"matchmaker {record.owner} answers")
            return None
        match record.state:
            case SessionState.REQUESTED:
                await request.report("Another matchmaker is looking for a seat")
                await self._wait_for_change(record)
                return None
            case SessionState.READY | SessionState.ACTIVE:
                return await self._answer_again(request, record)
            case _:
                raise Conflict("this request has ended; ask with a new request id")

    async def _wait_for_change(self, record: SessionRecord) -> None:
        """Wait until the record is likely to have changed: for a hint, or a second without one."""
        try:
            async with (
                asyncio.timeout(_FOLLOW_LOOK),
                self._buckets.sessions.watch(record.id) as changes,
            ):
                while True:
                    for change, _ in await changes.fetch(timeout=_FOLLOW_LOOK):
                        if change.value != record:
                            return
        except TimeoutError:
            return

    async def _answer_again(self, request: PendingRequest, record: SessionRecord) -> SessionReady | None:
        """A fresh token for the same client id and seat; None when the record has changed meanwhile. Raises `Conflict`
        when its server has ended."""
        game, answers = request.game, self._answers
        deployment, endpoint = await answers.seat_of(game, record)
        issued = answers.issue(game, record, deployment, endpoint)
        answers.check_repetition(game, record, issued)
        outcome = await self._sessions.apply(record.id, AskedAgain(issued.claim_deadline))
        if outcome.record is None or outcome.record.state not in (SessionState.READY, SessionState.ACTIVE):
            return None
        await answers.hand_out(game, record, issued)
        return await answers.ready(game, record, deployment, endpoint, issued)

    # A session that has none, or waits.

    async def _allocate(self, request: PendingRequest, record: SessionRecord | None) -> SessionReady:
        """Get a seat and take it. `record`: the one written as `requested` and ours; None when there is none."""
        client_ips = (request.client_ip,) if request.client_ip else ()
        allocation = AllocationRequest(
            request.session_id, (request.session_id,), request.game.name, request.game.version, client_ips
        )
        async with aclosing(self._router.allocate(allocation)) as steps:
            async for step in steps:
                if isinstance(step, Seats):
                    return await self._take_seat(request, record, step)
                request.check_deadline()
                self._require_writable()
                if record is None:
                    record = await self._note(request)
                elif step.start_failed:
                    await self._sessions.apply(record.id, StartFailed(step.start_failed))
                await request.report(step.text)
        raise Internal("the allocator ended without seats")

    async def _take_seat(
        self, request: PendingRequest, record: SessionRecord | None, seats: Seats
    ) -> SessionReady:
        """The seat is written; write the record, and the token with it. Raises `LostRace`, with the seat undone."""
        deployment, answers = seats.deployment, self._answers
        failpoints.reach("F5")
        try:
            endpoint = await self._tokens.endpoint(request.game, deployment)
        except OrchestratorFailed:
            await self._router.undo(seats)
            raise
        if record is None:
            fresh = self._new_record(request, SessionState.READY, 0.0)
            fresh = msgspec.structs.replace(
                fresh, deployment_id=deployment.id, boot_id=deployment.boot_id, generation=1
            )
            issued = answers.issue(request.game, fresh, deployment, endpoint)
            fresh = msgspec.structs.replace(fresh, deadline=issued.claim_deadline)
            write = self._sessions.create(fresh)
        else:
            fresh = msgspec.structs.replace(
                record,
                deployment_id=deployment.id,
                boot_id=deployment.boot_id,
                generation=record.generation + 1,
            )
            issued = answers.issue(request.game, fresh, deployment, endpoint)
            write = self._become_ready(fresh, issued)
        try:
            if request.game.bevygap:  # its mappings must be the winner's
                await write
                await answers.hand_out(request.game, fresh, issued)
            else:
                await _both(write, answers.hand_out(request.game, fresh, issued))
        except LostRace:
            await self._router.undo(seats)
            raise
        failpoints.reach("F7")
        request.waits = False
        return await answers.ready(request.game, fresh, deployment, endpoint, issued)

    async def _become_ready(self, fresh: SessionRecord, issued: Issued) -> None:
        """requested -> ready. Raises `LostRace` when another matchmaker has taken the record over, or it has ended."""
        event = SeatFound(fresh.deployment_id, fresh.boot_id, issued.claim_deadline)
        outcome = await self._sessions.apply(fresh.id, event)
        if not outcome.changed:
            raise LostRace(f"session {fresh.id} was changed by another matchmaker")

    def _new_record(self, request: PendingRequest, state: SessionState, deadline: float) -> SessionRecord:
        return SessionRecord(
            id=request.session_id,
            state=state,
            game=request.game.name,
            version=request.game.version,
            client_id=str(new_client_id()),
            owner=self._instance,
            created_at=self._clock(),
            deadline=deadline,
            client_ip=request.client_ip,
            user_id=request.user_id,
            name=request.name,
        )


def _require_same(request: PendingRequest, record: SessionRecord) -> None:
    """Raises `Conflict` when the request is not one of the record's: it has its id, but another game or player."""
    if (record.game, record.version) != request.game.key:
        raise Conflict("this request id is in use for another game")
    if record.user_id and record.user_id != request.user_id:
        raise Conflict("this request id is in use by another player")


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Run both at once; an error of the first cancels the second. (A TaskGroup would cost another task here.)"""
    beside = asyncio.ensure_future(second)
    try:
        await first
    except BaseException:
        beside.cancel()
        raise
    await beside
