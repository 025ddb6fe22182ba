"""The context endpoint: what servers may ask over HTTP, with which tokens, and that any other bytes do no harm."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.orchestrator.launcher_world import LauncherWorld, Spec
from tests.polling import eventually
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium, ServerTokens
from tipoff_launcher.edgegap_compat.bevygap import bevygap_environment, synthetic_ip
from tipoff_launcher.edgegap_compat.context_endpoint import ContextEndpoint, bind, serve_contexts
from tipoff_launcher.edgegap_compat.host_info import HostInfo, find_host_info, listen_address
from tipoff_launcher.edgegap_compat.small_http import Answer, Request, SmallHttp
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import NotConfigured, Port, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import DockerSpec, Game, Games, ProcessSpec
from tipoff_shared.nats.connection import Bus

StartLauncher = Callable[..., AbstractAsyncContextManager[Launcher]]

TOKENS = ServerTokens(b"s" * 32)
PLACE = HostInfo("http://127.0.0.1:8070", "203.0.113.7", "play.example.org", "Ghent", "Belgium")
PORTS = {"webtransport": Port(6420, 30001, "udp")}


def answer_to(endpoint: ContextEndpoint, method: str, path: str, authorization: str) -> Answer:
    return asyncio.run(endpoint.answer(Request(method, path, authorization)))


@pytest.fixture
def stopped() -> list[str]:
    return []


@pytest.fixture
def endpoint(stopped: list[str]) -> ContextEndpoint:
    """An endpoint with one running server, `a-1`."""
    return ContextEndpoint(
        TOKENS, context=lambda id: {"request_id": id} if id == "a-1" else None, stop=stopped.append
    )


def context_path(deployment_id: str) -> str:
    return f"/v1/context/{deployment_id}/{TOKENS.number(deployment_id)}"


def stop_path(deployment_id: str) -> str:
    return f"/v1/self/stop/{deployment_id}/{TOKENS.number(deployment_id)}"


def test_a_server_gets_its_context_with_its_token(endpoint: ContextEndpoint) -> None:
    answer = answer_to(endpoint, "GET", context_path("a-1"), TOKENS.context_token("a-1"))
    assert (answer.status, json.loads(answer.body)) == (200, {"request_id": "a-1"})


def test_a_server_is_stopped_with_its_other_token(endpoint: ContextEndpoint, stopped: list[str]) -> None:
    answer = answer_to(endpoint, "DELETE", stop_path("a-1"), TOKENS.delete_token("a-1"))
    assert (answer.status, stopped) == (202, ["a-1"])


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", context_path("a-1"), "", 401),
        ("GET", context_path("a-1"), "x" * 43, 401),
        ("GET", context_path("a-1"), "\u20ac", 401),
        ("GET", context_path("a-1"), TOKENS.context_token("a-2"), 401),
        ("GET", context_path("a-1"), TOKENS.delete_token("a-1"), 401),
        ("GET", context_path("a-1") + "0", TOKENS.context_token("a-1"), 401),
        ("GET", "/v1/context/a-1", TOKENS.context_token("a-1"), 401),
        ("GET", context_path("unknown"), TOKENS.context_token("a-1"), 401),
        ("GET", context_path("a-2"), TOKENS.context_token("a-2"), 410),
        ("DELETE", stop_path("a-1"), TOKENS.context_token("a-1"), 401),
        ("DELETE", stop_path("a-2"), TOKENS.delete_token("a-2"), 410),
        ("DELETE", context_path("a-1"), TOKENS.context_token("a-1"), 405),
        ("GET", stop_path("a-1"), TOKENS.delete_token("a-1"), 405),
        ("GET", "/", "", 404),
        ("GET", "/v1/context", "", 404),
    ],
)
def test_nobody_else_gets_anything(
    endpoint: ContextEndpoint, stopped: list[str], method: str, path: str, token: str, status: int
) -> None:
    answer = answer_to(endpoint, method, path, token)
    assert (answer.status, stopped) == (status, [])
    assert "request_id" not in json.loads(answer.body)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_no_path_or_token_raises(method: str, path: str, token: str) -> None:
    endpoint = ContextEndpoint(TOKENS, context=lambda id: {}, stop=lambda id: None)
    for prefix in ("", "/v1/context/", "/v1/self/stop/"):
        assert answer_to(endpoint, method, prefix + path, token).status in (401, 404, 405)


def test_tokens_are_each_servers_own_and_follow_from_the_kept_secret(tmp_path: Path) -> None:
    """Each server has two tokens, unguessable and the same after a restart; no repr shows them."""
    tokens = ServerTokens.load(tmp_path)
    again = ServerTokens.load(tmp_path)
    mine = {tokens.context_token("a"), tokens.delete_token("a"), tokens.context_token("b")}
    assert len(mine) == 3
    assert all(len(token) == 43 for token in mine)
    assert again.context_token("a") == tokens.context_token("a")
    assert repr(tokens) == "ServerTokens()"
    assert ((tmp_path / "servers.secret").stat().st_mode & 0o777) == 0o600
    assert "secret" not in repr(Request("GET", "/", "secret"))


def test_a_key_is_nobodys_address_and_nobody_elses_key() -> None:
    held: set[str] = set()
    for _ in range(50):
        key = synthetic_ip("always-the-same", held)
        assert 240 <= int(key.split(".")[0]) <= 255
        assert key not in held
        held.add(key)
    assert synthetic_ip("one", ()) != synthetic_ip("other", ())


def test_the_variables_are_eight_and_short() -> None:
    """Edgegap once cut them at 255 bytes; the last part of the URLs is the i32 that bevygap parses."""
    variables = Arbitrium(PLACE, TOKENS).variables("d" * 63, PORTS)
    assert len(variables) == 8
    assert all(len(value) < 255 for value in variables.values())
    assert variables["ARBITRIUM_PUBLIC_IP"] == "203.0.113.7"
    assert 0 <= int(variables["ARBITRIUM_CONTEXT_URL"].rsplit("/", 1)[1]) < 2**31
    mapping = json.loads(variables["ARBITRIUM_PORTS_MAPPING"])
    assert mapping["ports"]["webtransport"] == {
        "name": "webtransport",
        "internal": 6420,
        "external": 30001,
        "protocol": "UDP",
    }


def test_the_context_of_a_bevygap_server_names_its_key() -> None:
    """It has all that bevygap reads; the context of other games has the address itself."""
    arbitrium = Arbitrium(PLACE, TOKENS)
    context = arbitrium.context("d-1", Game("g", "1", seats=7), PORTS, digest_key="240.1.2.3")
    assert (context["request_id"], context["public_ip"], context["sockets"]) == ("d-1", "240.1.2.3", 7)
    assert context["fqdn"] == "play.example.org"
    assert (context["location"]["city"], context["location"]["country"]) == ("Ghent", "Belgium")
    assert arbitrium.context("d-1", Game("g", "1"), PORTS)["public_ip"] == "203.0.113.7"


def test_what_bevygaps_plugin_needs_of_nats(tmp_path: Path) -> None:
    """One NATS server, always a user and a password, the key in decimal; configured values stay."""
    changed = bevygap_environment({"NATS_HOST": "nats://a:1,nats://b:2"}, bytes(range(32)))
    assert changed["NATS_HOST"] == "nats://a:1"
    assert (changed["NATS_USER"], changed["NATS_PASSWORD"]) == ("gameserver", "")
    assert changed["LIGHTYEAR_PRIVATE_KEY"].startswith("0,1,2,3,")
    file = tmp_path / "password"
    file.write_text("from the file\n")
    changed = bevygap_environment({"NATS_USER": "gs", "NATS_PASSWORD_FILE": str(file)}, bytes(32))
    assert (changed["NATS_USER"], changed["NATS_PASSWORD"]) == ("gs", "from the file")
    with pytest.raises(NotConfigured, match="NATS_PASSWORD_FILE"):
        bevygap_environment({"NATS_PASSWORD_FILE": str(tmp_path / "none")}, bytes(32))


async def test_a_name_is_told_as_an_address() -> None:
    """The first IPv4 literal, else the resolved name, else loopback with a warning."""
    here = ("127.0.0.1", 8070)
    assert (
        await find_host_info(Settings(public_host="fd00::1,198.51.100.4"), here)
    ).public_ip == "198.51.100.4"
    found = await find_host_info(Settings(public_host="localhost", location="Ghent"), here)
    assert (found.public_ip, found.fqdn) == ("127.0.0.1", "localhost")
    assert (found.city, found.country) == ("Ghent", "Ghent")


@pytest.mark.parametrize(
    ("changes", "listens", "url"),
    [
        ({}, "127.0.0.1", "http://127.0.0.1:8070"),
        ({"context_listen": "0.0.0.0:0"}, "0.0.0.0", "http://127.0.0.1:8070"),
        ({"context_listen": "10.0.0.7:0"}, "10.0.0.7", "http://10.0.0.7:8070"),
        ({"context_url": "http://launcher:9/"}, "127.0.0.1", "http://launcher:9"),
        ({"backend": "docker"}, "0.0.0.0", "http://host.docker.internal:8070"),
        ({"backend": "docker", "docker_network": "host"}, "127.0.0.1", "http://127.0.0.1:8070"),
    ],
)
async def test_servers_are_told_a_url_that_they_reach(
    changes: dict[str, Any], listens: str, url: str
) -> None:
    """Processes use loopback, containers their host; the endpoint is on every interface only for such containers."""
    settings = Settings(**changes)
    image = DockerSpec("spaceships:1")
    bevy = Game("bevy", "1", ready="context", bevygap=True, docker=image)
    assert listen_address(settings, Games({bevy.key: bevy}, {}, Path())) == (listens, 0)
    ours = Game("arena", "1", docker=image)
    if not settings.context_listen:
        assert listen_address(settings, Games({ours.key: ours}, {}, Path())) == ("127.0.0.1", 0)
    assert (await find_host_info(settings, (listens, 8070))).url == url


@pytest.mark.parametrize(
    "wrong",
    [
        {"context_listen": "localhost:80"},
        {"context_listen": "127.0.0.1"},
        {"context_listen": "127.0.0.1:70000"},
        {"context_url": "ftp://x"},
        {"context_url": "http://x/path"},
    ],
)
def test_settings_of_the_endpoint_are_checked(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"allowed"):
        Settings(**wrong)  # type: ignore[arg-type] # wrong by intention


# Over a socket.


async def exchange(port: int, data: bytes, *, timeout: float = 8, host: str = "127.0.0.1") -> bytes:
    """Send `data` and return all bytes until the endpoint closes."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(data)
            await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


