"""The allocator `edgegap-sessions`: Edgegap counts the seats and starts servers itself (v1 sessions, as bevygap does).

    session asked for ──> written down (edgegap_sessions) ──> ready: its deployment is ours to know, too
      ──> that deployment serves (lease, context, or it runs) ──> seat in our ledger ──> Seats

Kind Seat: one of Edgegap's sessions for each member, all on one deployment (where that has no room for all: one for
the group). Kind Match: one for all members. One of several members is closed when the last of them has left. Our
ledger follows what Edgegap has decided, so that everything else is as with other games.

Edgegap's sessions carry no tag and their create is not idempotent: one whose create was never answered is nobody's,
and ages out at Edgegap (the version's session_max_duration, the deployment's max_duration).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress

from tipoff_matchmaker.allocators.edgegap.readiness import Arriving
from tipoff_matchmaker.allocators.edgegap.seat_store import Parts
from tipoff_matchmaker.allocators.edgegap.session_requests import Asking
from tipoff_matchmaker.allocators.edgegap.watch import SessionLost, SessionWatch
from tipoff_matchmaker.allocators.interface import Progress, Step
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord, NoSeat
from tipoff_matchmaker.seats.allocation import Allocation, Seats
from tipoff_matchmaker.seats.rules import leave, take
from tipoff_shared.errors import OrchestratorFailed, TipoffError, UnknownGame
from tipoff_shared.games import EdgegapSpec, Game, GameKey
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_TRIES = 5


class EdgegapSessions:
    """`Allocator` for the games of `orchestrator = "edgegap-sessions"`."""

    def __init__(
        self,
        watch: SessionWatch,
        parts: Parts,
        asking: Asking,
        arriving: Arriving,
        deployments: DeploymentStore,
        games: Iterable[Game],
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        seat_hold: float,
        progress_interval: float,
        backoff: float,
    ) -> None:
        self._watch = watch
        self._parts = parts
        self._asking = asking
        self._arriving = arriving
        self._deployments = deployments
        self._games: dict[GameKey, Game] = {game.key: game for game in games}
        self._tasks = tasks
        self._clock = clock
        self._seat_hold = seat_hold
        self._progress_interval = progress_interval
        self._backoff = backoff

    async def allocate(self, allocation: Allocation) -> AsyncGenerator[Step, None]:
        game = self._games.get(allocation.key)
        if game is None or game.edgegap is None:
            raise UnknownGame("unknown game or version")
        closed = self._asking.closed
        keep = closed.done()
        if keep:
            raise closed.result()
        yield Progress("Asking Edgegap for a seat")
        news: list[str] = []
        work = asyncio.create_task(self._work(allocation, game, game.edgegap, news), name="edgegap/allocate")
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
                failed, news[:] = "; ".join(news), []
                yield Progress("Edgegap is starting a server near you", failed)
        finally:
            work.cancel()
            if not delivered:
                if not keep:
                    self._tasks.start(self._give_up(work, allocation), f"give up/{allocation.id}")
                await asyncio.wait((work,), timeout=1)
                if work.done() and not work.cancelled():
                    work.exception()  # raised above, or of no interest to one who has gone

    async def _work(self, allocation: Allocation, game: Game, spec: EdgegapSpec, news: list[str]) -> Seats:
        """Until there are seats. `news` are the reasons why something did not work out, for the player."""
        lost: list[str] = []
        while True:
            sessions, shared = await self._asking.ask(allocation, spec)
            try:
                hooks = {session: member for member, session in reversed(sessions.items())}
                places = [await self._watch.until_ready(one, hook) for one, hook in hooks.items()]
                if len({place.request_id for place in places}) != 1:
                    raise SessionLost("its members would be on several servers")
                record = await self._arriving.serving(places[-1], game)
                return await self._take(allocation.members, record.id, shared)
            except SessionLost as exc:
                lost.append(str(exc))
                news.append(str(exc))
                log.warning("Edgegap's session for %s is given back: %s", allocation.id, exc)
                for member in allocation.members:
                    await self._parts.release(member)
                if len(lost) >= _TRIES:
                    raise OrchestratorFailed(
                        "no server could be started; try again in a moment", retry_after=5
                    ) from exc
                await asyncio.sleep(self._backoff * 2 ** len(lost))

    async def _take(self, members: tuple[str, ...], deployment_id: str, shared: bool) -> Seats:
        until = round(self._clock() + self._seat_hold, 3)
        try:
            record = await self._deployments.change(deployment_id, lambda now: take(now, members, until))
        except (NoSeat, NoRecord):
            raise SessionLost("its server is full or ending") from None
        return Seats(members, record, until, shared)

    async def _give_up(self, work: asyncio.Task[Seats], allocation: Allocation) -> None:
        """The player has gone before there was a seat: what was found for him meanwhile goes back."""
        await asyncio.wait((work,))
        try:
            if not work.cancelled() and work.exception() is None:
                await self.undo(work.result())
            for member in allocation.members:
                await self._parts.release(member)
        except TipoffError as exc:
            log.info("Edgegap's session for %s is left to the end of its record: %s", allocation.id, exc)

    async def undo(self, seats: Seats) -> None:
        if seats.shared:
            return
        now = self._clock()
        try:
            with suppress(NoRecord):
                await self._deployments.change(
                    seats.deployment.id, lambda record: leave(record, seats.members, now, until=seats.until)
                )
            for member in seats.members:
                await self._parts.release(member)
        except TipoffError as exc:
            log.info("a seat on %s is left to its deadline: %s", seats.deployment.id, exc)

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        now = self._clock()
        if deployment_id:
            with suppress(NoRecord):
                await self._deployments.change(deployment_id, lambda record: leave(record, (member,), now))
        await self._parts.release(member)

    async def sessions(self) -> set[str] | None:
        """Those of ours that Edgegap has a session for."""
        return await self._parts.all()

    def close(self, error: TipoffError) -> None:
        """What Edgegap has given is kept for the matchmaker that goes on with the request."""
        self._asking.close(error)

    async def settle(self, timeout: float) -> None:
        """Until what has been asked for is written down."""
        await self._asking.settle(timeout)
