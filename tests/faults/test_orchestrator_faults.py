"""What orchestrators do wrong: errors, silence, nonsense, late and lost servers, lists and events that lie.

The fake orchestrator does it to order; the launcher's wire is driven by a launcher that lies; and where real processes
matter, a real launcher starts them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from matchmaker_world import ARENA, KEY, World, failed

from tipoff_launcher.service import Launcher, run_launcher
from tipoff_launcher.settings import Settings as LauncherSettings
from tipoff_matchmaker import endings
from tipoff_matchmaker.run import run_matchmaker
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    OrchestratorError,
    OrchestratorUnavailable,
    Port,
    RunState,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats_connection import connect
from tipoff_shared.records import DeploymentState, SessionState
from tipoff_shared.settings import NatsSettings

BUSY = OrchestratorUnavailable("503 busy", retryable=True)


@pytest.fixture
async def world(settings: NatsSettings) -> AsyncIterator[World]:
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world


async def playing(world: World) -> SessionReady:
    ready = await world.play()
    await world.server_of(ready).connect(ready)
    await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    return ready


def deploys(world: World) -> Counter[str]:
    return Counter(id for operation, id in world.fake.calls if operation == "deploy")


# 37: errors.


@pytest.mark.row(37)
async def test_a_deployment_is_tried_five_times_at_most(world: World) -> None:
    """Then its players are told, with a time to come back; nothing is left, and nobody hammers."""
    world.fake.fail("deploy", BUSY, times=1000)
    async with world.matchmaker(start_failures=3, breaker_pause=0.2):
        answers = await world.ask()
        error = failed(await answers.end())
        assert error.code == 502
        assert float(answers.headers["Retry-After"]) >= 5
        assert max(deploys(world).values()) == 5
        assert deploys(world).total() <= 5 + 2 + 2, "an open breaker lets one call of a start through"
        await world.nothing_is_left()


@pytest.mark.row(37)
async def test_retry_after_is_kept_to(world: World) -> None:
    """Two answers "not before 0.4 s": the third call comes 0.8 s later, and the player plays."""
    world.fake.fail("deploy", OrchestratorUnavailable("429", retryable=True, retry_after=0.4), times=2)
    async with world.matchmaker():
        began = time.monotonic()
        assert isinstance(await world.play(), SessionReady)
        assert time.monotonic() - began >= 0.8
        assert deploys(world).total() == 3


@pytest.mark.row(37)
async def test_while_the_orchestrator_is_away_players_are_told_at_once(world: World) -> None:
    """As soon as it has failed often enough; and when it is back, they play."""
    world.fake.fail("deploy", BUSY, times=7)
    async with world.matchmaker(start_failures=1, breaker_pause=1.0) as matchmaker:
        assert failed(await (await world.ask()).end()).code == 502
        calls = deploys(world).total()
        began = time.monotonic()
        answers = await world.ask()
        assert failed(await answers.end()).code == 502
        assert time.monotonic() - began < 0.5
        assert deploys(world).total() == calls, "it is left alone"

        async def back() -> bool:
            return matchmaker.orchestrators["fake"].wait("deploy") == 0

        await world.eventually(back, "it may be asked again")
        world.fake._errors["deploy"].clear()
        assert isinstance(await world.play(), SessionReady)


@pytest.mark.row(37)
async def test_those_who_wait_meanwhile_are_told_how_long(world: World) -> None:
    """Not yet hopeless: they wait, hear when the next try is, and play."""
    world.fake.fail("deploy", BUSY, times=5)
    async with world.matchmaker(breaker_pause=1.0):
        answers = await world.ask()
        assert isinstance(await answers.end(), SessionReady)
        assert any("trying again in 1 s" in text for text in answers.progress)


@pytest.mark.row(37)
async def test_no_room_is_waited_out_as_long_as_was_asked(world: World) -> None:
    """Quota is not trouble: no breaker, no failure, but no hammering either."""
    world.fake.fail("deploy", NoCapacity("quota", retryable=True, retry_after=0.3), times=2)
    async with world.matchmaker() as matchmaker:
        began = time.monotonic()
        assert isinstance(await world.play(), SessionReady)
        assert time.monotonic() - began >= 0.6
        assert matchmaker.orchestrators["fake"].describe().state == "closed"


# 38: late servers.


@pytest.mark.row(38)
async def test_a_server_created_after_everybody_gave_it_up_is_stopped(world: World) -> None:
    """The call timed out, the server was stopped, and then it comes: an orphan, gone within two grace periods."""
    grace = 0.6
    world.fake.start_late(1.0)
    async with world.matchmaker(deploy_tries=1, orphan_grace=grace, start_failures=5):
        ready = await world.play()
        (late,) = [id for id in deploys(world) if id != ready.deployment_id]

        async def came() -> bool:
            return world.fake.started[late] == 1

        await world.eventually(came, "the late one is there")
        began = time.monotonic()

        async def went() -> bool:
            return late not in world.fake.living

        await world.eventually(went, "the late one is stopped")
        assert time.monotonic() - began < 2 * grace + 1
        assert ready.deployment_id in world.fake.living


@pytest.mark.row(38)
async def test_a_server_that_was_started_though_the_answer_was_lost_is_used(world: World) -> None:
    """The repeat finds it by its tag."""
    world.fake.lose_answers(2)
    async with world.matchmaker():
        ready = await world.play()
        assert dict(world.fake.started) == {ready.deployment_id: 1}


# 39, 40: silence and nonsense on the launcher's wire.


class LyingLauncher:
    """Answers what the test says, to every operation; None: nothing at all."""

    def __init__(self) -> None:
        self.replies: dict[str, Callable[[dict[str, object]], bytes | None]] = {}
        self.asked: Counter[str] = Counter()

    async def serve(self, world: World) -> None:
        for operation in ("deploy", "get", "stop", "list"):
            await world.bus.nc.subscribe(
                world.bus.subjects.launcher("local", operation), cb=self._answering(operation)
            )
        await world.bus.flush()

    def _answering(self, operation: str):  # type: ignore[no-untyped-def] # a callback of nats-py
        async def answer(msg) -> None:  # type: ignore[no-untyped-def]
            self.asked[operation] += 1
            reply = self.replies.get(operation, lambda asked: b"{}")(msgspec.json.decode(msg.data))
            if reply is not None:
                await msg.respond(reply)

        return answer


def started(asked: dict[str, object], **changes: object) -> bytes:
    """A launcher's answer to deploy, with something changed."""
    known = {name: asked[name] for name in ("deployment_id", "game", "version")}
    return msgspec.json.encode({"deployment": {**known, "state": "running", **changes}})


