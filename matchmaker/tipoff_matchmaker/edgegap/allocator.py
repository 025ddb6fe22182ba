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
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from tipoff_matchmaker import deployments
from tipoff_matchmaker.allocator import Allocation, Progress, Seats, Step
from tipoff_matchmaker.backoff import retried
from tipoff_matchmaker.edgegap.watch import Place, SessionLost, SessionWatch
from tipoff_matchmaker.ledger import Ledger, NoRecord
from tipoff_matchmaker.seats import NoSeat, leave, take
from tipoff_orchestrator_client.base import Deployment, NoCapacity, OrchestratorError, RunState
from tipoff_orchestrator_client.edgegap.errors import Rejected
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_orchestrator_client.edgegap.users import addresses
from tipoff_shared.errors import OrchestratorFailed, TipoffError, Unavailable, UnknownGame
from tipoff_shared.games import EdgegapSpec, Game, GameKey
from tipoff_shared.kv import LostRace, Store
from tipoff_shared.records import DeploymentRecord, DeploymentState, EdgegapSeat
from tipoff_shared.supervise import Tasks

log = logging.getLogger(__name__)

_TRIES = 5
_NO_ROOM_PAUSE = 2.0
_WRITES = 20
_MARKER_TTL = 60.0

Arrive = Callable[[DeploymentRecord, Game, Deployment], Awaitable[None]]
"""A deployment runs: see whether it serves, so that its record becomes ready."""


class _NoRoomBeside(Exception):
    """The deployment of a group's first member has no room for the next."""


