"""The launcher's pure rules: process identity, adoption, ports, exit reasons, settings and the server's environment."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from tipoff_launcher.backends.interface import BackendEnvironment, ExitStatus, PortSpec, StartRequest
from tipoff_launcher.backends.ports import PortPicker
from tipoff_launcher.backends.process import exec_gate
from tipoff_launcher.backends.process.backend import INHERITED, ProcessBackend
from tipoff_launcher.backends.process.identity import Identity, identify, identify_by_ps, lives
from tipoff_launcher.backends.server_log import last_lines, rotate
from tipoff_launcher.environment import server_environment
from tipoff_launcher.records import Record
from tipoff_launcher.recovery import Decision, decide
from tipoff_launcher.settings import Settings
from tipoff_launcher.supervisor import exit_reason
from tipoff_orchestrator_client.base import DeploySpec, NoCapacity, Port, RunState
from tipoff_shared.games import Game, ProcessSpec
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

GATE = Path(exec_gate.__file__)

# Process identity.


def test_a_process_is_known_again_by_pid_and_start() -> None:
    """A process equals itself, also after parsing its recorded identity."""
    me = identify(os.getpid())
    assert me is not None
    assert lives(me)
    assert Identity.parse(str(me)) == me


def test_the_same_pid_with_another_start_is_another_process() -> None:
    """A reused pid does not count as alive."""
    me = identify(os.getpid())
    assert me is not None
    assert not lives(dataclasses.replace(me, started="0.0"))


def test_a_zombie_does_not_live() -> None:
    """It still has its pid, but it has ended."""
    process = subprocess.Popen(["true"])
    identity = identify(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if identity is not None:
        assert not lives(identity)
    process.wait()


def test_without_proc_ps_tells_processes_apart() -> None:
    """`ps`, used on systems other than Linux, gives the same answers."""
    me = identify_by_ps(os.getpid())
    assert me is not None
    assert me == identify_by_ps(os.getpid())
    assert identify_by_ps(2**22 + 1) is None


@pytest.mark.parametrize("text", ["", "5", "@", "x@y", "99999999999@a", "5@", "a@5", "5@" + "x" * 100])
def test_what_is_no_identity_is_none(text: str) -> None:
    """A damaged record names no process."""
    assert Identity.parse(text) is None


# exec_gate.py.


def through_the_gate(word: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", str(GATE), *arguments]
    return subprocess.run(command, input=word, capture_output=True, timeout=10, check=False)


def test_the_gate_lets_nothing_through_without_the_word() -> None:
    """A launcher that dies before it recorded the process leaves no server."""
    done = through_the_gate(b"", "0", "0", "echo", "through")
    assert (done.returncode, done.stdout) == (125, b"")


def test_the_gate_becomes_the_server() -> None:
    """Its arguments are unchanged, its input is empty, and a broken pipe ends it as it ends any program."""
    script = 'echo "$1"; cat; grep SigIgn /proc/$$/status'
    done = through_the_gate(b"\nmore", "0", "0", "sh", "-c", script, "sh", "a b*")
    words, ignored = done.stdout.splitlines()
    assert words == b"a b*"
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_the_gate_says_what_cannot_be_started() -> None:
    """The message goes to the server's log."""
    done = through_the_gate(b"\n", "0", "0", "/no/such/program")
    assert done.returncode == 127
    assert done.stderr == b"cannot start /no/such/program: No such file or directory\n"


def test_the_gate_goes_home_when_its_parent_is_another_already() -> None:
    """The launcher died between the fork and the call of prctl."""
    done = through_the_gate(b"\n", str(os.getpid() + 1), "0", "echo", "through")
    assert (done.returncode, done.stdout) == (125, b"")


def a_request(game: Game, tmp_path: Path) -> StartRequest:
    record = Record("g-1", "", game.name, game.version, RunState.STARTING, "process", created_at=0)
    return StartRequest(record, game, {"PATH": os.environ["PATH"]}, tmp_path / "log", lambda text: None)


def test_servers_keep_to_the_range_where_it_is_set(tmp_path: Path) -> None:
    """Those with the SDK, which would take any free ports; not those that announce no ports, or name their own."""
    keeps, any_free = (
        ProcessBackend(tmp_path, LogWriter(tmp_path), fixed_ports=fixed) for fixed in (True, False)
    )
    process = ProcessSpec(["x"])
    sdk = Game("g", "1", process=process)
    other = Game("g", "1", process=process, ready="running")
    own = Game("g", "1", process=ProcessSpec(["x"], ports={"game": "udp"}))
    assert list(keeps.ports(sdk)) == ["udp", "websocket"]
    assert list(keeps.ports(sdk, proxied=True)) == ["udp", "websocket"]
    assert list(any_free.ports(sdk)) == []
    assert [list(keeps.ports(game)) for game in (other, own)] == [[], ["game"]]


