"""What a matchmaker does with the user id and the name that httpd says of a player."""

from __future__ import annotations

import base64
import itertools
import json
import time

import msgspec
import pytest

from tests.matchmaker.test_matchmaker_bevygap import BEVY
from tests.matchmaker.world import ARENA, KEY, World, failed
from tipoff.operate.admin import ban
from tipoff_shared.ban_list import new_ban
from tipoff_shared.messages import PlayRequest, ProgressReport, SessionReady, encode_request
from tipoff_shared.names import new_request_id
from tipoff_shared.netcode import Dialect, open_private
from tipoff_shared.records import SessionState
from tipoff_shared.user_data import TokenUserData, decode_user_data

LASTING = msgspec.structs.replace(ARENA, empty_ttl=60)
ANN = {"user_id": "ann-1", "name": "Ann"}


_addresses = itertools.count(1)


def payload(**members: object) -> bytes:
    """A request as httpd passes it on, each from an address of its own: an address has a share of unclaimed seats."""
    address = f"203.0.113.{next(_addresses) % 250}"
    return json.dumps({"game": "arena", "version": "1", "client_ip": address} | members).encode()


def carried(ready: SessionReady) -> TokenUserData:
    private = open_private(base64.b64decode(ready.token), KEY, protocol_id=ARENA.netcode_protocol_id)
    data = decode_user_data(private.user_data)
    assert data is not None
    return data


async def seat(world: World, request_id: str | None = None, **members: object) -> SessionReady:
    ready = await (await world.ask(payload=payload(**members), request_id=request_id)).end()
    assert isinstance(ready, SessionReady), ready
    return ready


@pytest.mark.row(93)
async def test_the_token_and_the_session_say_who_plays(world: World) -> None:
    """Also the token of a repeated request, at another matchmaker."""
    request_id = new_request_id()
    async with world.matchmaker(LASTING):
        ready = await seat(world, request_id, **ANN)
        data = carried(ready)
        assert (data.user_id, data.name) == ("ann-1", "Ann")
        record = await world.session(ready.session_id)
        assert record is not None
        assert (record.user_id, record.name) == ("ann-1", "Ann")
    async with world.matchmaker(LASTING):
        again = await seat(world, request_id, **ANN)
        assert (carried(again).user_id, carried(again).name) == ("ann-1", "Ann")
        assert again.session_id == ready.session_id


@pytest.mark.row(93)
async def test_a_request_id_belongs_to_its_player(world: World) -> None:
    """Another user who repeats it, or one without a login, gets neither seat nor token: while it waits, and later."""
    one = msgspec.structs.replace(LASTING, seats=1, max_deployments=1)
    request_id = new_request_id()
    async with world.matchmaker(one):
        ready = await seat(world, request_id, **ANN)
        for other in ({"user_id": "mallory"}, {}):
            refusal = failed(await (await world.ask(payload=payload(**other), request_id=request_id)).end())
            assert (refusal.code, "another player" in refusal.message) == (409, True)
        assert (await seat(world, request_id, **ANN)).session_id == ready.session_id
        waiting_id = new_request_id()
        waiting = await world.ask(payload=payload(user_id="bob"), request_id=waiting_id)
        await waiting.until(ProgressReport)
        refusal = failed(await (await world.ask(payload=payload(**ANN), request_id=waiting_id)).end())
        assert (refusal.code, "another player" in refusal.message) == (409, True)


@pytest.mark.row(93)
async def test_a_bevygap_games_token_stays_as_bevygap_makes_it(world: World) -> None:
    """Its user data is zeros, whoever plays; the session's record knows, so a ban of the user ends it."""
    async with world.matchmaker(BEVY):
        answers = await world.ask("bevy", payload=payload(game="bevy", **ANN))
        ready = await answers.end()
        assert isinstance(ready, SessionReady), ready
        raw = base64.b64decode(ready.token)
        private = open_private(raw, KEY, protocol_id=BEVY.netcode_protocol_id, dialect=Dialect.LIGHTYEAR)
        assert private.user_data == bytes(256)
        record = await world.session(ready.session_id)
        assert record is not None
        assert (record.user_id, record.name) == ("ann-1", "Ann")
        await ban(world.bus, new_ban("user", "ann-1"))
        await world.session_becomes(ready.session_id, SessionState.GONE)


@pytest.mark.parametrize(
    "members",
    [{"user_id": "x" * 65}, {"user_id": "a\nb"}, {"user_id": 5}, {"user_id": "\ud800"}, {"name": ["x"]}],
)
async def test_what_no_httpd_says_is_refused(world: World, members: dict[str, object]) -> None:
    """400, and nothing is written."""
    async with world.matchmaker(LASTING):
        assert failed(await (await world.ask(payload=payload(**members))).end()).code == 400
        assert await world.buckets.sessions.list() == {}


async def test_a_name_is_cleaned_here_too(world: World) -> None:
    """Another program than our httpd may ask."""
    async with world.matchmaker(LASTING):
        assert carried(await seat(world, name="\x00Ann\n" + "x" * 500)).name == "Ann " + "x" * 44


async def test_the_longest_user_id_and_name_are_carried(world: World) -> None:
    async with world.matchmaker(LASTING):
        data = carried(await seat(world, user_id="\u00e9" * 32, name="\u00e4" * 24))
        assert (data.user_id, data.name) == ("\u00e9" * 32, "\u00e4" * 24)


@pytest.mark.row(68)
async def test_a_banned_user_loses_what_it_has_and_gets_no_more(world: World) -> None:
    """From any address: its seat, its place in line; others play on."""
    one = msgspec.structs.replace(LASTING, seats=2, max_deployments=1)
    async with world.matchmaker(one) as matchmaker, world.matchmaker(one):
        mine, other = await seat(world, **ANN), await seat(world, user_id="bob")
        waiting = await world.ask(payload=payload(**ANN))
        await waiting.until(ProgressReport)
        await ban(world.bus, new_ban("user", "ann-1", until=time.time() + 60, reason="aimbot"))
        refusal = failed(await waiting.end())
        assert refusal.code in (403, 409)
        assert "aimbot" in refusal.message
        await world.session_becomes(mine.session_id, SessionState.GONE)
        bans = matchmaker.parts.ban_follower.bans
        await world.eventually(lambda: len(bans) == 1, "the matchmaker knows of it")
        record = await world.session(other.session_id)
        assert record is not None
        assert record.state is SessionState.READY
        answers = [failed(await (await world.ask(payload=payload(**ANN))).end()) for _ in range(2)]
        assert {answer.code for answer in answers} == {403}


def test_a_request_without_a_login_is_as_it_was() -> None:
    """For matchmakers of an earlier release."""
    assert encode_request(PlayRequest("arena", "1")) == b'{"game":"arena","version":"1"}'