def udp(external: object) -> dict[str, object]:
    return {"udp": {"internal": 1, "external": external, "protocol": "UDP"}}


NONSENSE: dict[str, Callable[[dict[str, object]], bytes | None]] = {
    "silence": lambda asked: None,
    "empty": lambda asked: b"",
    "not JSON": lambda asked: b"<html>502 Bad Gateway</html>",
    "cut short": lambda asked: started(asked)[:-9],
    "a list": lambda asked: b"[]",
    "deep": lambda asked: b"[" * 100_000,
    "huge": lambda asked: b'{"deployment": "' + b"x" * 900_000 + b'"}',
    "nothing": lambda asked: b"{}",
    "another one's": lambda asked: started(asked, deployment_id="arena-other"),
    "null host": lambda asked: started(asked, host=None),
    "port 70000": lambda asked: started(asked, host="127.0.0.1", ports=udp(70000)),
    "port as text": lambda asked: started(asked, host="127.0.0.1", ports=udp("http")),
    "unknown state": lambda asked: started(asked, state="confused"),
    "an odd error": lambda asked: b'{"error": {"kind": "?", "message": "?", "retryable": true}}',
}


QUICK = ("silence", "not JSON", "port 70000")
"""The others differ from these in how they are read, not in what follows."""


@asynccontextmanager
async def by_wire(world: World, game: Game = ARENA, **changes: object) -> AsyncIterator[Matchmaker]:
    """A matchmaker whose only orchestrator is reached by the launcher's wire, with short deadlines."""
    quick = LauncherOrchestrator(world.bus, deadline=0.3, deploy_deadline=0.3, stop_deadline=0.3)
    async with world.matchmaker(
        game, orchestrator=quick, deploy_tries=2, start_failures=1, breaker_pause=0.2, **changes
    ) as matchmaker:
        yield matchmaker


