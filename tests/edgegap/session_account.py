"""Edgegap's sessions in memory, and the parts of a matchmaker: for what its allocator makes of each answer.

Real are NATS, the records in it, and everything of ours above `EdgegapClient`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from tests.edgegap.edgegap_world import sleeper, with_sessions
from tests.matchmaker.world import FAST, games_of
from tipoff_matchmaker.allocators.edgegap.allocator import EdgegapSessions
from tipoff_matchmaker.allocators.edgegap.seat_store import SeatStore
from tipoff_matchmaker.compose import Parts, compose
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_matchmaker.settings import Settings as MatchmakerSettings
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.api.answers import NamedPort, Server, Session
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.games import Game
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import EdgegapSeat

SEAT = with_sessions(sleeper())
MATCH = with_sessions(sleeper(), "match")
IPS = ("8.8.4.4", "1.1.1.1")
PORTS = {"game": NamedPort("game", 7777, 31000, "udp")}


def group(*members: str, ips: tuple[str, ...] = IPS) -> AllocationRequest:
    return AllocationRequest(members[0], members, "arena", "1", ips)


def server(request_id: str, **state: Any) -> Server:
    """One that runs."""
    return Server(request_id, **{"running": True, "ip": "9.9.9.9", "ports": PORTS, **state})


class SessionAccount:
    """Edgegap's sessions, as `EdgegapClient` shows them. New ones are ready on the server `r1`, which runs."""

    def __init__(self) -> None:
        self.sessions_there: dict[str, Session] = {}
        self.servers: dict[str, Server] = {}
        self.places: list[str] = []
        """The servers of the next sessions that ask for none; then `r1`."""
        self.new: dict[str, Any] = {"ready": True}
        """The state of new sessions."""
        self.described = True
        """Whether a session describes its server."""
        self.calls: list[tuple[str, Any]] = []
        """Name and argument of each call, in order."""
        self.errors: dict[str, list[Exception]] = {}
        """What the next calls with this name raise."""
        self.gate: asyncio.Event | None = None
        """Creates wait for it."""
        self.asked = asyncio.Event()
        """Set by each create."""
        self.status_is_free = True
        self._number = 0

    def called(self, name: str) -> list[Any]:
        """The arguments of the calls with this name."""
        return [argument for called, argument in self.calls if called == name]

    def becomes(self, session_id: str, **state: Any) -> None:
        self.sessions_there[session_id] = dataclasses.replace(self.sessions_there[session_id], **state)

    def _call(self, name: str, argument: Any = None) -> None:
        self.calls.append((name, argument))
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    async def create_session(self, application: str, version: str, **options: Any) -> str:
        self.asked.set()
        self._call("create", {"application": application, "version": version, **options})
        if self.gate is not None:
            await self.gate.wait()
        place = options["deployment_request_id"] or (self.places.pop(0) if self.places else "r1")
        self.servers.setdefault(place, server(place))
        self._number += 1
        session_id = f"s{self._number}"
        there = self.servers[place] if self.described else None
        self.sessions_there[session_id] = Session(
            session_id, **{"request_id": place, "server": there, **self.new}
        )
        return session_id

    async def session(self, session_id: str) -> Session | None:
        self._call("session", session_id)
        return self.sessions_there.get(session_id)

    async def sessions(self) -> list[Session]:
        self._call("sessions")
        return list(self.sessions_there.values())

    async def delete_session(self, session_id: str) -> None:
        self._call("delete", session_id)
        self.sessions_there.pop(session_id, None)

    async def status(self, request_id: str) -> Server | None:
        self._call("status", request_id)
        return self.servers.get(request_id)

    async def deployments(self) -> list[Server]:
        self._call("list")
        return list(self.servers.values())

    @property
    def client(self) -> EdgegapClient:
        return cast(EdgegapClient, self)


class SessionWorld:
    """The account and the parts of one matchmaker, of which only the watch of sessions runs."""

    def __init__(self, bus: Bus, buckets: Buckets) -> None:
        self.bus = bus
        self.buckets = buckets
        self.account = SessionAccount()
        self.store = SeatStore(self.account.client, buckets.edgegap_sessions)
        self.now = time.time()

    @asynccontextmanager
    async def parts(self, game: Game = SEAT, **changes: Any) -> AsyncIterator[Parts]:
        """Composed, and waiting for sessions."""
        settings = MatchmakerSettings(**{**FAST, "backoff": 0.001, "seat_hold": 30.0, **changes})
        polls = Settings(poll_first=0.01, poll_slowest=0.02)
        failures: list[BaseException] = []
        async with Tasks("parts", failures.append) as tasks:
            servers = SessionServers(self.account.client, self.bus, games_of(game), polls)
            parts = compose(
                settings,
                games_of(game),
                self.bus,
                self.buckets,
                {SESSIONS: servers},
                tasks,
                lambda: self.now,
            )
            watching = asyncio.create_task(at_edgegap(parts).run())
            try:
                yield parts
            finally:
                watching.cancel()
                await asyncio.wait((watching,))
                await servers.close()
        assert failures == []

    async def seats(self) -> dict[str, EdgegapSeat]:
        """The records of seats."""
        return {member: entry.value for member, entry in (await self.buckets.edgegap_sessions.list()).items()}

    async def write(self, session_id: str, members: Iterable[str], left: str = "") -> None:
        """The records of a session's members, of whom those in `left` have left."""
        members = list(members)
        for member in members:
            seat = EdgegapSeat(session_id, members, left=member in left)
            await self.buckets.edgegap_sessions.put(member, seat)

    @classmethod
    async def on(cls, bus: Bus) -> SessionWorld:
        return cls(bus, await create_buckets(bus))


def at_edgegap(parts: Parts) -> EdgegapSessions:
    assert parts.edgegap is not None
    return parts.edgegap


async def allocate(parts: Parts, allocation: AllocationRequest) -> Seats:
    """The seats that it leads to."""
    async with asyncio.timeout(20), aclosing(at_edgegap(parts).allocate(allocation)) as steps:
        async for step in steps:
            if isinstance(step, Seats):
                return step
    raise AssertionError("no seats")


async def settled(parts: Parts, unless: Callable[[], bool] = lambda: False) -> None:
    """All that was begun has ended."""
    while (running := parts.tasks.running) and not unless():
        await asyncio.wait(running, timeout=5)
