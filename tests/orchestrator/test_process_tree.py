"""What a server has started ends with it, wherever it went; orphans are reaped; no foreign port is proxied."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.orchestrator.launcher_world import LauncherWorld, Spec, lease
from tests.orchestrator.test_launcher_recovery import (
    StartProcess,
    kill,
    launcher_process,  # noqa: F401 # a fixture
)
from tests.orchestrator.test_launcher_service import with_game
from tests.polling import eventually
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_launcher.backends.process.identity import Identity, Stat, identify, read_stat
from tipoff_launcher.backends.process.process_tree import descendants
from tipoff_matchmaker_httpd.routes.gs_proxy import upstream_of
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.messages import Transports, WebSocketAddress
from tipoff_shared.primitives.orphans import reap_ended
from tipoff_shared.records import DeploymentRecord, DeploymentState

pytestmark = pytest.mark.row(81)


def alive(pids: list[int]) -> list[int]:
    """Those that run."""
    stats = {pid: read_stat(pid) for pid in pids}
    return [pid for pid, stat in stats.items() if stat is not None and stat.state not in "ZX"]


@pytest.fixture
def no_daemon_stays(launchers: LauncherWorld) -> Iterator[None]:
    """Whatever a failed test has left is killed."""
    yield
    for note in launchers.games.base.glob("daemons.*-*"):
        for pid in alive([int(line) for line in note.read_text().split()]):
            os.kill(pid, signal.SIGKILL)


async def all_daemons(launchers: LauncherWorld, deployment_id: str) -> list[int]:
    """The three, when they run."""
    await eventually(lambda: len(launchers.daemons(deployment_id)) == 3)
    daemons = launchers.daemons(deployment_id)
    assert len(alive(daemons)) == 3
    return daemons


def test_descendants_are_found_through_their_parents() -> None:
    """Those that have ended do not count; a circle, as in a table read while it changes, does no harm."""
    table = {
        pid: Stat(state, parent, 0, "0")
        for pid, state, parent in [
            (2, "S", 1),
            (3, "R", 2),
            (4, "Z", 3),
            (5, "S", 4),
            (6, "S", 7),
            (7, "S", 6),
        ]
    }
    assert descendants([1], table) == {2, 3, 5}
    assert descendants([6], table) == {6, 7}
    assert descendants([9], table) == set()


@pytest.mark.usefixtures("no_daemon_stays")
async def test_a_stop_ends_what_has_left_the_session_of_its_server(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Also what has no parent and no environment any more."""
    async with launchers.start():
        wanted = spec("daemons")
        await client.deploy(wanted)
        daemons = await all_daemons(launchers, wanted.deployment_id)
        await client.stop(wanted.deployment_id)
        await eventually(lambda: not alive(daemons))


@pytest.mark.usefixtures("no_daemon_stays")
async def test_a_crash_leaves_nothing_behind(
    launchers: LauncherWorld,
    launcher_process: StartProcess,  # noqa: F811 # the fixture
    client: LauncherOrchestrator,
    spec: Spec,
) -> None:
    """The launcher inherits what is left, kills and reaps it. Another server's daemons live."""
    wanted, other = spec("daemons"), spec("daemons")
    async with launcher_process() as process:
        deployment = await client.deploy(wanted)
        await client.deploy(other)
        daemons = await all_daemons(launchers, wanted.deployment_id)
        others = await all_daemons(launchers, other.deployment_id)
        server = Identity.parse(deployment.native_id)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        await eventually(lambda: not alive(daemons))
        assert alive(others) == others
        await client.stop(other.deployment_id)
        await eventually(lambda: not alive(others))
        # Zombies would show that nobody reaps them.
        await eventually(lambda: not any(parent_of(pid) == process.pid for pid in daemons), timeout=15)


def parent_of(pid: int) -> int:
    stat = read_stat(pid)
    return 0 if stat is None else stat.parent


@pytest.mark.usefixtures("no_daemon_stays")
async def test_an_adopted_server_takes_along_what_it_has_started(
    launchers: LauncherWorld,
    launcher_process: StartProcess,  # noqa: F811 # the fixture
    client: LauncherOrchestrator,
    kv: Buckets,
    spec: Spec,
) -> None:
    """The next launcher is not its ancestor, but it looks."""
    wanted = spec("daemons")
    async with launcher_process() as process:
        await client.deploy(wanted)
        await kv.gameservers.put(wanted.deployment_id, lease(wanted), ttl=60)
        daemons = await all_daemons(launchers, wanted.deployment_id)
        await kill(process)
    async with launchers.start():
        assert alive(daemons) == daemons
        await client.stop(wanted.deployment_id)
        await eventually(lambda: not alive(daemons))


