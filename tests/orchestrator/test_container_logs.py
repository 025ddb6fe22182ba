"""The output of containers is in their logs while they run: each line once, whatever restarts."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docker_engine import docker, socket_path
from tests.orchestrator.launcher_world import LauncherWorld, Spec, docker_game, docker_games, lease
from tests.orchestrator.own_engine import Link, link_to
from tests.polling import eventually
from tipoff_launcher.backends.docker.container_log import ContainerLogs
from tipoff_launcher.backends.docker.engine import open_engine
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_orchestrator_client.wire import LogRequest
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(120)]

TICKER = (
    "i=0; while :; do i=$((i+1)); if [ $((i%7)) = 0 ]; then echo $i >&2; else echo $i; fi; sleep 0.01; done"
)


@pytest.fixture
def client(nats: Bus) -> LauncherOrchestrator:
    return LauncherOrchestrator(nats, deploy_deadline=30)


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """A connection to the engine that can be cut."""
    with tempfile.TemporaryDirectory(prefix="tipoff-link-") as directory:
        async with link_to(socket_path(), Path(directory)) as link:
            yield link


def count(launchers: LauncherWorld, wanted: DeploySpec) -> int:
    return launchers.log_of(wanted.deployment_id).count("\n")


async def grows(launchers: LauncherWorld, wanted: DeploySpec, by: int = 40) -> None:
    """Wait until the log has more lines than now."""
    now = count(launchers, wanted)
    await eventually(lambda: count(launchers, wanted) >= now + by, "its log grows", 30)


def each_once(launchers: LauncherWorld, wanted: DeploySpec) -> None:
    """The lines are 1, 2, ...; those of the two streams may change places, as the engine writes them."""
    lines = [int(line) for line in launchers.log_of(wanted.deployment_id).splitlines()]
    assert sorted(lines) == list(range(1, len(lines) + 1))


async def test_lines_are_read_while_the_container_runs(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """By the same request as those of a process, and without secrets."""
    games = docker_games(
        launchers.directory,
        talker='cat "$TIPOFF_PRIVATE_KEY_FILE"; echo; echo hello; echo oh >&2; exec sleep 300',
    )
    async with launchers.start_docker(games):
        wanted = spec("talker")
        await client.deploy(wanted)
        seen: list[str] = []
        cursors: dict[str, str] = {}

        async def said() -> bool:
            for log in await client.logs(LogRequest("talker", dict(cursors), -1)):
                assert log.running
                cursors[log.deployment_id] = log.cursor
                seen.extend(log.lines)
            return len(seen) >= 3

        await eventually(said, "its lines are read", 30)
        assert sorted(seen) == ["***", "hello", "oh"]


async def test_a_line_comes_once_although_the_engine_was_away(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, link: Link
) -> None:
    """Three times, and the server plays on."""
    games = docker_games(launchers.directory, ticker=TICKER)
    async with launchers.start_docker(games, docker_host=link.host):
        wanted = spec("ticker")
        await client.deploy(wanted)
        for _ in range(3):
            await grows(launchers, wanted)
            await link.cut()
            await link.restore()
        await grows(launchers, wanted)
        await client.stop(wanted.deployment_id)
        each_once(launchers, wanted)
        assert count(launchers, wanted) >= 160


async def test_the_next_launcher_goes_on_where_the_log_ends(
    launchers: LauncherWorld, client: LauncherOrchestrator, kv: Buckets, spec: Spec
) -> None:
    """What the server wrote in between is in the log too."""
    games = docker_games(launchers.directory, ticker=TICKER)
    wanted = spec("ticker")
    async with launchers.start_docker(games, stop_servers_on_exit=False):
        await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
        await grows(launchers, wanted)
    for last in (False, True):
        async with launchers.start_docker(games, stop_servers_on_exit=last):
            await grows(launchers, wanted)
    each_once(launchers, wanted)


@pytest.mark.parametrize("shape", ["at once", "without a newline", "long line"])
async def test_the_end_of_a_short_life_is_in_the_log(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, shape: str
) -> None:
    """Also of a container that ends within milliseconds."""
    script, expected = {
        "at once": ("seq 1 3000; exit 3", "".join(f"{n}\n" for n in range(1, 3001))),
        "without a newline": ("printf 'begin\\nlast words'; exit 3", "begin\nlast words"),
        "long line": ("head -c 100000 /dev/zero | tr '\\0' x; echo; exit 3", "x" * 100_000 + "\n"),
    }[shape]
    async with launchers.start_docker(docker_games(launchers.directory, short=script)):
        for _ in range(3):
            wanted = spec("short")
            await client.deploy(wanted)
            await eventually(lambda wanted=wanted: launchers.is_stopped(wanted), "it ends", 30)
            assert launchers.log_of(wanted.deployment_id) == expected


async def test_a_container_that_writes_without_end_keeps_the_limit_and_disturbs_nobody(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """400 MB without a newline, beside a server whose lines go on being read."""
    games = docker_games(
        launchers.directory,
        docker_game("flood", "head -c 400000000 /dev/zero; echo; echo flooded; exec sleep 300", memory=256),
        docker_game("ticker", TICKER),
    )
    most = 200_000
    async with launchers.start_docker(games, max_log_bytes=most, max_log_rate=100_000):
        flood, ticker = spec("flood"), spec("ticker")
        await client.deploy(flood)
        await client.deploy(ticker)
        files = launchers.server_directory(flood.deployment_id)
        for _ in range(5):
            await grows(launchers, ticker)
            assert all(file.stat().st_size <= most for file in files.glob("server.log*"))
        await client.stop(flood.deployment_id)
        assert all(file.stat().st_size <= most for file in files.glob("server.log*"))
        assert "bytes of output are missing here" in "".join(
            file.read_text(errors="replace") for file in files.glob("server.log*")
        )


async def test_a_log_goes_on_where_the_engine_moves_its_own_aside(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Which it does at the same size; what is kept has no gap."""
    games = docker_games(launchers.directory, ticker=TICKER)
    async with launchers.start_docker(games, max_log_bytes=4_000):
        wanted = spec("ticker")
        await client.deploy(wanted)
        files = launchers.server_directory(wanted.deployment_id)

        def kept() -> list[int]:
            texts = [
                file.read_text() for file in (files / "server.log.1", files / "server.log") if file.exists()
            ]
            return [int(line) for line in "".join(texts).splitlines()]

        await eventually(lambda: kept() and max(kept()) > 1500, "it is moved aside again and again", 60)
        await client.stop(wanted.deployment_id)
        lines = sorted(kept())
        assert lines == list(range(lines[0], lines[0] + len(lines)))


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_container_with_a_terminal_is_read_as_well(tmp_path: Path, terminal: bool) -> None:
    """Its stream has no frames."""
    options = ["-t"] if terminal else []
    script = "echo one; head -c 40000 /dev/zero | tr '\\0' x; echo; echo two; sleep 300"
    id = docker("run", "-d", *options, "python:3.13-slim", "sh", "-c", script)
    path = tmp_path / "server.log"
    try:
        async with open_engine() as engine:
            logs = ContainerLogs(engine, max_bytes=1_000_000, rate=1e9)
            for part in range(2):
                async with logs.log(id, path, lambda: None) as log:
                    state = await engine.inspect(id)
                    assert state is not None
                    assert state.terminal == terminal
                    log.follow(terminal=terminal)
                    if part == 0:
                        await eventually(lambda: path.read_bytes().count(b"\n") == 3, "it is read", 30)
                    else:
                        docker("kill", id)
                        await asyncio.to_thread(docker, "wait", id)
                        await log.finish(terminal=terminal)
        assert path.read_text().split() == ["one", "x" * 40_000, "two"]
    finally:
        docker("rm", "-f", id)
