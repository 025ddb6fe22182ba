"""A request for a seat: progress in order, typed errors, and the same request id after a break."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.utils import accept_key

from tests.client_sdk.stubs import scripted_matchmaker
from tipoff_client_sdk import ConnectionFailed, Progress, Stage, matchmaking
from tipoff_client_sdk.matchmaking import SeatRequest, first_answer_within, matchmaker_url, request_seat
from tipoff_shared.errors import BY_CODE, Malformed, NoServerInTime, SlowDown, TipoffError, Unavailable
from tipoff_shared.messages import PlayRequest

REQUEST = PlayRequest(game="arena", version="1", request_id="0123456789abcdef01234567")
READY = {"SessionReady": {"token": "c2VjcmV0" * 4, "ip": "127.0.0.1", "port": 7, "session_id": "s1"}}


async def ask(url: str, told: list[Progress] | None = None, timeout: float = 5.0) -> object:
    told = told if told is not None else []
    return await request_seat(matchmaker_url(url), REQUEST, progress=told.append, timeout=timeout)


@pytest.mark.parametrize(
    ("written", "dialled"),
    [
        ("http://localhost:3000", "ws://localhost:3000/matchmaker/ws"),
        ("https://play.example.org", "wss://play.example.org/matchmaker/ws"),
        ("https://example.org/eu/", "wss://example.org/eu/matchmaker/ws"),
        ("ws://127.0.0.1:7777/matchmaker/ws", "ws://127.0.0.1:7777/matchmaker/ws"),
        ("HTTP://[::1]:3000?client_ip=192.0.2.1", "ws://[::1]:3000/matchmaker/ws?client_ip=192.0.2.1"),
    ],
)
def test_any_usual_form_of_the_url_is_understood(written: str, dialled: str) -> None:
    assert matchmaker_url(written) == dialled


@pytest.mark.parametrize(
    "written", ["localhost:3000", "", "http://", "ftp://x", "http://host:99999", "//host"]
)
def test_a_url_that_names_no_matchmaker_is_refused_at_once(written: str) -> None:
    with pytest.raises(Malformed, match="url"):
        matchmaker_url(written)


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.sampled_from(sorted(BY_CODE)).map(lambda code: json.dumps({"Error": [code, "no"]}).encode())
)
def test_hostile_answers_only_raise_typed_errors(answer: bytes) -> None:
    with contextlib.suppress(TipoffError):
        SeatRequest().receive(answer)


async def test_progress_is_told_in_order() -> None:
    """What the matchmaker says, and at the end the seat."""

    async def script(socket: ServerConnection, request: str) -> None:
        assert json.loads(request)["game"] == "arena"
        for message in (
            "Acknowledged",
            {"SessionRequestAccepted": "s1"},
            {"ProgressReport": "starting"},
            READY,
        ):
            await socket.send(json.dumps(message))

    told: list[Progress] = []
    async with scripted_matchmaker(script) as url:
        await ask(url, told)
    assert [step.stage for step in told] == [Stage.ACKNOWLEDGED, Stage.ACCEPTED, Stage.WAITING, Stage.READY]
    assert told[-1].session_id == "s1"


@pytest.mark.parametrize("code", sorted(BY_CODE))
async def test_an_error_of_the_matchmaker_is_raised_as_its_type(code: int) -> None:
    async def script(socket: ServerConnection, request: str) -> None:
        await socket.send(json.dumps({"Error": [code, "because"]}))

    async with scripted_matchmaker(script) as url:
        with pytest.raises(BY_CODE[code], match="because"):
            await ask(url)


async def test_a_broken_socket_is_asked_again_with_the_same_request_id() -> None:
    """The matchmaker then finds the request it already has: one player, one seat."""
    requests: list[str] = []

    async def script(socket: ServerConnection, request: str) -> None:
        requests.append(json.loads(request)["request_id"])
        await socket.send('"Acknowledged"')
        if len(requests) < 3:
            socket.transport.abort()
            return
        await socket.send(json.dumps(READY))

    told: list[Progress] = []
    async with scripted_matchmaker(script) as url:
        await ask(url, told)
    assert requests == [REQUEST.request_id] * 3
    assert [step.stage for step in told].count(Stage.ACKNOWLEDGED) == 1


async def test_a_close_without_an_answer_is_no_answer() -> None:
    """Asked again, until the deadline."""
    asked = 0

    async def script(socket: ServerConnection, request: str) -> None:
        nonlocal asked
        asked += 1

    async with scripted_matchmaker(script) as url:
        with pytest.raises(NoServerInTime):
            await ask(url, timeout=0.7)
    assert asked >= 2


async def test_silence_ends_at_the_deadline() -> None:
    async def script(socket: ServerConnection, request: str) -> None:
        await socket.wait_closed()

    async with scripted_matchmaker(script) as url:
        with pytest.raises(NoServerInTime, match=r"within 0\.3 s"):
            await ask(url, timeout=0.3)


@pytest.mark.row(34)
async def test_a_silent_socket_is_left_and_asked_again_with_the_same_request_id() -> None:
    """A stopped process keeps its sockets open: nothing breaks, nothing comes."""
    requests: list[str] = []

    async def script(socket: ServerConnection, request: str) -> None:
        requests.append(json.loads(request)["request_id"])
        if len(requests) == 1:
            await socket.wait_closed()
        await socket.send(json.dumps(READY))

    began = asyncio.get_running_loop().time()
    async with scripted_matchmaker(script) as url:
        await ask(url, timeout=10)
    assert requests == [REQUEST.request_id] * 2
    assert 2.9 < asyncio.get_running_loop().time() - began < 4


async def test_one_that_falls_silent_later_is_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had acknowledged, and told how it goes."""
    monkeypatch.setattr(matchmaking, "SILENCE", 0.3)
    asked = 0

    async def script(socket: ServerConnection, request: str) -> None:
        nonlocal asked
        asked += 1
        await socket.send('"Acknowledged"')
        if asked == 1:
            await socket.send('{"ProgressReport":"soon"}')
            await socket.wait_closed()
        await socket.send(json.dumps(READY))

    told: list[Progress] = []
    async with scripted_matchmaker(script) as url:
        await ask(url, told)
    assert asked == 2
    assert "asking again" in told[2].text


