"""`tipoff doctor` against a real nats-server, TLS servers, UDP sockets, a socket like the engine's; the command."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tipoff.doctor.facts import engine, games, network, udp
from tipoff.doctor.facts import nats as nats_facts
from tipoff.doctor.findings import Finding, Status, ok, run_checks
from tipoff.doctor.rules.host import judge_engine
from tipoff.doctor.rules.nats import judge_nats
from tipoff.doctor.rules.network import judge_tls
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

NOW = datetime.now(UTC)


def statuses(findings: list[Finding]) -> dict[str, Status]:
    return {finding.check: finding.status for finding in findings}


# All at once.


async def test_checks_run_at_once_and_each_has_a_deadline() -> None:
    """One that hangs and one that breaks are findings; the others' results are kept, in order."""

    async def good() -> list[Finding]:
        return [ok("good", "fine")]

    async def hangs() -> list[Finding]:
        await asyncio.Event().wait()
        return []

    async def breaks() -> list[Finding]:
        raise ZeroDivisionError("oh")

    began = asyncio.get_running_loop().time()
    found = await run_checks({"hangs": hangs, "good": good, "breaks": breaks}, 0.1)
    assert asyncio.get_running_loop().time() - began < 1
    assert [(finding.check, finding.status) for finding in found] == [
        ("hangs", Status.FAIL),
        ("good", Status.OK),
        ("breaks", Status.FAIL),
    ]


# NATS.


async def test_a_nats_with_its_buckets_is_well(settings: NatsSettings, nats: Bus) -> None:
    """Version, buckets, clock; nobody plays matchmaker here."""
    await create_buckets(nats)
    facts = await nats_facts.look_at_nats(settings, 5)
    assert statuses(judge_nats(facts)) == {
        "nats": Status.OK,
        "jetstream": Status.OK,
        "matchmaker": Status.FAIL,
    }
    assert facts.clock is not None
    assert abs(facts.clock.offset) < 1


async def test_a_nats_without_our_buckets_is_told(settings: NatsSettings) -> None:
    """A wrong namespace, or no matchmaker ever."""
    findings = judge_nats(await nats_facts.look_at_nats(settings, 5))
    assert statuses(findings)["jetstream"] is Status.FAIL


async def test_a_wrong_password_is_told_as_that(settings: NatsSettings) -> None:
    """With what to do; the password is nowhere."""
    wrong = dataclasses.replace(settings, password=Secret("wrong-pass-word"))
    [finding] = judge_nats(await nats_facts.look_at_nats(wrong, 3))
    assert finding.status is Status.FAIL
    assert "NATS_PASSWORD_FILE" in finding.todo
    assert "wrong-pass-word" not in finding.said + finding.todo


async def test_no_nats_is_told_within_the_time_given(settings: NatsSettings) -> None:
    """A port with nobody behind it."""
    nowhere = dataclasses.replace(settings, servers=("nats://127.0.0.1:1",))
    [finding] = judge_nats(await nats_facts.look_at_nats(nowhere, 1))
    assert (finding.status, "127.0.0.1:1" in finding.said) == (Status.FAIL, True)


async def test_a_nats_without_tls_shows_no_certificate(nats_server: EmbeddedNats) -> None:
    """TLS was asked for."""
    host, _, port = nats_server.settings().servers[0].removeprefix("nats://").rpartition(":")
    facts = await network.look_at_nats_tls(host, int(port), ssl.create_default_context())
    assert judge_tls("nats-tls", facts, NOW).status is Status.FAIL
    assert "no TLS" in facts.problem


# TLS.