def request(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()


async def test_http_is_spoken(endpoint: ContextEndpoint, tmp_path: Path) -> None:
    """A regular client gets its answer, and the connection is closed after it."""
    sock = bind(("127.0.0.1", 0), tmp_path)
    async with serve_contexts(endpoint, sock), httpx.AsyncClient() as client:
        answer = await client.get(
            f"http://127.0.0.1:{sock.getsockname()[1]}{context_path('a-1')}",
            headers={"authorization": TOKENS.context_token("a-1")},
        )
        assert (answer.status_code, answer.json()) == (200, {"request_id": "a-1"})
        assert answer.headers["connection"] == "close"
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (request("GET", "/" + "x" * 20_000), b"431"),
        (request("GET", "/", "x: " + "y" * 20_000), b"431"),
        (request("POST", "/", "content-length: 1000000") + b"z" * 8000, b"413"),
        (request("POST", "/", "content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n", b"404"),
        (request("POST", "/", "content-length: -1"), b"400"),
        (request("GET", "/") * 2, b"404"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"404"),
        (request("HEAD", "/"), b"404"),
        (request("OPTIONS", "*"), b"404"),
        (request("CONNECT", "host:80"), b"404"),
        (request("GET", "/", "connection: upgrade", "upgrade: websocket"), b"404"),
        (request("POST", "/", "content-length: 5", "expect: 100-continue"), b"417"),
    ],
)
async def test_what_is_no_request_is_refused(
    endpoint: ContextEndpoint, tmp_path: Path, data: bytes, status: bytes
) -> None:
    """At most one answer with a status, and the connection is always closed."""
    sock = bind(("127.0.0.1", 0), tmp_path)
    async with serve_contexts(endpoint, sock):
        answer = await exchange(sock.getsockname()[1], data)
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.split()[1] == status


