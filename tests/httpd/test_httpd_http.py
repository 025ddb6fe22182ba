"""The HTTP endpoints."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg

from tests.timing import quickest
from tipoff_shared.messages import ACKNOWLEDGED

STREAM = "/matchmaker/request/arena/1"


async def test_a_seat_as_a_stream_of_lines(http: Any, matchmaker: Any) -> None:
    """The WebSocket's messages, one JSON value a line."""
    answer = await http.post(STREAM)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[0] == "Acknowledged"
    assert lines[-1]["SessionReady"]["port"] == 30004
    assert matchmaker.requests[0].payload == {"game": "arena", "version": "1", "client_ip": "127.0.0.1"}


async def test_lines_come_as_they_are_made(http: Any, matchmaker: Any) -> None:
    """Not all at the end."""
    matchmaker.script = (ACKNOWLEDGED,)
    async with http.stream("POST", STREAM) as answer:
        request = await matchmaker.next_request()
        lines = answer.aiter_lines()
        assert await anext(lines) == '"Acknowledged"'
        await request.answer(b'{"ProgressReport":"starting"}')
        assert await anext(lines) == '{"ProgressReport":"starting"}'
        await request.answer(b'{"Error":[502,"no"]}', b"")
        assert await anext(lines) == '{"Error":[502,"no"]}'
        assert answer.status_code == 200


async def test_an_early_error_is_the_status(http: Any, matchmaker: Any) -> None:
    """When nothing was said before it; with Retry-After from the matchmaker's header."""
    matchmaker.script = None
    asking = asyncio.create_task(http.post(STREAM))
    request = await matchmaker.next_request()
    await request.answer(b'{"Error":[429,"slow down"]}', headers={"Retry-After": "7"})
    answer = await asking
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json() == {"Error": [429, "slow down"]}


@pytest.mark.row(21)
async def test_no_matchmaker_is_503(http: Any) -> None:
    """At once, with Retry-After."""
    answer = await http.post(STREAM)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert await quickest(lambda: http.post(STREAM)) < 0.1


async def test_a_body_holds_the_other_members(http: Any, matchmaker: Any) -> None:
    """Path wins over body."""
    own = "abcdefghijklmnopqrstuv"
    body = {"game": "x", "request_id": own, "auth": {"jwt": "x"}, "client_ip": "1.1.1.1"}
    await http.post("/matchmaker/request/arena/v0.0.1", json=body)
    request = matchmaker.requests[0]
    assert request.payload == {
        "game": "arena",
        "version": "v0.0.1",
        "client_ip": "127.0.0.1",
        "auth": {"jwt": "x"},
    }
    assert request.headers["Tipoff-Request-Id"] == own


