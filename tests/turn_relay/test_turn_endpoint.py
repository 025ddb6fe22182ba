"""`POST /turn` as it is served: on the wire, under limits, on its own port, at two httpds."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.polling import eventually
from tipoff_matchmaker_httpd.server.run import RunningHttpd
from tipoff_shared.ban_list import ban_key, new_ban
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_turn_relay import pairing
from tipoff_turn_relay.keys import GameKey
from tipoff_turn_relay.messages import Error

Start = Callable[..., Awaitable[RunningHttpd]]
Say = Any


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def raw(port: int, request: bytes) -> bytes:
    """All that comes until the other side closes, or two answers' time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    got = b""
    try:
        async with asyncio.timeout(0.5):
            while data := await reader.read(65536):
                got += data
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    return got


async def test_a_whole_game(httpd: RunningHttpd, say: Say, paired: Any) -> None:
    ada = bob = say(httpd)
    one, other = await paired(ada, bob)
    assert await ada(f"6,hello,{one},0,0") == "0/10/*"
    assert await bob(f"6,hi,{other},1,0") == "0/9/hello"
    assert await ada(f"6,bye,{one},0,1") == "0/9/hi"
    assert await ada(f"5,*,{one},0,2") == "0/1/*"
    assert await bob(f"6,*,{other},1,1") == "0/9/bye"
    assert await bob(f"6,*,{other},1,2") == "15/*/*"


async def test_two_httpds_serve_the_two_players_of_one_game(start: Start, say: Say, paired: Any) -> None:
    ada, bob = say(await start()), say(await start())
    one, other = await paired(ada, bob)
    for number in range(20):
        await ada(f"6,a{number},{one},0,{number}")
        assert await bob(f"6,b{number},{other},1,{number}") == f"0/9/a{number}"
    assert await bob(f"6,elsewhere,{one},0,20") == "0/9/b19"
    assert await ada(f"6,*,{one},0,21") == "0/10/*"


async def test_a_restart_in_the_middle_loses_nothing(
    start: Start, say: Say, paired: Any, settings: Any
) -> None:
    from tipoff_matchmaker_httpd.server.run import run_httpd
    from tipoff_matchmaker_httpd.settings import Settings

    async with run_httpd(Settings.load(port=0), settings) as first:
        one, other = await paired(say(first), say(first))
        await say(first)(f"6,before,{one},0,0")
    second = say(await start())
    assert await second(f"6,*,{one},0,0") == "0/10/*"
    assert await second(f"6,*,{other},1,0") == "0/9/before"


async def test_keys_cannot_be_guessed(httpd: RunningHttpd, say: Say, paired: Any) -> None:
    """63 random bits: of a few keys, all differ, and most are long."""
    keys = [(await say(httpd)("0,Ada,*,nobody,*")).removeprefix("0/0/") for _ in range(20)]
    keys += await paired(say(httpd), say(httpd))
    assert len(set(keys)) == 22
    assert all(key.isdigit() and int(key) < 1 << 63 for key in keys)
    assert sum(int(key) > 1 << 58 for key in keys) > 15


async def test_get_tells_the_seconds_of_the_last_post(httpd: RunningHttpd, http: httpx.AsyncClient) -> None:
    assert float((await http.get(f"{httpd.url}/turn")).text) == 0.0
    await http.post(f"{httpd.url}/turn", content=b"0,Ada,*,*,*")
    answer = await http.get(f"{httpd.url}/turn")
    assert answer.status_code == 200
    assert 0 < float(answer.text) < 5
    assert (await http.put(f"{httpd.url}/turn", content=b"x")).status_code == 405


async def test_content_length_is_required(httpd: RunningHttpd, http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"0,Ada,*,*,*"

    answer = await http.post(f"{httpd.url}/turn", content=chunks())
    assert (answer.status_code, answer.text) == (400, "1/*/*")
    assert b"\r\n\r\n1/*/*" in await raw(httpd.port, b"POST /turn HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("size", [16_385, 20_000, 128 * 1024, 128 * 1024 + 1, 5_000_000])
async def test_a_body_that_is_too_long_is_error_20(
    httpd: RunningHttpd, http: httpx.AsyncClient, size: int
) -> None:
    if size <= 128 * 1024:
        answer = await http.post(f"{httpd.url}/turn", content=b"x" * size)
        assert (answer.status_code, answer.text) == (400, "20/*/*")
        assert (await http.post(f"{httpd.url}/turn", content=b"x")).text == "4/0/*"
    else:  # answered before the body has been sent
        head = f"POST /turn HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        answered = await raw(httpd.port, head.encode())
        assert answered.startswith(b"HTTP/1.1 400")
        assert answered.endswith(b"\r\n\r\n20/*/*")


async def test_a_body_of_the_greatest_length_is_taken(httpd: RunningHttpd, say: Say, paired: Any) -> None:
    one, other = await paired(say(httpd), say(httpd))
    data = "x" * (16_384 - len(f"6,,{one},0,0"))
    assert await say(httpd)(f"6,{data},{one},0,0") == "0/10/*"
    assert await say(httpd)(f"6,*,{other},1,0") == f"0/9/{data}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=60),
        st.tuples(
            st.sampled_from(["0", "1", "2", "3", "4", "5", "6", "7", "-1", "", "x"]),
            st.sampled_from(["*", "", "name", "\0", "|", "🎲"]),
            st.sampled_from(["*", "bibbybabbis", "0", "1", "9" * 19, "9" * 30, "key", "²"]),
            st.sampled_from(["*", "0", "1", "2", "name", ""]),
            st.sampled_from(["*", "0", "1", "-1", "9" * 40, ""]),
        ).map(lambda fields: ",".join(fields).encode()),
    )
)
async def test_whatever_is_posted_gets_an_answer_of_the_protocol(
    httpd: RunningHttpd, http: httpx.AsyncClient, body: bytes
) -> None:
    answer = await http.post(f"{httpd.url}/turn", content=body)
    error = int(answer.text.split("/", 2)[0])
    assert answer.status_code == (200 if error == 0 else 400)
    assert error == 0 or error in list(Error)