@pytest.mark.parametrize(
    "broken",
    [["content-length: 9", "expect: 100-continue"], ["content-length: 9000"], ["transfer-encoding: chunked"]],
)
async def test_a_head_that_breaks_off_is_answered_without_a_body(
    endpoint: ContextEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: list[str]
) -> None:
    """It is refused like any other, and nothing fails."""
    sock = bind(("127.0.0.1", 0), tmp_path)
    async with serve_contexts(endpoint, sock):
        answer = await exchange(sock.getsockname()[1], request("HEAD", "/", *broken) + b"z" * 9000)
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.endswith(b"\r\n\r\n")
    assert not caplog.records


async def test_one_peer_cannot_hold_all_connections(tmp_path: Path) -> None:
    """A container that opens many connections keeps no other from asking; processes of this host share one address."""

    async def fine(request: Request) -> Answer:
        return Answer(200, b"{}")

    http = SmallHttp(fine, deadline=5, max_connections=4, max_per_peer=1)
    sock = bind(("0.0.0.0", 0), tmp_path)
    port = sock.getsockname()[1]
    await http.open(sock)
    own = _own_address()
    try:
        _, greedy = await asyncio.open_connection(own, port)
        _, second = await asyncio.open_connection(own, port)
        assert await exchange(port, request("GET", "/"), host=own) == b""
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert b" 200 " in await exchange(port, request("GET", "/"))
        for writer in (greedy, second, *(writer for _, writer in idle)):
            writer.transport.abort()
    finally:
        await http.close()


