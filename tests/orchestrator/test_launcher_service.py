"""What the launcher promises beyond the orchestrator contract: stops, limits, ports, refusals."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.orchestrator.launcher_world import LauncherWorld, Spec
from tests.polling import eventually
from tipoff_launcher.backends.interface import RunningServer, StartRequest
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_launcher.records import Records
from tipoff_launcher.service import Launcher
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.nats.connection import Bus


def with_game(games: Games, game: Game) -> Games:
    known = {known.key: known for known in [*games.all(), game]}
    key = games.private_key(games.all()[0])
    return Games(known, dict.fromkeys(known, key), games.base)


async def test_the_reason_of_a_crash_quotes_the_servers_last_words(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The reason shows what to repair."""
    wanted = spec("crash")
    await client.deploy(wanted)
    await eventually(lambda: not launcher.supervisor.runs(wanted.deployment_id))
    known = await client.get(wanted.deployment_id)
    assert known is not None
    assert known.reason == "exited with code 3; its last words: starting up | no map called dust2"


async def test_the_log_of_a_stopped_server_is_kept(
    launchers: LauncherWorld, launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """It still holds the last output, including that after SIGTERM."""
    wanted = spec("tidy")
    await client.deploy(wanted)
    await eventually(lambda: "ready" in launchers.log_of(wanted.deployment_id))
    await client.stop(wanted.deployment_id)
    assert launchers.log_of(wanted.deployment_id).endswith("tidied up\n")


async def test_only_the_newest_stopped_servers_are_kept(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Old logs are removed, and an id whose log was removed is still not started again."""
    async with launchers.start(keep_stopped=2):
        specs = [spec() for _ in range(4)]
        for wanted in specs:
            await client.deploy(wanted)
            await client.stop(wanted.deployment_id)
        kept = sorted(path.name for path in (launchers.settings.state_dir / "deployments").iterdir())
        assert kept == sorted(wanted.deployment_id for wanted in specs[2:])
        assert (await client.deploy(specs[0])).state is RunState.STOPPED


@pytest.mark.row(79)
async def test_a_log_cannot_fill_the_disk(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The log of a chatty server and its previous part keep their limit at every moment; the server runs on."""
    async with launchers.start(max_log_bytes=20_000, max_log_rate=50_000) as launcher:
        wanted = spec("chatty")
        await client.deploy(wanted)
        directory = launchers.server_directory(wanted.deployment_id)

        def rotated_and_dropped() -> bool:
            parts = [path for path in directory.glob("server.log*") if path.exists()]
            assert all(path.stat().st_size <= 20_000 for path in parts)
            said = "".join(path.read_text() for path in parts)
            return len(parts) == 2 and "bytes of output are missing here: more than 50000 bytes" in said

        await eventually(rotated_and_dropped)
        assert launcher.supervisor.runs(wanted.deployment_id)
        await client.stop(wanted.deployment_id)


@pytest.mark.row(79)
async def test_the_last_words_of_a_server_that_floods_its_log_are_quoted(
    launchers: LauncherWorld, games: Games, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Of what is dropped, the end is kept: it says why the server died."""
    script = "yes 0123456789 | head -c 5000000; echo; echo no map called dust2; exit 3"
    flood = Game("flood", "1", process=ProcessSpec(["sh", "-c", script]))
    async with launchers.start(with_game(games, flood), max_log_bytes=50_000) as launcher:
        wanted = spec("flood")
        await client.deploy(wanted)
        await eventually(lambda: not launcher.supervisor.runs(wanted.deployment_id))
        known = await client.get(wanted.deployment_id)
        assert known is not None
        assert known.reason.startswith("exited with code 3; its last words: ")
        assert known.reason.endswith("| no map called dust2")


async def test_the_log_of_a_server_that_an_earlier_release_started_is_moved_aside(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Such a server writes into the file itself, so its size is looked at now and then."""
    async with launchers.start(max_log_bytes=20_000) as launcher:
        wanted = spec()
        await client.deploy(wanted)
        path = launchers.server_directory(wanted.deployment_id) / "server.log"
        path.write_text("old" + "n" * 20_000)
        launcher.supervisor.rotate_logs()
        assert path.read_text() == ""
        assert path.with_name("server.log.1").read_text() == "n" * 20_000


async def test_stop_ends_what_the_server_has_started(
    launchers: LauncherWorld, launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The whole process group ends."""
    wanted = spec("family")
    await client.deploy(wanted)
    await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 3)
    await client.stop(wanted.deployment_id)
    assert launchers.servers(wanted.deployment_id) == []


async def test_a_crash_takes_along_what_the_server_has_started(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """No helper process outlives its server."""
    async with launchers.start(demo=True):
        wanted = spec("family")
        await client.deploy(wanted)
        await eventually(lambda: len(launchers.servers(wanted.deployment_id)) == 3)
        await client.kill(wanted.deployment_id)
        await eventually(lambda: launchers.servers(wanted.deployment_id) == [])


async def test_a_server_behind_a_wrapper_gets_the_grace_too(
    launchers: LauncherWorld, launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """A shell that ends at once on SIGTERM does not shorten the grace of the server that it has started."""
    wanted = spec("guardian")
    await client.deploy(wanted)
    await eventually(lambda: "ready" in launchers.log_of(wanted.deployment_id))
    await client.stop(wanted.deployment_id)
    assert "tidied up" in launchers.log_of(wanted.deployment_id)


async def test_no_zombie_and_no_descriptor_stays(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Starting and stopping servers leaks no process and no file descriptor."""
    await client.deploy(first := spec("crash"))
    await eventually(lambda: not launcher.supervisor.runs(first.deployment_id))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        crash, sleeper = spec("crash"), spec()
        await client.deploy(crash)
        await client.deploy(sleeper)
        await client.stop(sleeper.deployment_id)
        await eventually(lambda id=crash.deployment_id: not launcher.supervisor.runs(id))
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert zombies_of(os.getpid()) == []


def zombies_of(parent: int) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, ppid = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(ppid) == parent:
            found.append(int(entry))
    return found


async def test_more_servers_than_the_host_takes_are_refused(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """`NoCapacity` names the setting; stopping a server makes room."""
    async with launchers.start(max_servers=2):
        first = spec()
        await client.deploy(first)
        await client.deploy(spec())
        with pytest.raises(NoCapacity, match="TIPOFF_LAUNCHER_MAX_SERVERS") as caught:
            await client.deploy(spec())
        assert caught.value.retryable
        await client.deploy(first)  # a repeat needs no room
        await client.stop(first.deployment_id)
        await client.deploy(spec())


async def test_a_game_that_asks_for_ports_gets_free_ones(
    launchers: LauncherWorld, games: Games, client: LauncherOrchestrator, spec: Spec, tmp_path: Path
) -> None:
    """Ports are known before the server starts, differ between servers, and skip those of other programs."""
    process = ProcessSpec(["./dump.sh"], env={"HOME": str(tmp_path)}, ports={"game": "udp", "web": "tcp"})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        first = min(taken.getsockname()[1], 65000)
        async with launchers.start(
            with_game(games, Game("ported", "1", process=process)), port_range=f"{first}-{first + 200}"
        ):
            one = await client.deploy(spec("ported"))
            two = await client.deploy(spec("ported"))
            ports = [port.external for known in (one, two) for port in known.ports.values()]
            assert len(set(ports)) == 4
            assert first not in (one.ports["game"].external, two.ports["game"].external)
            assert one.ports["game"].protocol == "udp"


async def test_kill_is_there_in_demo_mode_only(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """It looks like a crash; outside demo mode the request has no listener."""
    wanted = spec()
    async with launchers.start(demo=True) as launcher:
        await client.deploy(wanted)
        await client.kill(wanted.deployment_id)
        await eventually(lambda: not launcher.supervisor.runs(wanted.deployment_id))
        known = await client.get(wanted.deployment_id)
        assert known is not None
        assert known.reason == "killed by signal 9 (SIGKILL)"
        with pytest.raises(OrchestratorError, match="does not run"):
            await client.kill(wanted.deployment_id)
    async with launchers.start():
        with pytest.raises(OrchestratorUnavailable, match="nobody listens"):
            await client.kill(wanted.deployment_id)


async def test_a_second_launcher_of_the_same_name_is_refused(
    launchers: LauncherWorld, launcher: Launcher, tmp_path: Path
) -> None:
    """Two would each start what the other has."""
    with pytest.raises(ConfigError, match="TIPOFF_LAUNCHER_HOST"):
        async with launchers.start(state_dir=tmp_path / "other"):
            pass


async def test_a_state_directory_in_use_is_refused(launchers: LauncherWorld, launcher: Launcher) -> None:
    """Two would adopt each other's servers."""
    with pytest.raises(ConfigError, match="TIPOFF_LAUNCHER_STATE_DIR"):
        async with launchers.start(host="another"):
            pass


async def test_a_state_directory_that_cannot_be_used_is_named(
    launchers: LauncherWorld, tmp_path: Path
) -> None:
    """The error comes before anything is started."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="TIPOFF_LAUNCHER_STATE_DIR"):
        async with launchers.start(state_dir=tmp_path / "file"):
            pass


async def test_a_game_whose_start_fails_oddly_harms_no_other(
    launchers: LauncherWorld, games: Games, client: LauncherOrchestrator, spec: Spec
) -> None:
    """A command that no system accepts (with a zero byte) is an error for its caller only."""
    odd = Game("odd", "1", process=ProcessSpec(["sh", "-c", "a\0b"]))
    async with launchers.start(with_game(games, odd)) as launcher:
        await client.deploy(well := spec())
        with pytest.raises(OrchestratorError, match="its log says why"):
            await client.deploy(spec("odd"))
        assert not launcher.failed.is_set()
        assert [known.deployment_id for known in await client.list()] == [well.deployment_id]


async def test_leaving_stops_every_server_at_once(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """As under `tipoff up`: all stop within one grace, stubborn ones included."""
    async with launchers.start() as launcher:
        for game in ("sleeper", "stubborn", "stubborn", "family"):
            await client.deploy(spec(game))
        begin = time.monotonic()
    assert time.monotonic() - begin < launcher.settings.stop_grace + 2
    assert launchers.servers() == []


async def test_a_deployment_id_of_another_game_is_refused(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """An id means one server for ever."""
    await client.deploy(spec("sleeper", id="same"))
    with pytest.raises(OrchestratorError, match="cannot be 'tidy'") as caught:
        await client.deploy(spec("tidy", id="same"))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("process", "complaint"),
    [
        (ProcessSpec(["./missing.sh"]), "'./missing.sh' is not found"),
        (ProcessSpec(["no-such-program"]), "'no-such-program' is not found"),
        (ProcessSpec(["sh"], cwd="nowhere"), "is not a directory"),
        (None, r"no \[game.process\]"),
    ],
)
async def test_a_game_that_cannot_be_started_here_says_why(
    launchers: LauncherWorld,
    games: Games,
    client: LauncherOrchestrator,
    spec: Spec,
    process: ProcessSpec | None,
    complaint: str,
) -> None:
    """`NotConfigured` says what is wrong in games.toml."""
    async with launchers.start(with_game(games, Game("broken", "1", process=process))):
        with pytest.raises(NotConfigured, match=complaint):
            await client.deploy(spec("broken"))


async def test_python_means_this_interpreter_and_an_exec_that_fails_is_told(
    launchers: LauncherWorld, games: Games, client: LauncherOrchestrator, spec: Spec
) -> None:
    """`python` needs no PATH; a script without an interpreter ends with a reason."""
    (games.base / "odd.sh").write_text("#!/no/such/interpreter\n")
    (games.base / "odd.sh").chmod(0o700)
    show = ["python", "-c", "import sys; sys.exit(sys.executable)"]
    both = with_game(games, Game("py", "1", process=ProcessSpec(show)))
    both = with_game(both, Game("odd", "1", process=ProcessSpec(["./odd.sh"])))
    async with launchers.start(both) as launcher:
        for name, words in (("py", sys.executable), ("odd", "cannot start")):
            wanted = spec(name)
            await client.deploy(wanted)
            await eventually(lambda id=wanted.deployment_id: not launcher.supervisor.runs(id))
            known = await client.get(wanted.deployment_id)
            assert known is not None
            assert words in known.reason


async def test_a_server_that_cannot_be_written_down_is_not_started(
    launchers: LauncherWorld,
    launcher: Launcher,
    client: LauncherOrchestrator,
    spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record comes before the server: with a full disk nothing runs, and the caller gets the error."""
    save = Records.save
    wanted = spec("dump")

    def full(self: Records, record: Any) -> None:
        if record.native_id:
            raise OSError(28, "No space left on device")
        save(self, record)

    monkeypatch.setattr(Records, "save", full)
    with pytest.raises(OrchestratorUnavailable, match="No space left") as caught:
        await client.deploy(wanted)
    assert caught.value.retryable
    assert launchers.servers(wanted.deployment_id) == []
    assert not (launcher.settings.state_dir.parent / "environment").exists()
    monkeypatch.undo()
    assert (await client.deploy(wanted)).state is RunState.RUNNING  # the same id may try again


async def test_a_start_that_is_given_up_slowly_may_be_stopped_again(
    launcher: Launcher, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may undo a start slowly: each stop raises until the start is undone."""
    undone = asyncio.Event()

    async def slow(self: ProcessBackend, request: StartRequest, save_native_id: object) -> RunningServer:
        request.progress("fetching")
        try:
            await asyncio.Event().wait()
        finally:
            await undone.wait()
        raise AssertionError

    monkeypatch.setattr(ProcessBackend, "start", slow)
    wanted = spec()
    await launcher.supervisor.deploy(wanted)
    for _ in range(2):
        with pytest.raises(OrchestratorUnavailable, match="still there"):
            await launcher.supervisor.stop(wanted.deployment_id, margin=0)
    undone.set()
    await launcher.supervisor.stop(wanted.deployment_id)
    assert (await launcher.supervisor.deploy(wanted)).state is RunState.STOPPED


async def test_what_was_stopped_while_its_start_failed_is_not_started_again(
    launcher: Launcher, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for a repeated and for a late deploy."""
    failing = asyncio.Event()

    async def fail(self: ProcessBackend, request: StartRequest, save_native_id: object) -> RunningServer:
        await failing.wait()
        raise NoCapacity("no")

    wanted = spec()
    with monkeypatch.context() as changed:
        changed.setattr(ProcessBackend, "start", fail)
        deploying = asyncio.create_task(launcher.supervisor.deploy(wanted))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(launcher.supervisor.stop(wanted.deployment_id))
        await asyncio.sleep(0)
        failing.set()
        await stopping
        with pytest.raises(NoCapacity):
            await deploying
    assert (await launcher.supervisor.deploy(wanted)).state is RunState.STOPPED


def tasks_of(spec: DeploySpec) -> list[str]:
    """The names of the launcher's tasks for one server."""
    return sorted(t.get_name() for t in asyncio.all_tasks() if spec.deployment_id in t.get_name())


async def test_a_server_that_asks_for_its_end_again_and_again_is_stopped_once(
    launcher: Launcher, spec: Spec
) -> None:
    """Repeated requests cost one task."""
    wanted = spec("stubborn")
    await launcher.supervisor.deploy(wanted)
    before = tasks_of(wanted)
    for _ in range(5):
        launcher.supervisor.stop_soon(wanted.deployment_id)
        await asyncio.sleep(0)
    assert tasks_of(wanted) == sorted([*before, f"launcher/{wanted.deployment_id}/stop"])
    await eventually(lambda: not launcher.supervisor.runs(wanted.deployment_id))


async def test_too_many_requests_are_told_to_come_again(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """A request over the limit is answered, not dropped."""
    async with launchers.start(max_requests=1):
        wanted = spec("stubborn")
        await client.deploy(wanted)
        await eventually(lambda: "ready" in launchers.log_of(wanted.deployment_id))
        stopping = asyncio.create_task(client.stop(wanted.deployment_id))
        await eventually(lambda: launchers.records()[wanted.deployment_id].stopping)
        with pytest.raises(OrchestratorUnavailable, match="busy") as caught:
            await client.list()
        assert caught.value.retry_after == 1
        await stopping


async def test_servers_are_nicer_where_that_is_set(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """`nice` gives the host's own services precedence."""
    async with launchers.start(nice=5):
        wanted = spec("tidy")
        await client.deploy(wanted)
        before = os.getpriority(os.PRIO_PROCESS, 0)

        def nicer() -> bool:
            pids = launchers.servers(
                wanted.deployment_id
            )  # its shell, and the sleep that the shell starts repeatedly
            try:
                return bool(pids) and all(os.getpriority(os.PRIO_PROCESS, pid) == before + 5 for pid in pids)
            except ProcessLookupError:
                return False

        await eventually(nicer)


async def test_without_a_launcher_nothing_can_have_started(client: LauncherOrchestrator, spec: Spec) -> None:
    """The error comes at once, and says that no server can have started."""
    begin = time.monotonic()
    with pytest.raises(OrchestratorUnavailable) as caught:
        await client.deploy(spec())
    assert time.monotonic() - begin < 1
    assert caught.value.retryable
    assert not caught.value.may_have_started


async def test_a_launcher_that_does_not_answer_may_have_started_it(nats: Bus, spec: Spec) -> None:
    """The time-out error says so."""
    await nats.nc.subscribe(nats.subjects.launcher("local", "deploy"))
    with pytest.raises(OrchestratorUnavailable) as caught:
        await LauncherOrchestrator(nats, deploy_deadline=0.1).deploy(spec())
    assert caught.value.may_have_started


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"[]", b'{"deployment": 5}', b'{"deployment": null}'])
async def test_an_answer_nobody_can_use_is_a_typed_error(nats: Bus, spec: Spec, answer: bytes) -> None:
    """Any answer raises only `OrchestratorError`."""

    async def reply(msg: Any) -> None:
        await nats.nc.publish(msg.reply, answer)

    await nats.nc.subscribe(nats.subjects.launcher("local", "deploy"), cb=reply)
    with pytest.raises(OrchestratorUnavailable):
        await LauncherOrchestrator(nats).deploy(spec())


@pytest.mark.row(77)
async def test_a_launcher_that_has_started_says_so(
    launchers: LauncherWorld, client: LauncherOrchestrator, nats: Bus
) -> None:
    """Each time, when it answers; an earlier release takes the event for one that it does not know."""
    starts: list[str] = []
    heard: list[Deployment] = []

    async def listen() -> None:
        async for event in client.events():
            heard.append(event)  # noqa: PERF401 # read while it grows

    client.subscribe_starts(lambda: starts.append("started"))
    task = asyncio.create_task(listen())
    probe = Deployment("probe", "g", "1", RunState.RUNNING)

    async def listens() -> bool:
        await nats.nc.publish(nats.subjects.launcher("local", "events"), wire.encode_deployment(probe))
        return bool(heard)

    await eventually(listens)
    assert starts == []
    for number in (1, 2):
        async with launchers.start():
            await eventually(lambda: len(starts) == number)  # noqa: B023 # awaited within the turn
            assert await client.list() == []
    assert wire.decode_deployment(wire.encode_started()) is None
    task.cancel()
    await asyncio.wait([task])


async def test_an_event_nobody_can_read_does_not_end_the_listening(
    launcher: Launcher, client: LauncherOrchestrator, nats: Bus, spec: Spec
) -> None:
    """Garbage on the subject is skipped."""
    heard: list[str] = []

    async def listen() -> None:
        async for event in client.events():
            heard.append(event.deployment_id)  # noqa: PERF401 # read while it grows

    task = asyncio.create_task(listen())
    wanted = spec()

    async def tell() -> bool:
        await nats.nc.publish(nats.subjects.launcher("local", "events"), b"garbage")
        record = {"deployment_id": wanted.deployment_id, "game": "g", "version": "1", "state": "running"}
        payload = msgspec.json.encode({"deployment": record})
        await nats.nc.publish(nats.subjects.launcher("local", "events"), payload)
        return wanted.deployment_id in heard

    await eventually(tell)
    task.cancel()
    await asyncio.wait([task])
