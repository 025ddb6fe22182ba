"""Starting and stopping: ports, TLS, settings, draining, the process itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.certificates import self_signed
from tests.polling import eventually
from tipoff_matchmaker_httpd.compose import create_app
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.messages import ACKNOWLEDGED
from tipoff_shared.primitives import server_certificate
from tipoff_shared.settings import NatsSettings

ARENA = '{"game":"arena","version":"1"}'
ERROR = b'{"Error":[404,"x"]}'


async def test_a_port_in_use_is_said_clearly(start: Any, httpd: Any) -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match=rf"port {httpd.port}.*in use.*TIPOFF_HTTPD_PORT"):
        await start(port=httpd.port)


async def test_an_address_of_another_machine_is_refused(start: Any) -> None:
    """Before anything is connected."""
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1"):
        await start(host="203.0.113.1")
    with pytest.raises(ConfigError, match="TIPOFF_HTTPD_HOST"):
        await start(host="no.such.host.invalid")


async def test_several_hosts_share_a_port(start: Any) -> None:
    """Also where the port is any free one."""
    httpd = await start(host="127.0.0.1, 127.0.0.2")
    async with httpx.AsyncClient(trust_env=False) as client:
        for host in ("127.0.0.1", "127.0.0.2"):
            assert (await client.get(f"http://{host}:{httpd.port}/healthz")).status_code == 200


@pytest.mark.slow
async def test_nats_away_at_the_start_is_said_in_time(namespace: str) -> None:
    """With the address that was tried; the port is free again."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        settings = NatsSettings(servers=(f"nats://127.0.0.1:{port}",), insecure=True, namespace=namespace)
        with pytest.raises(Unavailable, match=str(port)):
            async with run_httpd(Settings(port=0), settings):
                pass


async def test_tls(start: Any, tls_files: Any, matchmaker: Any) -> None:
    """https and wss; http on that port gets nothing."""
    cert, key = tls_files
    httpd = await start(tls_cert=cert, tls_key=key)
    assert httpd.url == f"https://127.0.0.1:{httpd.port}"
    context = ssl.create_default_context(cafile=cert)
    url = f"localhost:{httpd.port}"
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        assert (await client.get(f"https://{url}/healthz")).status_code == 200
    origin = f"https://{url}"
    async with websockets.connect(
        f"wss://{url}/matchmaker/ws",
        ssl=context,
        origin=origin,
        proxy=None,  # type: ignore[arg-type] # a str
    ) as player:
        await player.send(ARENA)
        assert await player.recv() == '"Acknowledged"'
    with pytest.raises(websockets.InvalidStatus):
        await websockets.connect(
            f"wss://{url}/matchmaker/ws",
            ssl=context,
            origin=f"http://{url}",
            proxy=None,  # type: ignore[arg-type] # a str
        )


