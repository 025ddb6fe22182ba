"""`/matchmaker/ws`: what a player reads, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
import websockets

from tests.timing import quickest
from tipoff_shared.messages import ACKNOWLEDGED

ARENA = '{"game":"arena","version":"1"}'


async def test_a_player_gets_every_message_then_a_normal_close(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """Word for word, members that we do not know included."""
    matchmaker.script = (ACKNOWLEDGED, b'{"ProgressReport":"starting"}', *matchmaker.script[1:])
    got = await ask(httpd)
    assert got.messages[0] == "Acknowledged"
    assert got.messages[1] == {"ProgressReport": "starting"}
    assert got.messages[2] == {"SessionRequestAccepted": "s1"}
    assert got.messages[3]["SessionReady"]["from_the_future"] is True
    assert len(got.messages) == 4
    assert got.code == 1000


async def test_the_matchmaker_gets_bevygaps_request(
    httpd: Any, matchmaker: Any, ask: Any, namespace: str
) -> None:
    """Subject and payload as its httpd sends them; the request id and the trace travel as headers."""
    await ask(httpd, '{"game":"my game","version":"v0.0.1","client_ip":"1.1.1.1","later":[1]}')
    request = matchmaker.requests[0]
    assert request.subject == f"{namespace}.matchmaker.request.my%20game.v0%2E0%2E1"
    assert request.payload == {"game": "my game", "version": "v0.0.1", "client_ip": "127.0.0.1"}
    assert re.fullmatch(r"[0-9a-f]{32}", request.headers["Tipoff-Request-Id"])
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", request.headers["traceparent"])


async def test_a_players_request_id_and_login_are_passed_on(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """The id is a secret and travels only in the header."""
    own = "abcdefghijklmnopqrstuv"
    await ask(httpd, json.dumps({"game": "arena", "version": "1", "request_id": own, "auth": {"jwt": "x"}}))
    request = matchmaker.requests[0]
    assert request.headers["Tipoff-Request-Id"] == own
    assert request.payload["auth"] == {"jwt": "x"}
    assert "request_id" not in request.payload


async def test_a_trace_is_continued(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """When it is well formed."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await ask(httpd, additional_headers={"traceparent": trace})
    await ask(httpd, additional_headers={"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"})
    assert matchmaker.requests[0].headers["traceparent"] == trace
    assert not matchmaker.requests[1].headers["traceparent"].startswith("00-0000")


async def test_a_matchmakers_error_reaches_the_player(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """As it is, with a normal close."""
    matchmaker.script = (ACKNOWLEDGED, b'{"Error":[404,"no such game"]}', b"")
    got = await ask(httpd)
    assert got.messages == ["Acknowledged", {"Error": [404, "no such game"]}]
    assert got.code == 1000


async def test_an_end_without_an_answer_is_an_error(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """Only the empty message."""
    matchmaker.script = (ACKNOWLEDGED, b"")
    got = await ask(httpd)
    assert (got.error, got.code) == (500, 1000)


@pytest.mark.row(21)
async def test_without_a_matchmaker_the_player_knows_at_once(httpd: Any, ask: Any) -> None:
    """Row 21: a typed error within 100 ms."""
    got = await ask(httpd)
    assert (got.error, got.code) == (503, 1000)
    assert await quickest(lambda: ask(httpd)) < 0.1


async def test_the_deadline_is_hard(start: Any, matchmaker: Any, ask: Any) -> None:
    """Progress does not prolong it."""
    matchmaker.script = (ACKNOWLEDGED, b'{"ProgressReport":"soon"}')
    httpd = await start(request_timeout=0.3, acknowledge_timeout=0.2)
    got = await ask(httpd)
    assert (got.error, got.code) == (408, 1000)
    assert 0.25 < got.seconds < 2.5


async def test_a_silent_matchmaker_is_given_up_early(start: Any, matchmaker: Any, ask: Any) -> None:
    """A matchmaker listens and does not acknowledge."""
    matchmaker.script = ()
    httpd = await start(acknowledge_timeout=0.2)
    got = await ask(httpd)
    assert got.error == 503
    assert got.seconds < 2.5, "half of the time that a request has"


@pytest.mark.row(8)
@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "[]",
        "null",
        "{}",
        '{"game":"arena"}',
        '{"game":"arena","version":1}',
        '{"game":"arena","version":"1","game":"other"}',
        '{"game":"arena","version":"1","x":NaN}',
        '{"game":"arena","version":"1","x":' + "[" * 3000 + "]" * 900 + "}",
        '{"game":"arena","version":"1","x":' + "9" * 3000 + "}}",
        '{"game":"arena","version":"1","request_id":"short"}',
        '{"game":"arena","version":"1","auth":"text"}',
        b"\x00\x01\x02",
        ARENA.encode(),
    ],
)
async def test_what_is_no_request_gets_a_typed_error(
    httpd: Any, matchmaker: Any, ask: Any, message: Any
) -> None:
    """Code 400, close code 1008, and the matchmaker hears nothing of it."""
    got = await ask(httpd, message)
    assert (got.error, got.code) == (400, 1008)
    assert not matchmaker.requests