@asynccontextmanager
async def tls_server(pem: Path, key: Path) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("name", "days", "trusted", "expected", "says"),
    [
        ("localhost", 90, True, Status.OK, "for localhost"),
        ("localhost", 90, False, Status.FAIL, "not trusted"),
        ("elsewhere.example", 90, True, Status.FAIL, "is for elsewhere.example"),
        ("localhost", -0.5, True, Status.FAIL, "has expired"),
        ("localhost", 2, True, Status.FAIL, "left"),
    ],
)
async def test_a_certificate_is_judged_as_a_client_sees_it(
    tmp_path: Path, name: str, days: float, trusted: bool, expected: Status, says: str
) -> None:
    """Good, of nobody, for somebody else, too old, almost."""
    pem, key = self_signed(tmp_path, name=name, now=NOW, since=timedelta(days=30), left=timedelta(days=days))
    async with tls_server(pem, key) as port:
        facts = await network.look_at_https("localhost", port, pem if trusted else None)
    finding = judge_tls("https", facts, NOW)
    assert (finding.status, says in finding.said) == (expected, True), finding.said


async def test_a_port_without_tls_is_told(nats_server: EmbeddedNats) -> None:
    """Something answers, and it is no TLS."""
    host, _, port = nats_server.settings().servers[0].removeprefix("nats://").rpartition(":")
    facts = await network.look_at_https(host, int(port), None)
    assert facts.connected
    assert judge_tls("https", facts, NOW).status is Status.FAIL


async def test_a_port_with_nobody_behind_it_is_told() -> None:
    """Refused."""
    facts = await network.look_at_https("127.0.0.1", 1, None)
    assert not facts.connected


# UDP.


async def test_an_echo_answers_a_probe() -> None:
    """Every open port; one that somebody has is told as busy."""
    async with udp.echo([0, 0, 0], "127.0.0.1") as echo:
        port = echo.open[0]
        facts = await udp.probe("127.0.0.1", range(port, port + 1), 2)
        assert facts.answered == {port}
        assert echo.heard == {"127.0.0.1": 1}
        async with udp.echo([port], "127.0.0.1") as second:
            assert (second.open, second.busy) == ([], [port])


async def test_silence_is_no_answer() -> None:
    """Nobody listens: nothing is believed."""
    async with udp.echo([0], "127.0.0.1") as echo:
        port = echo.open[0]
    facts = await udp.probe("127.0.0.1", range(port, port + 1), 0.2)
    assert facts.answered == set()


async def test_ones_own_datagram_arrives_on_loopback() -> None:
    """And the ports that are in use are known."""
    async with udp.echo([0]) as echo:
        port = echo.open[0]
        found = udp.look_at_ports(range(port, port + 1))
        assert found.busy == (port,)
    facts = await udp.send_to_self("127.0.0.1", range(port, port + 1), (), 2)
    assert facts.arrived is True


# The engine.