class EdgegapSessions:
    """`Allocator` for the games of `orchestrator = "edgegap-sessions"`."""

    def __init__(
        self,
        servers: SessionServers,
        watch: SessionWatch,
        seats: Store[EdgegapSeat],
        ledger: Ledger,
        games: Iterable[Game],
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        arrive: Arrive,
        seat_hold: float,
        progress_interval: float,
        backoff: float,
    ) -> None:
        self._servers = servers
        self._client = servers.client
        self._watch = watch
        self._seats = seats
        self._ledger = ledger
        self._games: dict[GameKey, Game] = {game.key: game for game in games}
        self._tasks = tasks
        self._clock = clock
        self._arrive = arrive
        self._seat_hold = seat_hold
        self._progress_interval = progress_interval
        self._backoff = backoff
        self._closed: asyncio.Future[TipoffError] | None = None
        self._creating: set[asyncio.Future[tuple[dict[str, str], bool]]] = set()
        self._arriving: dict[str, asyncio.Task[DeploymentRecord]] = {}
        self._ready: dict[str, asyncio.Event] = {}
        ledger.listen(self._ledger_changed)

    def close(self, error: TipoffError) -> None:
        """Everybody who waits, and everybody who asks from now on, gets `error`; what they have been given at Edgegap
        is kept for the matchmaker that goes on with their request."""
        closed = self._closing()
        if not closed.done():
            closed.set_result(error)

    async def settle(self, timeout: float) -> None:
        """Until what has been asked for is written down: what is not would be nobody's."""
        if self._creating:
            await asyncio.wait(set(self._creating), timeout=timeout)

    def _closing(self) -> asyncio.Future[TipoffError]:
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
        return self._closed

    # Seats.

    async def allocate(self, allocation: Allocation) -> AsyncGenerator[Step, None]:
        game = self._games.get(allocation.key)
        if game is None or game.edgegap is None:
            raise UnknownGame("unknown game or version")
        closed = self._closing()
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
            sessions, shared = await self._ask(allocation, game, spec)
            try:
                hooks = {session: member for member, session in reversed(sessions.items())}
                places = [await self._watch.until_ready(one, hook) for one, hook in hooks.items()]
                if len({place.request_id for place in places}) != 1:
                    raise SessionLost("its members would be on several servers")
                record = await self._serving(places[-1], game)
                return await self._take(allocation.members, record.id, shared)
            except SessionLost as exc:
                lost.append(str(exc))
                news.append(str(exc))
                log.warning("Edgegap's session for %s is given back: %s", allocation.id, exc)
                for member in allocation.members:
                    await self._release(member)
                if len(lost) >= _TRIES:
                    raise OrchestratorFailed(
                        "no server could be started; try again in a moment", retry_after=5
                    ) from exc
                await asyncio.sleep(self._backoff * 2 ** len(lost))

    async def _take(self, members: tuple[str, ...], deployment_id: str, shared: bool) -> Seats:
        until = round(self._clock() + self._seat_hold, 3)
        try:
            record = await self._ledger.change(deployment_id, lambda now: take(now, members, until))
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
                await self._release(member)
        except TipoffError as exc:
            log.info("Edgegap's session for %s is left to the end of its record: %s", allocation.id, exc)

    async def undo(self, seats: Seats) -> None:
        if seats.shared:
            return
        now = self._clock()
        try:
            with suppress(NoRecord):
                await self._ledger.change(
                    seats.deployment.id, lambda record: leave(record, seats.members, now, until=seats.until)
                )
            for member in seats.members:
                await self._release(member)
        except TipoffError as exc:
            log.info("a seat on %s is left to its deadline: %s", seats.deployment.id, exc)

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        now = self._clock()
        if deployment_id:
            with suppress(NoRecord):
                await self._ledger.change(deployment_id, lambda record: leave(record, (member,), now))
        await self._release(member)

    async def sessions(self) -> set[str] | None:
        """Those of ours that Edgegap has a session for."""
        try:
            there = {session.session_id for session in await self._client.sessions()}
        except OrchestratorError as exc:
            raise Unavailable(f"Edgegap does not list its sessions: {exc}") from exc
        seats = await self._seats.list()
        return {
            member
            for member, entry in seats.items()
            if entry.value.edgegap_session in there and not entry.value.left
        }

    # Sessions at Edgegap.

    async def _ask(
        self, allocation: Allocation, game: Game, spec: EdgegapSpec
    ) -> tuple[dict[str, str], bool]:
        """Member -> session of Edgegap's, each written down; and whether they were there before."""
        members = allocation.members
        known = await self._known(members)
        if len(known) == len(members):
            return known, True
        for member in known:
            await self._release(member)  # a part is of no use
        near = addresses(allocation.client_ips, self._servers.settings.default_near)
        ips = [near[number % len(near)] for number in range(len(members))]  # Edgegap counts players by them
        if spec.kind == "match" or len(members) == 1:
            return await self._create(members, spec, ips)
        sessions: dict[str, str] = {}
        place = ""
        for member, ip in zip(members, ips, strict=True):
            try:
                made, shared = await self._create((member,), spec, [ip], place)
            except _NoRoomBeside:
                # The first of them was placed where there is no room for all. One session for all finds it, and is
                # closed when the last of them has left.
                for each in members:
                    await self._release(each)
                return await self._create(members, spec, ips)
            sessions |= made
            if shared:
                return await self._ask(allocation, game, spec)
            place = place or (await self._watch.until_linked(made[member], member)).request_id
        return sessions, False

    async def _known(self, members: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for member in members:
            entry = await self._seats.get(member)
            if entry is not None and not entry.value.left:
                found[member] = entry.value.edgegap_session
        return found

    async def _create(
        self, members: tuple[str, ...], spec: EdgegapSpec, ips: list[str], place: str = ""
    ) -> tuple[dict[str, str], bool]:
        """One session for these members. What is on its way goes to its end also when nobody waits for it any more (a
        session that is created and not written down would be nobody's), but is not begun again then."""
        let_go: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._create_and_note(members, spec, ips, place, let_go))
        self._creating.add(task)
        task.add_done_callback(self._creating.discard)
        self._tasks.start(_waited_for(task), f"create/{members[0]}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            let_go.set_result(None)
            self._tasks.start(self._drop(task, members), f"drop/{members[0]}")
            raise

    async def _drop(
        self, task: asyncio.Future[tuple[dict[str, str], bool]], members: tuple[str, ...]
    ) -> None:
        """The player has gone while it was asked for. One that was there before is not ours to give back: the same
        request was asked again meanwhile, and may have led to a seat."""
        await asyncio.wait((task,))
        try:
            if task.cancelled() or task.exception() is not None:
                return
            _, shared = task.result()
            if not shared and self._closed_by_nobody():
                for member in members:
                    await self._release(member)
        except TipoffError as exc:
            log.info("Edgegap's session for %s is left to the end of its record: %s", members[0], exc)

    def _closed_by_nobody(self) -> bool:
        return not self._closing().done()

    async def _create_and_note(
        self,
        members: tuple[str, ...],
        spec: EdgegapSpec,
        ips: list[str],
        place: str,
        let_go: asyncio.Future[None],
    ) -> tuple[dict[str, str], bool]:
        webhook_url = ""
        if self._servers.hooks is not None:
            name = self._servers.hooks.path_name(members[0])
            webhook_url = f"{self._servers.settings.hook_url}/hook/{name}"

        async def create() -> str:
            if let_go.done():
                raise Unavailable("nobody waits for it any more")
            try:
                return await self._client.create_session(
                    spec.application,
                    spec.version,
                    addresses=ips,
                    deployment_request_id=place,
                    webhook_url=webhook_url,
                )
            except OrchestratorError as exc:
                if exc.may_have_started:
                    exc.retryable = False  # a second one could be too many, and nobody would find the first
                raise

        session_id = await self._in_time(create, let_go, beside=bool(place))
        for member in members:
            try:
                await self._note(member, EdgegapSeat(session_id, list(members)))
            except LostRace:
                # Another matchmaker works on this request, or we did before: its session stands.
                await self._delete(session_id)
                known = await self._known(members)
                if len(known) == len(members):
                    return known, True
                for each in members:
                    await self._release(each)
                raise Unavailable("this request is worked on elsewhere; again", retry_after=1) from None
        return dict.fromkeys(members, session_id), False

    async def _note(self, member: str, seat: EdgegapSeat) -> None:
        """Raises `LostRace`; where it cannot be written, the session is closed while we still know of it."""
        try:
            await self._seats.create(member, seat)
        except Unavailable:
            with suppress(Unavailable):
                await self._delete(seat.edgegap_session)
            raise

    async def _in_time(
        self, create: Callable[[], Awaitable[str]], let_go: asyncio.Future[None], *, beside: bool
    ) -> str:
        """Again and again while there is no room and somebody waits, a few times while there is trouble; raises a
        `TipoffError`, or, where it is to be on a certain deployment, `_NoRoomBeside`."""
        while True:
            try:
                return await retried(
                    create,
                    tries=_TRIES,
                    first=self._backoff,
                    on_failure=lambda number, exc: log.warning("a session, try %d: %s", number, exc),
                )
            except NoCapacity as exc:
                log.warning("Edgegap has no room: %s", exc)
                await asyncio.wait(
                    (let_go, self._closing()),
                    timeout=max(_NO_ROOM_PAUSE, exc.retry_after or 0.0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not self._closed_by_nobody():
                    raise Unavailable("this matchmaker is stopping, ask again", retry_after=1) from exc
            except OrchestratorError as exc:
                if beside and isinstance(exc, Rejected) and exc.status == 409:
                    raise _NoRoomBeside from exc
                log.error("Edgegap gives no session: %s", exc)  # noqa: TRY400 # its words say it all
                raise OrchestratorFailed(
                    "no server could be found or started; try again in a moment",
                    retry_after=max(5.0, exc.retry_after or 0.0),
                ) from exc

    async def _release(self, member: str) -> None:
        """This member's part goes back; with the last one, the session. Every step may be repeated."""
        for _ in range(_WRITES):
            entry = await self._seats.get(member)
            if entry is None:
                return
            seat = entry.value
            if seat.left:
                break
            try:
                left = msgspec.structs.replace(seat, left=True)
                await self._seats.update(member, left, entry.revision)
                break
            except LostRace:
                continue
        else:
            raise Unavailable(f"the part of {member} changes too quickly to be given back", retry_after=1)
        for other in seat.members:
            if other == member:
                continue
            entry = await self._seats.get(other)
            if (
                entry is not None
                and entry.value.edgegap_session == seat.edgegap_session
                and not entry.value.left
            ):
                return  # somebody still plays there
        await self._delete(seat.edgegap_session)
        for each in seat.members:
            entry = await self._seats.get(each)
            if entry is not None and entry.value.edgegap_session == seat.edgegap_session:
                await self._seats.purge(each, ttl=_MARKER_TTL)

    async def _delete(self, session_id: str) -> None:
        try:
            await self._client.delete_session(session_id)
        except OrchestratorError as exc:
            raise Unavailable(f"Edgegap's session {session_id} cannot be closed yet: {exc}") from exc

    # Their servers.

    def _ledger_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if (event := self._ready.get(after.id)) is not None and not deployments.is_coming(after):
            event.set()

    async def _serving(self, place: Place, game: Game) -> DeploymentRecord:
        """The deployment's record as soon as it is ready; those who ask at one time share the way there."""
        request_id = place.request_id
        record = self._ledger.get(request_id)
        if record is not None and record.state is DeploymentState.READY:
            return record
        task = self._arriving.get(request_id)
        if task is None:
            task = self._arriving[request_id] = asyncio.create_task(self._until_serving(place, game))
            self._tasks.start(_waited_for(task), f"arriving/{request_id}")
            task.add_done_callback(lambda _: self._arriving.pop(request_id, None))
        return await asyncio.shield(task)

    async def _until_serving(self, place: Place, game: Game) -> DeploymentRecord:
        request_id = place.request_id
        event = self._ready[request_id] = asyncio.Event()
        try:
            async with asyncio.timeout(game.start_timeout):
                self._servers.know(request_id, game)
                told = place.server
                deployment = await self._look(request_id) if told is None else self._servers.told(told)
                record = self._ledger.get(request_id) or await self._ledger.fetch(request_id)
                if record is None:
                    coming = deployments.started(deployments.planned(request_id, game, self._clock()))
                    record = msgspec.structs.replace(coming, id=request_id)
                    try:
                        await self._ledger.create(record)
                    except LostRace:
                        record = await self._ledger.fetch(request_id)
                if record is not None and deployments.is_coming(record):
                    await self._arrive(record, game, deployment)
                    now = self._ledger.get(request_id)
                    if now is not None and deployments.is_coming(now):
                        await event.wait()
        except TimeoutError:
            raise SessionLost(f"its server was not ready within {game.start_timeout:g} s") from None
        finally:
            self._ready.pop(request_id, None)
        record = self._ledger.get(request_id)
        if record is None or record.state is not DeploymentState.READY:
            raise SessionLost("its server is ending")
        return record

    async def _look(self, request_id: str) -> Deployment:
        """Where it is; asked again while Edgegap gives no answer that can be used."""
        tries = 0
        while True:
            try:
                found = await self._servers.get(request_id)
            except OrchestratorError as exc:
                tries += 1
                log.warning("where %s is: %s", request_id, exc)
                if tries >= _TRIES:
                    raise SessionLost(f"where its server is cannot be told: {exc}") from exc
                await asyncio.sleep(max(self._backoff * 2**tries, exc.retry_after or 0.0))
                continue
            if found is None or found.state is RunState.STOPPED:
                raise SessionLost("its server has ended" + (f": {found.reason}" if found else ""))
            return found


async def _waited_for(task: asyncio.Future[Any]) -> None:
    """Owned here, heard elsewhere: its outcome is told to whoever shields it."""
    try:
        await asyncio.wait((task,))
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()