@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/matchmaker/request/*/1", b"", 400),
        ("/matchmaker/request/arena/%3E", b"", 400),
        ("/matchmaker/request/a%0D%0Ab/1", b"", 400),
        ("/matchmaker/request/arena/" + "1" * 31, b"", 400),
        ("/matchmaker/request/gr%C3%B6%C3%9Fe/1", b"", 400),
        ("/matchmaker/request/arena/a%2Fb", b"", 404),
        (STREAM, b"[]", 400),
        (STREAM, b"{", 400),
        (STREAM, b"\xff", 400),
        (STREAM, b'{"auth":' + b"[" * 3000 + b"]" * 900 + b"}", 400),
        (STREAM, b'{"request_id":"short"}', 400),
        (STREAM, b"x" * 5000, 413),
    ],
)
async def test_bad_requests_get_typed_errors(
    http: Any, matchmaker: Any, path: str, body: bytes, status: int
) -> None:
    """Row 9 and the body's limit; nothing is published."""
    answer = await http.post(path, content=body)
    assert answer.status_code == status
    assert answer.json()["Error"][0] == status
    assert not matchmaker.requests


async def test_an_error_right_after_the_acknowledgement_is_in_the_stream_too(
    http: Any, matchmaker: Any
) -> None:
    """Both may have come before the first line was written: the status tells the error, and so does the body."""
    matchmaker.script = (ACKNOWLEDGED, b'{"Error":[404,"unknown game or version"]}', b"")
    for _ in range(5):  # they come together, or one after the other
        answer = await http.post(STREAM)
        assert answer.text.splitlines() == ['"Acknowledged"', '{"Error":[404,"unknown game or version"]}']


async def test_whoever_leaves_a_stream_leaves_nothing(
    http: Any, httpd: Any, matchmaker: Any, eventually: Any
) -> None:
    """Before the first line, and after it."""
    matchmaker.script = None
    asking = asyncio.create_task(http.post(STREAM))
    await matchmaker.next_request()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: not httpd.state.client.pending and httpd.state.limits.inside == 0)
    matchmaker.script = (ACKNOWLEDGED,)
    async with http.stream("POST", STREAM) as answer:
        assert await anext(answer.aiter_lines()) == '"Acknowledged"'
    await eventually(lambda: not httpd.state.client.pending and httpd.state.limits.inside == 0)


async def test_wannaplay_asks_for_the_default_game(start: Any, matchmaker: Any) -> None:
    """bevygap's blocking answer."""
    httpd = await start(default_game="arena", default_version="1", allow_client_ip=True)
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as http:
        answer = await http.post("/matchmaker/wannaplay?client_ip=1.2.3.4")
        assert answer.json() == {
            "connect_token": "dG9rZW4=",
            "gameserver_ip": "203.0.113.7",
            "gameserver_port": 30004,
            "cert_digest": "e3:76",
        }
        assert matchmaker.requests[0].payload["client_ip"] == "1.2.3.4"
        matchmaker.script = (ACKNOWLEDGED, b'{"Error":[408,"no server became ready"]}')
        answer = await http.post("/matchmaker/wannaplay")
        assert (answer.status_code, answer.text) == (408, "no server became ready")


async def test_wannaplay_asks_gensession_without_a_default_game(http: Any, matchmaker: Any) -> None:
    """The micro service of bevygap's matchmaker, with its way to say errors."""
    bus = matchmaker.bus
    headers: dict[str, str] | None = None

    async def gensession(msg: Msg) -> None:
        assert json.loads(msg.data) == {"client_ip": "127.0.0.1"}
        body = {
            "connect_token": "t",
            "gameserver_ip": "1.2.3.4",
            "gameserver_port": 5,
            "cert_digest": "",
            "x": 1,
        }
        await bus.nc.publish(msg.reply, b"" if headers else json.dumps(body).encode(), headers=headers)

    await bus.nc.subscribe(bus.subjects.gensession, cb=gensession)
    await bus.flush()
    answer = await http.post("/matchmaker/wannaplay")
    assert answer.json() == {
        "connect_token": "t",
        "gameserver_ip": "1.2.3.4",
        "gameserver_port": 5,
        "cert_digest": "",
    }
    headers = {"Nats-Service-Error-Code": "502", "Nats-Service-Error": "Edgegap is down"}
    answer = await http.post("/matchmaker/wannaplay")
    assert (answer.status_code, answer.text) == (502, "Edgegap is down")


async def test_wannaplay_without_anybody_is_503(http: Any) -> None:
    """With its text, as bevygap has it."""
    answer = await http.post("/matchmaker/wannaplay")
    assert (answer.status_code, answer.text) == (503, "no matchmaker is running")


async def test_readiness_says_what_is_missing(http: Any, matchmaker: Any, nats: Any) -> None:
    """A matchmaker, here."""
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "missing": []})


async def test_without_a_matchmaker_it_is_not_ready(http: Any) -> None:
    """And still alive."""
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["missing"][0].startswith("matchmaker: nobody listens")
    assert (await http.get("/healthz")).status_code == 200


async def test_metrics_count_plays_and_refusals(http: Any, httpd: Any, matchmaker: Any, ask: Any) -> None:
    """By way in and outcome."""
    await ask(httpd)
    await ask(httpd, "nonsense")
    await http.post(STREAM)
    text = (await http.get("/metrics")).text
    assert 'tipoff_httpd_requests_total{code="200",transport="websocket"} 1.0' in text
    assert 'tipoff_httpd_requests_total{code="400",transport="websocket"} 1.0' in text
    assert 'tipoff_httpd_requests_total{code="200",transport="stream"} 1.0' in text
    assert "tipoff_httpd_ready_seconds_count 2.0" in text
    assert "tipoff_httpd_requests_in_flight 0.0" in text
    assert "tipoff_httpd_nats_connected 1.0" in text
    assert "tipoff_httpd_tasks " in text


async def test_metrics_are_not_for_everybody(start: Any) -> None:
    """A player behind the proxy is not of the operator's networks."""
    httpd = await start(trusted_proxies=("127.0.0.1",))
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as http:
        assert (await http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"})).status_code == 403
        assert (await http.get("/metrics")).status_code == 200


async def test_the_api_describes_itself_without_other_hosts(http: Any) -> None:
    """One page, no script, no link away."""
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/matchmaker/request/{game}/{version}" in page.text
    assert "/matchmaker/ws" in page.text
    assert "<script" not in page.text
    assert not re.search(r"https?://", page.text)
    api = (await http.get("/openapi.json")).json()
    assert {"/matchmaker/request/{game}/{version}", "/matchmaker/wannaplay", "/readyz"} <= api["paths"].keys()


async def test_every_error_is_typed(http: Any) -> None:
    """Also those of the framework."""
    missing = await http.get("/nowhere")
    assert (missing.status_code, missing.json()["Error"][0]) == (404, 404)
    wrong = await http.get("/matchmaker/wannaplay")
    assert (wrong.status_code, wrong.json()["Error"][0]) == (405, 405)
    assert wrong.headers["allow"] == "POST"


async def test_the_demo_is_not_there_by_default(http: Any) -> None:
    """Neither page nor events nor button."""
    for path in ("/", "/demo/events", "/web/index.html"):
        assert (await http.get(path)).status_code == 404
    assert (await http.post("/demo/kill/x")).status_code == 404


@pytest.mark.row(10)
async def test_foreign_pages_cannot_post(http: Any, httpd: Any, matchmaker: Any) -> None:
    """Row 10 for HTTP."""
    answer = await http.post(STREAM, headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["Error"][0]) == (403, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert not matchmaker.requests
    assert (await http.post(STREAM, headers={"Origin": httpd.url})).status_code == 200


async def test_listed_pages_may_post_and_read(start: Any, matchmaker: Any) -> None:
    """With the headers that browsers want."""
    httpd = await start(origins=("https://game.example",))
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as http:
        origin = {"Origin": "https://game.example"}
        answer = await http.post(STREAM, headers=origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
            200,
            "https://game.example",
        )
        preflight = await http.options(STREAM, headers=origin | {"Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        evil = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in (await http.options(STREAM, headers=evil)).headers
