"""Who holds sockets, and who must go: an address that opens them without end keeps nobody else out.

Loopback has many addresses: 127.0.0.2 attacks, 127.0.0.1 is everybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tipoff_matchmaker_httpd.admission.places import Place
from tipoff_matchmaker_httpd.server.http import GuardedHttp
from tipoff_matchmaker_httpd.server.websocket import GuardedWebSocket
from tipoff_matchmaker_httpd.settings import Settings

ATTACKER = "127.0.0.2"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
ARENA = '{"game":"arena","version":"1"}'
CROWD = 40


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has loopback addresses only")
        return str(probe.getsockname()[0])


async def closes(reader: asyncio.StreamReader) -> None:
    """Wait until the other side has closed, and has said nothing."""
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


@asynccontextmanager
async def opened(httpd: Any, number: int, *, source: str = ATTACKER) -> AsyncIterator[list[Any]]:
    """Sockets of the attacker that do nothing."""
    streams = [
        await asyncio.open_connection("127.0.0.1", httpd.port, local_addr=(source, 0)) for _ in range(number)
    ]
    try:
        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


async def closed(streams: list[Any]) -> int:
    """How many of them the server has closed by now."""
    number = 0
    for reader, _ in streams:
        try:
            async with asyncio.timeout(0.01):
                while await reader.read(4096):
                    pass
        except TimeoutError:
            continue
        except ConnectionError:
            pass
        number += 1
    return number


async def get(httpd: Any, path: str = "/healthz", *, verify: Any = True, **headers: str) -> httpx.Response:
    """One request of somebody else, on its own connection."""
    async with httpx.AsyncClient(trust_env=False, verify=verify, timeout=5) as client:
        url = httpd.url.replace("127.0.0.1", "localhost") if httpd.url.startswith("https") else httpd.url
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.get(url + path, headers=names)


@pytest.mark.row(69)
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost:", b"POST /turn HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", HEALTH],
    ids=["idle", "half a head", "half a body", "kept alive after a request"],
)
async def test_sockets_of_one_address_keep_nobody_out(start: Any, sent: bytes) -> None:
    """Whatever state they are in: the oldest of them go."""
    httpd = await start(max_connections=10)
    async with opened(httpd, 10) as first:
        for _, writer in first:
            writer.write(sent)
        async with opened(httpd, CROWD) as more:
            for _, writer in more:
                writer.write(sent)
            for _ in range(20):
                assert (await get(httpd)).status_code == 200
            assert await closed(first) == 10
            assert httpd.state.connections <= 10


@pytest.mark.row(69)
async def test_a_tls_handshake_that_never_begins_keeps_nobody_out(start: Any, tls_files: Any) -> None:
    """Such a socket counts from its first moment."""
    cert, key = tls_files
    httpd = await start(tls_cert=cert, tls_key=key, max_connections=10)
    context = ssl.create_default_context(cafile=cert)
    async with opened(httpd, 10) as first, opened(httpd, CROWD):
        for _ in range(10):
            assert (await get(httpd, verify=context)).status_code == 200
        assert await closed(first) == 10
        assert httpd.state.connections <= 10


@pytest.mark.row(69)
async def test_a_tls_client_without_a_place_reads_why(
    start: Any, tls_files: Any, matchmaker: Any, eventually: Any
) -> None:
    """When all are in use, the handshake is completed for the sake of the answer."""
    matchmaker.script = None
    cert, key = tls_files
    httpd = await start(tls_cert=cert, tls_key=key, max_connections=1)
    context = ssl.create_default_context(cafile=cert)
    async with httpx.AsyncClient(trust_env=False, verify=context, timeout=5) as client:
        url = f"https://localhost:{httpd.port}"
        stream = asyncio.create_task(client.post(f"{url}/matchmaker/request/arena/1"))
        await matchmaker.next_request()
        answer = await get(httpd, verify=context)
        assert stream.cancel(), "the one that has the place keeps it"
        await asyncio.gather(stream, return_exceptions=True)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    await eventually(lambda: httpd.state.connections == 0)


@pytest.mark.row(69)
async def test_websockets_that_ask_for_nothing_go_first(
    start: Any, raw: Any, connect_ws: Any, matchmaker: Any, ends_with: Any
) -> None:
    """They read why. A player who waits for a seat stays."""
    matchmaker.script = None
    httpd = await start(max_connections=4)
    async with AsyncExitStack() as stack:
        player = await stack.enter_async_context(connect_ws(httpd))
        await player.send(ARENA)
        request = await matchmaker.next_request()
        silent = []
        for _ in range(3):
            silent.append(await stack.enter_async_context(raw(httpd, ATTACKER)))
            assert b" 101 " in await silent[-1].upgrade()
        assert (await get(httpd)).status_code == 200
        got = await silent[0].until_closed()
        assert b'{"Error":[503,' in got
        assert ends_with(got) == 1013
        await request.answer(b'"Acknowledged"')
        assert await player.recv() == '"Acknowledged"'


@pytest.mark.row(69)
async def test_an_address_has_a_share(start: Any, raw: Any, matchmaker: Any) -> None:
    """An address of this machine that is not loopback: its own oldest idle socket goes."""
    own = own_address()
    httpd = await start(host=("0.0.0.0",), max_connections=100, max_connections_per_address=3)
    matchmaker.script = None

    async def connect() -> Any:
        return await asyncio.open_connection(own, httpd.port, local_addr=(own, 0))

    streams = [await connect() for _ in range(4)]
    assert await streams[0][0].read() == b""
    for reader, writer in streams[1:]:
        writer.write(HEALTH)
        async with asyncio.timeout(5):
            assert b" 200 " in await reader.readuntil(b"ok\n")
    # In use, all three: the next one is told so.
    for _, writer in streams[1:]:
        writer.write(b"POST /matchmaker/request/arena/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await matchmaker.next_request()
    reader, writer = await connect()
    writer.write(HEALTH)
    async with asyncio.timeout(5):
        refused = await reader.read()
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert b"at most 3 connections" in refused
    async with raw(httpd) as other:
        other.send(HEALTH)
        async with asyncio.timeout(5):
            await other.reader.readuntil(b"ok\n")
    for _, each in [*streams, (reader, writer)]:
        each.transport.abort()


@pytest.mark.row(89)
@pytest.mark.parametrize("port", ["port", "turn_port"])
async def test_an_address_that_connects_too_often_is_turned_away_at_once(start: Any, port: str) -> None:
    """With 429, where it waits for an answer. Others are served; an open connection is not closed for it."""
    own = own_address()
    httpd = await start(
        host=("0.0.0.0",),
        turn_port=free_port(),
        connections_per_second=0.5,
        max_connections=100,
        max_connections_per_address=3,
    )
    number = httpd.port if port == "port" else httpd.state.settings.turn_port

    async def connect() -> Any:
        return await asyncio.open_connection(own, number, local_addr=(own, 0))

    reader, writer = await connect()
    for _ in range(2):
        (await connect())[1].close()
    for _ in range(20):
        refused, goes = await connect()
        async with asyncio.timeout(5):
            assert (await refused.read()).startswith(b"HTTP/1.1 429 ")
        goes.close()
    assert httpd.state.connections <= 1
    writer.write(HEALTH)
    async with asyncio.timeout(5):
        assert b"HTTP/1.1 200 " in await reader.readuntil(b"\r\n")
    writer.close()
    assert (await get(httpd)).status_code == 200
    metrics = (await get(httpd, "/metrics")).text
    assert 'reason="new connections of one address"} 20.0' in metrics


@pytest.mark.row(89)
async def test_an_address_that_connects_too_often_gets_no_tls(start: Any, tls_files: Any) -> None:
    """Its connections are closed at once; those before wait for the client's part of the handshake."""
    own = own_address()
    cert, key = tls_files
    httpd = await start(
        host=("0.0.0.0",),
        tls_cert=cert,
        tls_key=key,
        connections_per_second=0.5,
        max_connections_per_address=2,
    )
    streams = [await asyncio.open_connection(own, httpd.port, local_addr=(own, 0)) for _ in range(10)]
    for reader, _ in streams[2:]:
        await closes(reader)
    assert await closed(streams) == 8
    for _, writer in streams:
        writer.close()