@pytest.mark.slow
async def test_a_process_that_stops_answering_pings_is_left() -> None:
    """While a player waits: found out in two pings' time, whatever the silence that is allowed. Here the second
    handshake is not answered, either."""
    handshakes = 0
    writers: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal handshakes
        handshakes += 1
        writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        if handshakes == 1:
            key = next(
                line[19:] for line in head.decode().split("\r\n") if line.startswith("Sec-WebSocket-Key: ")
            )
            answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            writer.write(f"{answer}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
            writer.write(b"\x81\x0e" + b'"Acknowledged"')

    began = asyncio.get_running_loop().time()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoServerInTime):
            await ask(f"http://127.0.0.1:{port}", timeout=5.5)
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    assert handshakes == 2
    assert asyncio.get_running_loop().time() - began < 7


async def test_one_that_restarts_is_asked_again() -> None:
    """It says so by the close code; the player does not notice."""
    asked = 0

    async def script(socket: ServerConnection, request: str) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await socket.send(json.dumps({"Error": [503, "restarting"]}))
            await socket.close(1012)
        else:
            await socket.send(json.dumps(READY))

    async with scripted_matchmaker(script) as url:
        await ask(url)
    assert asked == 2


async def test_a_crowded_one_says_when_to_come_back() -> None:
    """In the close reason, since a WebSocket has no Retry-After."""

    async def script(socket: ServerConnection, request: str) -> None:
        await socket.send(json.dumps({"Error": [503, "full"]}))
        await socket.close(1013, "full; retry after 7 s")

    async with scripted_matchmaker(script) as url:
        with pytest.raises(Unavailable, match="full") as raised:
            await ask(url)
    assert raised.value.retry_after == 7.0


def test_more_patience_at_each_attempt() -> None:
    """Until one that lives can say that nobody answers behind it."""
    assert [first_answer_within(n) for n in (1, 2, 3, 9)] == [3.0, 6.0, 12.0, 12.0]


async def test_nobody_there_is_said_at_once() -> None:
    """A wrong address is no reason to wait for a minute."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionFailed, match="no matchmaker at"):
            async with asyncio.timeout(3):
                await ask(f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=30)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, ConnectionFailed), (403, BY_CODE[403]), (503, BY_CODE[503]), (418, BY_CODE[503])],
)
async def test_an_http_answer_is_a_typed_error(status: int, error: type[TipoffError]) -> None:
    def refuse(socket: ServerConnection, request: Request) -> Response:
        return socket.respond(http.HTTPStatus(status), "no\n")

    async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0, process_request=refuse) as server:
        with pytest.raises(error):
            await ask(f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")


async def test_retry_after_reaches_the_caller() -> None:
    """Seconds, as the header says."""

    def refuse(socket: ServerConnection, request: Request) -> Response:
        response = socket.respond(http.HTTPStatus.TOO_MANY_REQUESTS, "slow down\n")
        response.headers["Retry-After"] = "7"
        return response

    async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0, process_request=refuse) as server:
        with pytest.raises(SlowDown) as raised:
            await ask(f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
    assert raised.value.retry_after == 7.0


async def test_no_token_reaches_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """Not even with everything at DEBUG; the websockets library would write whole frames."""

    async def script(socket: ServerConnection, request: str) -> None:
        await socket.send(json.dumps(READY))

    with caplog.at_level(logging.DEBUG):
        async with scripted_matchmaker(script) as url:
            logging.getLogger("websockets.server").setLevel(logging.INFO)  # the test's own server
            await ask(url)
    assert READY["SessionReady"]["token"] not in caplog.text
    assert str(REQUEST.request_id) not in caplog.text