async def test_its_own_port_serves_the_original_s_clients_at_every_path(
    start: Start, http: httpx.AsyncClient, say: Say, paired: Any
) -> None:
    port = free_port()
    httpd = await start(turn_port=port)
    assert httpd.turn_url == f"http://127.0.0.1:{port}"
    one, other = await paired(say(url=f"{httpd.turn_url}/"), say(httpd))
    assert await say(url=f"{httpd.turn_url}/any/path")(f"6,hi,{one},0,0") == "0/10/*"
    assert await say(httpd)(f"6,*,{other},1,0") == "0/9/hi"
    assert float((await http.get(f"{httpd.turn_url}/")).text) > 0
    assert (await http.post(f"{httpd.turn_url}/", content=b"x" * 20_000)).text == "20/*/*"
    old = await raw(port, b"POST / HTTP/1.0\r\nContent-Length: 11\r\n\r\n0,Ada,*,*,*")
    assert old.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\n\r\n0/0/" in old


async def test_its_own_port_is_released_at_the_end(settings: Any) -> None:
    from tipoff_matchmaker_httpd.server.run import run_httpd
    from tipoff_matchmaker_httpd.settings import Settings

    port = free_port()
    for _ in range(2):
        async with run_httpd(Settings.load(port=0, turn_port=port), settings):
            assert b"4/0/*" in await raw(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")


async def test_without_the_relay_there_is_no_such_page(
    start: Start, http: httpx.AsyncClient, nats: Bus
) -> None:
    httpd = await start(turn_relay=False)
    assert (await http.post(f"{httpd.url}/turn", content=b"0,Ada,*,*,*")).status_code == 404
    assert (await http.post(f"{httpd.url}/v1/turn/register", json={"name": "Ada"})).status_code == 404
    streams = await nats.js.streams_info()
    assert not [s for s in streams if "turn" in s.config.name and nats.subjects.namespace in s.config.name]


async def test_an_address_may_ask_so_often_and_no_more(start: Start, http: httpx.AsyncClient) -> None:
    httpd = await start(turn_requests_per_second=1, trusted_proxies="127.0.0.1")

    async def ask(address: str) -> httpx.Response:
        headers = {"X-Forwarded-For": address}
        return await http.post(f"{httpd.url}/turn", content=b"2,*,30,*,*", headers=headers)

    answers = [await ask("198.51.100.7") for _ in range(4)]
    assert [a.status_code for a in answers] == [400, 400, 429, 429]
    assert answers[-1].text == "8/*/*"
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await ask("198.51.100.8")).status_code == 400


async def test_an_address_may_register_so_often_and_no_more(start: Start, http: httpx.AsyncClient) -> None:
    httpd = await start(turn_registrations_per_minute=3, trusted_proxies="127.0.0.1")
    headers = {"X-Forwarded-For": "2001:db8::1"}
    answers = [
        await http.post(f"{httpd.url}/turn", content=b"0,Ada,*,nobody,*", headers=headers) for _ in range(4)
    ]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert answers[-1].text == "7/*/*"
    json = await http.post(f"{httpd.url}/v1/turn/register", json={"name": "Ada"}, headers=headers)
    assert json.status_code == 429


async def test_pages_elsewhere_may_use_it_when_they_are_listed(start: Start, http: httpx.AsyncClient) -> None:
    httpd = await start(origins="https://game.example")

    async def ask(origin: str) -> httpx.Response:
        return await http.post(f"{httpd.url}/turn", content=b"0,Ada,*,*,*", headers={"Origin": origin})

    listed = await ask("https://game.example")
    assert listed.headers["access-control-allow-origin"] == "https://game.example"
    assert (await ask("https://evil.example")).status_code == 403


