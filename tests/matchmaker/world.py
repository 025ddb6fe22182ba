"""What stands around a matchmaker in these tests: gameservers that only write what real ones write, and players that
only ask. NATS is real, the orchestrator is the fake one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tests.polling import eventually
from tipoff_matchmaker.compose import Parts, compose
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import Deployment, DeploySpec, Orchestrator, Port
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared import names
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import (
    Acknowledged,
    Failed,
    Feedback,
    PlayRequest,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
    Transports,
    UdpAddress,
    decode_feedback,
    encode_request,
)
from tipoff_shared.nats.connection import Bus
from tipoff_shared.netcode import PrivateKey
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import (
    Command,
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    LeaseState,
    SessionRecord,
    SessionState,
    decode_command,
)
from tipoff_shared.settings import NatsSettings
from tipoff_shared.subjects import REQUEST_ID_HEADER, RESUME, RESUME_KEY_HEADER, TIMEOUT_HEADER

T = TypeVar("T")

KEY = PrivateKey(bytes(range(32)))
ARENA = Game("arena", "1", seats=4, max_deployments=4, empty_ttl=0.3, orchestrator="fake", request_timeout=10)
FAST = {
    "progress_interval": 0.2,
    "owner_silence": 0.6,
    "sweep_interval": 0.15,
    "listing_interval": 0.3,
    "reconciler_ttl": 1.0,
    "lease_ttl": 1.0,
    "lease_grace": 1.0,
    "orphan_grace": 0.5,
    "claim_slack": 0.1,
    "seat_hold": 1.0,
    "backoff": 0.02,
    "drain_timeout": 2.0,
}


def games_of(*games: Game) -> Games:
    return Games({game.key: game for game in games}, {game.key: KEY for game in games}, Path())


class Gameserver:
    """What a gameserver writes: its lease, refreshed; connections; nothing else."""

    def __init__(self, world: World, spec: DeploySpec, *, boot_id: str = "") -> None:
        self.world = world
        self.id = spec.deployment_id
        port = 30_000 + len(world.servers)
        self.lease = GameserverLease(
            deployment_id=spec.deployment_id,
            boot_id=boot_id or names.new_boot_id(),
            game=spec.game,
            version=spec.version,
            state=LeaseState.READY,
            transports=Transports(udp=UdpAddress("127.0.0.1", port))
            if world.transports is None
            else world.transports,
            capacity=spec.capacity,
            internal=[f"127.0.0.1:{port}"],
        )
        self.commands: asyncio.Queue[Command] = asyncio.Queue()
        self.beating = True
        self._sub: Subscription | None = None

    async def start(self) -> None:
        async def command(msg: Msg) -> None:
            self.commands.put_nowait(decode_command(msg.data))

        self._sub = await self.world.bus.nc.subscribe(self.world.bus.subjects.commands(self.id), cb=command)
        await self.beat()

    async def beat(self) -> None:
        await self.world.buckets.gameservers.put(self.id, self.lease, ttl=self.world.lease_ttl)

    async def become(self, **changes: object) -> None:
        """Say something else from now on: a state, a boot id."""
        self.lease = msgspec.structs.replace(self.lease, **changes)
        await self.beat()

    async def connect(self, ready: SessionReady) -> None:
        await self.world.buckets.active_connections.put(ready.session_id, ready.client_id)

    async def disconnect(self, ready: SessionReady) -> None:
        await self.world.buckets.active_connections.delete(ready.session_id)

    async def stop(self) -> None:
        """In order: the lease goes."""
        self.beating = False
        await self.world.buckets.gameservers.delete(self.id)

    def die(self) -> None:
        """Not in order: the lease is left to expire."""
        self.beating = False


class Answers:
    """The feedback to one request, as it comes."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Feedback | None] = asyncio.Queue()
        self.seen: list[Feedback] = []
        self.headers: dict[str, str] = {}
        self.request_id = ""

    async def next(self, timeout: float = 8) -> Feedback | None:
        async with asyncio.timeout(timeout):
            feedback = await self.inbox.get()
        if feedback is not None:
            self.seen.append(feedback)
        return feedback

    async def until(self, kind: type[Feedback], timeout: float = 8) -> Feedback:
        """The next feedback of this kind; the end is an error."""
        async with asyncio.timeout(timeout):
            while True:
                feedback = await self.inbox.get()
                assert feedback is not None, f"ended without {kind.__name__}: {self.seen}"
                self.seen.append(feedback)
                if isinstance(feedback, kind):
                    return feedback

    async def end(self, timeout: float = 8) -> Feedback:
        """The last message before the end; where nobody listened to the request, what httpd would say then."""
        async with asyncio.timeout(timeout):
            while (feedback := await self.inbox.get()) is not None:
                self.seen.append(feedback)
        return self.seen[-1] if self.seen else Failed(503, "no matchmaker is running")

    def seen_now(self) -> list[Feedback]:
        """All that has come so far."""
        while not self.inbox.empty():
            if (feedback := self.inbox.get_nowait()) is not None:
                self.seen.append(feedback)
        return self.seen

    @property
    def progress(self) -> list[str]:
        return [feedback.text for feedback in self.seen if isinstance(feedback, ProgressReport)]

    @property
    def session_id(self) -> str:
        return next(f.session_id for f in self.seen if isinstance(f, SessionRequestAccepted))

    @property
    def acknowledged(self) -> bool:
        return bool(self.seen) and isinstance(self.seen[0], Acknowledged)


