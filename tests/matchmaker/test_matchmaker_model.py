"""Invariant G under everything at once: hypothesis plays fate with several matchmakers, servers and players.

What runs are the real drivers and rules, in virtual time on a NATS in memory (simulation.py). Fate kills and stops
processes, kills servers, loses the outcome of writes, doubles and delays messages; latencies are random at every step.
Whatever came before: once it is quiet, what is written down is what is, and when everybody has left nothing is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.matchmaker.simulation import (
    MemoryNats,
    MemoryStore,
    Message,
    Process,
    VirtualLoop,
    crash,
    run_world,
    start_process,
    stop,
)
from tests.matchmaker.world import games_of
from tipoff_matchmaker.deployments.state_machine import is_live
from tipoff_matchmaker.requests.pending import PendingRequest
from tipoff_matchmaker.requests.resumption import ResumeRequest
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared import names
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Game
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.messages import SessionReady, Transports, UdpAddress
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    Kick,
    LeaseState,
    SessionRecord,
    SessionState,
    decode_command,
)

GAME = Game("arena", "1", seats=2, max_deployments=3, orchestrator="fake", empty_ttl=5, request_timeout=40)
QUIET = 150.0
"""Seconds after which everything that was under way has come to its end: claim deadlines, grace periods, retries."""
PROCESSES, PLAYERS = 3, 6
SESSION_ORDER = list(SessionState)
DEPLOYMENT_ORDER = list(DeploymentState)


class Server:
    """A gameserver: keeps its lease, lets players in, obeys kicks."""

    def __init__(self, world: World, spec: DeploySpec) -> None:
        self.world = world
        self.id = spec.deployment_id
        self.alive = True
        self.silent = False
        """Whether its connection to NATS is away."""
        self.connected: dict[str, str] = {}
        self.lease = GameserverLease(
            self.id,
            names.new_boot_id(),
            spec.game,
            spec.version,
            LeaseState.READY,
            Transports(udp=UdpAddress("127.0.0.1", 30_000)),
            spec.capacity,
        )
        world.nats.subscribers.append((f"gs.{self.id}.cmd", None, self.command))
        world.nats.spawn(self.beat())

    async def beat(self) -> None:
        while self.alive:
            if not self.silent:
                self.world.nats.write("gameservers", self.id, self.lease, None, 10)
            await asyncio.sleep(10 / 3)  # virtual time

    def connect(self, ready: SessionReady) -> None:
        if self.alive:
            self.connected[ready.session_id] = ready.client_id
            self.world.nats.write("active_connections", ready.session_id, ready.client_id, None, None)

    def leave(self, session_id: str) -> None:
        if self.alive and self.connected.pop(session_id, None) is not None:
            self.world.nats.write("active_connections", session_id, None, None, None)

    async def command(self, message: Message) -> None:
        command = decode_command(message.data)
        if isinstance(command, Kick):
            self.leave(command.session_id)

    def end(self) -> None:
        self.alive = False
        self.connected.clear()


class Player:
    def __init__(self) -> None:
        self.request_id = names.new_request_id()
        self.answers: list[SessionReady] = []
        self.client_ids: dict[int, set[str]] = {}
        """For each life of its session: a request id asked again long after its end begins a new one."""


class World:
    def __init__(self, loop: VirtualLoop, seed: int, game: Game = GAME) -> None:
        self.loop = loop
        self.game = game
        self.wrong: list[str] = []
        self.nats = MemoryNats(loop, seed, self.written)
        self.servers: dict[str, Server] = {}
        self.orchestrator = FakeOrchestrator(
            on_start=self.server_starts, on_stop=self.server_stops, on_death=self.server_dies, start_delay=1.0
        )
        self.processes: list[Process] = []
        self.players: dict[int, Player] = {}
        self.begun = 0
        self.lives: Counter[str] = Counter()
        self.tokens: set[str] = set()
        """All that players who came back were given."""

    # What must be true at every moment.

    def written(self, bucket: str, key: str, before: Any, after: Any) -> None:
        if isinstance(after, SessionRecord) and before is None:
            self.lives[key] += 1
        if isinstance(after, SessionRecord) and isinstance(before, SessionRecord):
            if SESSION_ORDER.index(after.state) < SESSION_ORDER.index(before.state):
                self.wrong.append(f"session {key} went back from {before.state} to {after.state}")
            if after.client_id != before.client_id or after.generation < before.generation:
                self.wrong.append(f"session {key} changed its client id or lost a generation")
        if isinstance(after, DeploymentRecord):
            if len(after.seats) > after.capacity:
                self.wrong.append(f"{key} has {len(after.seats)} seats taken of {after.capacity}")
            if isinstance(before, DeploymentRecord) and DEPLOYMENT_ORDER.index(
                after.state
            ) < DEPLOYMENT_ORDER.index(before.state):
                self.wrong.append(f"deployment {key} went back from {before.state} to {after.state}")

    def failed(self, exc: BaseException) -> None:
        self.wrong.append(f"a task failed: {exc!r}")

    # Servers.

    def server_starts(self, spec: DeploySpec) -> None:
        self.servers[spec.deployment_id] = Server(self, spec)
        if len(self.orchestrator.living) > self.game.max_deployments:
            self.wrong.append(f"{len(self.orchestrator.living)} servers live")

    def server_stops(self, deployment_id: str) -> None:
        if server := self.servers.get(deployment_id):
            server.end()
            self.nats.write("gameservers", deployment_id, None, None, None)

    def server_dies(self, deployment_id: str) -> None:
        if server := self.servers.get(deployment_id):
            server.end()

    # Processes.

    def start(self) -> None:
        self.processes = [process for process in self.processes if not process.dead]
        if len(self.processes) < PROCESSES:
            self.begun += 1
            self.processes.append(
                start_process(
                    self.nats, f"m{self.begun}", games_of(self.game), self.orchestrator, self.failed
                )
            )

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    # Players.

    def ask(self, number: int, processes: list[Process], *, broadcast: bool) -> None:
        player = self.players.setdefault(number, Player())
        for process in processes:
            task = self.nats.spawn(self.play(player, process, broadcast=broadcast))
            process.tasks.add(task)
            task.add_done_callback(process.tasks.discard)

    async def play(self, player: Player, process: Process, *, broadcast: bool) -> None:
        began = self.loop.time()

        async def tell(text: str) -> None:
            pass

        request = PendingRequest(
            session_id=names.session_id(player.request_id),
            game=self.game,
            client_ip="",
            timeout=self.game.request_timeout,
            tell=tell,
            broadcast=broadcast,
        )
        try:
            await process.reach()
            ready = await process.matchmaker.parts.pending.play(request)
            await process.reach()
        except TipoffError:
            pass
        except Exception as exc:
            self.wrong.append(f"a request failed: {exc!r}")
        else:
            player.answers.append(ready)
            life = self.lives[ready.session_id]
            player.client_ids.setdefault(life, set()).add(ready.client_id)
        if not process.disturbed and self.loop.time() - began > self.game.request_timeout + 12:
            self.wrong.append(f"an answer took {self.loop.time() - began:.0f} s")

    def resume(self, number: int, process: Process) -> None:
        player = self.players.get(number)
        if player is not None and player.answers:
            task = self.nats.spawn(self.come_back(player, player.answers[-1], process))
            process.tasks.add(task)
            task.add_done_callback(process.tasks.discard)

    async def come_back(self, player: Player, seat: SessionReady, process: Process) -> None:
        """A player whose connection was lost asks for its seat; its server goes on saying that it is connected."""
        request = ResumeRequest(seat.session_id, str(seat.resume_key), self.game, "", 10.0)
        life = self.lives[seat.session_id]
        try:
            await process.reach()
            ready = await process.matchmaker.parts.resumption.resume(request)
            await process.reach()
        except TipoffError:
            return
        except Exception as exc:
            self.wrong.append(f"a resume request failed: {exc!r}")
            return
        if life == self.lives[seat.session_id] and (ready.client_id, ready.deployment_id) != (
            seat.client_id,
            seat.deployment_id,
        ):
            self.wrong.append(f"{seat.session_id} came back to another seat")
        if ready.token in self.tokens:
            self.wrong.append(f"{seat.session_id} got the same token twice")
        self.tokens.add(ready.token)
        player.answers.append(ready)

    def connect(self, number: int) -> None:
        player = self.players.get(number)
        if player is not None and player.answers:
            ready = player.answers[-1]
            self.servers[ready.deployment_id].connect(ready)

    def leave(self, number: int) -> None:
        player = self.players.get(number)
        if player is not None:
            for server in self.servers.values():
                server.leave(names.session_id(player.request_id))

    # Invariant G, when it is quiet.

    def check(self) -> None:
        connected = {session: server for server in self.servers.values() for session in server.connected}
        sessions: dict[str, SessionRecord] = self.nats.values("sessions")
        open_ = {id: record for id, record in sessions.items() if record.state is not SessionState.GONE}
        assert set(open_) == set(connected), "those who play are those who have a session"
        assert all(record.state is SessionState.ACTIVE for record in open_.values())
        deployments: dict[str, DeploymentRecord] = self.nats.values("deployments")
        live = {id: record for id, record in deployments.items() if is_live(record)}
        seats = sorted(seat for record in live.values() for seat in record.seats)
        assert seats == sorted(connected), "a seat for each, and no other"
        assert all(session in live[server.id].seats for session, server in connected.items())
        assert sorted(self.orchestrator.living) == sorted(live), "what runs is what is written down"
        assert all(record.seats for record in live.values()), "no server without players"
        reserved = [id for fleet in self.nats.values("fleets").values() for id in fleet.deployments]
        assert sorted(reserved) == sorted(live)
        assert set(self.nats.values("active_connections")) == set(connected)
        assert all(times == 1 for times in self.orchestrator.started.values()), "nothing starts twice"
        for player in self.players.values():
            for life, ids in player.client_ids.items():
                assert len(ids) == 1, f"client ids of one request id: {ids} in life {life}"
        assert not self.wrong, self.wrong


fates = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, PLAYERS - 1), st.integers(0, PROCESSES - 1)),
    st.tuples(st.just("ask all"), st.integers(0, PLAYERS - 1)),
    st.tuples(st.just("connect"), st.integers(0, PLAYERS - 1)),
    st.tuples(st.just("resume"), st.integers(0, PLAYERS - 1), st.integers(0, PROCESSES - 1)),
    st.tuples(st.just("leave"), st.integers(0, PLAYERS - 1)),
    st.tuples(st.just("start")),
    st.tuples(st.just("crash"), st.integers(0, PROCESSES - 1)),
    st.tuples(st.just("stop"), st.integers(0, PROCESSES - 1)),
    st.tuples(st.just("crash at step"), st.integers(0, PROCESSES - 1), st.integers(1, 60)),
    st.tuples(st.just("stop at step"), st.integers(0, PROCESSES - 1), st.integers(1, 60)),
    st.tuples(st.just("go on"), st.integers(0, PROCESSES - 1)),
    st.tuples(st.just("kill server"), st.integers(0, 9)),
    st.tuples(st.just("lose server"), st.integers(0, 9)),
    st.tuples(st.just("trouble"), st.sampled_from([0.0, 0.1, 0.5])),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.1, 3.0, 8.0, 30.0, 70.0])),
)


async def _befall(world: World, fate: tuple[Any, ...]) -> None:
    processes, servers = world.living(), world.orchestrator.living
    match fate:
        case ("ask", player, number) if processes:
            world.ask(player, [processes[number % len(processes)]], broadcast=False)
        case ("ask all", player):
            world.ask(player, processes, broadcast=True)
        case ("resume", player, number) if processes:
            world.resume(player, processes[number % len(processes)])
        case ("connect", player):
            world.connect(player)
        case ("leave", player):
            world.leave(player)
        case ("start",):
            world.start()
        case ("crash", number) if processes:
            crash(processes[number % len(processes)])
        case ("stop", number) if processes:
            stop(processes[number % len(processes)])
        case ("crash at step", number, steps) if processes:
            process = processes[number % len(processes)]
            process.at_step[steps] = partial(crash, process)
        case ("stop at step", number, steps) if processes:
            process = processes[number % len(processes)]
            process.at_step[steps] = partial(stop, process)
        case ("go on", number) if processes:
            processes[number % len(processes)].running.set()
        case ("kill server", number) if servers:
            await world.orchestrator.kill(servers[number % len(servers)])
        case ("lose server", number) if servers:
            await world.orchestrator.vanish(servers[number % len(servers)])
        case ("trouble", share):
            world.nats.trouble = share
        case ("wait", seconds):
            await asyncio.sleep(seconds)  # virtual time
        case _:
            pass


async def _story(loop: VirtualLoop, story: list[tuple[Any, ...]], seed: int) -> World:
    world = World(loop, seed)
    world.start()
    world.start()
    await asyncio.sleep(1)  # virtual time
    for fate in story:
        await _befall(world, fate)
        await asyncio.sleep(0)
    world.nats.trouble = 0.0
    for process in world.living():
        process.at_step.clear()
        process.running.set()
    world.start()
    await asyncio.sleep(QUIET)  # virtual time
    world.check()
    for number in range(PLAYERS):
        world.leave(number)
    await asyncio.sleep(QUIET)  # virtual time
    world.check()
    assert not world.orchestrator.living
    await world.orchestrator.close()
    return world


def run_story(story: list[tuple[Any, ...]], seed: int) -> World:
    return run_world(lambda loop: _story(loop, story, seed), seed)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Stories are full of warnings."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


QUICK = hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_the_buckets_of_this_world_can_do_what_a_bucket_can() -> None:
    """What the matchmaker calls and this world lacks would end its rounds, and no story would tell why."""
    lacks = {name for name in vars(Bucket) if not name.startswith("_") and not hasattr(MemoryStore, name)}
    assert lacks == {"heard_since", "listen", "newer", "purge", "wait_reachable"}, "others call these"


@given(story=st.lists(fates, max_size=40), seed=st.integers(0, 2**32 - 1))
@QUICK
def test_whatever_happens_nothing_leaks(story: list[tuple[Any, ...]], seed: int) -> None:
    """A few stories; the long run has more."""
    run_story(story, seed)


@pytest.mark.slow
@pytest.mark.timeout(300)
@given(story=st.lists(fates, min_size=15, max_size=80), seed=st.integers(0, 2**32 - 1))
@hypothesis_settings(QUICK, max_examples=120)
def test_whatever_happens_in_many_long_stories_nothing_leaks(story: list[tuple[Any, ...]], seed: int) -> None:
    """The same, more often and for longer."""
    run_story(story, seed)


@pytest.mark.parametrize("step", range(1, 60, 6))
def test_a_matchmaker_dies_at_any_step_of_a_request(step: int) -> None:
    """One request, and its matchmaker gone after so many of its reads and writes; the other one is asked then."""
    crash_then_ask_again = [
        ("crash at step", 0, step),
        ("ask", 0, 0),
        ("wait", 3.0),
        ("ask all", 0),
        ("wait", 8.0),
    ]
    world = run_story([*crash_then_ask_again, ("connect", 0), ("wait", 3.0), ("leave", 0)], seed=step)
    assert world.players[0].answers
    assert len(world.orchestrator.started) == 1