def _own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has loopback alone")
        return str(probe.getsockname()[0])


async def test_who_is_slow_is_cut_off(tmp_path: Path) -> None:
    """A silent client and a slow request are closed at the deadline."""

    async def never(request: Request) -> Answer:
        raise AssertionError("no whole request came")

    http = SmallHttp(never, deadline=0.3)
    sock = bind(("127.0.0.1", 0), tmp_path)
    await http.open(sock)
    port = sock.getsockname()[1]
    try:
        began = time.monotonic()
        silent, dripping = await asyncio.gather(exchange(port, b""), exchange(port, b"GET / HTT"))
        assert (silent, dripping) == (b"", b"")
        assert time.monotonic() - began < 2
    finally:
        await http.close()


async def test_there_are_only_so_many_connections(tmp_path: Path) -> None:
    """A connection over the limit is closed at once; when one has ended there is room again."""

    async def fine(request: Request) -> Answer:
        return Answer(200, b"{}")

    http = SmallHttp(fine, deadline=5, max_connections=2)
    sock = bind(("127.0.0.1", 0), tmp_path)
    await http.open(sock)
    port = sock.getsockname()[1]
    try:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert await exchange(port, request("GET", "/")) == b""
        for _, writer in idle:
            writer.transport.abort()

        async def has_room() -> bool:
            return bool(await exchange(port, request("GET", "/")))

        await eventually(has_room)
    finally:
        await http.close()


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=3))
def test_bytes_of_any_kind_do_no_harm(chunks: list[bytes]) -> None:
    """Any bytes are answered, or the connection is closed, in time."""

    async def fine(request: Request) -> Answer:
        return Answer(200, b"{}")

    async def run() -> None:
        http = SmallHttp(fine, deadline=0.05)
        sock = bind(("127.0.0.1", 0), Path("/nonexistent"))
        await http.open(sock)
        try:
            answer = await exchange(sock.getsockname()[1], b"\r\n".join(chunks))
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
        finally:
            await http.close()

    asyncio.run(run())


def test_the_port_stays_the_same(tmp_path: Path) -> None:
    """Servers that outlive their launcher know its URL; if another program has the port, a new one is used."""
    first = bind(("127.0.0.1", 0), tmp_path)
    port = first.getsockname()[1]
    first.close()
    again = bind(("127.0.0.1", 0), tmp_path)
    assert again.getsockname()[1] == port
    again.listen()  # as another program would
    other = bind(("127.0.0.1", 0), tmp_path)
    moved = other.getsockname()[1]
    assert moved != port
    with pytest.raises(ConfigError, match="TIPOFF_LAUNCHER_CONTEXT_LISTEN"):
        bind(("127.0.0.1", port), tmp_path)
    other.close()
    again.close()
    third = bind(("127.0.0.1", 0), tmp_path)
    assert third.getsockname()[1] == moved
    third.close()