async def test_a_start_that_is_not_written_down_runs_nothing(tmp_path: Path) -> None:
    """If writing the record fails, the command never runs and no child process remains."""
    backend = ProcessBackend(tmp_path, LogWriter(tmp_path))
    game = Game("g", "1", process=ProcessSpec(["touch", "started"]))
    request = a_request(game, tmp_path)

    class Crash(BaseException):
        pass

    written: list[str] = []

    def crash(native_id: str) -> None:
        written.append(native_id)
        raise Crash

    with pytest.raises(Crash):
        await backend.start(request, crash)
    identity = Identity.parse(written[0])
    assert identity is not None
    assert identify(identity.pid) != identity
    assert not (tmp_path / "started").exists()


# Adoption.

RECORD = Record("g-1", "", "g", "1", RunState.RUNNING, "process", created_at=1000.0)
GAME = Game("g", "1", start_timeout=30)


@pytest.mark.parametrize(
    ("changes", "decision"),
    [
        pytest.param({"has_lease": True}, Decision.ADOPT, id="its lease lives"),
        pytest.param({"has_lease": True, "game": None}, Decision.ADOPT, id="also when the game is gone"),
        pytest.param({}, Decision.STOP, id="no lease for the whole grace"),
        pytest.param({"found_for": 19}, Decision.WAIT, id="just found"),
        pytest.param({"connected_for": 19}, Decision.WAIT, id="NATS is just back: every lease has expired"),
        pytest.param({"connected_for": None}, Decision.WAIT, id="NATS is away"),
        pytest.param({"has_lease": None}, Decision.WAIT, id="the store does not answer"),
        pytest.param({"now": 1029}, Decision.WAIT, id="it may still be starting"),
        pytest.param({"game": Game("g", "1", ready="running")}, Decision.ADOPT, id="it never writes a lease"),
        pytest.param({"game": None, "now": 1001}, Decision.STOP, id="its game was removed from games.toml"),
    ],
)
def test_whom_a_restarted_launcher_adopts(changes: dict[str, object], decision: Decision) -> None:
    """A lease decides at once, a missing lease only after the grace."""
    asked: dict[str, object] = {
        "game": GAME,
        "has_lease": False,
        "connected_for": 60.0,
        "found_for": 60.0,
        "grace": 20.0,
        "now": 2000.0,
        **changes,
    }
    assert decide(RECORD, **asked) is decision  # type: ignore[arg-type] # a table of any of them


# Exit reasons and logs.


@pytest.mark.parametrize(
    ("code", "stopped", "said", "reason"),
    [
        (3, False, "no map", "exited with code 3; its last words: no map"),
        (3, False, "", "exited with code 3"),
        (0, False, "bye", "exited with code 0"),
        (-9, False, "", "killed by signal 9 (SIGKILL)"),
        (-63, False, "", "killed by signal 63"),
        (0, True, "bye", "stopped"),
        (-15, True, "bye", "stopped"),
        (-9, True, "bye", "stopped, by force"),
        (None, False, "", "ended (with which code is not known: an earlier launcher started it)"),
    ],
)
def test_the_reason_of_an_end_is_for_people(code: int | None, stopped: bool, said: str, reason: str) -> None:
    """The reason says how the server ended, and quotes its log where that explains it."""
    assert exit_reason(ExitStatus(code), stopped=stopped, last_lines=said) == reason


def test_last_words_are_few_plain_and_without_secrets(tmp_path: Path) -> None:
    """The last lines are joined into one, without control characters and secrets."""
    log = tmp_path / "log"
    log.write_bytes(b"old\n" * 10 + b"\x1b[31mred\x1b[0m\a\n\nkey ABCDEF\n\xff\nend\n")
    assert last_lines(log, ["abcdef", ""]) == "old | red | key *** | \ufffd | end"
    log.write_text("x" * 5000)
    assert len(last_lines(log)) <= 603
    log.write_text("secret" * 2000 + "\nend")  # the tail begins within a line that may hold a secret
    assert last_lines(log, ["secret" * 2000]) == "end"
    assert last_lines(tmp_path / "missing") == ""


def test_a_log_over_its_size_is_moved_aside_with_its_newest_part(tmp_path: Path) -> None:
    """The server keeps writing to the emptied file."""
    log = tmp_path / "server.log"
    log.write_text("old" + "n" * 100)
    assert not rotate(log, 200)
    assert rotate(log, 100)
    assert log.read_text() == ""
    assert (tmp_path / "server.log.1").read_text() == "n" * 100
    assert not rotate(tmp_path / "missing", 100)


# Ports.


