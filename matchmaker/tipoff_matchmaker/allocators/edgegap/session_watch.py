"""Waits for Edgegap's sessions to be linked to a deployment and to be ready: by webhooks, and polls as a back-up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NoReturn

from tipoff_orchestrator_client.edgegap.api.answers import Server, Session
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.poller.poll_loop import PollLoop, poll_each
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import BY_STATUS


class SessionLost(Exception):
    """This session will not lead to a seat: create another one. Never leaves this folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is: its deployment's request id, and that deployment, where the session describes it."""

    request_id: str
    server: Server | None = None


@dataclass(slots=True)
class _Waited:
    """`linked`, `ready`: the session's place, as soon as it is. `count`: how many wait."""

    linked: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ready: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    count: int = 0


class SessionWatch:
    """The sessions that are waited for. `run` must run while anything waits; `poll` is this object's only."""

    def __init__(self, client: EdgegapClient, poll: PollLoop) -> None:
        self._client = client
        self._poll = poll
        self._waited: dict[str, _Waited] = {}
        self._hooks: dict[str, str] = {}
        """Name in a webhook's URL -> Edgegap's id of the session."""

    async def until_ready(self, session_id: str, hook: str) -> Place:
        """Wait until the session is ready. `hook`: the name in its webhook's URL. Raises `SessionLost`."""
        return await self._until(session_id, hook, ready=True)

    async def until_linked(self, session_id: str, hook: str) -> Place:
        """Wait until the session has a deployment, ready or not. Raises `SessionLost`."""
        return await self._until(session_id, hook, ready=False)

    async def _until(self, session_id: str, hook: str, *, ready: bool) -> Place:
        self._hooks[hook] = session_id
        waited = self._waited.setdefault(session_id, _Waited())
        waited.count += 1
        self._poll.add(session_id)
        self._poll.poll_now(session_id)  # a server with room makes it ready at once
        try:
            return await asyncio.shield(waited.ready if ready else waited.linked)
        finally:
            waited.count -= 1
            if not waited.count:
                self._poll.remove(session_id)
                self._hooks.pop(hook, None)
                if self._waited.get(session_id) is waited:
                    del self._waited[session_id]

    async def run(self) -> NoReturn:
        """Poll until cancelled."""
        await self._poll.run(self._poll_due, self._hook_id)

    def _hook_id(self, name: str) -> str | None:
        session_id = self._hooks.get(name)
        return session_id if session_id in self._waited else None

    async def _poll_due(self, due: list[str]) -> None:
        due = [session_id for session_id in due if session_id in self._waited]
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
                self._poll.poll_now(session_id)
        await poll_each(due, self._read)

    async def _read(self, session_id: str) -> None:
        self._tell(session_id, await self._client.session(session_id))

    def _tell(self, session_id: str, session: Session | None) -> None:
        waited = self._waited.get(session_id)
        if waited is None:
            return
        if session is None or session.failed:
            lost = SessionLost("Edgegap has closed it" if session is None else session.failed)
            for future in (waited.linked, waited.ready):
                if not future.done():
                    future.set_exception(lost)
                    future.exception()  # the waiters raise it, but nothing need wait for both
            return
        place = Place(session.request_id, session.server if session.ready else None)
        if session.request_id and not waited.linked.done():
            waited.linked.set_result(place)
        if session.ready and session.request_id and not waited.ready.done():
            waited.ready.set_result(place)