async def test_a_daemon_of_a_server_that_died_without_a_launcher_is_ended_by_the_next_one(
    launchers: LauncherWorld, client: LauncherOrchestrator, games: Games, spec: Spec
) -> None:
    """It is found by its environment, although its session is its own."""
    script = (
        '(setsid sh -c "echo \\$\\$ >> $PWD/daemons.$TIPOFF_DEPLOYMENT_ID; exec sleep 300" &); exec sleep 300'
    )
    wanted = spec("marked")
    several = with_game(games, Game("marked", "1", process=ProcessSpec(["sh", "-c", script])))
    async with launchers.start(several, stop_servers_on_exit=False):
        deployment = await client.deploy(wanted)
        await eventually(lambda: launchers.daemons(wanted.deployment_id))
    daemons = launchers.daemons(wanted.deployment_id)
    server = Identity.parse(deployment.native_id)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, server.pid, 0)
    assert alive(daemons) == daemons
    async with launchers.start(several):
        await eventually(lambda: not alive(daemons))


# Process 1.


def test_orphans_are_reaped_at_the_second_look() -> None:
    """At the first one, this process may be about to wait for it."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ended = reap_ended(set())
    assert pid in ended
    assert identify(pid) is not None
    assert pid not in reap_ended(ended)
    assert identify(pid) is None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace of process ids")
async def test_process_1_of_a_container_reaps_orphans() -> None:
    """As `docker run tipoff up` or httpd, with what `docker exec` has left."""
    script = """
        import os, subprocess, time
        from tipoff_shared.primitives.orphans import reap_as_process_1
        assert os.getpid() == 1
        reap_as_process_1()
        for _ in range(3):
            subprocess.run(["sh", "-c", "(sleep 0.1 &)"], check=True)
        until = time.monotonic() + 30
        most = 0
        while time.monotonic() < until:
            states = []
            for entry in filter(str.isdigit, os.listdir("/proc")):
                try:
                    states.append(open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[0])
                except OSError:
                    pass
            most = max(most, states.count("Z"))
            if most == 3 and "Z" not in states:
                print("reaped")
                break
            time.sleep(0.05)
        """
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(script)),
        stdout=subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert said == b"reaped\n"


# The proxy for browsers.


URL = "wss://play.example.org/gs/x"


async def test_the_proxy_is_told_a_port_that_the_launcher_has_picked(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Whatever port the server announces, the record leads to its own. Without a proxy there is no address at all."""
    async with launchers.start():
        deployment = await client.deploy(spec(websocket_url=URL))
        port = deployment.ports["websocket"]
        assert deployment.proxy == f"127.0.0.1:{port.internal}"
        other = await client.deploy(spec(websocket_url=URL))
        assert other.proxy != deployment.proxy
        direct = await client.deploy(spec())
        assert (direct.proxy, dict(direct.ports)) == ("", {})
    for announced in (22, 4222, int(other.proxy.rpartition(":")[2])):
        record = DeploymentRecord(
            deployment.deployment_id,
            DeploymentState.READY,
            "sleeper",
            "1",
            "launcher",
            4,
            0.0,
            transports=Transports(websocket=WebSocketAddress(URL)),
            proxy=deployment.proxy,
            websocket_port=announced,
        )
        assert upstream_of(record) == deployment.proxy
        assert upstream_of(msgspec.structs.replace(record, proxy=direct.proxy)) is None


def test_a_game_with_a_tcp_port_of_its_own_is_proxied_to_that(tmp_path: Path) -> None:
    """It listens there already."""
    backend = ProcessBackend(tmp_path, LogWriter(tmp_path))
    game = Game("g", "1", process=ProcessSpec(["x"], ports={"game": "udp", "web": "tcp"}))
    assert set(backend.ports(game, proxied=True)) == {"game", "web"}
    udp = Game("g", "1", process=ProcessSpec(["x"], ports={"game": "udp"}))
    assert set(backend.ports(udp, proxied=True)) == {"game", "websocket"}
    assert set(backend.ports(udp)) == {"game"}