@pytest.mark.row(71)
async def test_a_renewed_certificate_is_served_without_dropping_anyone(
    start: Any, tmp_path: Path, matchmaker: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A player who waits goes on waiting; the next handshake gets the new certificate, by every port."""
    monkeypatch.setattr(server_certificate, "INTERVAL", 0.05)
    matchmaker.script = None
    cert, key = self_signed(tmp_path)
    httpd = await start(tls_cert=cert, tls_key=key)
    url = f"localhost:{httpd.port}"
    async with websockets.connect(
        f"wss://{url}/matchmaker/ws",
        ssl=ssl.create_default_context(cafile=cert),
        proxy=None,  # type: ignore[arg-type] # a str
    ) as player:
        await player.send(ARENA)
        request = await matchmaker.next_request()
        self_signed(tmp_path)
        trust = ssl.create_default_context(cafile=cert)

        async def served() -> bool:
            async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
                return (await client.get(f"https://{url}/healthz")).status_code == 200

        await eventually(served, unready=(httpx.ConnectError,))
        await request.answer(b'"Acknowledged"')
        assert await player.recv() == '"Acknowledged"'


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PORT": "70000"}, "TIPOFF_HTTPD_PORT"),
        ({"PORT": "many"}, "TIPOFF_HTTPD_PORT"),
        ({"TLS_CERT": "/x.pem"}, "TIPOFF_HTTPD_TLS_KEY"),
        ({"TLS_CERT": "/x.pem", "TLS_KEY": "/y.pem"}, "PEM"),
        ({"TRUSTED_PROXIES": "10.0.0.0/99"}, "TIPOFF_HTTPD_TRUSTED_PROXIES"),
        ({"FAKE_IP": "localhost"}, "TIPOFF_HTTPD_FAKE_IP"),
        ({"DEFAULT_GAME": "arena"}, "TIPOFF_HTTPD_DEFAULT_VERSION"),
        ({"DEFAULT_GAME": "a*", "DEFAULT_VERSION": "1"}, "TIPOFF_HTTPD_DEFAULT_GAME"),
        ({"HOST": " , "}, "TIPOFF_HTTPD_HOST"),
        ({"REQUEST_TIMEOUT": "0"}, "TIPOFF_HTTPD_REQUEST_TIMEOUT"),
    ],
)
async def test_wrong_settings_name_their_variable(
    monkeypatch: pytest.MonkeyPatch, settings: NatsSettings, variables: dict[str, str], words: str
) -> None:
    """And what is allowed."""
    for name, value in variables.items():
        monkeypatch.setenv(f"TIPOFF_HTTPD_{name}", value)
    with pytest.raises(ConfigError, match=words):
        async with run_httpd(Settings.load(), settings):
            pass


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As environment variables write them."""
    monkeypatch.setenv("TIPOFF_HTTPD_HOST", "127.0.0.1,::1")
    monkeypatch.setenv("TIPOFF_HTTPD_TRUSTED_PROXIES", "10.0.0.1, 172.16.0.0/12")
    monkeypatch.setenv("TIPOFF_HTTPD_ORIGINS", "https://a.example")
    settings = Settings.load()
    assert settings.host == ("127.0.0.1", "::1")
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.1/32", "172.16.0.0/12"]
    assert settings.origins == ("https://a.example",)


async def test_requests_in_flight_are_finished(
    settings: NatsSettings, matchmaker: Any, connect_ws: Any
) -> None:
    """Stopping waits for a player's answer; new connections are refused."""
    matchmaker.script = None
    running = run_httpd(Settings(port=0, drain_timeout=5), settings)
    httpd = await running.__aenter__()
    async with connect_ws(httpd) as player:
        await player.send(ARENA)
        request = await matchmaker.next_request()
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        await httpd.state.draining.wait()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", httpd.port)
        await request.answer(ACKNOWLEDGED, b'{"Error":[404,"late"]}')
        assert [json.loads(message) async for message in player] == ["Acknowledged", {"Error": [404, "late"]}]
        assert player.close_code == 1000
        async with asyncio.timeout(2):
            await stopping


async def test_who_still_waits_then_is_told(settings: NatsSettings, matchmaker: Any, connect_ws: Any) -> None:
    """503 and close code 1012; who has not asked yet, at once."""
    matchmaker.script = (ACKNOWLEDGED,)
    running = run_httpd(Settings(port=0, drain_timeout=0.4), settings)
    httpd = await running.__aenter__()
    async with connect_ws(httpd) as asked, connect_ws(httpd) as silent:
        await asked.send(ARENA)
        await matchmaker.next_request()
        assert await asked.recv() == '"Acknowledged"'
        began = time.monotonic()
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        for player, least, most in ((silent, 0.0, 0.35), (asked, 0.35, 2.0)):
            assert json.loads(await player.recv())["Error"][0] == 503
            assert least <= time.monotonic() - began < most
            await player.wait_closed()
            assert player.close_code == 1012
        async with asyncio.timeout(2):
            await stopping


async def test_streams_end_with_the_service(settings: NatsSettings, matchmaker: Any) -> None:
    """The last line is the error; watching pages are let go."""
    matchmaker.script = (ACKNOWLEDGED,)
    running = run_httpd(Settings(port=0, demo=True, drain_timeout=0.3), settings)
    httpd = await running.__aenter__()
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
        async with (
            client.stream("POST", "/matchmaker/request/arena/1") as seat,
            client.stream("GET", "/demo/events") as events,
        ):
            lines = seat.aiter_lines()
            assert await anext(lines) == '"Acknowledged"'
            stopping = asyncio.create_task(running.__aexit__(None, None, None))
            assert (json.loads(await anext(lines)))["Error"][0] == 503
            assert [line async for line in events.aiter_lines()]
        async with asyncio.timeout(3):
            await stopping


async def test_clients_that_do_nothing_do_not_hold_up_the_end(settings: NatsSettings) -> None:
    """Idle connections of all kinds."""
    running = run_httpd(Settings(port=0, drain_timeout=5), settings)
    httpd = await running.__aenter__()
    writers = []
    for first in (b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        _, writer = await asyncio.open_connection("127.0.0.1", httpd.port)
        writer.write(first)
        writers.append(writer)
    began = time.monotonic()
    await running.__aexit__(None, None, None)
    assert time.monotonic() - began < 2
    for writer in writers:
        writer.transport.abort()


async def test_the_process_serves_and_drains_on_sigterm(settings: NatsSettings, matchmaker: Any) -> None:
    """`python -m tipoff_matchmaker_httpd`, configured by the environment only; exit code 0."""
    matchmaker.script = None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = settings.to_environment() | {"TIPOFF_HTTPD_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff_matchmaker_httpd",
        env=os.environ | variables,
        stderr=asyncio.subprocess.PIPE,
    )

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"listens on" not in (line := await process.stderr.readline()):
                assert line, "it ended"
            async with websockets.connect(f"ws://127.0.0.1:{port}/matchmaker/ws", proxy=None) as player:
                await player.send(ARENA)
                request = await matchmaker.next_request()
                process.send_signal(signal.SIGTERM)
                await eventually(refused, "nobody new is let in")
                await request.answer(ACKNOWLEDGED, ERROR)
                assert [message async for message in player][-1] == ERROR.decode()
            rest = await process.stderr.read()
            assert await process.wait() == 0, rest
            assert settings.password.reveal().encode() not in line + rest
            assert b"Traceback" not in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_process_says_why_it_cannot_start() -> None:
    """One line, exit code 2."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff_matchmaker_httpd",
        env=os.environ | {"TIPOFF_HTTPD_PORT": "99999"},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert b"TIPOFF_HTTPD_PORT" in said
    assert len(said.splitlines()) == 1


async def test_another_asgi_server_runs_the_app_by_its_lifespan(
    settings: NatsSettings, matchmaker: Any
) -> None:
    """Startup connects to NATS, requests get the app by the scope's state, shutdown ends it."""
    app = create_app(Settings.load(port=0), settings)
    told: asyncio.Queue[Any] = asyncio.Queue()
    said: asyncio.Queue[Any] = asyncio.Queue()
    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    lifespan = asyncio.create_task(app(scope, told.get, said.put))
    async with asyncio.timeout(10):
        await told.put({"type": "lifespan.startup"})
        assert await said.get() == {"type": "lifespan.startup.complete"}

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": state}, receive, send)

        transport = httpx.ASGITransport(with_state, client=("127.0.0.1", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://httpd") as client:
            assert (await client.get("/readyz")).json() == {"ready": True, "missing": []}
            assert (await client.post("/turn", content="nonsense")).status_code == 400
        await told.put({"type": "lifespan.shutdown"})
        assert await said.get() == {"type": "lifespan.shutdown.complete"}
        await lifespan