@pytest.mark.row(9)
@pytest.mark.parametrize(
    "name", ["*", ">", "a\r\nPUB x 0", "a" * 31, "größe", "", " ", "..", "a/b", "a\tb", "a\u2028b", "${x}"]
)
async def test_hostile_names_are_refused(httpd: Any, matchmaker: Any, ask: Any, name: str) -> None:
    """Row 9: in either place, and nothing is published."""
    for request in ({"game": name, "version": "1"}, {"game": "arena", "version": name}):
        got = await ask(httpd, json.dumps(request))
        assert (got.error, got.code) == (400, 1008)
    assert not matchmaker.requests


@pytest.mark.row(12)
async def test_a_second_message_ends_the_conversation(
    httpd: Any, matchmaker: Any, ask: Any, eventually: Any
) -> None:
    """Row 12: 1008, and the request ends."""
    matchmaker.script = (ACKNOWLEDGED,)
    got = await ask(httpd, ARENA, ARENA)
    assert (got.error, got.code) == (400, 1008)
    await eventually(lambda: httpd.state.limits.inside == 0)
    assert not httpd.state.client.pending


async def test_a_player_who_leaves_leaves_nothing_behind(
    httpd: Any, matchmaker: Any, connect_ws: Any, eventually: Any
) -> None:
    """With a goodbye, or by cutting the line."""
    matchmaker.script = None
    tasks = len(asyncio.all_tasks())
    for rude in (False, True):
        socket = await connect_ws(httpd)
        await socket.send(ARENA)
        await (await matchmaker.next_request()).answer(ACKNOWLEDGED)
        assert await socket.recv() == '"Acknowledged"'
        assert httpd.state.client.pending == 1
        if rude:
            socket.transport.abort()
        await socket.close()
        await eventually(lambda: not httpd.state.client.pending)
    await eventually(lambda: httpd.state.limits.inside == 0 and httpd.state.connections == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_an_answer_for_nobody_does_no_harm(
    httpd: Any, matchmaker: Any, connect_ws: Any, ask: Any
) -> None:
    """The matchmaker's answer may cross with the player's leaving."""
    matchmaker.script = None
    socket = await connect_ws(httpd)
    await socket.send(ARENA)
    late = await matchmaker.next_request()
    await socket.close()
    await late.answer(*([ACKNOWLEDGED] * 3), b"")
    matchmaker.script = (ACKNOWLEDGED, b'{"Error":[404,"x"]}')
    assert (await ask(httpd)).error == 404


@pytest.mark.row(2)
async def test_silence_is_ended_with_an_error(impatient: Any, matchmaker: Any, connect_ws: Any) -> None:
    """Row 2: nothing is published."""
    async with connect_ws(impatient) as socket:
        assert json.loads(await socket.recv())["Error"][0] == 408
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
    assert socket.close_code == 1008
    assert not matchmaker.requests


@pytest.mark.row(4)
async def test_a_message_over_4_kb_is_too_large(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """Row 4: 1009; up to that it is read."""
    padded = json.dumps({"game": "arena", "version": "1", "x": ""})
    fits = padded.replace('""', '"' + "x" * (4096 - len(padded)) + '"')
    assert len(fits) == 4096
    assert (await ask(httpd, fits)).code == 1000
    assert (await ask(httpd, fits + " ")).code == 1009
    assert len(matchmaker.requests) == 1


@pytest.mark.row(10)
async def test_a_foreign_page_is_turned_away(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """Row 10: 403 before the handshake."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await ask(httpd, origin="https://evil.example")
    assert caught.value.response.status_code == 403
    assert json.loads(caught.value.response.body)["Error"][0] == 403
    assert not matchmaker.requests


@pytest.mark.row(10)
async def test_own_pages_and_listed_ones_may_ask(start: Any, matchmaker: Any, ask: Any) -> None:
    """And where the operator wants an Origin, programs without one may not."""
    httpd = await start(origins=("https://game.example",), allow_missing_origin=False)
    for origin in (httpd.url, "https://game.example"):
        assert (await ask(httpd, origin=origin)).code == 1000
    with pytest.raises(websockets.InvalidStatus):
        await ask(httpd)


async def test_another_path_is_not_found(httpd: Any, ask: Any) -> None:
    """With the right one in the text."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await ask(httpd, path="/elsewhere")
    assert caught.value.response.status_code == 404


@pytest.mark.row(11)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "127.0.0.1"),
        ({"trusted_proxies": ("127.0.0.0/8",)}, "2001:db8::7"),
        ({"allow_client_ip": True}, "1.1.1.1"),
        ({"fake_ip": "203.0.113.77"}, "203.0.113.77"),
        ({"trusted_proxies": ("127.0.0.1",), "fake_ip": "203.0.113.77"}, "2001:db8::7"),
    ],
)
async def test_the_address_rule_holds_for_requests(
    start: Any, matchmaker: Any, ask: Any, rule: Any, expected: str
) -> None:
    """Row 11: the address that the matchmaker gets."""
    httpd = await start(**rule)
    headers = {"X-Forwarded-For": '9.9.9.9", 2001:db8::7'}
    await ask(httpd, '{"game":"arena","version":"1","client_ip":"1.1.1.1"}', additional_headers=headers)
    await ask(httpd, path="/matchmaker/ws?client_ip=1.1.1.1", additional_headers=headers)
    assert [request.payload["client_ip"] for request in matchmaker.requests] == [expected, expected]