@pytest.mark.row(89)
async def test_a_trusted_proxy_connects_as_often_as_it_likes(start: Any) -> None:
    own = own_address()
    httpd = await start(
        host=("0.0.0.0",), connections_per_second=0.5, max_connections_per_address=2, trusted_proxies=(own,)
    )
    for _ in range(20):
        reader, writer = await asyncio.open_connection(own, httpd.port, local_addr=(own, 0))
        writer.write(HEALTH)
        async with asyncio.timeout(5):
            assert b"HTTP/1.1 200 " in await reader.readuntil(b"\r\n")
        writer.close()


@pytest.mark.row(69)
async def test_a_flood_of_refusals_is_bounded(start: Any, matchmaker: Any, eventually: Any) -> None:
    """Sockets that get no place are held for a moment only, and only a few of them."""
    matchmaker.script = None
    httpd = await start(max_connections=1, linger=30)
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        waiting = asyncio.create_task(client.post(f"{httpd.url}/matchmaker/request/arena/1"))
        await matchmaker.next_request()
        async with opened(httpd, 150) as attackers:
            await eventually(lambda: httpd.state.connections == 65)
            assert await closed(attackers) >= 80
            assert (await get(httpd)).status_code == 503
        assert waiting.cancel(), "the one that has the place keeps it"
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.row(70)
async def test_behind_a_trusted_proxy_shares_go_by_the_forwarded_address(start: Any, matchmaker: Any) -> None:
    """One player with many requests at once gets 429, the others are served; the proxy itself has no share."""
    matchmaker.script = None
    httpd = await start(trusted_proxies=("127.0.0.1",), max_connections_per_address=2)

    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False, timeout=60) as client:

        def ask(address: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(
                client.post("/matchmaker/request/arena/1", headers={"X-Forwarded-For": address})
            )

        waiting = []
        for address in ("203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.3"):
            waiting.append(ask(address))
            await matchmaker.next_request()
        refused = await ask("203.0.113.1")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "2"
        assert (await get(httpd)).status_code == 200
        assert waiting[0].cancel(), "it still waits"
        await asyncio.gather(waiting[0], return_exceptions=True)
        waiting.append(ask("203.0.113.4"))
        await matchmaker.next_request()
        assert [task.cancel() for task in waiting] == [False, True, True, True, True], "all others still wait"
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.row(70)
async def test_an_answered_request_gives_its_share_back(start: Any) -> None:
    """The proxy's connection stays open and carries the next player's."""
    httpd = await start(trusted_proxies=("127.0.0.1",), max_connections_per_address=1)
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False, limits=limits) as proxy:
        for last in (1, 1, 2, 1, 3):
            answer = await proxy.get("/healthz", headers={"X-Forwarded-For": f"203.0.113.{last}"})
            assert answer.status_code == 200
        assert httpd.state.connections == 1
        assert httpd.state.places.shares.parties == 1


