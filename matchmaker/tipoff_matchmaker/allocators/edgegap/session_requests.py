"""Asking Edgegap for sessions: one for each member on one deployment, or one for all of them.

Its create is not idempotent and its sessions carry no tag. So what is on its way goes to its end and is written down
(parts.py), also when nobody waits for it any more; and nothing is asked for twice that may have been given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tipoff_matchmaker.allocators.edgegap.seat_store import Parts
from tipoff_matchmaker.allocators.edgegap.shielded import begin
from tipoff_matchmaker.allocators.edgegap.watch import SessionWatch
from tipoff_matchmaker.backoff import retried
from tipoff_matchmaker.seats.allocation import Allocation
from tipoff_orchestrator_client.base import NoCapacity, OrchestratorError
from tipoff_orchestrator_client.edgegap.api.errors import Rejected
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_orchestrator_client.edgegap.users import addresses
from tipoff_shared.errors import OrchestratorFailed, TipoffError, Unavailable
from tipoff_shared.games import EdgegapSpec
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import EdgegapSeat

log = logging.getLogger(__name__)

_TRIES = 5
_NO_ROOM_PAUSE = 2.0

Made: TypeAlias = tuple[dict[str, str], bool]
"""Member -> session of Edgegap's, each written down; and whether they were there before."""


class _NoRoomBeside(Exception):
    """The deployment of a group's first member has no room for the next."""


class Asking:
    def __init__(
        self,
        servers: SessionServers,
        watch: SessionWatch,
        parts: Parts,
        tasks: Tasks,
        *,
        backoff: float,
    ) -> None:
        self._servers = servers
        self._client = servers.client
        self._watch = watch
        self._parts = parts
        self._tasks = tasks
        self._backoff = backoff
        self._closed: asyncio.Future[TipoffError] | None = None
        self._creating: set[asyncio.Task[Made]] = set()

    @property
    def closed(self) -> asyncio.Future[TipoffError]:
        """Done when nobody asks any more, with what those who wait are told."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
        return self._closed

    def close(self, error: TipoffError) -> None:
        """What has been given is kept for the matchmaker that goes on with the request."""
        if not self.closed.done():
            self.closed.set_result(error)

    async def settle(self, timeout: float) -> None:
        """Until what has been asked for is written down: what is not would be nobody's."""
        if self._creating:
            await asyncio.wait(set(self._creating), timeout=timeout)

    async def ask(self, allocation: Allocation, spec: EdgegapSpec) -> Made:
        """Raises a `TipoffError`, or `SessionLost`."""
        members = allocation.members
        known = await self._parts.known(members)
        if len(known) == len(members):
            return known, True
        for member in known:
            await self._parts.release(member)  # a part is of no use
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
                    await self._parts.release(each)
                return await self._create(members, spec, ips)
            sessions |= made
            if shared:
                return await self.ask(allocation, spec)
            place = place or (await self._watch.until_linked(made[member], member)).request_id
        return sessions, False

    async def _create(
        self, members: tuple[str, ...], spec: EdgegapSpec, ips: list[str], place: str = ""
    ) -> Made:
        """One session for these members. What is on its way goes to its end also when nobody waits for it any more (a
        session that is created and not written down would be nobody's), but is not begun again then."""
        let_go: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        work = self._create_and_note(members, spec, ips, place, let_go)
        task = begin(self._tasks, work, f"create/{members[0]}")
        self._creating.add(task)
        task.add_done_callback(self._creating.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            let_go.set_result(None)
            self._tasks.start(self._drop(task, members), f"drop/{members[0]}")
            raise

    async def _drop(self, task: asyncio.Task[Made], members: tuple[str, ...]) -> None:
        """The player has gone while it was asked for. One that was there before is not ours to give back: the same
        request was asked again meanwhile, and may have led to a seat."""
        await asyncio.wait((task,))
        try:
            if task.cancelled() or task.exception() is not None:
                return
            _, shared = task.result()
            if not shared and not self.closed.done():
                for member in members:
                    await self._parts.release(member)
        except TipoffError as exc:
            log.info("Edgegap's session for %s is left to the end of its record: %s", members[0], exc)

    async def _create_and_note(
        self,
        members: tuple[str, ...],
        spec: EdgegapSpec,
        ips: list[str],
        place: str,
        let_go: asyncio.Future[None],
    ) -> Made:
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
                await self._parts.note(member, EdgegapSeat(session_id, list(members)))
            except LostRace:
                # Another matchmaker works on this request, or we did before: its session stands.
                await self._parts.close(session_id)
                known = await self._parts.known(members)
                if len(known) == len(members):
                    return known, True
                for each in members:
                    await self._parts.release(each)
                raise Unavailable("this request is worked on elsewhere; again", retry_after=1) from None
        return dict.fromkeys(members, session_id), False

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
                    (let_go, self.closed),
                    timeout=max(_NO_ROOM_PAUSE, exc.retry_after or 0.0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self.closed.done():
                    raise Unavailable("this matchmaker is stopping, ask again", retry_after=1) from exc
            except OrchestratorError as exc:
                if beside and isinstance(exc, Rejected) and exc.status == 409:
                    raise _NoRoomBeside from exc
                log.error("Edgegap gives no session: %s", exc)  # noqa: TRY400 # its words say it all
                raise OrchestratorFailed(
                    "no server could be found or started; try again in a moment",
                    retry_after=max(5.0, exc.retry_after or 0.0),
                ) from exc