@pytest.mark.row(39, 40)
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(reply, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, reply in NONSENSE.items()
    ],
)
async def test_an_answer_that_is_no_answer_is_a_typed_error_in_time(
    world: World, reply: Callable[[dict[str, object]], bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The player hears 502, the server that may be there is stopped, nothing is left."""
    monkeypatch.setattr(endings, "STOP_RETRY", 0.3)
    launcher = LyingLauncher()
    launcher.replies = dict.fromkeys(("deploy", "get", "list", "stop"), reply)
    await launcher.serve(world)
    async with by_wire(world):
        answers = await world.ask(timeout=5)
        assert failed(await answers.end()).code == 502
        assert launcher.asked["deploy"] == 2
        launcher.replies.clear()  # it has come to its senses
        await world.nothing_is_left()
        assert launcher.asked["stop"] >= 1


@pytest.mark.row(40)
async def test_a_server_that_runs_without_ports_is_given_up(world: World) -> None:
    """For a game that is ready when it runs: nobody could dial it."""
    launcher = LyingLauncher()
    launcher.replies["deploy"] = started
    launcher.replies["list"] = lambda asked: b'{"deployments": []}'
    await launcher.serve(world)
    async with by_wire(world, msgspec.structs.replace(ARENA, ready="running")):
        answers = await world.ask(timeout=5)
        assert failed(await answers.end()).code == 502
        await world.nothing_is_left()


@pytest.mark.row(39)
def test_an_answer_beyond_all_measure_is_not_even_read() -> None:
    """Whatever NATS would let through."""
    with pytest.raises(OrchestratorUnavailable, match="over 8388608 bytes"):
        wire.decode_deployments(b" " * (wire.MAX_REPLY + 1))


@pytest.mark.row(39)
async def test_an_orchestrator_that_hangs_does_not_stop_the_sweep(world: World) -> None:
    """Sessions end and seats come free while it answers nothing."""
    async with world.matchmaker() as matchmaker:
        ready = await playing(world)
        hang = asyncio.Event()
        inner = matchmaker.orchestrators["fake"]._inner

        async def never() -> list[Deployment]:
            await hang.wait()
            return []

        inner.list = never  # type: ignore[method-assign] # the fault
        matchmaker.orchestrators["fake"]._limits = dict.fromkeys(("deploy", "get", "stop", "list"), 0.2)
        await world.server_of(ready).disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.nothing_is_left()


# 41: never ready.


@pytest.mark.row(41)
async def test_a_server_that_is_never_ready_costs_a_player_no_more_than_the_deadline(world: World) -> None:
    """408 when it is over; the server is deleted."""
    world.fake.never_ready(100)
    async with world.matchmaker(msgspec.structs.replace(ARENA, start_timeout=1.2)):
        began = time.monotonic()
        answers = await world.ask(timeout=1.0)
        assert failed(await answers.end()).code == 408
        assert 0.9 < time.monotonic() - began < 2
        await world.nothing_is_left()


# 42: ready, and then not any more.


@pytest.mark.row(42)
@pytest.mark.parametrize("how", ["dies without an event", "vanishes"])
async def test_what_is_gone_is_noticed_within_two_sweeps(world: World, how: str) -> None:
    """Its sessions close, its seats are free."""
    async with world.matchmaker(sweep_interval=3600) as matchmaker:
        ready = await playing(world)
        if how == "vanishes":
            await world.fake.vanish(ready.deployment_id)
        else:
            world.fake.lose_events()
            await world.fake.kill(ready.deployment_id)
        for _ in range(2):
            await matchmaker.sweep.once()
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason
        await world.deployment_becomes(ready.deployment_id, DeploymentState.GONE)
        assert await world.seats() == []


# 43: events.


@pytest.mark.row(43)
async def test_events_move_nothing_without_being_confirmed(world: World) -> None:
    """Ten times, out of order, forged, of unknown servers: who plays goes on playing."""
    async with world.matchmaker() as matchmaker:
        ready = await playing(world)
        (truth,) = await world.fake.list()
        stopped = replace(truth, state=RunState.STOPPED, reason="forged")
        asked = len(world.fake.calls)
        for _ in range(10):
            world.fake.tell(stopped)
            world.fake.tell(replace(truth, state=RunState.STARTING))
            world.fake.tell(replace(stopped, deployment_id="unknown"))

        async def confirmed() -> bool:
            return ("get", ready.deployment_id) in world.fake.calls[asked:]

        await world.eventually(confirmed, "it was asked")
        await matchmaker.sweep.once()
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        assert (await world.play()).deployment_id == ready.deployment_id
        assert ("get", "unknown") not in world.fake.calls


@pytest.mark.row(43)
async def test_a_forged_event_leads_no_player_astray(world: World) -> None:
    """For a game that is ready when it runs: where it runs is asked, not believed."""
    world.announce = False
    world.fake.never_ready()
    truth = world.with_ports(udp=7777)
    async with world.matchmaker(msgspec.structs.replace(ARENA, ready="running"), orchestrator=truth):
        answers = await world.ask()
        await world.eventually(lambda: world.living(1), "it starts")
        (starting,) = await world.fake.list()
        forged = replace(
            starting, state=RunState.RUNNING, host="203.0.113.66", ports={"udp": Port(1, 666, "UDP")}
        )
        world.fake.tell(forged)

        async def confirmed() -> bool:
            return ("get", starting.deployment_id) in world.fake.calls

        await world.eventually(confirmed, "it was asked")
        assert not any(isinstance(feedback, SessionReady) for feedback in answers.seen)
        world.fake._update(starting.deployment_id, RunState.RUNNING)
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert (ready.ip, ready.port) == ("127.0.0.1", 7777)


# 44: stopping.


@pytest.mark.row(44)
@pytest.mark.parametrize("failures", [3, 7])
async def test_a_stop_that_fails_is_repeated_until_it_is_done(
    world: World, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the same ending, and by the sweep after that; the record stays until then."""
    monkeypatch.setattr(endings, "STOP_RETRY", 0.3)
    async with world.matchmaker(breaker_pause=0.2):
        ready = await playing(world)
        world.fake.fail("stop", OrchestratorUnavailable("500", retryable=True), times=failures)
        await world.server_of(ready).disconnect(ready)
        await world.nothing_is_left()
        assert sum(operation == "stop" for operation, _ in world.fake.calls) > failures


@pytest.mark.row(44)
async def test_stopping_what_is_gone_already_is_done(world: World) -> None:
    """404 and 410 are success: it died while nobody looked, and is then stopped."""
    async with world.matchmaker(sweep_interval=3600) as matchmaker:
        ready = await playing(world)
        await world.fake.vanish(ready.deployment_id)
        matchmaker.fleet.end(ready.deployment_id, "not needed")
        await world.deployment_becomes(ready.deployment_id, DeploymentState.GONE)


# 45: lists that lie.


@pytest.mark.row(45)
async def test_an_empty_list_ends_nobody(world: World) -> None:
    """Eight full servers, and list after list is empty though all are well."""
    crowd = msgspec.structs.replace(ARENA, seats=1, max_deployments=8)
    async with world.matchmaker(crowd) as matchmaker:
        readies = [await playing(world) for _ in range(8)]
        world.fake.empty_lists(10)
        for _ in range(4):
            await matchmaker.sweep.once()
        for ready in readies:
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        assert len(world.fake.living) == 8


@pytest.mark.row(45)
async def test_at_most_a_few_servers_are_ended_on_suspicion(world: World) -> None:
    """All leases are gone, and the orchestrator confirms nothing: three in a sweep, and the alarm."""
    crowd = msgspec.structs.replace(ARENA, seats=1, max_deployments=8)
    async with world.matchmaker(crowd, sweep_interval=3600, lease_ttl=0.1, lease_grace=0.05) as matchmaker:
        for _ in range(8):
            await playing(world)
        for server in world.servers.values():
            server.die()
            await world.stores.gameservers.forget(server.id, 2**62)
        world.fake.fail("get", BUSY, times=100)
        await matchmaker.sweep.once()
        await asyncio.sleep(0.1)  # the grace itself
        await matchmaker.sweep.once()
        await world.eventually(lambda: world.living(5), "three are ended")
        assert matchmaker.metrics.registry.get_sample_value("tipoff_matchmaker_brake_total") == 5


# With real processes.


@pytest.fixture
async def launcher(world: World, tmp_path: Path) -> AsyncIterator[Launcher]:
    """A real launcher with three games: one that serves, one that never says anything, one that cannot start."""
    async with run_launcher(
        LauncherSettings(state_dir=tmp_path / "launcher", stop_grace=0.5, stop_servers_on_exit=True),
        process_games(tmp_path),
        world.nats_settings,
    ) as launcher:
        yield launcher


def process_games(base: Path) -> Games:
    silent, broken = base / "silent.sh", base / "broken.sh"
    silent.write_text("#!/bin/sh\nexec sleep 300\n")
    broken.write_text("#!/bin/sh\necho 'no map called dust2' >&2\nexit 3\n")
    for script in (silent, broken):
        script.chmod(stat.S_IRWXU)
    commands = {
        "serves": ["python", "-m", "tipoff_arena.server"],
        "silent": [str(silent)],
        "broken": [str(broken)],
    }
    games = {
        (name, "1"): Game(
            name,
            "1",
            seats=4,
            max_deployments=2,
            empty_ttl=60,
            start_timeout=10 if name == "serves" else 1.5,
            process=ProcessSpec(command, env={"ARENA_BOTS": "0"}),
        )
        for name, command in commands.items()
    }
    return Games(games, dict.fromkeys(games, KEY), base)


@asynccontextmanager
async def with_processes(
    world: World, launcher: Launcher, tmp_path: Path, orchestrator: LauncherOrchestrator | None = None
) -> AsyncIterator[Matchmaker]:
    settings = Settings(
        sweep_interval=0.3, listing_interval=0.3, backoff=0.05, lease_grace=2, start_failures=2
    )
    async with run_matchmaker(
        settings,
        process_games(tmp_path),
        world.nats_settings,
        {"launcher": orchestrator or LauncherOrchestrator(world.bus)},
    ) as matchmaker:
        yield matchmaker


def pid_of(launcher: Launcher, deployment_id: str) -> int:
    deployment = launcher.servers.get(deployment_id)
    assert deployment is not None
    return int(deployment.native_id.partition("@")[0])


async def launched(launcher: Launcher, count: int, world: World) -> None:
    async def there() -> bool:
        return len(launcher.servers.living()) == count

    await world.eventually(there, f"{count} processes run", timeout=10)


@pytest.mark.slow
@pytest.mark.row(42, 44)
async def test_a_killed_process_frees_its_seats(world: World, launcher: Launcher, tmp_path: Path) -> None:
    """kill -9: the session ends within a second or so, by the launcher's event; stopping what is dead is done."""
    async with with_processes(world, launcher, tmp_path):
        ready = await (await world.ask("serves")).end(timeout=15)
        assert isinstance(ready, SessionReady)
        began = time.monotonic()
        os.kill(pid_of(launcher, ready.deployment_id), signal.SIGKILL)
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert time.monotonic() - began < 3
        assert "SIGKILL" in session.reason
        await launched(launcher, 0, world)


@pytest.mark.slow
@pytest.mark.row(41)
async def test_a_process_that_never_says_anything_is_ended(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """408 at the player's deadline, and the process is not left running."""
    async with with_processes(world, launcher, tmp_path):
        answers = await world.ask("silent", timeout=1.0)
        assert failed(await answers.end()).code == 408
        await launched(launcher, 0, world)


@pytest.mark.row(37)
async def test_a_process_that_cannot_start_is_told_soon(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """502; its exit is no trouble of the launcher's, so no breaker opens."""
    async with with_processes(world, launcher, tmp_path) as matchmaker:
        assert failed(await (await world.ask("broken")).end()).code == 502
        await launched(launcher, 0, world)
        assert matchmaker.orchestrators["launcher"].describe().state == "closed"


class LosesAnswers(LauncherOrchestrator):
    """The launcher does as told, and the first answers do not arrive."""

    def __init__(self, world: World, times: int) -> None:
        super().__init__(world.bus)
        self.times = times
        self.asked: list[str] = []

    async def deploy(self, spec: DeploySpec) -> Deployment:
        self.asked.append(spec.deployment_id)
        deployment = await super().deploy(spec)
        if self.times > 0:
            self.times -= 1
            raise OrchestratorUnavailable("no answer in time", retryable=True, may_have_started=True)
        return deployment


@pytest.mark.slow
@pytest.mark.row(38)
async def test_a_process_whose_start_was_not_confirmed_is_used(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """One process, however often it was asked for."""
    orchestrator = LosesAnswers(world, times=2)
    async with with_processes(world, launcher, tmp_path, orchestrator):
        ready = await (await world.ask("serves")).end(timeout=15)
        assert isinstance(ready, SessionReady)
        assert orchestrator.asked == [ready.deployment_id] * 3
        assert [d.deployment_id for d in launcher.servers.living()] == [ready.deployment_id]


@pytest.mark.row(38)
async def test_a_process_that_nobody_remembers_is_ended(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """Started by a call whose caller is gone, in no record."""
    async with run_matchmaker(
        Settings(sweep_interval=0.2, orphan_grace=0.5),
        process_games(tmp_path),
        world.nats_settings,
        {"launcher": LauncherOrchestrator(world.bus)},
    ):
        await LauncherOrchestrator(world.bus).deploy(DeploySpec("silent-1", "silent", "1", 4))
        assert len(launcher.servers.living()) == 1
        await launched(launcher, 0, world)


@pytest.mark.row(43)
async def test_a_forged_event_ends_no_process(world: World, launcher: Launcher, tmp_path: Path) -> None:
    """Anybody on NATS may say that it stopped; the launcher is asked, and says no."""
    async with run_matchmaker(
        Settings(sweep_interval=3600),
        process_games(tmp_path),
        world.nats_settings,
        {"launcher": LauncherOrchestrator(world.bus)},
    ) as matchmaker:
        await world.ask("silent", timeout=5)
        await launched(launcher, 1, world)
        (deployment,) = launcher.servers.living()
        forged = wire.encode_deployment(replace(deployment, state=RunState.STOPPED, reason="forged"))
        for _ in range(10):
            await world.bus.publish(world.bus.subjects.launcher("local", "events"), forged)
        await world.bus.flush()
        await matchmaker.sweep.once()
        record = matchmaker.ledger.get(deployment.deployment_id)
        assert record is not None
        assert record.state is DeploymentState.STARTING
        assert launcher.servers.living() == [deployment]
        with pytest.raises(OrchestratorError):
            wire.decode_deployment(b"forged")
