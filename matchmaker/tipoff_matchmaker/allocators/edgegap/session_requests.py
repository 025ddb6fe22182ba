"""Creates sessions at Edgegap: one for each member on one deployment, or one for all of them.

Edgegap's create is not idempotent and its sessions carry no tag. So a create that has begun runs to its end and is
written (seat_store.py), even if the player has gone; and none is repeated that may have succeeded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tipoff_matchmaker.allocators.edgegap.seat_store import SeatStore
from tipoff_matchmaker.allocators.edgegap.session_watch import SessionWatch
from tipoff_matchmaker.orchestrators.retry import retried
from tipoff_matchmaker.seats.allocation_request import AllocationRequest
from tipoff_orchestrator_client.base import NoCapacity, OrchestratorError
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient, public_addresses
from tipoff_orchestrator_client.edgegap.api.errors import Rejected
from tipoff_orchestrator_client.edgegap.settings import Settings as EdgegapSettings
from tipoff_shared.errors import OrchestratorFailed, TipoffError, Unavailable
from tipoff_shared.games import EdgegapSpec
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import EdgegapSeat

log = logging.getLogger(__name__)

_TRIES = 5
_NO_ROOM_PAUSE = 2.0

Created: TypeAlias = tuple[dict[str, str], bool]
"""Member -> its session at Edgegap, each written; and whether they existed before."""


class _NoRoomBeside(Exception):
    """The deployment of a group's first member has no room for the next."""


class SessionRequests:
    """Made in a running event loop. `settings` and `namespace` determine the URLs of webhooks. `backoff`: first pause
    in seconds after a failed create."""

    def __init__(
        self,
        client: EdgegapClient,
        settings: EdgegapSettings,
        namespace: str,
        watch: SessionWatch,
        seats: SeatStore,
        tasks: Tasks,
        *,
        backoff: float,
    ) -> None:
        self._client = client
        self._default_near = settings.default_near
        self._webhook_url = settings.webhook_urls(namespace)
        self._watch = watch
        self._seats = seats
        self._tasks = tasks
        self._backoff = backoff
        self._creating: set[asyncio.Task[Created]] = set()
        self.closed: asyncio.Future[TipoffError] = asyncio.get_running_loop().create_future()
        """Done when this matchmaker stops, with the error for those who wait."""

    def close(self, error: TipoffError) -> None:
        """Create no further sessions. Those that exist are kept for the matchmaker that continues their request."""
        if not self.closed.done():
            self.closed.set_result(error)

    async def settle(self, timeout: float) -> None:
        """Wait until the sessions that are being created are written, at most `timeout` seconds."""
        if self._creating:
            await asyncio.wait(set(self._creating), timeout=timeout)

    async def sessions_for(self, allocation: AllocationRequest, spec: EdgegapSpec) -> Created:
        """The sessions of all members: those that exist, or new ones. Raises a `TipoffError`, or `SessionLost`."""
        members = allocation.members
        known = await self._seats.known(members)
        if len(known) == len(members):
            return known, True
        for member in known:
            await self._seats.release(member)  # seats for some of the members are of no use
        near = public_addresses(allocation.client_ips, self._default_near)
        ips = [
            near[number % len(near)] for number in range(len(members))
        ]  # Edgegap counts players by addresses
        if spec.kind == "match" or len(members) == 1:
            return await self._create(members, spec, ips)
        sessions: dict[str, str] = {}
        place = ""
        for member, ip in zip(members, ips, strict=True):
            try:
                created, shared = await self._create((member,), spec, [ip], place)
            except _NoRoomBeside:
                # The first member was placed where there is no room for all. One session for all members finds it, and
                # is deleted when the last of them has left.
                for each in members:
                    await self._seats.release(each)
                return await self._create(members, spec, ips)
            sessions |= created
            if shared:
                return await self.sessions_for(allocation, spec)
            place = place or (await self._watch.until_linked(created[member], member)).request_id
        return sessions, False

    async def _create(
        self, members: tuple[str, ...], spec: EdgegapSpec, ips: list[str], place: str = ""
    ) -> Created:
        """One session for these members. When the caller is cancelled, a create that has begun runs to its end (nothing
        would refer to its session otherwise), but is not tried again."""
        let_go: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        work = self._create_and_note(members, spec, ips, place, let_go)
        task = self._tasks.start_awaited(work, f"create/{members[0]}")
        self._creating.add(task)
        task.add_done_callback(self._creating.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            let_go.set_result(None)
            self._tasks.start(self._drop(task, members), f"drop/{members[0]}")
            raise

    async def _drop(self, task: asyncio.Task[Created], members: tuple[str, ...]) -> None:
        """Release the seats of a player who has gone during the create. One that existed before is kept: the same
        request was repeated meanwhile, and may have led to a seat."""
        await asyncio.wait((task,))
        try:
            if task.cancelled() or task.exception() is not None:
                return
            _, shared = task.result()
            if not shared and not self.closed.done():
                for member in members:
                    await self._seats.release(member)
        except TipoffError as exc:
            log.info("Edgegap's session for %s is left until its record ends: %s", members[0], exc)

    async def _create_and_note(
        self,
        members: tuple[str, ...],
        spec: EdgegapSpec,
        ips: list[str],
        place: str,
        let_go: asyncio.Future[None],
    ) -> Created:
        async def create() -> str:
            if let_go.done():
                raise Unavailable("the player has gone")
            try:
                return await self._client.create_session(
                    spec.application,
                    spec.version,
                    addresses=ips,
                    deployment_request_id=place,
                    webhook_url=self._webhook_url(members[0]),
                )
            except OrchestratorError as exc:
                if exc.may_have_started:
                    exc.retryable = (
                        False  # a second session could be one too many, and the first cannot be found
                    )
                raise

        session_id = await self._retried(create, let_go, beside=bool(place))
        for member in members:
            try:
                await self._seats.note(member, EdgegapSeat(session_id, list(members)))
            except LostRace:
                # Another matchmaker works on this request, or this one did before: that session stands.
                await self._seats.delete_session(session_id)
                known = await self._seats.known(members)
                if len(known) == len(members) and session_id not in known.values():
                    return known, True
                for each in members:  # of no use: some have no session, or the one that has just been deleted
                    await self._seats.release(each)
                raise Unavailable(
                    "another matchmaker works on this request; ask again", retry_after=1
                ) from None
        return dict.fromkeys(members, session_id), False

    async def _retried(
        self, create: Callable[[], Awaitable[str]], let_go: asyncio.Future[None], *, beside: bool
    ) -> str:
        """What `create` returns: tried while there is no room and the player waits, and a few times after other errors.

        Raises a `TipoffError`; `_NoRoomBeside` when the session is to be on a given deployment (`beside`) that is full.
        """
        while True:
            try:
                return await retried(
                    create,
                    tries=_TRIES,
                    first=self._backoff,
                    on_failure=lambda number, exc: log.warning("creating a session, try %d: %s", number, exc),
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
                log.error("Edgegap creates no session: %s", exc)  # noqa: TRY400 # the error's text is enough
                raise OrchestratorFailed(
                    "no server could be found or started; try again in a moment",
                    retry_after=max(5.0, exc.retry_after or 0.0),
                ) from exc
