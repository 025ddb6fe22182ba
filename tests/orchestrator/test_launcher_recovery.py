"""A launcher that follows another one, which stopped or was killed: what it adopts and what it stops."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.launcher_world import KEY, LauncherWorld, Spec, lease
from tests.polling import eventually
from tipoff_launcher.backends.process.identity import Identity, identify, lives
from tipoff_launcher.records import Record, Records
from tipoff_orchestrator_client.base import OrchestratorUnavailable, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.settings import NatsSettings

StartProcess = Callable[..., Any]


@pytest.fixture
def launcher_process(
    launchers: LauncherWorld, settings: NatsSettings, games: Games, client: LauncherOrchestrator
) -> StartProcess:
    """Starts `python -m tipoff_launcher` on the test's state directory."""
    toml = games.base / "games.toml"
    toml.write_text(
        "".join(
            f'[[game]]\nname = "{game.name}"\nversion = "1"\nprivate_key_env = "KEY"\nstart_timeout = 1\n'
            f"[game.process]\ncommand = {list(game.process.command)}\n"
            for game in games.all()
            if game.process
        )
    )

    @asynccontextmanager
    async def start(**more: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tipoff_launcher",
            env={
                **os.environ,
                **settings.to_environment(),
                "KEY": KEY.reveal().hex(),
                "TIPOFF_GAMES": str(toml),
                "TIPOFF_LAUNCHER_STATE_DIR": str(launchers.settings.state_dir),
                "TIPOFF_LAUNCHER_STOP_GRACE": "0.4",
                "TIPOFF_LAUNCHER_ADOPT_GRACE": "0.5",
                **more,
            },
            stderr=subprocess.PIPE,
        )
        try:

            async def answers() -> bool:
                assert process.returncode is None, await words(process)
                try:
                    await client.list()
                except OrchestratorUnavailable:
                    return False
                return True

            await eventually(answers, timeout=15)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await words(process)

    return start


async def words(process: asyncio.subprocess.Process) -> str:
    _, said = await process.communicate()
    return said.decode()


async def kill(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGKILL)
    await process.wait()


async def test_servers_of_a_killed_launcher_play_on_and_are_adopted(
    launchers: LauncherWorld,
    launcher_process: StartProcess,
    client: LauncherOrchestrator,
    kv: Buckets,
    spec: Spec,
) -> None:
    """After kill -9 the servers run on; the next launcher knows them, notices their end and can stop them."""
    wanted, doomed = spec(), spec()
    async with launcher_process() as process:
        before = [await client.deploy(wanted), await client.deploy(doomed)]
        for each in (wanted, doomed):
            await kv.gameservers.put(each.deployment_id, lease(each), ttl=60)
        await kill(process)
    async with launchers.start() as launcher:
        assert await client.list() == before
        for each in (wanted, doomed):  # during an exec a process shows no environment for a moment
            await eventually(lambda id=each.deployment_id: len(launchers.servers(id)) == 1)
        assert (await client.deploy(wanted)).native_id == before[0].native_id
        os.kill(launchers.servers(doomed.deployment_id)[0], signal.SIGKILL)
        await eventually(lambda: not launcher.supervisor.runs(doomed.deployment_id), timeout=1)
        await asyncio.sleep(launcher.settings.adopt_grace * 2)  # it lives on when the grace is over
        assert len(launchers.servers(wanted.deployment_id)) == 1
        await client.stop(wanted.deployment_id)
        assert launchers.servers(wanted.deployment_id) == []