@pytest.mark.row(70)
async def test_idle_connections_of_a_trusted_proxy_are_kept(start: Any, raw: Any) -> None:
    """Its players would get 502. Strangers' go."""
    httpd = await start(trusted_proxies=("127.0.0.1",), max_connections=3)
    async with raw(httpd) as one, raw(httpd) as two, opened(httpd, CROWD):
        for connection in (one, two):
            connection.send(HEALTH)
            async with asyncio.timeout(5):
                await connection.reader.readuntil(b"ok\n")
        async with opened(httpd, CROWD):
            for connection in (one, two):
                connection.send(HEALTH)
                async with asyncio.timeout(5):
                    assert b" 200 " in await connection.reader.readuntil(b"ok\n")


@pytest.mark.row(70)
@pytest.mark.parametrize("header", ["X-Forwarded-For: 203.0.113.%d", "Forwarded: for=203.0.113.%d"])
async def test_what_a_stranger_says_about_its_address_is_not_believed(
    start: Any, raw: Any, header: str
) -> None:
    """Each of its sockets would be of another address."""
    httpd = await start(trusted_proxies=("10.0.0.0/8",), max_connections=10)
    async with opened(httpd, CROWD) as attackers:
        for number, (_, writer) in enumerate(attackers):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + (header % number).encode() + b"\r\n")
        async with raw(httpd) as other, opened(httpd, CROWD):
            assert (await get(httpd)).status_code == 200
            other.send(HEALTH)
            async with asyncio.timeout(5):
                assert b" 200 " in await other.reader.readuntil(b"ok\n")


@pytest.mark.row(69)
async def test_the_operator_has_a_port_of_its_own(
    start: Any, matchmaker: Any, tls_files: Any, connect_ws: Any
) -> None:
    """It answers while the main port is full, by plain HTTP, and serves nothing else."""
    matchmaker.script = None
    port = free_port()
    httpd = await start(max_connections=1, metrics_port=port)
    assert httpd.metrics_url == f"http://127.0.0.1:{port}"
    async with connect_ws(httpd) as player:
        await player.send(ARENA)
        await matchmaker.next_request()
        assert (await get(httpd)).status_code == 503
        async with httpx.AsyncClient(base_url=httpd.metrics_url, trust_env=False, timeout=5) as operator:
            assert (await operator.get("/healthz")).text == "ok\n"
            assert (await operator.get("/readyz")).json() == {"ready": True, "missing": []}
            metrics = (await operator.get("/metrics")).text
            assert "tipoff_httpd_connections 1.0" in metrics
            assert 'tipoff_httpd_refused_connections_total{reason="connections"} 1.0' in metrics
            assert (await operator.get("/")).status_code == 404
            assert (await operator.post("/matchmaker/wannaplay")).status_code == 404
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /matchmaker/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
        writer.transport.abort()
    cert, key = tls_files
    other = await start(tls_cert=cert, tls_key=key, metrics_port=free_port())
    assert other.metrics_url.startswith("http://")


