"""Hostile bytes on bare sockets: slow, huge, malformed. Run on uvloop and on the standard loop."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

import pytest

from tipoff_shared.records import DeploymentRecord, DeploymentState

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
TEXT, BINARY, PING, PONG, CONT = 1, 2, 9, 10, 0
HANDSHAKE = (
    b"GET /matchmaker/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
ARENA = b'{"game":"arena","version":"1"}'


@pytest.fixture
async def httpd(impatient: Any) -> Any:
    """Bytes that come late or never are what is tested here."""
    return impatient


@pytest.mark.row(1)
async def test_an_idle_connection_is_closed(httpd: Any, raw: Any) -> None:
    """Row 1: not a byte sent."""
    async with raw(httpd) as connection:
        assert await connection.until_closed() == b""
        assert 0.2 < time.monotonic() - connection.opened < 1.5


@pytest.mark.row(1)
async def test_half_a_head_is_answered_and_closed(httpd: Any, raw: Any) -> None:
    """Row 1: with the reason."""
    async with raw(httpd) as connection:
        connection.send(HEAD)
        answer = await connection.until_closed()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(b'{"Error":[408,"the request was not complete within 0.25 s"]}')
        assert time.monotonic() - connection.opened < 1.5


@pytest.mark.row(1)
@pytest.mark.parametrize("drop", [b"x", b"\r\n"])
async def test_a_dripped_head_is_closed(httpd: Any, raw: Any, drop: bytes) -> None:
    """Row 1: every byte comes in time, the request does not. (Empty lines before a request are legal.)"""
    async with raw(httpd) as connection:
        if drop == b"x":
            connection.send(HEAD + b"X: ")

        async def drip() -> None:
            while True:
                connection.send(drop)
                await asyncio.sleep(0.03)  # the fault's own rhythm

        dripping = asyncio.create_task(drip())
        await connection.until_closed(within=2)
        dripping.cancel()
        assert time.monotonic() - connection.opened < 1.5


@pytest.mark.row(1)
async def test_a_second_request_may_not_drip_either(httpd: Any, raw: Any) -> None:
    """The time starts again with the first byte after an answer."""
    async with raw(httpd) as connection:
        connection.send(HEAD + b"\r\n")
        await connection.reader.readuntil(b"ok\n")
        began = time.monotonic()
        connection.send(b"GET /heal")
        answer = await connection.until_closed(within=2)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 1.5


@pytest.mark.row(1)
async def test_a_dripped_body_is_closed(httpd: Any, raw: Any, matchmaker: Any) -> None:
    """Row 1 for what follows the head; nothing is published."""
    async with raw(httpd) as connection:
        connection.send(
            b"POST /matchmaker/request/arena/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{"
        )
        answer = await connection.until_closed(within=2)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - connection.opened < 1.5
    assert not matchmaker.requests


async def test_an_answered_connection_is_kept(httpd: Any, raw: Any) -> None:
    """The deadline is for requests, not for connections."""
    async with raw(httpd) as connection:
        for _ in range(4):
            connection.send(HEAD + b"\r\n")
            await connection.reader.readuntil(b"ok\n")
            await asyncio.sleep(0.1)  # longer than the deadline in all
        assert time.monotonic() - connection.opened > 0.35


@pytest.mark.row(1)
async def test_a_silent_tls_client_is_closed(start: Any, tls_files: Any) -> None:
    """Row 1: before the first byte of TLS."""
    cert, key = tls_files
    httpd = await start(tls_cert=cert, tls_key=key, head_timeout=0.25)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpd.port)
    async with asyncio.timeout(1.5):
        assert await reader.read() == b""
    writer.close()
    context = ssl.create_default_context(cafile=cert)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", httpd.port, ssl=context, server_hostname="localhost"
    )
    writer.write(HEAD + b"\r\n")
    async with asyncio.timeout(2):
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


@pytest.mark.row(2)
async def test_a_silent_websocket_is_closed(httpd: Any, raw: Any, ends_with: Any, matchmaker: Any) -> None:
    """Row 2: also when the client never answers the close."""
    async with raw(httpd) as connection:
        await connection.upgrade()
        answer = await connection.until_closed(within=2)
        assert ends_with(answer) == 1008
        assert time.monotonic() - connection.opened < 1.5  # 0.25 s and the linger
    assert not matchmaker.requests


@pytest.mark.row(2)
async def test_a_websocket_in_pieces_is_closed_too(
    httpd: Any, raw: Any, ends_with: Any, ws_frame: Any
) -> None:
    """Row 2: half a frame, dripped."""
    async with raw(httpd) as connection:
        await connection.upgrade()
        whole = ws_frame(TEXT, b" " * 100)

        async def drip() -> None:
            for byte in whole:
                connection.send(bytes((byte,)))
                await asyncio.sleep(0.03)  # the fault's own rhythm

        dripping = asyncio.create_task(drip())
        assert ends_with(await connection.until_closed(within=2)) == 1008
        dripping.cancel()


@pytest.mark.row(3)
async def test_no_pong_ends_the_connection(
    httpd: Any, raw: Any, matchmaker: Any, ends_with: Any, eventually: Any
) -> None:
    """Row 3: within ping interval and time-out; the request is given up."""
    matchmaker.script = (b'"Acknowledged"',)
    async with raw(httpd) as connection:
        await connection.upgrade()
        connection.frame(TEXT, ARENA)
        answer = await connection.until_closed(within=3)
        assert ends_with(answer) == 1011
        assert 0.35 < time.monotonic() - connection.opened < 1.5
    await eventually(lambda: not httpd.state.client.pending)


async def test_who_answers_pings_may_wait(httpd: Any, matchmaker: Any, connect_ws: Any) -> None:
    """Longer than interval and time-out together."""
    matchmaker.script = None
    async with connect_ws(httpd, ping_interval=None) as socket:
        await socket.send(ARENA.decode())
        request = await matchmaker.next_request()
        await asyncio.sleep(0.7)  # three pings
        await request.answer(b'{"Error":[404,"x"]}')
        assert await socket.recv() == '{"Error":[404,"x"]}'


@pytest.mark.row(4)
async def test_a_large_message_is_refused_at_its_head(httpd: Any, raw: Any, ends_with: Any) -> None:
    """Row 4: 1009 before a byte of its megabytes is kept."""
    async with raw(httpd) as connection:
        await connection.upgrade()
        connection.send(b"\x81\xff" + (1 << 30).to_bytes(8, "big") + b"\0\0\0\0")
        answer = await connection.until_closed(within=2)
    assert ends_with(answer) == 1009


@pytest.mark.row(4)
async def test_large_in_pieces_is_large(httpd: Any, raw: Any, ends_with: Any) -> None:
    """Row 4: fragments count together."""
    async with raw(httpd) as connection:
        await connection.upgrade()
        connection.frame(TEXT, b"x" * 3000, fin=False)
        connection.frame(CONT, b"x" * 3000)
        assert ends_with(await connection.until_closed(within=2)) == 1009


@pytest.mark.row(12)
async def test_a_thousand_empty_pieces_are_a_flood(
    httpd: Any, raw: Any, ends_with: Any, ws_frame: Any
) -> None:
    """They cost memory, never become a message, and no size limit meets them."""
    async with raw(httpd) as connection:
        await connection.upgrade()
        connection.send(ws_frame(TEXT, b"", fin=False) + ws_frame(CONT, b"", fin=False) * 1000)
        assert ends_with(await connection.until_closed(within=2)) == 1008


@pytest.mark.row(12)
@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_control_frames_are_no_way_to_flood(
    httpd: Any, raw: Any, ends_with: Any, ws_frame: Any, opcode: int, matchmaker: Any, eventually: Any
) -> None:
    """Row 12: also while a request waits, which then ends."""
    matchmaker.script = (b'"Acknowledged"',)
    async with raw(httpd) as connection:
        await connection.upgrade()
        connection.frame(TEXT, ARENA)
        await matchmaker.next_request()
        connection.send(ws_frame(opcode, b"") * 5000)
        assert ends_with(await connection.until_closed(within=2)) == 1008
    await eventually(lambda: not httpd.state.client.pending and httpd.state.connections == 0)


@pytest.mark.row(5)
async def test_deflate_is_not_negotiated(httpd: Any, raw: Any, ends_with: Any) -> None:
    """Row 5: a compressed frame is a protocol error, so no bomb unfolds."""
    async with raw(httpd) as connection:
        head = await connection.upgrade(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
        assert b" 101 " in head
        assert b"extensions" not in head.lower()
        connection.frame(TEXT, b"\x00" * 20, rsv=4)
        assert ends_with(await connection.until_closed(within=2)) == 1002


@pytest.mark.row(6)
@pytest.mark.parametrize(
    ("opcode", "payload", "options", "code"),
    [
        (TEXT, ARENA, {"mask": False}, 1002),
        (TEXT, ARENA, {"rsv": 2}, 1002),
        (3, b"", {}, 1002),
        (CONT, b"", {}, 1002),
        (PING, b"x" * 126, {}, 1002),
        (8, b"\x00", {}, 1002),
        (TEXT, b"\xff\xfe", {}, 1007),
        (TEXT, b"\xed\xa0\x80", {}, 1007),  # half a surrogate pair
    ],
)
async def test_broken_frames_have_their_codes(
    httpd: Any, raw: Any, ends_with: Any, opcode: int, payload: bytes, options: Any, code: int
) -> None:
    """Row 6: unmasked 1002, RSV 1002, bad UTF-8 1007."""
    async with raw(httpd) as connection:
        await connection.upgrade()
        connection.frame(opcode, payload, **options)
        assert ends_with(await connection.until_closed(within=2)) == code


async def test_a_hasty_first_message_is_read(
    httpd: Any, raw: Any, ends_with: Any, ws_frame: Any, matchmaker: Any
) -> None:
    """It came in one piece with the handshake, or with half a megabyte of its like."""
    for many, code in ((1, 1000), (15_000, 1008)):
        async with raw(httpd) as connection:
            connection.send(HANDSHAKE + ws_frame(TEXT, ARENA) * many)
            answer = await connection.until_closed(within=6)
        head, _, frames = answer.partition(b"\r\n\r\n")
        assert b" 101 " in head
        assert ends_with(frames) == code


async def test_garbage_after_a_handshake_is_no_websocket(httpd: Any, raw: Any, eventually: Any) -> None:
    """It ends; nothing stays behind."""
    async with raw(httpd) as connection:
        connection.send(HANDSHAKE + b"\xff" * 500)
        await connection.until_closed(within=2)
    await eventually(lambda: httpd.state.connections == 0 and httpd.state.limits.inside == 0)


LARGE = b"X: " + b"x" * 100_000 + b"\r\n"


@pytest.mark.row(7)
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEAD + LARGE + b"\r\n", 431),
        (HEAD + b"X: 1\r\n" * 1000 + b"\r\n", 431),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5000\r\n\r\n", 413),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
        (
            b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1400\r\n"
            + b"x" * 5120
            + b"\r\n0\r\n\r\n",
            413,
        ),
        (b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nBad Name: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nX: a\x00b\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS on the plain port
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT evil:80 HTTP/1.1\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc", 400),
        (HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 426),
        (HANDSHAKE.replace(b"MDEy", b"\xff*"), 400),
        (HANDSHAKE.replace(b"MDEy", b""), 400),
        (HANDSHAKE.replace(b"Host: x", b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="), 400),
        (HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        (b"POST /matchmaker/ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 405),
        (HEAD + b"\r\n" + HEAD + b"\r\n", 400),  # pipelined
    ],
)
async def test_bad_heads_are_refused(httpd: Any, raw: Any, request_bytes: bytes, status: int) -> None:
    """Row 7: 4xx or a close (a reset may overtake the answer when much is unread), and never silence."""
    async with raw(httpd) as connection:
        connection.send(request_bytes)
        answer = await connection.until_closed(within=2)
    if len(request_bytes) < 10_000:
        assert f"HTTP/1.1 {status} ".encode() in answer
    assert b" 200 " not in answer
    assert b" 408 " not in answer, "refused, not timed out"


async def test_the_service_lives_on_after_all_that(httpd: Any, raw: Any, ask: Any, matchmaker: Any) -> None:
    """A hundred bad connections at once, then a player."""

    async def bad(number: int) -> None:
        async with raw(httpd) as connection:
            connection.send((HEAD, b"\x00" * 100, HEAD + LARGE, b"GET / HTTP/1.0\r\n\r\n")[number % 4])
            await connection.until_closed(within=8)

    async with asyncio.timeout(10):
        await asyncio.gather(*(bad(number) for number in range(100)), return_exceptions=False)
    assert (await ask(httpd)).code == 1000


@pytest.mark.row(61)
async def test_a_client_that_reads_nothing_is_cut_off(start: Any, raw: Any, eventually: Any) -> None:
    """Row 61: the answer is as large as it gets, and the buffer for it is bounded in time."""
    httpd = await start(demo=True, stall_timeout=0.3)
    large = DeploymentRecord("d1", DeploymentState.READY, "arena", "x" * 60_000, "launcher", 4, 1.0)
    async with raw(httpd) as connection:
        connection.writer.transport.pause_reading()
        connection.send(b"GET /demo/events HTTP/1.1\r\nHost: x\r\n\r\n")
        feed = httpd.parts.feed
        await eventually(lambda: feed.listeners == 1)

        async def fill() -> None:
            revision = 0
            while feed.listeners:
                revision += 1
                feed.changed("deployment", "d1", large, revision)
                await asyncio.sleep(0.01)  # the rhythm of changes

        async with asyncio.timeout(10):
            await fill()
        await eventually(lambda: httpd.state.connections == 0)


@pytest.mark.row(1, 2, 3)
@pytest.mark.slow
async def test_the_real_deadlines(start: Any, raw: Any, ends_with: Any, matchmaker: Any) -> None:
    """Rows 1 to 3 with the values that are shipped: 10 s, 10 s, 40 s."""
    from tipoff_matchmaker_httpd.settings import Settings

    shipped = Settings()
    httpd = await start(
        **{
            name: getattr(shipped, name)
            for name in (
                "head_timeout",
                "first_message_timeout",
                "ping_interval",
                "ping_timeout",
                "request_timeout",
            )
        },
        acknowledge_timeout=60,
    )
    matchmaker.script = None

    async def idle(first: bytes) -> float:
        async with raw(httpd) as connection:
            connection.send(first)
            await connection.until_closed(within=12)
            return time.monotonic() - connection.opened

    async def silent(first: bytes) -> tuple[int, float]:
        async with raw(httpd) as connection:
            await connection.upgrade()
            connection.send(first)
            answer = await connection.until_closed(within=45)
            return ends_with(answer), time.monotonic() - connection.opened

    from_client = bytes.fromhex("819e00000000") + ARENA
    results = await asyncio.gather(idle(b""), idle(HEAD), silent(b""), silent(from_client))
    assert results[0] <= 10
    assert results[1] <= 10
    assert results[2][0] == 1008
    assert results[2][1] <= 10
    assert results[3][0] == 1011
    assert results[3][1] <= 40
    assert len(matchmaker.requests) == 1
