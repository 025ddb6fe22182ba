"""`/v1/turn/...`: the relay for new games, with long polls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.polling import eventually
from tipoff_matchmaker_httpd.server.run import RunningHttpd
from tipoff_turn_relay.messages import MEANING, Error

Start = Callable[..., Awaitable[RunningHttpd]]
Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def ask(http: httpx.AsyncClient) -> Ask:
    """`await ask(httpd, "play", key=..., wait=0)`."""

    async def asking(httpd: RunningHttpd, path: str, **body: Any) -> httpx.Response:
        return await http.post(f"{httpd.url}/v1/turn/{path}", json=body)

    return asking


async def begin(ask: Ask, one: RunningHttpd, other: RunningHttpd) -> tuple[str, str]:
    """A game of Ada, at `one`, and Bob, at `other`; their game keys."""
    first = (await ask(one, "register", name="Ada", partner="Bob")).json()["key"]
    second = (await ask(other, "register", name="Bob", partner="Ada")).json()["key"]
    plays = await asyncio.gather(ask(one, "play", key=first), ask(other, "play", key=second))
    answers = [play.json() for play in plays]
    assert [a["state"] for a in answers] == ["playing", "playing"]
    assert {a["player"] for a in answers} == {0, 1}
    assert [a["partner"] for a in answers] == ["Bob", "Ada"]
    return answers[0]["key"], answers[1]["key"]


async def test_a_whole_game_at_two_httpds(start: Start, ask: Ask) -> None:
    one, other = await start(), await start()
    ada, bob = await begin(ask, one, other)
    poll = asyncio.ensure_future(ask(other, "exchange", key=bob, after=0, wait=20))
    sent = await ask(one, "exchange", key=ada, number=0, data="hello, you | there")
    assert sent.json() == {"number": 0, "updates": []}
    async with asyncio.timeout(2):
        assert (await poll).json() == {"number": -1, "after": 1, "updates": ["hello, you | there"]}
    both = await ask(other, "exchange", key=bob, number=0, data="hi", after=1)
    assert both.json() == {"number": 0, "after": 1, "updates": []}
    assert (await ask(one, "quit", key=ada)).json() == {"left": True}
    assert (await ask(other, "exchange", key=bob, after=1)).json()["turn"] == Error.PARTNER_GONE


async def test_loading_is_a_step_for_who_wants_it(httpd: RunningHttpd, ask: Ask) -> None:
    ada = (await ask(httpd, "register", name="Ada")).json()["key"]
    assert (await ask(httpd, "play", key=ada, wait=0)).json() == {"state": "waiting"}
    bob = (await ask(httpd, "register", name="Bob")).json()["key"]
    paired = await ask(httpd, "play", key=bob, loaded=False, wait=0)
    assert paired.json() == {"state": "paired", "partner": "Ada", "role": "server"}
    assert (await ask(httpd, "play", key=ada, wait=0)).json() == {"state": "loading"}
    assert (await ask(httpd, "play", key=bob, wait=0)).json()["player"] == 0
    assert (await ask(httpd, "play", key=ada, wait=0)).json()["player"] == 1


async def test_a_player_of_each_protocol_can_play_together(httpd: RunningHttpd, ask: Ask, say: Any) -> None:
    text = say(httpd)
    ada = (await ask(httpd, "register", name="Ada")).json()["key"]
    bob = (await text("0,Bob,*,*,*")).removeprefix("0/0/")
    assert await text(f"2,*,{bob},*,*") == "0/3/Ada"
    assert await text(f"3,*,{bob},*,*") == "0/5/"
    assert await text(f"4,*,{bob},*,*") == "0/7/*"
    key = (await ask(httpd, "play", key=ada)).json()["key"]
    game = (await text(f"4,*,{bob},*,*")).removeprefix("0/8/").removesuffix("|1")
    await ask(httpd, "exchange", key=key, number=0, data="by JSON")
    assert await text(f"6,by text,{game},1,0") == "0/9/by JSON"
    assert (await ask(httpd, "exchange", key=key, after=0)).json()["updates"] == ["by text"]


async def test_a_long_poll_ends_after_its_time(httpd: RunningHttpd, ask: Ask) -> None:
    ada, _ = await begin(ask, httpd, httpd)
    answer = await ask(httpd, "exchange", key=ada, after=0, wait=0.1)
    assert answer.json() == {"number": -1, "after": 0, "updates": []}


async def test_a_long_poll_ends_when_httpd_does(start: Start, ask: Ask, settings: Any) -> None:
    from tipoff_matchmaker_httpd.server.run import run_httpd
    from tipoff_matchmaker_httpd.settings import Settings

    async with asyncio.timeout(4):
        async with run_httpd(Settings.load(port=0), settings) as httpd:
            ada, _ = await begin(ask, httpd, httpd)
            poll = asyncio.ensure_future(ask(httpd, "exchange", key=ada, after=0, wait=25))
            await eventually(lambda: httpd.state.limits.inside, "it waits")
        assert (await poll).json()["updates"] == []


async def test_a_player_that_goes_away_leaves_its_long_poll_behind(httpd: RunningHttpd, ask: Ask) -> None:
    ada, _ = await begin(ask, httpd, httpd)
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(timeout=0.2, trust_env=False) as impatient:
            await impatient.post(f"{httpd.url}/v1/turn/exchange", json={"key": ada, "after": 0, "wait": 25})
    await eventually(lambda: not httpd.state.limits.inside, "its place is free", 2)


@pytest.mark.parametrize(
    ("path", "body", "status", "turn"),
    [
        ("play", {"key": "12345", "wait": 0}, 404, Error.NOT_REGISTERED),
        ("unregister", {"key": "12345"}, 404, Error.NOT_REGISTERED),
        ("exchange", {"key": "12345", "number": 0}, 404, Error.NO_GAME),
        ("quit", {"key": "12345"}, 404, Error.NO_GAME),
        ("register", {"name": ""}, 400, None),
        ("register", {"name": "x" * 65}, 400, None),
        ("register", {"name": "Ada", "other": 1}, 400, None),
        ("register", {"name": 5}, 400, None),
        ("play", {"key": "not a key"}, 400, None),
        ("play", {"key": "1", "wait": 1e9}, 400, None),
        ("exchange", {"key": "1", "number": -1}, 400, None),
        ("exchange", {"key": "1", "number": 2**60}, 400, None),
        ("exchange", {"key": "1", "data": "x" * 16_385}, 400, None),
        ("exchange", {"key": "1", "data": "ü" * 9_000}, 413, None),
    ],
)
async def test_what_cannot_be_is_refused_with_a_typed_error(
    httpd: RunningHttpd, ask: Ask, path: str, body: dict[str, Any], status: int, turn: Error | None
) -> None:
    answer = await ask(httpd, path, **body)
    assert answer.status_code == status
    assert answer.json()["Error"][0] == status
    assert answer.json().get("turn") == turn
    if turn is not None:
        assert answer.json()["Error"][1] == MEANING[turn]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"name": "\\ud800"}', b"\xff", b'{"name": NaN}', b"[" * 100_000]
)
async def test_malformed_bodies_are_400(httpd: RunningHttpd, http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post(
        f"{httpd.url}/v1/turn/register", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["Error"][0] == 400


async def test_wrong_numbers_and_positions_are_409(httpd: RunningHttpd, ask: Ask) -> None:
    ada, bob = await begin(ask, httpd, httpd)
    await ask(httpd, "exchange", key=bob, number=0, data="x")
    await ask(httpd, "exchange", key=ada, number=0, data="x", after=1)
    for body, error in (
        ({"number": 2}, Error.AHEAD),
        ({"after": 2}, Error.AHEAD),
        ({"after": 0}, Error.BEHIND),
    ):
        answer = await ask(httpd, "exchange", key=ada, **body)
        assert (answer.status_code, answer.json()["turn"]) == (409, error)


async def test_openapi_describes_every_call(httpd: RunningHttpd, http: httpx.AsyncClient) -> None:
    paths = (await http.get(f"{httpd.url}/openapi.json")).json()["paths"]
    for call in ("register", "play", "unregister", "exchange", "quit"):
        operation = paths[f"/v1/turn/{call}"]["post"]
        assert "requestBody" in operation
        assert {"200", "400", "404", "409", "429", "503"} <= set(operation["responses"])


async def test_long_polls_of_one_address_are_bounded(start: Start, http: httpx.AsyncClient) -> None:
    httpd = await start(trusted_proxies="127.0.0.1", max_requests_per_address=2)
    headers = {"X-Forwarded-For": "198.51.100.7"}
    key = (await http.post(f"{httpd.url}/v1/turn/register", json={"name": "Ada"}, headers=headers)).json()[
        "key"
    ]

    async def poll(wait: float) -> httpx.Response:
        return await http.post(f"{httpd.url}/v1/turn/play", json={"key": key, "wait": wait}, headers=headers)

    answers = await asyncio.gather(*(poll(0.5) for _ in range(3)))
    assert sorted(a.status_code for a in answers) == [200, 200, 429]


@pytest.mark.row(69)
async def test_long_polls_of_one_address_keep_nobody_out(start: Start, http: httpx.AsyncClient) -> None:
    """When all places are taken, the oldest poll of the address that holds most ends, and says when to ask again."""
    httpd = await start(trusted_proxies="127.0.0.1", max_requests=6)

    async def post(last: int, call: str, **body: object) -> httpx.Response:
        headers = {"X-Forwarded-For": f"198.51.100.{last}"}
        return await http.post(f"{httpd.url}/v1/turn/{call}", json=body, headers=headers)

    greedy, other = [
        (await post(last, "register", name=f"P{last}", partner="nobody")).json()["key"] for last in (1, 2)
    ]
    polls = [asyncio.create_task(post(1, "play", key=greedy, wait=20)) for _ in range(3)]
    async with asyncio.timeout(5):
        await eventually(lambda: httpd.state.limits.inside == 3, "all wait")
        mine = await post(2, "play", key=other, wait=0.3)
        assert mine.json() == {"state": "waiting"}
        done, _ = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().status_code for task in done] == [503]
    assert done.pop().result().headers["retry-after"] == "2"
    for task in polls:
        task.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    await eventually(lambda: not httpd.state.limits.inside, "their places are free", 2)