@pytest.mark.row(69)
async def test_the_operators_port_cannot_be_filled_either(start: Any) -> None:
    """The same shares hold there."""
    httpd = await start(metrics_port=free_port())
    port = int(httpd.metrics_url.rpartition(":")[2])
    sockets = [await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKER, 0)) for _ in range(200)]
    async with httpx.AsyncClient(base_url=httpd.metrics_url, trust_env=False, timeout=5) as operator:
        assert (await operator.get("/healthz")).status_code == 200
    for _, writer in sockets:
        writer.transport.abort()


async def test_a_connection_is_kept_longer_than_proxies_keep_theirs(start: Any, raw: Any) -> None:
    """Else a proxy sends a request on a connection that is being closed, and answers 502."""
    assert Settings().keep_alive_timeout > 120
    httpd = await start(keep_alive_timeout=0.3)
    async with raw(httpd) as connection:
        connection.send(HEALTH)
        async with asyncio.timeout(5):
            await connection.reader.readuntil(b"ok\n")
        assert await connection.until_closed() == b""


@pytest.mark.parametrize(
    ("request_line", "extra", "words"),
    [
        ("GET /matchmaker/ws HTTP/1.1", "Origin: https://evil.example", "https://evil.example"),
        ("GET /elsewhere HTTP/1.1", "", "/elsewhere"),
        ("GET /matchmaker/ws HTTP/1.1", "Sec-WebSocket-Version: 7", "Sec-WebSocket-Version: 13 is expected"),
        ("POST /matchmaker/ws HTTP/1.1", "", "GET"),
    ],
)
async def test_refused_handshakes_are_one_line_in_the_log(
    start: Any, raw: Any, caplog: Any, request_line: str, extra: str, words: str
) -> None:
    """It says what was refused and why, however many there are; nothing calls it an error of ours."""
    httpd = await start()
    version = "" if "Version" in extra else "Sec-WebSocket-Version: 13\r\n"
    head = (
        f"{request_line}\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{version}"
        f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n{extra and extra + chr(13) + chr(10)}\r\n"
    ).encode()
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            async with raw(httpd) as connection:
                connection.send(head)
                assert (await connection.until_closed()).startswith(b"HTTP/1.1 4")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert words in lines[0]
    assert "127.0.0.1" in lines[0]


async def test_a_client_that_hangs_up_in_its_handshake_is_no_error(
    start: Any, caplog: Any, eventually: Any
) -> None:
    """Nor is it a refusal."""
    httpd = await start()
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", httpd.port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.sendall(
                    b"GET /matchmaker/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
                )
        await get(httpd)
        await eventually(lambda: httpd.state.connections == 0)
    assert [
        record.getMessage() for record in caplog.records if "HTTP Request" not in record.getMessage()
    ] == []


@pytest.mark.row(69)
async def test_the_reason_of_an_eviction_is_typed(start: Any) -> None:
    """A client in the middle of its request reads `Error`, and when to come back."""
    httpd = await start(max_connections=2)
    async with opened(httpd, 1) as first:
        first[0][1].write(b"GET / HTTP/1.1\r\nHost:")
        assert (await get(httpd)).status_code == 200  # by now httpd has read it
        async with opened(httpd, 2), asyncio.timeout(5):
            answer = await first[0][0].read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2" in head
    assert json.loads(body)["Error"][0] == 503


@pytest.mark.row(69)
async def test_a_closed_connection_is_no_work_for_the_garbage_collector(start: Any, eventually: Any) -> None:
    """It would hold everybody up for a tenth of a second now and then, while one address opens hundreds a second."""
    httpd = await start(max_connections=10)
    gc.collect()
    gc.disable()
    try:
        async with opened(httpd, CROWD), opened(httpd, CROWD) as others:
            for _, writer in others:
                writer.write(HEALTH)
            await get(httpd)
        await eventually(lambda: httpd.state.connections == 0)
        kinds = (Place, GuardedHttp, GuardedWebSocket)

        def left() -> list[object]:
            return [each for each in gc.get_objects() if isinstance(each, kinds)]

        await eventually(lambda: not left(), "all connections forgotten")
    finally:
        gc.enable()