@pytest.mark.row(60)
async def test_too_many_at_once_are_shed(start: Any, matchmaker: Any, ask: Any, connect_ws: Any) -> None:
    """1013 with a typed error, at once; when one leaves there is room again."""
    matchmaker.script = (ACKNOWLEDGED,)
    httpd = await start(max_requests=2)
    async with connect_ws(httpd) as first, connect_ws(httpd):
        await first.send(ARENA)
        got = await ask(httpd)
        assert (got.error, got.code) == (503, 1013)
        assert got.reason.endswith("; retry after 2 s")
        assert got.seconds < 1.5  # how soon under load: tests/faults/test_overload.py
    matchmaker.script = (ACKNOWLEDGED, b'{"Error":[404,"x"]}')
    assert (await ask(httpd)).error == 404


async def test_one_address_cannot_take_all(start: Any, matchmaker: Any, ask: Any, connect_ws: Any) -> None:
    """Only it gets 429."""
    matchmaker.script = (ACKNOWLEDGED,)
    httpd = await start(max_requests_per_address=1, trusted_proxies=("127.0.0.1",))
    one, other = ({"X-Forwarded-For": f"203.0.113.{last}"} for last in (1, 2))
    async with connect_ws(httpd, additional_headers=one):
        got = await ask(httpd, additional_headers=one)
        assert (got.error, got.code) == (429, 1013)
        matchmaker.script = (ACKNOWLEDGED, b'{"Error":[404,"x"]}')
        assert (await ask(httpd, additional_headers=other)).error == 404


@pytest.mark.row(60)
async def test_one_address_cannot_ask_without_end(start: Any, matchmaker: Any, ask: Any, http: Any) -> None:
    """429 after its burst, with the time to come back, by every way in; others are not concerned."""
    httpd = await start(requests_per_second=0.5, request_burst=3, trusted_proxies=("127.0.0.1",))
    one, other = ({"X-Forwarded-For": f"203.0.113.{last}"} for last in (1, 2))
    for _ in range(3):
        assert (await ask(httpd, additional_headers=one)).code == 1000
    got = await ask(httpd, additional_headers=one)
    assert (got.error, got.code) == (429, 1013)
    assert got.reason.endswith("; retry after 2 s")
    for path in ("/matchmaker/request/arena/1", "/matchmaker/wannaplay"):
        answer = await http.post(httpd.url + path, headers=one)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
    assert (await ask(httpd, additional_headers=other)).code == 1000
    assert (await ask(httpd)).code == 1000
    assert len(matchmaker.requests) == 5
    assert httpd.state.limits.inside == 0


async def test_too_many_connections_are_answered_503(
    start: Any, raw: Any, matchmaker: Any, connect_ws: Any
) -> None:
    """When all are in use; before the new one costs more than its socket."""
    matchmaker.script = None
    httpd = await start(max_connections=2)
    async with connect_ws(httpd) as one, connect_ws(httpd) as two:
        for player in (one, two):
            await player.send('{"game":"arena","version":"1"}')
            await matchmaker.next_request()
        async with raw(httpd) as third:
            third.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await third.until_closed()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after" in answer
