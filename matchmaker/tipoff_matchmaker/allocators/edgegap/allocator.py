"""Allocates seats for `edgegap-sessions`: Edgegap counts the seats and starts servers itself (v1 sessions).

    session created ──> written (edgegap_sessions) ──> ready: the record of its deployment is written
      ──> the deployment is ready (lease, context, or it runs) ──> seat in that record ──> Seats

Kind Seat: one session at Edgegap for each member, all on one deployment (one for the whole group where that has no room
for all). Kind Match: one for all members. A session of several members is deleted when the last of them has left. The
seats in our records follow Edgegap's decisions, so everything else works as for other games.

Edgegap's sessions carry no tag and their create is not idempotent. A session whose create was never answered is unknown
to us, and expires at Edgegap (the version's session_max_duration, the deployment's max_duration).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import NoReturn

from tipoff_matchmaker.allocators.edgegap.seat_store import SeatStore
from tipoff_matchmaker.allocators.edgegap.server_readiness import ServerReadiness
from tipoff_matchmaker.allocators.edgegap.session_requests import SessionRequests
from tipoff_matchmaker.allocators.edgegap.session_watch import SessionLost, SessionWatch
from tipoff_matchmaker.allocators.interface import Progress, Step
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord, NoSeat
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_matchmaker.seats.rules import leave, take
from tipoff_matchmaker.sessions.claim_limit import ClaimLimit
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import OrchestratorFailed, TipoffError, UnknownGame
from tipoff_shared.games import EdgegapSpec, Game, SomeGames
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_TRIES = 5


class EdgegapSessions:
    """The `Allocator` of `games`. `run` must run while it allocates."""

    def __init__(
        self,
        watch: SessionWatch,
        seats: SeatStore,
        requests: SessionRequests,
        servers: ServerReadiness,
        claims: ClaimLimit,
        deployments: DeploymentStore,
        games: SomeGames,
        tasks: Tasks,
        settings: Settings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._watch = watch
        self._seats = seats
        self._requests = requests
        self._servers = servers
        self._claims = claims
        self._deployments = deployments
        self._games = games
        self._tasks = tasks
        self._clock = clock
        self._seat_hold = settings.seat_hold
        self._progress_interval = settings.progress_interval
        self._backoff = settings.backoff

    async def run(self) -> NoReturn:
        """Wait for sessions until cancelled."""
        await self._watch.run()

    async def allocate(self, allocation: AllocationRequest) -> AsyncGenerator[Step, None]:
        """See `Allocator.allocate`. Raises `SlowDown` when the address holds as many unclaimed seats as it may: each
        further one would be a session to pay for."""
        game = self._games.get(*allocation.key)
        if game is None or game.edgegap is None:
            raise UnknownGame("unknown game or version")
        closed = self._requests.closed
        keep = closed.done()
        if keep:
            raise closed.result()
        yield Progress("Asking Edgegap for a seat")
        if not self._claims.may_take(allocation):
            await self._claims.check(allocation.address, allocation.key)
            if not self._claims.may_take(allocation):
                raise self._claims.refusal(allocation)
        self._claims.hold(allocation, self._clock() + game.request_timeout)
        failures: list[str] = []
        work = asyncio.create_task(
            self._find_seats(allocation, game, game.edgegap, failures), name="edgegap/allocate"
        )
        delivered = False
        try:
            while True:
                await asyncio.wait(
                    (work, closed),
                    timeout=self._progress_interval,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if work.done():
                    seats = work.result()
                    delivered = True
                    yield seats
                    return
                if closed.done():
                    keep = True
                    raise closed.result()
                failed, failures[:] = "; ".join(failures), []
                yield Progress("Edgegap is starting a server near you", failed)
        finally:
            work.cancel()
            if not delivered:
                self._claims.drop(allocation.members)
                if not keep:
                    self._tasks.start(self._give_up(work, allocation), f"give up/{allocation.id}")
                await asyncio.wait((work,), timeout=1)
                if work.done() and not work.cancelled():
                    work.exception()  # raised above, or the player has gone

    async def _find_seats(
        self, allocation: AllocationRequest, game: Game, spec: EdgegapSpec, failures: list[str]
    ) -> Seats:
        """Seats for all members, with a new session after each that is lost. The reasons are added to `failures`."""
        lost = 0
        while True:
            sessions, shared = await self._requests.sessions_for(allocation, spec)
            try:
                hooks = {session: member for member, session in reversed(sessions.items())}
                places = [await self._watch.until_ready(one, hook) for one, hook in hooks.items()]
                if len({place.request_id for place in places}) != 1:
                    raise SessionLost("its members would be on several servers")
                record = await self._servers.until_ready(places[-1], game)
                return await self._take(allocation.members, record.id, shared)
            except SessionLost as exc:
                lost += 1
                failures.append(str(exc))
                log.warning("Edgegap's session for %s is given back: %s", allocation.id, exc)
                for member in allocation.members:
                    await self._seats.release(member)
                if lost >= _TRIES:
                    raise OrchestratorFailed(
                        "no server could be started; try again in a moment", retry_after=5
                    ) from exc
                await asyncio.sleep(self._backoff * 2**lost)

    async def _take(self, members: tuple[str, ...], deployment_id: str, shared: bool) -> Seats:
        until = round(self._clock() + self._seat_hold, 3)
        try:
            record = await self._deployments.change(deployment_id, lambda now: take(now, members, until))
        except (NoSeat, NoRecord):
            raise SessionLost("its server is full, closed to new players or ending") from None
        return Seats(members, record, until, shared)

    async def _give_up(self, work: asyncio.Task[Seats], allocation: AllocationRequest) -> None:
        """Release what was found for a player who has gone before there was a seat."""
        await asyncio.wait((work,))
        try:
            if not work.cancelled() and work.exception() is None:
                await self.undo(work.result())
            for member in allocation.members:
                await self._seats.release(member)
        except TipoffError as exc:
            log.info("Edgegap's session for %s is left until its record ends: %s", allocation.id, exc)

    async def undo(self, seats: Seats) -> None:
        """See `Allocator.undo`."""
        self._claims.drop(seats.members)
        if seats.shared:
            return
        now = self._clock()
        try:
            with suppress(NoRecord):
                await self._deployments.change(
                    seats.deployment.id, lambda record: leave(record, seats.members, now, until=seats.until)
                )
            for member in seats.members:
                await self._seats.release(member)
        except TipoffError as exc:
            log.info("a seat on %s is left to its deadline: %s", seats.deployment.id, exc)

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        """See `Allocator.release`."""
        now = self._clock()
        if deployment_id:
            with suppress(NoRecord):
                await self._deployments.change(deployment_id, lambda record: leave(record, (member,), now))
        await self._seats.release(member)

    async def sessions(self) -> set[str] | None:
        """Our sessions that have a session at Edgegap."""
        return await self._seats.all()

    def close(self, error: TipoffError) -> None:
        """See `Allocator.close`. Sessions at Edgegap are kept for the matchmaker that continues the request."""
        self._requests.close(error)

    async def settle(self, timeout: float) -> None:
        """Wait until the sessions that are being created are written, at most `timeout` seconds."""
        await self._requests.settle(timeout)
