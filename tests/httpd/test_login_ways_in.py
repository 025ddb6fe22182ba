"""Logins at httpd: every way in asks for them, and what matchmakers then hear of a player."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.httpd.login_server import AUDIENCE, ISSUER, Issuer, LoginServer, answer
from tests.polling import eventually
from tipoff_shared.ban_list import ban_key, new_ban
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus

STREAM = "/matchmaker/request/arena/1"
FORGED = {"user_id": "root", "name": "Mallory"}


@pytest.fixture
async def login_server() -> AsyncIterator[LoginServer]:
    async with LoginServer().running() as server:
        yield server


@pytest.fixture
def issuer() -> Issuer:
    made = Issuer()
    made.add("k1")
    return made


@pytest.fixture
async def guarded(start: Any, login_server: LoginServer, issuer: Issuer) -> Any:
    """An httpd that wants tokens of `issuer`, whose keys `login_server` has."""
    login_server.script = lambda _: answer(issuer.key_set())
    return await start(
        auth="jwt",
        auth_issuer=ISSUER,
        auth_audience=AUDIENCE,
        auth_jwks_url=login_server.url,
        default_game="arena",
        default_version="1",
    )


def message(**members: Any) -> str:
    return json.dumps({"game": "arena", "version": "1"} | members)


@pytest.mark.row(93)
async def test_a_login_names_the_player_by_every_way_in(
    guarded: Any, matchmaker: Any, ask: Any, issuer: Issuer
) -> None:
    """In the first message, in a body, in an Authorization header; what a player says of its user id counts nowhere."""
    token = issuer.token("k1")
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await ask(guarded, message(auth={"token": token}, **FORGED))).code == 1000
    assert (await ask(guarded, message(**FORGED), additional_headers=bearer)).code == 1000
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{guarded.port}") as client:
        for path in (STREAM, "/matchmaker/wannaplay"):
            by_body = await client.post(path, json={"auth": {"token": token}, **FORGED})
            by_header = await client.post(path, json=FORGED, headers=bearer)
            assert (by_body.status_code, by_header.status_code) == (200, 200), (path, by_body.text)
        metrics = (await client.get("/metrics")).text
    assert 'tipoff_httpd_logins_total{outcome="ok"} 6.0' in metrics
    assert len(matchmaker.requests) == 6
    for request in matchmaker.requests:
        assert (request.payload["user_id"], request.payload["name"]) == ("ann-1", "Ann")
        assert "auth" not in request.payload, "the credential ends at httpd"
        assert token not in json.dumps([request.payload, dict(request.headers)])


@pytest.mark.row(93)
async def test_without_a_valid_login_every_way_in_is_closed(
    guarded: Any, matchmaker: Any, ask: Any, issuer: Issuer
) -> None:
    """401 with one word for the reason and a sentence; nothing is asked of matchmakers."""
    late = issuer.token("k1", exp=1)
    for auth, reason in ((None, "missing"), ({"token": late}, "expired"), ({"token": "x"}, "malformed")):
        got = await ask(guarded, message(auth=auth, **FORGED))
        assert (got.error, got.code) == (401, 1008)
        assert got.messages[-1]["Error"][1].startswith(f"{reason}: ")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{guarded.port}") as client:
            for path in (STREAM, "/matchmaker/wannaplay"):
                refused = await client.post(path, json={"auth": auth, **FORGED})
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert f"{reason}: " in refused.text
    assert matchmaker.requests == []


@pytest.mark.row(93)
async def test_a_login_opens_bevygaps_way_in_too(
    start: Any, nats: Bus, login_server: LoginServer, issuer: Issuer
) -> None:
    """Its service hears nothing of the player, but nobody gets there without a login."""
    asked = []

    async def gensession(msg: Any) -> None:
        asked.append(json.loads(msg.data))
        await nats.nc.publish(
            msg.reply,
            b'{"connect_token":"dA==","gameserver_ip":"203.0.113.7","gameserver_port":1,"cert_digest":""}',
        )

    await nats.nc.subscribe(nats.subjects.gensession, cb=gensession)
    await nats.flush()
    login_server.script = lambda _: answer(issuer.key_set())
    httpd = await start(
        auth="jwt", auth_issuer=ISSUER, auth_audience=AUDIENCE, auth_jwks_url=login_server.url
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{httpd.port}") as client:
        refused = await client.post("/matchmaker/wannaplay")
        assert (refused.status_code, asked) == (401, [])
        bearer = {"Authorization": f"bearer {issuer.token('k1')}"}
        admitted = await client.post("/matchmaker/wannaplay", headers=bearer)
        assert (admitted.status_code, asked) == (200, [{"client_ip": "127.0.0.1"}])


@pytest.mark.row(93)
async def test_without_a_login_a_client_proposes_a_name_and_no_user_id(
    httpd: Any, matchmaker: Any, ask: Any
) -> None:
    """The name comes cleaned; a forged user id is dropped."""
    await ask(httpd, message(user_id="root", name=" Zoe\u0308\n\u202egnp\x00 " + "x" * 100))
    payload = matchmaker.requests[0].payload
    assert "user_id" not in payload
    assert payload["name"] == "Zo\u00eb gnp " + "x" * 39
    assert len(payload["name"].encode()) == 48


async def test_a_login_without_a_name_leaves_it_to_the_player(
    guarded: Any, matchmaker: Any, ask: Any, issuer: Issuer
) -> None:
    """Many access tokens have none."""
    await ask(guarded, message(auth={"token": issuer.token("k1", name=None)}, name="Annie"))
    payload = matchmaker.requests[0].payload
    assert (payload["user_id"], payload["name"]) == ("ann-1", "Annie")


@pytest.mark.row(68)
async def test_a_banned_user_is_refused_after_its_login(
    guarded: Any, matchmaker: Any, ask: Any, issuer: Issuer, nats: Bus
) -> None:
    """By its user id, whatever address it comes from; another user of the address plays."""
    kv = await create_buckets(nats)
    ban = new_ban("user", "ann-1", reason="aimbot")
    await kv.bans.put(ban_key(ban), ban)
    await eventually(lambda: len(guarded.parts.state.bans.bans) == 1, "httpd knows of it", timeout=20)
    got = await ask(guarded, message(auth={"token": issuer.token("k1")}))
    assert (got.error, got.code) == (403, 1008)
    assert "aimbot" in got.messages[-1]["Error"][1]
    assert matchmaker.requests == []
    assert (await ask(guarded, message(auth={"token": issuer.token("k1", sub="bob")}))).code == 1000


async def test_a_page_may_send_its_login_in_a_header(guarded: Any) -> None:
    """The answer to a preflight lists it."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{guarded.port}") as client:
        headers = {"Origin": f"http://127.0.0.1:{guarded.port}", "Access-Control-Request-Method": "POST"}
        allowed = await client.options(STREAM, headers=headers)
        assert "authorization" in allowed.headers["access-control-allow-headers"]


async def test_a_login_that_cannot_be_checked_is_503(
    start: Any, matchmaker: Any, ask: Any, login_server: LoginServer
) -> None:
    """With a time to try again: no 401, for which a client would send its user to log in once more."""
    login_server.script = lambda _: answer({}, 500)
    httpd = await start(auth="http", auth_url=login_server.url)
    got = await ask(httpd, message(auth={"token": "x"}))
    assert (got.error, got.code) == (503, 1013)
    assert "retry after" in got.reason
    assert matchmaker.requests == []