@asynccontextmanager
async def engine_like(socket: Path, answers: dict[str, tuple[int, object]]) -> AsyncIterator[None]:
    """A socket that answers as an engine does: path -> (status, JSON)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                status, answer = answers.get(head.split()[1].decode(), (404, {"message": "no such"}))
                body = json.dumps(answer).encode()
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, str(socket)):
        yield


async def test_an_engine_tells_version_images_and_network(tmp_path: Path) -> None:
    """One image is there, one is not; the network is not."""
    socket = tmp_path / "s"
    answers: dict[str, tuple[int, object]] = {
        "/version": (200, {"Version": "27.1", "ApiVersion": "1.46"}),
        "/info": (200, {"LiveRestoreEnabled": True}),
        "/images/game:1/json": (200, {}),
    }
    async with engine_like(socket, answers):
        facts = await engine.look_at_engine(socket, ["game:1", "game:2"], "games")
    assert (facts.version, facts.api, facts.live_restore) == ("27.1", "1.46", True)
    assert facts.images == {"game:1": True, "game:2": False}
    assert not facts.network_there
    assert statuses(judge_engine(facts, "missing")) == {"images": Status.WARN, "engine": Status.FAIL}


async def test_the_stacks_nats_is_found_by_the_engine(tmp_path: Path) -> None:
    """Its addresses; nothing where the engine says something else."""
    listing = [
        {"NetworkSettings": {"Networks": {"a": {"IPAddress": "172.20.0.2"}, "b": {"IPAddress": ""}}}},
    ]
    assert engine.read_addresses(listing) == ["172.20.0.2"]
    assert engine.read_addresses([]) == []
    for nonsense in ({"message": "no"}, [1], [{"NetworkSettings": None}], None):
        with pytest.raises(ValueError, match="not a listing"):
            engine.read_addresses(nonsense)
    assert await engine.addresses_of(tmp_path / "none", "tipoff", "nats") == []


async def test_an_engine_that_is_none_is_told(tmp_path: Path) -> None:
    """No socket, no socket either, nobody behind it, nonsense."""
    plain = tmp_path / "plain"
    plain.touch()
    for socket in (tmp_path / "none", plain):
        assert (await engine.look_at_engine(socket, [], "")).error
    dead = tmp_path / "dead"
    async with engine_like(dead, {"/version": (200, [])}):
        assert (await engine.look_at_engine(dead, [], "")).error
    assert (await engine.look_at_engine(dead, [], "")).error


# Games and keys.


GAMES = """
[[game]]
name = "arena"
version = "1"
process = { command = ["python", "server.py"] }
[[game]]
name = "chess"
version = "1"
process = { command = ["python", "server.py"] }
"""


def test_keys_are_looked_at_and_not_shown(tmp_path: Path) -> None:
    """Missing, the same twice, open to all, good."""
    path = tmp_path / "games.toml"
    path.write_text(GAMES)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    assert "no private key" in games.look_at_games(path, keys, {}).key_error
    for name in ("arena", "chess"):
        (keys / f"{name}.1.key").write_text("ab" * 32)
    same = games.look_at_games(path, keys, {})
    assert same.shared_keys == ("arena 1", "chess 1")
    assert "abab" not in repr(same)
    (keys / "chess.1.key").write_text("cd" * 32)
    good = games.look_at_games(path, keys, {})
    assert (good.key_error, good.shared_keys) == ("", ())


def test_a_key_in_a_closed_directory_is_not_open(tmp_path: Path) -> None:
    """Its files may be 0444, for containers."""
    path = tmp_path / "games.toml"
    path.write_text(GAMES)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for number, name in enumerate(("arena", "chess")):
        file = keys / f"{name}.1.key"
        file.write_text(f"{number + 1:064x}")
        file.chmod(0o444)
    assert games.look_at_games(path, keys, {}).open_keys == ()


def test_a_games_file_with_a_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    """As the services would."""
    path = tmp_path / "games.toml"
    path.write_text(GAMES.replace('version = "1"', 'version = "*"', 1))
    assert f"{path}:4" in games.look_at_games(path, None, {}).error


# The command.


async def doctor(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tipoff", "doctor", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_failure_is_the_exit_code(tmp_path: Path) -> None:
    """1, and JSON for machines."""
    code, output = await doctor(
        *("--json", "--state-dir", str(tmp_path), "--nats", "nats://127.0.0.1:1", "--timeout", "0.5"),
        *("--ports", "39990-39991", "--host", "127.0.0.1", "--url", "http://127.0.0.1:1"),
    )
    report = json.loads(output)
    assert code == 1
    assert {finding["check"]: finding["status"] for finding in report["findings"]}["nats"] == "fail"
    assert report["fail"] >= 2  # httpd, too
    for finding in report["findings"]:
        assert finding["todo"] or finding["status"] in ("ok", "skip")


@pytest.mark.row(77)
@pytest.mark.parametrize("way", ["option", "variable"])
async def test_a_system_that_was_named_and_does_not_run_is_a_failure(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that runs `doctor` on the machine of a `tipoff up` hears that it has ended."""
    if way == "variable":
        monkeypatch.setenv("TIPOFF_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("NATS_HOST", raising=False)
    named = ("--state-dir", str(tmp_path)) if way == "option" else ()
    code, output = await doctor("--json", *named, "--ports", "39990-39991")
    findings = {finding["check"]: finding for finding in json.loads(output)["findings"]}
    assert code == 1
    assert findings["nats"]["status"] == "fail"
    assert "start it" in findings["nats"]["said"]


async def test_nothing_wrong_is_success() -> None:
    """A probe that is answered."""
    async with udp.echo([0], "127.0.0.1") as echo:
        port = str(echo.open[0])
        code, output = await doctor("--probe", "127.0.0.1", "--ports", port)
    assert (code, "every port answers" in output) == (0, True), output
