"""The client by itself: rate limits, typed errors, and answers of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_orchestrator_client.base import (
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
)
from tipoff_orchestrator_client.edgegap.api.answers import (
    parse_page,
    parse_server,
    parse_session,
    parse_version,
    word,
)
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import (
    Busy,
    Gone,
    NoRoom,
    RateLimited,
    Rejected,
    Unauthorized,
    Unreachable,
    Unreadable,
)
from tipoff_orchestrator_client.edgegap.api.rates import Rate, bucket_below
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.primitives.token_bucket import TokenBucket
from tipoff_shared.secret import Secret

TOKEN = "6d5a1f0e-canary-4b1c"
READY: dict[str, Any] = {
    "request_id": "4f2a",
    "current_status": "Status.READY",
    "running": True,
    "error": False,
    "public_ip": "203.0.113.7",
    "fqdn": "4f2a.pr.edgegap.net",
    "ports": {"game": {"external": 31000, "internal": 5000, "protocol": "UDP", "name": "game"}},
    "tags": ["tipoff"],
    "from_the_future": {"any": ["thing"]},
}


class Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def transport(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    """Bodies come as streams, as from a socket."""

    def handle(request: httpx.Request) -> httpx.Response:
        made = handler(request)
        return httpx.Response(made.status_code, headers=made.headers, stream=Body(made.content))

    return httpx.MockTransport(handle)


def client(handler: Callable[[httpx.Request], httpx.Response], **more: Any) -> EdgegapClient:
    return EdgegapClient("https://api.example", Secret(TOKEN), transport=transport(handler), **more)


def answering(status: int, body: Any = None, **headers: str) -> EdgegapClient:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client(
        lambda request: httpx.Response(
            status, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
    )


async def order(edgegap: EdgegapClient) -> str:
    return await edgegap.create("app", "v1", near=["203.0.113.9"], environment=[], tags=["t"])


async def test_one_session_that_cannot_be_read_hides_no_other() -> None:
    """The list is the account's: a broken session of another project does not hide ours."""
    broken = {"session_id": "b", "ready": True, "deployment": {"request_id": "4f2a", "running": True}}
    rows = [
        {"session_id": "a", "ready": False},
        broken,
        {"session_id": None},
        {"session_id": "c", "ready": False},
    ]
    found = await answering(200, {"data": rows, "total_count": 4}).sessions()
    assert [(session.session_id, session.ready) for session in found] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]


# Rate limits.


def test_turns_come_evenly_and_in_order() -> None:
    """Two at once after a pause, then one every tenth of a second."""
    turns = TokenBucket(10.0, burst=2)
    waits = [turns.take(100.0, 60) for _ in range(5)]
    assert waits == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])
    assert turns.take(101.0, 60) == 0.0


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=200))
def test_in_no_second_are_there_more_than_the_limit(pauses: list[float]) -> None:
    """However those who ask come, and even if the last of one second meet the first of the next."""
    turns = TokenBucket(34.0, burst=4)  # what is made of a limit of 40
    now, sent = 0.0, []
    for pause in pauses:
        now += pause
        wait = turns.take(now, 1000)
        assert wait is not None
        sent.append(now + wait)
    for start in sent:
        assert sum(start <= at < start + 1 for at in sent) <= 40


@pytest.mark.parametrize("limit", [40.0, 20.0, 10.0])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_shares_together_are_the_limit(limit: float, processes: int) -> None:
    """Also in the second in which all of them are busiest."""
    turns = bucket_below(limit, 1 / processes)
    waits = [turns.take(100.0, 60) for _ in range(100)]
    assert processes * sum(wait is not None and wait < 1 - 1e-6 for wait in waits) <= limit


def test_who_would_wait_too_long_takes_no_turn() -> None:
    """A caller that has gone delays no other."""
    turns = TokenBucket(1.0)
    assert turns.take(0.0, 5) == 0.0
    assert turns.take(0.0, 0.5) is None
    assert turns.take(0.0, 5) == pytest.approx(1.0)
    turns.pause(10.0)
    assert turns.wait(0.0) == pytest.approx(10.0)


