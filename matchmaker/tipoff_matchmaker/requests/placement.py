"""One play request, step by step: from "I want to play" to a session record, a seat and a token.

    a seat is free:   seat written ──> record created `ready`, token beside it ──> answer
    none is free:     record created `requested` ──> a seat, or a server is started ──> record `ready` ──> answer

Every step is a compare-and-set on what is written down; whoever loses one undoes its own effect and answers from the
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
from tipoff_matchmaker.allocators.interface import Allocation, Seats
from tipoff_matchmaker.allocators.router import Allocators
from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments.machine import serves
from tipoff_matchmaker.deployments.store import Ledger
from tipoff_matchmaker.mappings import Mappings
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.requests.pending import Ask, Elsewhere, Running, Stopping
from tipoff_matchmaker.sessions.machine import AskedAgain, SeatFound, StartFailed, TakenOver
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_matchmaker.tokens import Endpoint, Issued, Tokens, new_client_id
from tipoff_shared.errors import (
    Conflict,
    Internal,
    OrchestratorFailed,
    Unavailable,
)
from tipoff_shared.games import Game
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentRecord, SessionRecord, SessionState

log = logging.getLogger(__name__)

_STORE_TRIES = 6
"""Failed writes or readings after which a request is answered 503: some ten seconds, more while NATS is away."""
_FOLLOW_LOOK = 1.0
"""Seconds after which a record that another matchmaker works on is read again, should its change be missed."""


class Allocations:
    """The steps of every play request of one matchmaker; plays.py begins them."""

    def __init__(
        self,
        instance: str,
        buckets: Buckets,
        ledger: Ledger,
        allocator: Allocators,
        book: SessionBook,
        tokens: Tokens,
        peers: Peers,
        mappings: Mappings,
        *,
        clock: Callable[[], float],
        claim_slack: float,
        backoff: float,
    ) -> None:
        self._instance = instance
        self._buckets = buckets
        self._ledger = ledger
        self._allocator = allocator
        self._book = book
        self._tokens = tokens
        self._peers = peers
        self._mappings = mappings
        self._clock = clock
        self._claim_slack = claim_slack
        self._backoff = backoff

    async def seat(self, running: Running) -> SessionReady:
        """From what is written down, whatever that is, to an answer. Raises a `TipoffError`, `Elsewhere` when a
        broadcast request is another matchmaker's to answer, or `TimeoutError` when there is no time left."""
        ask = running.ask
        look_first = ask.repeated or ask.broadcast
        tries = 0
        while True:
            running.check_deadline()
            try:
                if not look_first:
                    return await self._allocate(running, None)
                record = await self._book.read(ask.session_id)
                if record is None and ask.broadcast:
                    record = await self._note(running)  # one of those who were asked; the others watch
                if record is None or (
                    record.state is SessionState.REQUESTED and await self._take(running, record)
                ):
                    return await self._allocate(running, record)
                if (ready := await self._from_record(running, record)) is not None:
                    return ready
            except LostRace:
                look_first = True
            except Stopping:
                raise
            except Unavailable as exc:
                # Whether the last write happened is not known: read, then go on from what is written.
                tries += 1
                if tries >= _STORE_TRIES:
                    raise
                look_first = True
                log.warning("session %s has to wait: %s", ask.session_id, exc)
                await running.tell("One moment: the matchmaker cannot reach its store")
                await asyncio.sleep(pause(tries, self._backoff))

    async def _note(self, running: Running) -> SessionRecord:
        """Write down that this matchmaker looks for a seat; raises `LostRace` when somebody does already."""
        ask = running.ask
        record = self._new_record(ask, SessionState.REQUESTED, self._clock() + ask.timeout)
        await self._book.create(record)
        running.waits = True
        return record

    # A session that has a record already.

    async def _take(self, running: Running, record: SessionRecord) -> bool:
        """Make a waiting record ours, unless its owner lives."""
        _require_same_game(running.ask, record)
        if record.owner != self._instance and self._peers.is_alive(record.owner):
            return False
        until = self._clock() + running.ask.timeout
        outcome = await self._book.apply(record.id, TakenOver(self._instance, record.owner, until))
        after = outcome.record
        running.waits = (
            after is not None and after.state is SessionState.REQUESTED and after.owner == self._instance
        )
        return running.waits

    async def _from_record(self, running: Running, record: SessionRecord) -> SessionReady | None:
        """The answer that follows from a record somebody else wrote; None: look again."""
        _require_same_game(running.ask, record)
        if running.ask.broadcast and record.owner != self._instance and self._peers.is_alive(record.owner):
            # It has been asked, too, and answers if it lives: so all there is to do is to see whether it does.
            if (
                not await self._peers.falls_silent(record.owner)
                and record.state is not SessionState.REQUESTED
            ):
                raise Elsewhere(f"matchmaker {record.owner} answers")
            return None
        match record.state:
            case SessionState.REQUESTED:
                await running.tell("Another matchmaker is looking for a seat")
                await self._wait_for_change(record)
                return None
            case SessionState.READY | SessionState.ACTIVE:
                return await self._answer_again(running.ask, record)
            case _:
                raise Conflict("this request has ended; ask with a new request id")

    async def _wait_for_change(self, record: SessionRecord) -> None:
        """Until the record is likely to have changed: a hint, or a second without one."""
        try:
            async with (
                asyncio.timeout(_FOLLOW_LOOK),
                self._buckets.sessions.watch(record.id) as changes,
            ):
                while True:
                    for change, ack in await changes.fetch(timeout=_FOLLOW_LOOK):
                        await ack()
                        if change.value != record:
                            return
        except TimeoutError:
            return

    async def _answer_again(self, ask: Ask, record: SessionRecord) -> SessionReady | None:
        """A fresh token for the same client id and seat; None when the record has changed meanwhile."""
        deployment = self._ledger.get(record.deployment_id)
        if not _has_seat_on(deployment, record):
            # What we know may be older than the session's record, which another matchmaker wrote: look.
            deployment = await self._ledger.fetch(record.deployment_id)
        if deployment is None or not _has_seat_on(deployment, record):
            raise Conflict("the server of this request has ended; ask with a new request id")
        endpoint = await self._tokens.endpoint(ask.game, deployment)
        issued = self._issue(ask.game, record, endpoint)
        outcome = await self._book.apply(record.id, AskedAgain(issued.claim_deadline))
        if outcome.record is None or outcome.record.state not in (SessionState.READY, SessionState.ACTIVE):
            return None
        await self._hand_out(ask.game, record, issued)
        return self._tokens.ready(record, deployment, endpoint, issued)

    # A session that has none, or waits.

    async def _allocate(self, running: Running, record: SessionRecord | None) -> SessionReady:
        """`record`: what is written, as `requested` and ours; None when nothing is."""
        ask = running.ask
        client_ips = (ask.client_ip,) if ask.client_ip else ()
        allocation = Allocation(
            ask.session_id, (ask.session_id,), ask.game.name, ask.game.version, client_ips
        )
        async with aclosing(self._allocator.allocate(allocation)) as steps:
            async for step in steps:
                if isinstance(step, Seats):
                    return await self._take_seat(running, record, step)
                running.check_deadline()
                if record is None:
                    record = await self._note(running)
                elif step.start_failed:
                    await self._book.apply(record.id, StartFailed(step.start_failed))
                await running.tell(step.text)
        raise Internal("the allocator ended without seats")

    async def _take_seat(self, running: Running, record: SessionRecord | None, seats: Seats) -> SessionReady:
        """The seat is written; now the record, and with it the token."""
        ask, deployment = running.ask, seats.deployment
        failpoints.reach("F5")
        try:
            endpoint = await self._tokens.endpoint(ask.game, deployment)
        except OrchestratorFailed:
            await self._allocator.undo(seats)
            raise
        if record is None:
            fresh = self._new_record(ask, SessionState.READY, 0.0)
            fresh = msgspec.structs.replace(
                fresh, deployment_id=deployment.id, boot_id=deployment.boot_id, generation=1
            )
            issued = self._issue(ask.game, fresh, endpoint)
            fresh = msgspec.structs.replace(fresh, deadline=issued.claim_deadline)
            write = self._book.create(fresh)
        else:
            fresh = msgspec.structs.replace(
                record,
                deployment_id=deployment.id,
                boot_id=deployment.boot_id,
                generation=record.generation + 1,
            )
            issued = self._issue(ask.game, fresh, endpoint)
            write = self._become_ready(fresh, issued)
        try:
            if ask.game.bevygap:  # its mappings must be the winner's
                await write
                await self._hand_out(ask.game, fresh, issued)
            else:
                await _both(write, self._hand_out(ask.game, fresh, issued))
        except LostRace:
            await self._allocator.undo(seats)
            raise
        failpoints.reach("F7")
        running.waits = False
        return self._tokens.ready(fresh, deployment, endpoint, issued)

    async def _become_ready(self, fresh: SessionRecord, issued: Issued) -> None:
        """requested -> ready; raises `LostRace` when it is not ours to make ready any more."""
        event = SeatFound(fresh.deployment_id, fresh.boot_id, issued.claim_deadline)
        outcome = await self._book.apply(fresh.id, event)
        if not outcome.changed:
            raise LostRace(f"session {fresh.id} was changed by somebody else")

    def _new_record(self, ask: Ask, state: SessionState, deadline: float) -> SessionRecord:
        return SessionRecord(
            id=ask.session_id,
            state=state,
            game=ask.game.name,
            version=ask.game.version,
            client_id=str(new_client_id()),
            owner=self._instance,
            created_at=self._clock(),
            deadline=deadline,
            client_ip=ask.client_ip,
        )

    def _issue(self, game: Game, record: SessionRecord, endpoint: Endpoint) -> Issued:
        return self._tokens.issue(game, record, endpoint, now=self._clock(), slack=self._claim_slack)

    async def _hand_out(self, game: Game, record: SessionRecord, issued: Issued) -> None:
        """What is written beside the record: the token, and for bevygap's servers the mappings they look up."""
        ttl = self._tokens.lifetime(game)
        put_token = self._buckets.connect_tokens.put(record.id, issued.text, ttl=ttl)
        if not game.bevygap:
            await put_token
            return
        await asyncio.gather(
            put_token,
            self._mappings.put(record.id, record.client_id, needed_for=ttl + game.token_timeout),
            self._buckets.unclaimed_sessions.put(record.id, record.id),
        )


def _has_seat_on(deployment: DeploymentRecord | None, record: SessionRecord) -> bool:
    """Whether this is the deployment, in the very boot, that the session was given a seat on."""
    return (
        deployment is not None
        and serves(deployment)
        and (not record.boot_id or deployment.boot_id == record.boot_id)
    )


def _require_same_game(ask: Ask, record: SessionRecord) -> None:
    if (record.game, record.version) != ask.game.key:
        raise Conflict("this request id is in use for another game")


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Both at once; an error of the first ends the second. (A TaskGroup would cost a task more on this path.)"""
    beside = asyncio.ensure_future(second)
    try:
        await first
    except BaseException:
        beside.cancel()
        raise
    await beside