@pytest.mark.row(79)
async def test_the_log_of_a_server_goes_on_when_its_launcher_is_killed(
    launchers: LauncherWorld,
    launcher_process: StartProcess,
    client: LauncherOrchestrator,
    kv: Buckets,
    spec: Spec,
) -> None:
    """No line is missing, neither while no launcher runs nor after the next one has taken over."""
    wanted = spec("ticker")
    async with launcher_process() as process:
        deployment = await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
        await more_lines(launchers, wanted.deployment_id)
        await kill(process)
    await more_lines(launchers, wanted.deployment_id)
    identity = Identity.parse(deployment.native_id)
    assert identity is not None
    assert lives(identity)
    async with launchers.start():
        await more_lines(launchers, wanted.deployment_id)
        await client.stop(wanted.deployment_id)
        numbers = [int(line) for line in launchers.log_of(wanted.deployment_id).split()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert not list(launchers.server_directory(wanted.deployment_id).glob(".*.pipe"))


async def more_lines(launchers: LauncherWorld, deployment_id: str) -> None:
    before = launchers.log_of(deployment_id).count("\n")
    await eventually(lambda: launchers.log_of(deployment_id).count("\n") > before + 10)


async def test_an_orphan_without_a_lease_is_stopped_after_the_grace(
    launchers: LauncherWorld,
    launcher_process: StartProcess,
    client: LauncherOrchestrator,
    kv: Buckets,
    spec: Spec,
) -> None:
    """It is not stopped before NATS was reachable for the grace and its start has timed out."""
    wanted = spec("family")
    async with launcher_process() as process:
        await client.deploy(wanted)
        await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 3)
        await kill(process)
    begin = time.monotonic()
    async with launchers.start():
        assert len(await client.list()) == 1
        await eventually(lambda: launchers.servers(wanted.deployment_id) == [])
        assert time.monotonic() - begin > 0.5
        await eventually(lambda: launchers.is_stopped(wanted))


async def test_a_server_that_ended_while_no_launcher_ran_is_known_to_have_ended(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Its record says so, its key is removed, and its child processes are stopped."""
    wanted = spec("family")
    async with launchers.start(stop_servers_on_exit=False):
        deployment = await client.deploy(wanted)
        await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 3)
    identity = Identity.parse(deployment.native_id)
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, identity.pid, 0)
    await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 2)
    async with launchers.start() as launcher:
        assert await client.list() == []
        known = await client.get(wanted.deployment_id)
        assert known is not None
        assert known.state is RunState.STOPPED
        assert not list(launcher.settings.state_dir.glob("deployments/*/private_key"))
        await eventually(lambda: launchers.servers(wanted.deployment_id) == [])


async def test_a_pid_that_was_used_again_is_left_alone(
    launchers: LauncherWorld, client: LauncherOrchestrator, namespace: str
) -> None:
    """Another process with the recorded pid is neither adopted nor killed."""
    with a_stranger() as pid:
        identity = identify(pid)
        assert identity is not None
        earlier = dataclasses.replace(identity, started=identity.started[:-1] + "x")
        record = running_record("reused-1", namespace, native_id=str(earlier))
        Records(launchers.settings.state_dir).save(record)
        async with launchers.start():
            assert await client.list() == []
            await client.stop("reused-1")
            known = await client.get("reused-1")
            assert known is not None
            assert known.state is RunState.STOPPED
        assert identify(pid) == identity


@contextmanager
def a_stranger() -> Iterator[int]:
    """The pid of a process that no launcher has started."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def running_record(id: str, namespace: str, **more: Any) -> Record:
    return Record(id, namespace, "sleeper", "1", RunState.RUNNING, "process", created_at=time.time(), **more)


async def test_a_crash_between_the_record_and_the_start_leaves_the_id_free(
    launchers: LauncherWorld, client: LauncherOrchestrator, namespace: str, spec: Spec
) -> None:
    """Nothing had run, so repeating the deploy starts the server, once."""
    wanted = spec()
    record = Record(
        wanted.deployment_id, namespace, "sleeper", "1", RunState.STARTING, "process", created_at=time.time()
    )
    Records(launchers.settings.state_dir).save(record)
    async with launchers.start():
        assert await client.get(wanted.deployment_id) is None
        answers = await asyncio.gather(*(client.deploy(wanted) for _ in range(5)))
        assert len({answer.native_id for answer in answers}) == 1
        await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 1)


async def test_a_stop_that_a_crash_interrupted_is_carried_through(
    launchers: LauncherWorld, client: LauncherOrchestrator, kv: Buckets, spec: Spec
) -> None:
    """The record says that it must stop, so it stops despite its lease."""
    wanted = spec()
    async with launchers.start(stop_servers_on_exit=False) as launcher:
        await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
        records = Records(launcher.settings.state_dir)
        (record,), _ = records.load()
    stopping = {f: getattr(record, f) for f in record.__struct_fields__} | {"stopping": True}
    records.save(Record(**stopping))
    async with launchers.start():
        await eventually(lambda: launchers.servers(wanted.deployment_id) == [])
        known = await client.get(wanted.deployment_id)
        assert known is not None


