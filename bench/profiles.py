"""Measures the cost of the isolated profile: players join and leave one after another, in both profiles.

Everything runs in one process except nats-server, which has the accounts and roles of the isolated profile. The servers
are the SDK's presences, without a game.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
from nats.aio.msg import Msg

from tipoff.nats_roles.isolated import accounts
from tipoff.nats_roles.users import hashed
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_gameserver import Context
from tipoff_gameserver.presence.interface import Presence
from tipoff_gameserver.running import presence_for
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared.games import Game, Games
from tipoff_shared.messages import PlayRequest, Transports, UdpAddress, encode_request
from tipoff_shared.names import new_boot_id, new_request_id
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.netcode import PrivateKey
from tipoff_shared.records import Command, GameserverLease, LeaseState, SessionRecord, SessionState
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import EventKey
from tipoff_shared.settings import ROLES, NatsSettings, inbox_prefix_of
from tipoff_shared.subjects import REQUEST_ID_HEADER, Subjects

GAME = Game("bench", "1", seats=64, max_deployments=1, empty_ttl=60, orchestrator="fake")
PLAYERS = 300


def run() -> Iterator[dict[str, Any]]:
    """Figures of this machine; about 10 s."""
    for profile in ("trusted", "isolated"):
        yield from asyncio.run(_measure(profile))


class _Servers:
    """Starts the presences that stand for game servers."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self.presences: dict[str, Presence] = {}

    async def start(self, spec: DeploySpec) -> None:
        boot_id = new_boot_id()
        context = Context(
            spec.deployment_id,
            spec.game,
            spec.version,
            PrivateKey.generate(),
            1,
            nats=self._settings,
            event_key=EventKey.parse(spec.event_key) if spec.event_key else None,
        )
        presence = presence_for(context, boot_id)
        self.presences[spec.deployment_id] = presence
        await presence.start(lambda: _lease(spec, boot_id), _ignore)

    async def close(self) -> None:
        await asyncio.gather(*(presence.close(keep_lease=False) for presence in self.presences.values()))


def _lease(spec: DeploySpec, boot_id: str) -> GameserverLease:
    where = Transports(udp=UdpAddress("127.0.0.1", 30_000))
    return GameserverLease(
        spec.deployment_id, boot_id, spec.game, spec.version, LeaseState.READY, where, spec.capacity
    )


def _ignore(command: Command) -> None:
    pass


async def _measure(profile: str) -> list[dict[str, Any]]:
    async with _nats() as settings, connect(settings("everything"), name="bench") as bus:
        servers = _Servers(settings("gameserver" if profile == "isolated" else "everything"))
        fake = FakeOrchestrator("fake", on_start=servers.start)
        games = Games({GAME.key: GAME}, {GAME.key: PrivateKey.generate()}, Path())
        mine = Settings(profile=profile)  # type: ignore[arg-type] # one of its two
        async with run_matchmaker(mine, games, settings("matchmaker"), {"fake": fake}) as matchmaker:
            try:
                joins, leaves = await _come_and_go(bus, matchmaker, servers)
            finally:
                await servers.close()
                await fake.close()
    return [
        {
            "figure": f"{profile}: {what} p{percent}",
            "value": round(quantiles(taken, n=100)[percent - 1] * 1000, 2),
            "unit": "ms",
        }
        for what, taken in (("join to active", joins), ("leave to session gone", leaves))
        for percent in (50, 99)
    ]


async def _come_and_go(
    bus: Bus, matchmaker: Matchmaker, servers: _Servers
) -> tuple[list[float], list[float]]:
    """Seconds from the server's report to the change of the session's record, for each player."""
    steps = _Steps(matchmaker)
    joins: list[float] = []
    leaves: list[float] = []
    for _ in range(PLAYERS):
        ready = await _play(bus)
        session, presence = ready["session_id"], servers.presences[ready["deployment_id"]]
        began = time.perf_counter()
        presence.joined(session, int(ready["client_id"]))
        joins.append(await steps.reached(session, SessionState.ACTIVE) - began)
        await asyncio.sleep(0.01)  # nobody leaves in the moment he came
        began = time.perf_counter()
        presence.left(session)
        leaves.append(await steps.reached(session, SessionState.GONE) - began)
    return joins, leaves


class _Steps:
    """Knows when a session's record reached a state, from the matchmaker that wrote it."""

    def __init__(self, matchmaker: Matchmaker) -> None:
        self._waiting: dict[tuple[str, SessionState], asyncio.Future[float]] = {}
        matchmaker.parts.sessions.subscribe(self._written)

    def _written(self, record: SessionRecord) -> None:
        waiter = self._waiting.pop((record.id, record.state), None)
        if waiter is not None and not waiter.done():
            waiter.set_result(time.perf_counter())

    async def reached(self, session_id: str, state: SessionState) -> float:
        waiter = self._waiting[session_id, state] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(10):
            at: float = await waiter
        return at


async def _play(bus: Bus) -> dict[str, Any]:
    answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def heard(msg: Msg) -> None:
        if msg.data.startswith((b'{"SessionReady"', b'{"Error"')) and not answer.done():
            answer.set_result(msgspec.json.decode(msg.data))

    inbox = bus.nc.new_inbox()
    sub = await bus.nc.subscribe(inbox, cb=heard)
    request = encode_request(PlayRequest(GAME.name, GAME.version, client_ip="203.0.113.7"))
    subject = bus.subjects.request(GAME.name, GAME.version)
    await bus.nc.publish(subject, request, reply=inbox, headers={REQUEST_ID_HEADER: new_request_id()})
    async with asyncio.timeout(10):
        told = await answer
    await sub.unsubscribe()
    ready: dict[str, Any] = told["SessionReady"]
    return ready


@asynccontextmanager
async def _nats() -> AsyncIterator[Any]:
    """A function role -> settings, for a nats-server with the isolated profile's accounts; `everything` may do
    everything in the matchmaker's."""
    password = Secret("bench")  # of a server on loopback that lives for seconds
    hashes = dict.fromkeys(ROLES, hashed(password))
    more = f'      {{ user: everything, password: "{password.reveal()}" }}\n'
    with tempfile.TemporaryDirectory() as store:
        server = EmbeddedNats(Path(store), users=accounts(hashes, Subjects(), more_users=more))
        await server.start()

        def settings(role: str) -> NatsSettings:
            prefix = inbox_prefix_of("httpd" if role == "everything" else role)
            return dataclasses.replace(server.settings(), user=role, password=password, inbox_prefix=prefix)

        try:
            yield settings
        finally:
            await server.stop()
