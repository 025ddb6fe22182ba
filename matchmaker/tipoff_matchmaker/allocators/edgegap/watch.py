"""Waiting for sessions of Edgegap's to be ready: a webhook says when to look, else one looks from time to time; a few
by themselves, many by one list."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import nats.errors
from nats.aio.msg import Msg

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.answers import Server, Session
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import BY_STATUS, Looks
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)

_PAUSE = 0.005


class SessionLost(Exception):
    """It will not lead to a seat: ask for another one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is: its deployment's request id; and that deployment, where the session has told of it."""

    request_id: str
    server: Server | None = None


@dataclass(slots=True)
class _Waited:
    """`linked`, `ready`: its deployment, when there is one."""

    linked: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ready: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    count: int = 0


class SessionWatch:
    """`run` is its loop, which must go on for as long as anybody waits."""

    def __init__(self, servers: SessionServers, bus: Bus) -> None:
        self._client = servers.client
        self._bus = bus
        self._hooks = servers.hooks is not None
        settings = servers.settings
        first = settings.poll_slowest if self._hooks else settings.poll_first
        self._looks = Looks(min(first, settings.poll_slowest), settings.poll_slowest)
        self._waited: dict[str, _Waited] = {}
        self._names: dict[str, str] = {}
        """What a webhook calls a session -> Edgegap's id."""
        self._look_now = asyncio.Event()

    async def until_ready(self, session_id: str, hook: str) -> Place:
        """Its deployment, which is ready, too. `hook`: what its webhook calls it. Raises `SessionLost`."""
        return await self._until(session_id, hook, ready=True)

    async def until_linked(self, session_id: str, hook: str) -> Place:
        """Its deployment, ready or not. Raises `SessionLost`."""
        return await self._until(session_id, hook, ready=False)

    async def _until(self, session_id: str, hook: str, *, ready: bool) -> Place:
        self._names[hook] = session_id
        waited = self._waited.setdefault(session_id, _Waited())
        waited.count += 1
        self._looks.wait_for(session_id, _now())
        self._looks.call(session_id)  # a server with room makes it ready at once
        self._look_now.set()
        try:
            return await asyncio.shield(waited.ready if ready else waited.linked)
        finally:
            waited.count -= 1
            if not waited.count:
                self._looks.done(session_id)
                self._names.pop(hook, None)
                if self._waited.get(session_id) is waited:
                    del self._waited[session_id]

    async def run(self) -> None:
        """For ever."""
        subscription = None
        if self._hooks:
            try:
                subscription = await self._bus.nc.subscribe(self._bus.subjects.all_webhooks, cb=self._called)
            except nats.errors.Error as exc:
                log.warning("webhooks cannot be heard, looking from time to time instead: %s", exc)
        try:
            while True:
                self._look_now.clear()
                await self._pause(self._looks.next_at())
                due = [id for id in self._looks.due(_now()) if id in self._waited]
                if not due:
                    continue
                try:
                    await self._look(due)
                except OrchestratorError as exc:
                    log.info("looking at %d session(s): %s", len(due), exc)
                    await asyncio.sleep(min(exc.retry_after or 0.0, 10.0))
                await asyncio.sleep(_PAUSE)  # what comes meanwhile is looked at together
        finally:
            if subscription is not None and not self._bus.nc.is_closed:
                await subscription.unsubscribe()

    async def _called(self, msg: Msg) -> None:
        session_id = self._names.get(msg.subject.rpartition(".")[2])
        if session_id in self._waited:
            self._looks.call(session_id)
            self._look_now.set()

    async def _pause(self, until: float | None) -> None:
        if until is not None and until <= _now():
            return
        try:
            async with asyncio.timeout(None if until is None else until - _now()):
                await self._look_now.wait()
        except TimeoutError:
            return

    async def _look(self, due: list[str]) -> None:
        if len(due) > BY_STATUS:
            listed = {session.session_id: session for session in await self._client.sessions()}
            unclear: list[str] = []
            for session_id in due:
                session = listed.get(session_id)
                if session is None or (session.ready and not session.request_id) or session.failed:
                    unclear.append(session_id)
                else:
                    self._tell(session_id, session)
            due = unclear[:BY_STATUS]
            for session_id in unclear[BY_STATUS:]:
                self._looks.call(session_id)
        error: OrchestratorError | None = None
        for session_id in due:
            try:
                self._tell(session_id, await self._client.session(session_id))
            except OrchestratorError as exc:  # of one of them: the others are looked at all the same
                error = exc
        if error is not None:
            raise error

    def _tell(self, session_id: str, session: Session | None) -> None:
        waited = self._waited.get(session_id)
        if waited is None:
            return
        if session is None or session.failed:
            lost = SessionLost("Edgegap has closed it" if session is None else session.failed)
            for future in (waited.linked, waited.ready):
                if not future.done():
                    future.set_exception(lost)
                    future.exception()  # whoever waits raises it; nobody need wait for both
            return
        place = Place(session.request_id, session.server if session.ready else None)
        if session.request_id and not waited.linked.done():
            waited.linked.set_result(place)
        if session.ready and session.request_id and not waited.ready.done():
            waited.ready.set_result(place)


def _now() -> float:
    return asyncio.get_running_loop().time()