def test_ports_go_round_the_range_and_leave_out_what_is_in_use() -> None:
    """A port held by a server or used by another program is skipped, and a freed port comes last."""
    picker = PortPicker(range(10, 15), lambda port, protocol: port != 11)
    first = picker.pick({"game": PortSpec("udp"), "web": PortSpec("tcp")}, held=set())
    assert [port.external for port in first.values()] == [10, 12]
    assert picker.pick({"game": PortSpec("udp")}, held={10, 12})["game"].external == 13
    assert picker.pick({"game": PortSpec("udp")}, held=set())["game"].external == 14
    assert picker.pick({"game": PortSpec("udp")}, held=set())["game"].external == 10


def test_no_port_left_is_no_capacity() -> None:
    """The message names the setting."""
    with pytest.raises(NoCapacity, match="TIPOFF_LAUNCHER_PORT_RANGE"):
        PortPicker(range(10, 12), lambda port, protocol: True).pick({"game": PortSpec("udp")}, held={10, 11})


# Settings.


@pytest.mark.parametrize(
    ("public", "bind", "listen_on"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("localhost", "", "127.0.0.1"),
        ("192.168.1.5,127.0.0.1", "", "0.0.0.0"),
        ("game.example.org", "", "0.0.0.0"),
        ("192.168.1.5", "192.168.1.5", "192.168.1.5"),
        ("::1", "", "127.0.0.1,::1"),
        ("play.example.org,2001:db8::1", "", "0.0.0.0,::"),
    ],
)
@pytest.mark.row(83)
def test_servers_listen_where_players_can_reach_them(public: str, bind: str, listen_on: str) -> None:
    """Only loopback when all players are on this host."""
    assert Settings(public_host=public, bind_host=bind).listen_on == listen_on


@pytest.mark.parametrize(
    "wrong",
    [
        {"port_range": "80-90"},
        {"port_range": "30000"},
        {"max_servers": 0},
        {"public_host": "a b"},
        {"public_host": ""},
        {"public_host": "0.0.0.0"},
        {"public_host": "play.example.org,::"},
        {"host": "a.b"},
        {"unknown": 1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    """They are refused at the start, not at the first server."""
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type] # wrong by intention


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From TIPOFF_LAUNCHER_..., and from TIPOFF_GAMES as in every service."""
    monkeypatch.setenv("TIPOFF_LAUNCHER_MAX_SERVERS", "7")
    monkeypatch.setenv("TIPOFF_GAMES", str(tmp_path / "games.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = Settings()
    assert (settings.max_servers, settings.games) == (7, tmp_path / "games.toml")
    assert settings.state_dir == tmp_path / "tipoff"


def variables(settings: Settings, nats: NatsSettings, **env: str) -> dict[str, str]:
    return server_environment(
        {"PATH": "/bin", "SECRET": "x"},
        DeploySpec("g-1", "g", "1", 4),
        Game("g", "1"),
        settings,
        nats,
        key_file=Path("/key"),
        ports={"udp": Port(1, 2, "udp")},
        backend=BackendEnvironment(env, INHERITED, settings.listen_on),
        arbitrium={},
    )


def test_a_game_may_say_how_its_servers_listen_but_not_who_they_are() -> None:
    """games.toml overrides what the launcher passes on, but not the server's identity."""
    settings = Settings(tls_cert="/cert.pem", tls_key="/key.pem")
    nats = NatsSettings(user="launcher", password=Secret("mine"))
    found = variables(settings, nats)
    assert (found["TIPOFF_TLS_CERT"], found["TIPOFF_TLS_KEY"]) == ("/cert.pem", "/key.pem")
    assert found["TIPOFF_PORTS"] == '{"udp":{"internal":1,"external":2,"protocol":"udp"}}'
    assert (found["NATS_USER"], found["NATS_PASSWORD"]) == ("launcher", "mine")
    own = {"TIPOFF_BIND_HOST": "10.0.0.1", "TIPOFF_GAME": "other", "NATS_USER": "gameserver"}
    found = variables(settings, nats, **own)
    assert (found["TIPOFF_BIND_HOST"], found["TIPOFF_GAME"]) == ("10.0.0.1", "g")
    assert found["NATS_USER"] == "gameserver"
    assert "NATS_PASSWORD" not in found  # servers with their own credentials do not get the launcher's


async def test_without_pidfd_an_end_is_noticed_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is on old kernels and on systems other than Linux."""

    def missing(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    game = Game("g", "1", process=ProcessSpec(["sh", "-c", "exit 4"]))
    request = a_request(game, tmp_path)
    async with LogWriter(tmp_path) as logs:
        server = await ProcessBackend(tmp_path, logs).start(request, lambda native_id: None)
        begin = time.monotonic()
        assert (await server.wait()).code == 4
        assert time.monotonic() - begin < 2