async def test_an_answer_is_never_a_page(httpd: RunningHttpd, http: httpx.AsyncClient) -> None:
    """A name is chosen by somebody else, and a browser would run it."""
    answer = await http.post(f"{httpd.url}/turn", content=b"0,<script>,*,*,*")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_metrics_count_answers_by_error(httpd: RunningHttpd, http: httpx.AsyncClient) -> None:
    for _ in range(3):
        await http.post(f"{httpd.url}/turn", content=b"2,*,30,*,*")
    metrics = (await http.get(f"{httpd.url}/metrics")).text
    assert 'tipoff_turn_answers_total{error="5"} 3.0' in metrics


async def test_a_game_s_record_shows_who_plays_and_goes_soon_after_its_end(
    httpd: RunningHttpd, nats: Bus, say: Say, paired: Any
) -> None:
    one, other = await paired(say(httpd), say(httpd))
    key = GameKey.parse(one)
    assert key is not None
    subject = f"$KV.{nats.subjects.bucket('turn_games')}.{key.game_id}"
    stream = f"KV_{nats.subjects.bucket('turn_games')}"
    message = await nats.js.get_last_msg(stream, subject)
    assert b"Ada" in (message.data or b"")
    assert (await nats.js.stream_info(stream)).config.max_age == 600
    for player, key_ in enumerate((one, other)):
        await say(httpd)(f"5,*,{key_},{player},0")
    message = await nats.js.get_last_msg(stream, subject)
    assert (message.headers or {})["Nats-TTL"] == "60"


@pytest.mark.row(68)
@pytest.mark.row(89)
async def test_a_banned_player_neither_registers_nor_plays_on(
    start: Start, http: httpx.AsyncClient, nats: Bus, say: Say, paired: Any
) -> None:
    """403 by both protocols, also in the middle of a long poll; old clients end what they have. Others play on."""
    bans = (await create_buckets(nats)).bans
    httpd = await start(trusted_proxies="127.0.0.1")
    mine, theirs = await paired(say(httpd), say(httpd))
    headers = {"X-Forwarded-For": "203.0.113.7"}

    async def text(body: str, **extra: str) -> tuple[int, str]:
        answer = await http.post(f"{httpd.url}/turn", content=body, headers=headers | extra)
        return answer.status_code, answer.text

    async def json(call: str, headers: dict[str, str] = headers, **body: object) -> httpx.Response:
        return await http.post(f"{httpd.url}/v1/turn/{call}", json=body, headers=headers)

    key = (await text("0,Eve,*,nobody,*"))[1].removeprefix("0/0/")
    assert key.isdigit()
    poll = asyncio.create_task(json("play", key=key, wait=1))
    await eventually(lambda: httpd.state.limits.inside == 1, "the poll waits")
    ban = new_ban("address", "203.0.113.0/24", until=time.time() + 60, reason="spam")
    await bans.put(ban_key(ban), ban, ttl=60)
    await eventually(lambda: len(httpd.state.bans.bans) == 1, "httpd knows of it")
    ended = await poll
    assert (ended.status_code, "spam" in ended.text) == (403, True)
    assert await text("0,Eve,*,nobody,*") == (403, "7/*/*")
    assert await text(f"2,*,{key},*,*") == (403, "10/*/*")
    assert await text(f"6,hello,{mine},0,0") == (403, "14/*/*")
    for refused in (
        await json("register", name="Eve"),
        await json("play", key=key, wait=0),
        await json("exchange", key=mine, after=0),
        await json("quit", key=mine),
    ):
        assert refused.status_code == 403
        assert "you are banned until" in refused.json()["Error"][1]
    other = {"X-Forwarded-For": "203.0.114.7"}
    assert (await json("exchange", other, key=theirs, after=0)).status_code == 200
    assert (await json("register", other, name="Bob")).status_code == 200
    assert (await text("0,Ann,*,*,*", **{"X-Forwarded-For": "203.0.114.7"}))[0] == 200


@pytest.mark.row(89)
async def test_registrations_of_one_address_keep_nobody_out(
    start: Start, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both protocols; what a client says about its address does not count."""
    monkeypatch.setattr(pairing, "MAX_PLAYERS", 12)
    monkeypatch.setattr(pairing, "MAX_PER_ADDRESS", 10)
    httpd = await start(trusted_proxies="127.0.0.1")

    async def register(address: str, number: int) -> int:
        headers = {"X-Forwarded-For": address}
        if number % 2:
            url, body = f"{httpd.url}/v1/turn/register", {"name": "Ada", "partner": "nobody"}
            return (await http.post(url, json=body, headers=headers)).status_code
        return (
            await http.post(f"{httpd.url}/turn", content=b"0,Ada,*,nobody,*", headers=headers)
        ).status_code

    greedy = [await register(f"2001:db8::{number:x}", number) for number in range(14)]
    assert greedy == [200] * 10 + [400, 503] * 2
    assert [await register("198.51.100.7", number) for number in range(4)] == [200] * 4
