"""Logins by the operator's own URL: what is asked, remembered and believed, and what a bad URL costs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.httpd.login_server import LoginServer, answer
from tests.polling import eventually
from tipoff_matchmaker_httpd.login.interface import Identity
from tipoff_matchmaker_httpd.login.own_url import (
    MAX_ANSWER,
    REFUSED_FOR,
    Remembered,
    UrlFailed,
    UrlLogin,
    open_url_login,
    read_answer,
)
from tipoff_shared.errors import LoginReason, NotAuthenticated, SlowDown, Unavailable

ANN, BOB = ip_address("203.0.113.7"), ip_address("203.0.113.8")
SECRET = "s3cret-credential"


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def says_who(body: bytes) -> bytes:
    """A script: the user id is the token."""
    return answer({"user_id": json.loads(body)["auth"]["token"], "name": "Ann"})


@pytest.fixture
async def server() -> AsyncIterator[LoginServer]:
    made = LoginServer()
    made.script = says_who
    async with made.running():
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[..., AbstractAsyncContextManager[UrlLogin]]


@pytest.fixture
def open_login(server: LoginServer, clock: Clock) -> Open:
    def opening(**given: Any) -> AbstractAsyncContextManager[UrlLogin]:
        usual = {"timeout": 20.0, "calls": 8, "calls_per_address": 2, "ttl": 60.0}
        return open_url_login(server.url, clock=clock, **(usual | given))

    return opening


@pytest.mark.row(93)
async def test_the_url_is_asked_with_the_players_own_credential(
    open_login: Open, server: LoginServer
) -> None:
    """Whatever it holds, and where the player is."""
    server.script = lambda _: answer({"user_id": 42, "name": "Zo\u00eb\n", "more": 1})
    async with open_login() as login:
        auth = {"ticket": "\u00e9", "app": 480, "deep": {"a": [1, None]}}
        assert await login.identify(auth, ANN) == Identity("42", "Zo\u00eb")
    assert json.loads(server.requests[0]) == {"auth": auth, "address": "203.0.113.7"}
    assert b"content-type: application/json" in server.heads[0].lower()


@pytest.mark.row(93)
async def test_an_answer_is_remembered_for_a_while(
    open_login: Open, server: LoginServer, clock: Clock
) -> None:
    """An identity for the whole time, a refusal for five seconds; the order of members does not matter."""
    async with open_login() as login:
        await login.identify({"token": "a", "x": 1}, ANN)
        assert await login.identify({"x": 1, "token": "a"}, BOB) == Identity("a", "Ann")
        assert len(server.requests) == 1
        clock.now += 61
        await login.identify({"token": "a", "x": 1}, ANN)
        assert len(server.requests) == 2
        server.script = lambda _: answer({"reason": "no such account"}, 403)
        for _ in range(3):
            with pytest.raises(NotAuthenticated, match=r"^refused: no such account$") as caught:
                await login.identify({"token": "b"}, ANN)
            assert caught.value.reason is LoginReason.REFUSED
        assert len(server.requests) == 3
        clock.now += REFUSED_FOR + 1
        server.script = says_who
        assert (await login.identify({"token": "b"}, ANN)).user_id == "b"


@pytest.mark.row(93)
async def test_equal_credentials_share_a_call(open_login: Open, server: LoginServer) -> None:
    """Twenty requests of a player who cannot wait are one question."""
    async with open_login() as login:
        found = await asyncio.gather(*(login.identify({"token": "a"}, ANN) for _ in range(20)))
        assert found == [Identity("a", "Ann")] * 20
        assert len(server.requests) == 1


@pytest.mark.row(93)
async def test_one_address_cannot_use_up_the_calls(open_login: Open, server: LoginServer) -> None:
    """Over its share it gets 429; another address is served meanwhile, also while the URL hangs for the first."""
    server.script = server.held
    async with open_login(calls=4, calls_per_address=2) as login:
        asking = [asyncio.create_task(login.identify({"token": f"{n}"}, ANN)) for n in range(30)]
        await eventually(lambda: server.waiting == 2, "its share is asked", timeout=20)
        ended = [task for task in asking if task.done()]
        assert len(ended) == 28
        assert all(isinstance(task.exception(), SlowDown) for task in ended)
        server.script = says_who
        assert (await login.identify({"token": "bob"}, BOB)).user_id == "bob"
        server.release.set()
        await asyncio.gather(*asking, return_exceptions=True)
        assert (await login.identify({"token": "again"}, ANN)).user_id == "again", "places are given back"


async def test_no_cookie_of_one_player_goes_with_the_next(open_login: Open, server: LoginServer) -> None:
    """A URL that keeps sessions would take the second for the first."""
    server.script = lambda body: answer(
        {"user_id": json.loads(body)["auth"]["token"]}, set_cookie="session=ann; Path=/"
    )
    async with open_login() as login:
        for name in ("ann", "bob", "cleo"):
            assert (await login.identify({"token": name}, ANN)).user_id == name
    assert len(server.heads) == 3
    assert not any(b"cookie:" in head.lower() for head in server.heads)


async def test_a_connection_that_was_kept_alive_too_long_costs_no_login(
    open_login: Open, server: LoginServer
) -> None:
    """The server has closed it as the call came."""

    async def hangs_up(body: bytes) -> bytes:
        server.script = says_who
        raise ConnectionError

    async with open_login() as login:
        for name in ("ann", "bob"):
            server.script = hangs_up
            assert (await login.identify({"token": name}, ANN)).user_id == name
        assert len(server.requests) == 4


async def test_a_player_who_leaves_cancels_no_call(open_login: Open, server: LoginServer) -> None:
    """Its answer is remembered for the next try, and its place is free again."""
    server.script = server.held
    async with open_login(calls=1, calls_per_address=1) as login:
        asking = asyncio.create_task(login.identify({"token": "a"}, ANN))
        await eventually(lambda: server.waiting == 1, "the URL is asked", timeout=20)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        server.release.set()
        assert (await login.identify({"token": "a"}, ANN)).user_id == "late"
        assert len(server.requests) == 1
        server.script = says_who
        assert (await login.identify({"token": "b"}, ANN)).user_id == "b"


@pytest.mark.row(93)
@pytest.mark.parametrize(
    ("said", "spared"),
    [
        (answer({}, 502), True),
        (answer({}, 503), True),
        (answer({}, 429), True),
        (b"nonsense\r\n\r\n", True),
        (answer({}, 500), False),
        (answer({}, 404), False),
        (answer({}, 302, location="http://127.0.0.1:1/"), False),
        (answer(b"<html>"), False),
        (answer({"name": "nobody"}), False),
        (answer({"user_id": "x" * 65}), False),
        (answer({"user_id": "a\nb"}), False),
        (answer({"user_id": None}), False),
        (answer(b" " * (MAX_ANSWER + 1)), False),
        (answer(b"x", content_encoding="gzip"), False),
    ],
)
async def test_a_url_that_answers_nonsense_lets_nobody_in(
    open_login: Open, server: LoginServer, clock: Clock, said: bytes, spared: bool
) -> None:
    """503, never a 401; a URL that is down is spared, one that fails for one player is asked for the next."""
    server.script = lambda _: said
    async with open_login(calls_per_address=8) as login:
        for number in range(12):
            with pytest.raises(Unavailable) as caught:
                await login.identify({"token": f"{number}"}, ANN)
            assert caught.value.retry_after
        calls = 5 if spared else 12
        assert calls <= len(server.requests) <= 2 * calls  # a broken connection is tried once more
        server.script = says_who
        clock.now += 60
        assert (await login.identify({"token": "a"}, ANN)).user_id == "a"


@pytest.mark.row(93)
async def test_a_url_that_does_not_answer_costs_its_deadline_then_nothing(
    open_login: Open, server: LoginServer, caplog: pytest.LogCaptureFixture
) -> None:
    """After a few calls nobody waits for it any more; no credential is logged."""
    server.script = server.held
    with caplog.at_level(logging.DEBUG):
        async with open_login(timeout=0.2) as login:
            for number in range(20):
                with pytest.raises(Unavailable):
                    await login.identify({"token": f"{SECRET}{number}"}, ANN)
            assert len(server.requests) == 5
    assert "no answer within 0.2 s" in caplog.text
    assert SECRET not in caplog.text


async def test_a_dead_url_is_503_and_no_text_holds_a_credential(caplog: pytest.LogCaptureFixture) -> None:
    unused = LoginServer()
    async with unused.running():
        pass
    with caplog.at_level(logging.DEBUG):
        async with open_url_login(unused.url, timeout=20, calls=2, calls_per_address=2, ttl=60) as login:
            with pytest.raises(Unavailable) as caught:
                await login.identify({"token": SECRET}, ANN)
            assert SECRET not in f"{caught.value!r} {login!r} {login.__dict__!r}"
    assert SECRET not in caplog.text


async def test_a_credential_that_cannot_be_written_is_refused(open_login: Open, server: LoginServer) -> None:
    """Half of a surrogate pair, and no credential at all."""
    async with open_login() as login:
        for auth, reason in (({"token": "\ud800"}, LoginReason.MALFORMED), (None, LoginReason.MISSING)):
            with pytest.raises(NotAuthenticated) as caught:
                await login.identify(auth, ANN)
            assert caught.value.reason is reason
    assert server.requests == []


def test_what_is_remembered_is_bounded() -> None:
    """The oldest goes; refusals of strangers push out no identity; nothing is kept for a time of 0."""
    kept = Remembered(60.0, most=10)
    kept.put(b"ann", Identity("ann"), 0.0)
    for number in range(1000):
        kept.put(b"%d" % number, "refused: no", 0.0)
    assert len(kept) == 1 + 5
    assert kept.get(b"ann", 59.0) == Identity("ann")
    assert kept.get(b"999", 4.0) == "refused: no"
    assert kept.get(b"999", 6.0) is None
    for number in range(1000):
        kept.put(b"%d" % number, Identity("x"), 0.0)
    assert len(kept) <= 10 + 5
    assert kept.get(b"ann", 1.0) is None
    never = Remembered(0.0)
    never.put(b"a", Identity("a"), 0.0)
    assert len(never) == 0


@given(
    st.sampled_from([200, 200, 200, 201, 301, 400, 401, 403, 429, 500, 503]),
    st.binary(max_size=100)
    | st.dictionaries(
        st.sampled_from(["user_id", "name", "reason"]),
        st.none() | st.integers() | st.text(max_size=80) | st.lists(st.none(), max_size=2),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_any_answer_is_read_or_refused(status: int, body: bytes) -> None:
    with suppress(NotAuthenticated, UrlFailed):
        found = read_answer(status, body)
        assert 1 <= len(found.user_id.encode()) <= 64
        assert found.user_id.isprintable()
        assert len(found.name.encode()) <= 48


@given(st.text(max_size=300))
def test_any_reason_is_one_printable_line(reason: str) -> None:
    """It goes to the player."""
    with pytest.raises(NotAuthenticated) as caught:
        read_answer(403, json.dumps({"reason": reason}).encode())
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 250


def test_a_deep_answer_is_refused() -> None:
    with pytest.raises(UrlFailed):
        read_answer(200, b'{"user_id":' + b"[" * 60_000)
    with pytest.raises(NotAuthenticated):
        read_answer(403, b"[" * 60_000)