async def test_a_turn_not_used_is_free_again() -> None:
    """A cancelled caller returns its turn."""
    rate = Rate("status", 10.0)
    await rate.turn(1)
    waiting = [asyncio.ensure_future(rate.turn(5)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    async with asyncio.timeout(0.5):
        await rate.turn(5)


async def test_those_who_leave_the_line_do_not_bring_two_at_a_time() -> None:
    """Others come in their place: in no moment do more go than the rate allows."""
    rate = Rate("create", 200.0)  # kept to: 170 a second, 20 at once
    went: list[float] = []

    async def go() -> None:
        await rate.turn(5)
        went.append(asyncio.get_running_loop().time())

    first = [asyncio.ensure_future(go()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in first[20:60]:
        task.cancel()
    await asyncio.gather(*first, *(go() for _ in range(40)), return_exceptions=True)
    assert len(went) == 100
    assert max(sum(start <= at < start + 0.2 for at in went) for start in went) <= 20 + 170 * 0.2 + 5


async def test_a_pause_holds_for_those_who_wait_already() -> None:
    """What was refused with "too many requests" is not followed by all who stood in line behind it."""
    rate = Rate("status", 100.0)
    await asyncio.gather(*(rate.turn(5) for _ in range(10)))
    waiting = [asyncio.ensure_future(rate.turn(5)) for _ in range(5)]
    await asyncio.sleep(0)
    rate.pause(0.3)
    done, _ = await asyncio.wait(waiting, timeout=0.2)
    assert not done
    async with asyncio.timeout(2):
        await asyncio.gather(*waiting)


async def test_who_waits_and_hears_of_a_long_pause_is_told_to_come_later() -> None:
    """Nobody waits for longer than was asked for."""
    rate = Rate("status", 100.0)
    await asyncio.gather(*(rate.turn(5) for _ in range(10)))
    waiting = asyncio.ensure_future(rate.turn(0.1))
    await asyncio.sleep(0)
    rate.pause(30)
    with pytest.raises(Busy) as caught:
        await waiting
    assert caught.value.retry_after == pytest.approx(30, abs=1)


async def test_too_many_at_once_are_told_to_come_later() -> None:
    """The wait is bounded, and the error says how long it would be."""
    edgegap = answering(200, READY)
    outcomes = await asyncio.gather(
        *(edgegap.status("4f2a", longest_wait=0.2) for _ in range(30)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, Busy)]
    assert 20 <= len(refused) < 30
    assert all(error.retry_after is not None and error.retryable for error in refused)


# Errors.


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "may_have_started"),
    [
        (400, Rejected, False, False),
        (401, Unauthorized, False, False),
        (403, Unauthorized, False, False),
        (404, Rejected, False, False),
        (409, Rejected, False, False),
        (422, NoRoom, True, False),
        (429, RateLimited, True, False),
        (500, Unreachable, True, True),
        (503, Unreachable, True, True),
        (302, Rejected, False, False),
    ],
)
async def test_each_status_has_its_error_with_edgegaps_words(
    status: int, kind: type[OrchestratorError], retryable: bool, may_have_started: bool
) -> None:
    """Whether to try again, and whether something may have been created, is part of it."""
    body = {"message": "what Edgegap says", "details": {"field": "tags"}, "request_id": "9"}
    with pytest.raises(kind, match=f"{status}: what Edgegap says: .*tags") as caught:
        await order(answering(status, body, retry_after="7"))
    assert caught.value.retryable == retryable
    assert caught.value.may_have_started == may_have_started
    if status in (429, 503):
        assert caught.value.retry_after == 7


@pytest.mark.parametrize("status", [404, 410])
async def test_what_is_looked_for_and_not_there_is_gone(status: int) -> None:
    with pytest.raises(Gone):
        await answering(status, {"message": "no such application"}).application("arena")


async def test_words_of_a_quota_are_no_room() -> None:
    """Edgegap answers so when the quota is reached; a server may be free later."""
    with pytest.raises(NoCapacity):
        await order(answering(400, {"message": "You have reached the deployment limit of your plan"}))


async def test_what_was_never_sent_created_nothing() -> None:
    """No connection: safe to repeat."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(Unreachable) as caught:
        await order(client(refuse))
    assert not caught.value.may_have_started


async def test_what_creates_nothing_is_repeated_once_when_its_connection_is_lost() -> None:
    """Kept alive for too long. A create is not repeated: it may have arrived."""
    calls: list[str] = []

    def lose(request: httpx.Request) -> httpx.Response:
        calls.append(request.method)
        if len(calls) == 1:
            raise httpx.RemoteProtocolError("Server disconnected", request=request)
        return httpx.Response(200, json=READY)

    assert await client(lose).status("4f2a") is not None
    assert calls == ["GET", "GET"]
    calls.clear()
    with pytest.raises(Unreachable) as caught:
        await order(client(lose))
    assert caught.value.may_have_started
    assert calls == ["POST"]


@pytest.mark.row(58)
async def test_the_token_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not even when Edgegap repeats it."""
    caplog.set_level(logging.DEBUG)
    edgegap = answering(401, {"message": f"token {TOKEN} is not valid"})
    with pytest.raises(Unauthorized) as caught:
        await order(edgegap)
    with_token = Settings(token=f"token {TOKEN}")  # type: ignore[arg-type] # as pydantic takes it
    for said in (str(caught.value), repr(edgegap), repr(with_token), caplog.text):
        assert TOKEN not in said
    assert "***" in str(caught.value)


async def test_a_token_at_the_end_of_what_is_shown_is_not_shown_in_part() -> None:
    """Long messages are cut; the token is taken out before."""
    for before in (385, 399):
        with pytest.raises(Unauthorized) as caught:
            await answering(401, {"message": "x" * before + TOKEN}).status("4f2a")
        assert "x" * 385 in str(caught.value)
        assert TOKEN[:4] not in str(caught.value), before


async def test_details_nested_as_deeply_as_can_be_are_an_error_like_any_other() -> None:
    """Numbers of thousands of digits, too."""
    for details in (b"[" * depth + b"]" * depth for depth in range(900, 1000, 3)):
        with pytest.raises(OrchestratorError):
            await answering(400, b'{"message": "m", "details": ' + details + b"}").application("a")
    with pytest.raises(OrchestratorError):
        await answering(400, b'{"details": {"n": ' + b"9" * 5000 + b"}}").application("a")


@pytest.mark.parametrize("given", [TOKEN, f"token {TOKEN}", f"Token {TOKEN}"])
async def test_a_token_comes_with_or_without_its_word(given: str) -> None:
    """It is sent as Edgegap wants it."""
    seen: list[str] = []

    def see(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json=READY)

    token = Settings(token=given).api_token()  # type: ignore[arg-type] # as pydantic takes it
    await EdgegapClient("https://api.example", token, transport=transport(see)).status("4f2a")
    assert seen == [f"token {TOKEN}"]


def test_without_a_token_it_is_said_where_one_comes_from() -> None:
    with pytest.raises(ConfigError, match="TIPOFF_EDGEGAP_TOKEN_FILE"):
        Settings().api_token()


# Answers.


@pytest.mark.parametrize("state", ["Status.READY", "READY", "STATUS_READY", "ready", " Ready "])
def test_states_are_spelled_in_many_ways(state: str) -> None:
    assert word(state) == "READY"
    assert parse_server(READY | {"current_status": state}, strict=True).running


@pytest.mark.parametrize(
    ("change", "running", "ended"),
    [
        ({}, True, False),
        ({"running": False, "current_status": "Status.DEPLOYING"}, False, False),
        ({"running": False, "current_status": "STATUS_TERMINATED"}, False, True),
        ({"running": True, "error": True, "error_detail": "no image"}, False, True),
        ({"running": True, "current_status": "Status.DEPLOYING"}, True, False),
        ({"running": False, "public_ip": None, "ports": None, "current_status": "SEEKING"}, False, False),
    ],
)
def test_running_and_error_are_trusted_before_the_state(
    change: dict[str, Any], running: bool, ended: bool
) -> None:
    server = parse_server(READY | change, strict=True)
    assert (server.running, server.ended) == (running, ended)


@pytest.mark.row(40)
@pytest.mark.parametrize(
    "change",
    [
        {"ports": None},
        {"ports": {}},
        {"ports": {"game": {"external": 70000, "internal": 1, "protocol": "UDP"}}},
        {"ports": {"game": {"external": "31000", "protocol": "UDP"}}},
        {"ports": {"game": None}},
        {"ports": [1]},
        {"public_ip": None, "fqdn": None},
        {"public_ip": "300.1.2.3"},
        {"public_ip": 7},
        {"fqdn": "a b"},
        {"request_id": "../stop"},
        {"request_id": None},
    ],
)
def test_an_address_that_cannot_be_used_is_unreadable(change: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        parse_server(READY | change, strict=True)


_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_inner = (
    _leaf
    | st.lists(_leaf, max_size=3)
    | st.dictionaries(st.sampled_from(["game", *READY]), _leaf, max_size=4)
)
_json = _inner | st.lists(_inner, max_size=3) | st.dictionaries(st.text(max_size=12), _inner, max_size=4)
_members = st.dictionaries(
    st.sampled_from(
        [
            *(
                *READY,
                "data",
                "pagination",
                "total_count",
                "session_id",
                "deployment",
                "ready",
                "status",
                "kind",
            ),
            *(
                "is_active",
                "session_config",
                "docker_tag",
                "deployment_request_id",
                "sockets",
                "error_detail",
            ),
        ]
    ),
    _json,
)


@settings(max_examples=300)
@given(_members)
def test_whatever_is_answered_only_unreadable_comes_out(members: dict[str, Any]) -> None:
    """Parsers of hostile answers."""
    for parse in (
        lambda answer: parse_server(answer, strict=True),
        lambda answer: parse_server(answer, strict=False),
        lambda answer: parse_page(answer, seen=0),
        lambda answer: parse_version(answer, "v1"),
        parse_session,
    ):
        for answer in (members, READY | members, {"session_id": "s-1", "is_active": True} | members):
            with contextlib.suppress(Unreadable):
                parse(answer)


@pytest.mark.row(40)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b"null", b'{"a": NaN}'])
async def test_what_is_no_json_object_is_a_typed_error(body: bytes) -> None:
    with pytest.raises(OrchestratorUnavailable):
        await answering(200, body).status("4f2a")


async def test_all_pages_of_a_list_are_read_and_never_only_some() -> None:
    """Each deployment once; when a page cannot be read, there is no list."""
    broken = False

    def pages(request: httpx.Request) -> httpx.Response:
        page = int(request.url.params["page"])
        if broken and page == 2:
            return httpx.Response(500)
        data = [READY | {"request_id": f"{number}"} for number in range(page * 3 - 3, page * 3)]
        more = page < 3
        return httpx.Response(200, json={"data": data, "total_count": 9, "pagination": {"has_next": more}})

    edgegap = client(pages)
    assert [server.request_id for server in await edgegap.deployments()] == [str(n) for n in range(9)]
    broken = True
    with pytest.raises(Unreachable):
        await edgegap.deployments()


@pytest.mark.parametrize(
    ("pagination", "total", "more"),
    [
        ({"has_next": True}, 1, True),
        ({"next_page_number": None}, 99, False),
        ({"next_page_number": 2}, 1, True),
        (None, 5, True),
        (None, 3, False),
        (None, None, False),
        ("nonsense", "nonsense", False),
    ],
)
def test_whether_there_are_more_pages_is_told_in_several_ways(
    pagination: Any, total: Any, more: bool
) -> None:
    page = {"data": [READY] * 3, "pagination": pagination, "total_count": total}
    assert parse_page(page, seen=0).more == more


@pytest.mark.parametrize("status", [400, 404, 410])
async def test_an_unknown_id_is_gone(status: int) -> None:
    """Documented as 404, answered as 400."""
    edgegap = answering(status, {"message": "not found"})
    assert await edgegap.status("4f2a") is None
    assert await edgegap.session("4f2a-S") is None
    await edgegap.stop("4f2a")
    await edgegap.delete_session("4f2a-S")


async def test_an_id_of_somebody_elses_making_never_gets_into_a_path() -> None:
    with pytest.raises(NotConfigured):
        await answering(200, READY).status("../../app")


async def test_a_create_says_what_edgegap_wants_to_know() -> None:
    """The body of v2."""
    seen: list[Any] = []

    def see(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(202, json={"request_id": "4f2a"})

    request_id = await client(see).create(
        "app",
        "v1",
        near=[f"203.0.113.{n}" for n in range(50)],
        environment=[("TIPOFF_GAME", "arena", False), ("TIPOFF_PRIVATE_KEY", "00ff", True)],
        tags=["tipoff"],
        webhook_url="https://play.example/hook/x.y",
    )
    assert request_id == "4f2a"
    ((method, path, body),) = seen
    assert (method, path) == ("POST", "/v2/deployments")
    assert body["users"][0] == {"user_type": "ip_address", "user_data": {"ip_address": "203.0.113.0"}}
    assert len(body["users"]) == 10
    assert body["environment_variables"][1] == {
        "key": "TIPOFF_PRIVATE_KEY",
        "value": "00ff",
        "is_hidden": True,
    }
    assert body["webhook_on_ready"] == {"url": "https://play.example/hook/x.y"}
    assert {"webhook_on_error", "webhook_on_terminated"} <= set(body)