class WithPorts:
    """An orchestrator like Edgegap's: it tells where its servers are reached."""

    def __init__(self, inner: FakeOrchestrator, ports: dict[str, Port]) -> None:
        self._inner = inner
        self._ports = ports

    @property
    def name(self) -> str:
        return self._inner.name

    def _told(self, deployment: Deployment) -> Deployment:
        return dataclasses.replace(deployment, host="127.0.0.1", ports=self._ports)

    async def deploy(self, spec: DeploySpec) -> Deployment:
        return self._told(await self._inner.deploy(spec))

    async def get(self, deployment_id: str) -> Deployment | None:
        found = await self._inner.get(deployment_id)
        return None if found is None else self._told(found)

    async def stop(self, deployment_id: str) -> None:
        await self._inner.stop(deployment_id)

    async def list(self) -> list[Deployment]:
        return [self._told(deployment) for deployment in await self._inner.list()]

    async def events(self) -> AsyncIterator[Deployment]:
        async for event in self._inner.events():
            yield self._told(event)

    async def close(self) -> None:
        await self._inner.close()


class World:
    def __init__(self, bus: Bus, settings: NatsSettings) -> None:
        self.bus = bus
        self.nats_settings = settings
        self.buckets: Buckets
        self.lease_ttl = 2.0
        self.transports: Transports | None = None
        """What servers that start say of their addresses; None: a UDP address of their own."""
        self.announce = True
        """Whether servers that start write their lease."""
        self.servers: dict[str, Gameserver] = {}
        self.fake = FakeOrchestrator(
            "fake", on_start=self._on_start, on_stop=self._on_stop, on_death=self._on_death
        )
        self._players = 0
        self._beats: asyncio.Task[None] | None = None

    async def __aenter__(self) -> World:
        self.buckets = await create_buckets(self.bus)
        self._beats = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.fake.close()
        assert self._beats is not None
        # More than once: `asyncio.wait_for` before Python 3.12, by which nats-py waits, may lose a cancellation.
        while not self._beats.done():
            self._beats.cancel()
            await asyncio.wait((self._beats,), timeout=0.2)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.lease_ttl / 4)  # the rhythm of heartbeats
            for server in list(self.servers.values()):
                if server.beating:
                    with contextlib.suppress(Unavailable):  # NATS is away; the next beat comes
                        await server.beat()

    async def _on_start(self, spec: DeploySpec) -> None:
        server = self.servers[spec.deployment_id] = Gameserver(self, spec)
        server.beating = self.announce
        if self.announce:
            await server.start()

    async def _on_stop(self, deployment_id: str) -> None:
        if deployment_id in self.servers:
            await self.servers[deployment_id].stop()

    def _on_death(self, deployment_id: str) -> None:
        self.servers[deployment_id].die()

    @asynccontextmanager
    async def matchmaker(
        self,
        *games: Game,
        orchestrator: Orchestrator | None = None,
        clock: Callable[[], float] = time.time,
        **changes: object,
    ) -> AsyncIterator[Matchmaker]:
        """A matchmaker with quick settings, which `changes` change."""
        settings = Settings(**{**FAST, **changes})  # type: ignore[arg-type] # checked by pydantic
        async with run_matchmaker(
            settings,
            games_of(*(games or (ARENA,))),
            self.nats_settings,
            {"fake": orchestrator or self.fake},
            clock=clock,
        ) as matchmaker:
            yield matchmaker

    @asynccontextmanager
    async def parts(
        self,
        *games: Game,
        orchestrator: Orchestrator | None = None,
        clock: Callable[[], float] = time.time,
        **changes: object,
    ) -> AsyncIterator[Parts]:
        """The parts of a matchmaker without its loops: nothing is swept, followed or taken from NATS. What a test does
        not call does not happen; a task that fails fails the test."""
        settings = Settings(**{**FAST, **changes})  # type: ignore[arg-type] # checked by pydantic
        failures: list[BaseException] = []
        async with Tasks("parts", failures.append) as tasks:
            yield compose(
                settings,
                games_of(*(games or (ARENA,))),
                self.bus,
                self.buckets,
                {"fake": orchestrator or self.fake},
                tasks,
                clock,
            )
        assert failures == []

    # Players.

    async def ask(
        self,
        game: str = "arena",
        version: str = "1",
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        payload: bytes | None = None,
        subject: str | None = None,
        again: bool = False,
        client_ip: str | None = None,
        resume: tuple[str, str] | None = None,
    ) -> Answers:
        """Ask to play; the feedback comes into what is returned. `again`: of every matchmaker. `client_ip`: by default
        each player has its own address. `resume`: a session and its key, for the seat that it has."""
        if client_ip is None:
            client_ip = f"203.0.{113 + self._players // 240}.{7 + self._players % 240}"
            self._players += 1
        answers = Answers()
        answers.request_id = request_id or names.new_request_id()

        async def heard(msg: Msg) -> None:
            answers.headers.update(msg.headers or {})
            answers.inbox.put_nowait(decode_feedback(msg.data) if msg.data else None)
            if not msg.data:
                await sub.unsubscribe()

        inbox = self.bus.nc.new_inbox()
        sub = await self.bus.nc.subscribe(inbox, cb=heard)
        headers = {REQUEST_ID_HEADER: answers.request_id}
        session = None
        if resume is not None:
            session, headers[RESUME_KEY_HEADER] = resume
            headers[REQUEST_ID_HEADER] = RESUME
        if timeout is not None:
            headers[TIMEOUT_HEADER] = str(timeout)
        await self.bus.nc.publish(
            subject or (self.bus.subjects.retry if again else self.bus.subjects.request)(game, version),
            encode_request(PlayRequest(game, version, client_ip=client_ip, session=session))
            if payload is None
            else payload,
            reply=inbox,
            headers=headers,
        )
        return answers

    async def play(
        self,
        game: str = "arena",
        version: str = "1",
        *,
        request_id: str | None = None,
        again: bool = False,
        client_ip: str | None = None,
    ) -> SessionReady:
        """Ask, and get a seat."""
        answers = await self.ask(game, version, request_id=request_id, again=again, client_ip=client_ip)
        ready = await answers.end()
        assert isinstance(ready, SessionReady), ready
        return ready

    async def resume(self, ready: SessionReady, key: str | None = None, *, again: bool = False) -> Feedback:
        """Ask for the seat of `ready` again, by its key or another one; the last answer."""
        given = (ready.session_id, key or str(ready.resume_key))
        return await (await self.ask(resume=given, again=again)).end()

    def server_of(self, ready: SessionReady) -> Gameserver:
        return self.servers[ready.deployment_id]

    async def matchmaker_answers(self) -> bool:
        """Whether a matchmaker says that it serves."""
        try:
            await self.bus.request(self.bus.subjects.ping_matchmaker, b"", timeout=0.2)
        except Unavailable:
            return False
        return True

    async def reconnected(self) -> None:
        """NATS is back, and buckets can be read."""

        async def back() -> bool:
            try:
                await self.buckets.deployments.get("any")
            except Unavailable:
                return False
            return True

        await self.eventually(back, "NATS is back")

    # What is written down.

    async def session(self, session_id: str) -> SessionRecord | None:
        entry = await self.buckets.sessions.get(session_id)
        return None if entry is None else entry.value

    async def seats(self) -> list[str]:
        """Who sits anywhere."""
        return [seat for record in await self.deployments() for seat in record.seats]

    async def seats_are(self, expected: list[str]) -> bool:
        return sorted(await self.seats()) == sorted(expected)

    async def servers_ready(self, count: int) -> list[DeploymentRecord]:
        """As soon as `count` servers are ready."""

        async def there() -> list[DeploymentRecord] | None:
            ready = [r for r in await self.deployments() if r.state is DeploymentState.READY]
            return ready if len(ready) == count else None

        records = await self.eventually(there, f"{count} servers are ready")
        assert records is not None
        return records

    async def deployment_becomes(self, deployment_id: str, state: DeploymentState) -> DeploymentRecord:
        async def there() -> DeploymentRecord | None:
            entry = await self.buckets.deployments.get(deployment_id)
            return entry.value if entry is not None and entry.value.state is state else None

        record = await self.eventually(there, f"{deployment_id} is {state}")
        assert record is not None
        return record

    async def ran(self, count: int) -> bool:
        """Whether `count` servers have run by now."""
        return len(self.servers) == count

    async def living(self, count: int) -> bool:
        return len(self.fake.living) == count

    def with_ports(self, **ports: int) -> Orchestrator:
        """The fake orchestrator, as one that knows its servers' host and (UDP) ports."""
        return WithPorts(self.fake, {name: Port(port, port, "UDP") for name, port in ports.items()})

    async def is_gone(self, deployment_id: str) -> bool:
        return all(record.id != deployment_id for record in await self.deployments())

    async def announce_all(self) -> None:
        """Servers that were started without a word write their leases, and so do those to come."""
        self.announce = True
        for server in self.servers.values():
            server.beating = True
            await server.start()

    async def session_becomes(
        self, session_id: str, state: SessionState, timeout: float = 8
    ) -> SessionRecord:
        async def there() -> SessionRecord | None:
            record = await self.session(session_id)
            return record if record is not None and record.state is state else None

        record = await self.eventually(there, f"session {session_id} is {state}", timeout)
        assert record is not None
        return record

    async def deployments(self) -> list[DeploymentRecord]:
        """Those that are not gone."""
        entries = await self.buckets.deployments.list()
        return [e.value for e in entries.values() if e.value.state is not DeploymentState.GONE]

    async def eventually(self, check: Callable[[], Awaitable[T]], what: str, timeout: float = 8) -> T:
        return await eventually(check, what, timeout)

    async def nothing_is_left(self, *, servers: int = 0, timeout: float = 10) -> None:
        """Invariant G: no session, no seat, no connection, and no deployment beyond `servers`."""

        left: list[str] = []

        async def clean() -> bool:
            left[:] = await self._leftovers(servers)
            return not left

        try:
            await self.eventually(clean, "nothing is left", timeout)
        except AssertionError:
            raise AssertionError(f"left over after {timeout} s: {left}") from None

    async def _leftovers(self, servers: int) -> list[str]:
        sessions = [entry.value for entry in (await self.buckets.sessions.list()).values()]
        left = [f"session {s.state}: {s.reason}" for s in sessions if s.state is not SessionState.GONE]
        live = await self.deployments()
        left += [f"seat {seat} on {record.id}" for record in live for seat in record.seats]
        if len(live) != servers or any(r.state is not DeploymentState.READY for r in live):
            left.append(f"deployments {[(r.id, r.state.value) for r in live]}, not {servers}")
        if sorted(self.fake.living) != sorted(record.id for record in live):
            left.append(f"servers {self.fake.living}")
        reserved = [d for e in (await self.buckets.fleets.list()).values() for d in e.value.deployments]
        if sorted(reserved) != sorted(record.id for record in live):
            left.append(f"reservations {reserved}")
        left += [f"connection {key}" for key in await self.buckets.active_connections.list()]
        return left


def failed(feedback: Feedback | None) -> Failed:
    assert isinstance(feedback, Failed), feedback
    return feedback