async def test_records_that_are_not_ours_or_cannot_be_read_harm_nobody(
    launchers: LauncherWorld, client: LauncherOrchestrator, namespace: str, spec: Spec
) -> None:
    """Another namespace's server is not touched; damaged files are kept for the operator, without the key."""
    with a_stranger() as pid:
        records = Records(launchers.settings.state_dir)
        records.save(running_record("theirs-1", "somebody", native_id=str(identify(pid))))
        for name, content in (("broken-1", b"{"), ("broken-2", b"\xff\x00"), ("Odd Name", b"{}")):
            (records.root / name).mkdir()
            (records.root / name / "record.json").write_bytes(content)
            (records.root / name / "private_key").write_bytes(b"secret")
        (records.root / "a-file").touch()
        async with launchers.start():
            assert await client.list() == []
            await client.deploy(spec())
        identity = identify(pid)
        assert identity is not None
        assert lives(identity)
        assert not list(records.root.glob("*/private_key"))


async def test_with_die_with_parent_no_server_outlives_a_killed_launcher(
    launchers: LauncherWorld, launcher_process: StartProcess, client: LauncherOrchestrator, spec: Spec
) -> None:
    """PDEATHSIG, as `tipoff up` uses it, ends also a server that ignores SIGTERM."""
    async with launcher_process(TIPOFF_LAUNCHER_DIE_WITH_PARENT="1") as process:
        for wanted in (spec(), spec("stubborn")):
            await client.deploy(wanted)
            await eventually(lambda id=wanted.deployment_id: launchers.servers(id))
        await kill(process)
        await eventually(lambda: not leaders(launchers.servers()), timeout=2)


def leaders(pids: list[int]) -> list[int]:
    """Only process group leaders: the servers themselves, not their children."""
    found = []
    for pid in pids:
        try:
            if os.getpgid(pid) == pid:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


async def test_sigterm_leaves_the_servers_of_a_launcher_that_stands_alone(
    launchers: LauncherWorld, launcher_process: StartProcess, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Updating the launcher ends no game; its exit code is 0."""
    wanted = spec()
    async with launcher_process() as process:
        await client.deploy(wanted)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 1)


async def test_sigterm_stops_the_servers_where_that_is_set(
    launchers: LauncherWorld, launcher_process: StartProcess, client: LauncherOrchestrator, spec: Spec
) -> None:
    """As under `tipoff up`."""
    async with launcher_process(TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT="1") as process:
        await client.deploy(spec())
        await client.deploy(spec("stubborn"))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    assert launchers.servers() == []


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"TIPOFF_LAUNCHER_PORT_RANGE": "9-1"}, "TIPOFF_LAUNCHER_PORT_RANGE: FIRST-LAST"),
        ({"TIPOFF_LAUNCHER_MAX_SERVERS": "none"}, "TIPOFF_LAUNCHER_MAX_SERVERS"),
        ({"TIPOFF_GAMES": "/nowhere/games.toml"}, "/nowhere/games.toml: No such file"),
    ],
)
async def test_settings_that_cannot_be_used_are_named(variables: dict[str, str], complaint: str) -> None:
    """Exit code 2, and one line that names the setting and what is allowed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tipoff_launcher", env={**os.environ, **variables}, stderr=subprocess.PIPE
    )
    said = await words(process)
    assert process.returncode == 2
    assert complaint in said
    assert "Traceback" not in said


async def test_a_launcher_survives_its_state_directory_being_cleaned(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """A running server whose files were removed can still be stopped."""
    async with launchers.start():
        wanted = spec()
        await client.deploy(wanted)
        remove(launchers.server_directory(wanted.deployment_id))
        await client.stop(wanted.deployment_id)
        assert launchers.servers(wanted.deployment_id) == []
        assert await client.list() == []


def remove(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