# As part of a launcher.


async def test_a_server_may_still_ask_after_its_launcher_was_restarted(
    launchers: LauncherWorld, nats: Bus, spec: Spec, tmp_path: Path
) -> None:
    """Its URL and tokens stay valid, and it is stopped when it asks for that."""
    orchestrator = LauncherOrchestrator(nats)
    wanted = spec("dump")
    dumped = tmp_path / "environment"
    async with launchers.start(stop_servers_on_exit=False):
        await orchestrator.deploy(wanted)
        await eventually(lambda: dumped.exists() and dumped.read_text().count("ARBITRIUM_") == 8, timeout=20)
    lines = dumped.read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line.startswith("ARBITRIUM_"))
    assert len(variables) == 8
    async with launchers.start(), httpx.AsyncClient() as client:
        url, token = variables["ARBITRIUM_CONTEXT_URL"], variables["ARBITRIUM_CONTEXT_TOKEN"]
        context = (await client.get(url, headers={"authorization": token})).json()
        assert context["request_id"] == wanted.deployment_id
        url, token = variables["ARBITRIUM_DELETE_URL"], variables["ARBITRIUM_DELETE_TOKEN"]
        assert urlsplit(url).hostname == "127.0.0.1"
        assert (await client.delete(url, headers={"authorization": token})).status_code == 202

        async def is_stopped() -> bool:
            found = await orchestrator.get(wanted.deployment_id)
            return found is not None and found.state is RunState.STOPPED

        await eventually(is_stopped, timeout=20)
        gone = await client.get(variables["ARBITRIUM_CONTEXT_URL"], headers={"authorization": "x"})
        assert gone.status_code == 401


@pytest.mark.parametrize("name", ["ARBITRIUM_CONTEXT_TOKEN", "TIPOFF_EVENT_KEY", "GAME_DB_PASSWORD"])
async def test_a_secret_in_a_servers_last_words_is_not_told_on(
    launchers: LauncherWorld, name: str, nats: Bus, spec: Spec, games: Games
) -> None:
    """bevygap's plugin logs its context token, and the exit reason goes to players."""
    own = {"GAME_DB_PASSWORD": "swordfish" * 10, "NATS_USER": "of its own"}
    talks = Game("talks", "1", process=ProcessSpec(["sh", "-c", f"echo token: ${name}; exit 1"], env=own))
    known = {game.key: game for game in [*games.all(), talks]}
    both = Games(known, dict.fromkeys(known, games.private_key(games.all()[0])), games.base)
    orchestrator = LauncherOrchestrator(nats)
    async with launchers.start(both):
        wanted = spec("talks", event_key="ab" * 32)
        await orchestrator.deploy(wanted)

        async def reason() -> str:
            found = await orchestrator.get(wanted.deployment_id)
            return found.reason if found is not None and found.state is RunState.STOPPED else ""

        await eventually(reason)
        assert "last words: token: ***" in await reason()
        assert len(await reason()) < 80


async def test_bevygap_servers_of_one_host_have_keys_of_their_own(
    launchers: LauncherWorld, nats: Bus, spec: Spec, games: Games, caplog: pytest.LogCaptureFixture
) -> None:
    """The matchmaker gets them, and they survive a restart; other games have none. A namespace is a warning."""
    sleeper = games.get("sleeper", "1")
    assert sleeper is not None
    bevy = msgspec.structs.replace(sleeper, name="bevy", bevygap=True, ready="context")
    known = {game.key: game for game in [*games.all(), bevy]}
    both = Games(known, dict.fromkeys(known, games.private_key(sleeper)), games.base)
    orchestrator = LauncherOrchestrator(nats)
    async with launchers.start(both, stop_servers_on_exit=False):
        started = [await orchestrator.deploy(spec(name)) for name in ("bevy", "bevy", "sleeper")]
        keys = [deployment.digest_key for deployment in started]
        assert keys[2] == ""
        assert len({*keys}) == 3
    assert "game 'bevy': bevygap's servers know no namespaces" in caplog.text
    async with launchers.start(both):
        found = [await orchestrator.get(deployment.deployment_id) for deployment in started]
        assert [deployment.digest_key for deployment in found if deployment is not None] == keys
