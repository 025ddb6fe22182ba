"""Requests for the seat that a player still has, as httpd passes them on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.httpd.login_server import AUDIENCE, ISSUER
from tipoff_shared.errors import Malformed
from tipoff_shared.names import check_resume
from tipoff_shared.subjects import REQUEST_ID_HEADER, RESUME_KEY_HEADER

pytestmark = pytest.mark.row(100)

SESSION = "s" + "0a" * 13
KEY = "KTbQ-_" + "x" * 16
STREAM = "/matchmaker/request/arena/1"


def message(**members: Any) -> str:
    return json.dumps({"game": "arena", "version": "1"} | members)


async def test_the_key_travels_in_a_header_and_an_earlier_matchmaker_refuses_the_request(
    httpd: Any, matchmaker: Any, ask: Any
) -> None:
    """By WebSocket and by HTTP; what stands for the request id is none, so that nobody gives a new seat for it."""
    asked = {"session": SESSION, "resume_key": KEY, "user_id": "root", "request_id": "r" * 22}
    assert (await ask(httpd, message(**asked))).code == 1000
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{httpd.port}") as client:
        assert (await client.post(STREAM, json=asked)).status_code == 200
    assert len(matchmaker.requests) == 2
    for request in matchmaker.requests:
        assert (request.headers[REQUEST_ID_HEADER], request.headers[RESUME_KEY_HEADER]) == ("resume", KEY)
        assert request.payload["session"] == SESSION
        assert KEY not in json.dumps(request.payload)
        assert not {"user_id", "resume_key", "request_id"} & request.payload.keys()


@pytest.mark.parametrize(
    "members",
    [
        {"session": SESSION},
        {"resume_key": KEY},
        {"session": SESSION, "resume_key": ""},
        {"session": SESSION, "resume_key": KEY + "\r\nNats-Rollup: all"},
        {"session": SESSION, "resume_key": "x" * 65},
        {"session": "sessions.>", "resume_key": KEY},
        {"session": 7, "resume_key": KEY},
        {"session": SESSION, "resume_key": [KEY]},
    ],
    ids=str,
)
async def test_what_is_no_session_or_no_key_goes_nowhere(
    httpd: Any, matchmaker: Any, ask: Any, members: dict[str, Any]
) -> None:
    got = await ask(httpd, message(**members))
    assert (got.error, got.code) == (400, 1008)
    assert matchmaker.requests == []


async def test_the_key_is_the_credential_where_others_need_a_login(
    start: Any, matchmaker: Any, ask: Any
) -> None:
    """A login may have expired since; without the key nobody gets past it."""
    guarded = await start(
        auth="jwt", auth_issuer=ISSUER, auth_audience=AUDIENCE, auth_jwks_url="http://127.0.0.1:9/keys"
    )
    assert (await ask(guarded, message())).error == 401
    assert (await ask(guarded, message(session=SESSION, resume_key=KEY))).code == 1000
    assert len(matchmaker.requests) == 1


async def test_one_address_may_not_guess_without_end(start: Any, matchmaker: Any, ask: Any) -> None:
    """Guesses count like all requests of an address: 429 and when to come again."""
    matchmaker.script = (b'{"Error": [403, "this key is not the session\'s"]}', b"")
    httpd = await start(requests_per_second=1, request_burst=5, trusted_proxies="127.0.0.1")
    told = message(session=SESSION, resume_key=KEY)

    async def asks(address: str) -> Any:
        return (await ask(httpd, told, additional_headers={"X-Forwarded-For": address})).error

    errors = [await asks("203.0.113.9") for _ in range(100)]
    assert await asks("203.0.113.10") == 403, "others have a share of their own"
    assert set(errors) == {403, 429}
    assert len(matchmaker.requests) == errors.count(403) + 1
    assert errors.count(429) > errors.count(403)


@given(
    st.one_of(st.none(), st.text(), st.integers(), st.binary()),
    st.one_of(st.none(), st.text(), st.lists(st.text())),
)
def test_whatever_is_sent_is_refused_or_fits_a_header(session: object, key: object) -> None:
    try:
        found = check_resume(session, key)
    except Malformed:
        return
    assert all(text.isascii() and text.isprintable() and " " not in text for text in found)
