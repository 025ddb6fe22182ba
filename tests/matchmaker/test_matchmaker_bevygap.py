"""What bevygap's parts expect: the micro service, the mappings, its tokens."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest

from tests.matchmaker.world import ARENA, KEY, World, games_of
from tipoff_matchmaker.requests.gensession import default_game
from tipoff_shared.errors import ConfigError
from tipoff_shared.netcode import ConnectToken, Dialect, open_private
from tipoff_shared.records import SessionState

BEVY = msgspec.structs.replace(
    ARENA, name="bevy", bevygap=True, dialect="lightyear", min_ready=1, empty_ttl=60, claim_time=30
)


async def test_gensession_answers_once_with_the_way_in(world: World) -> None:
    """The keys of bevygap's answer, and a token that opens."""
    async with world.matchmaker(BEVY):
        msg = await world.bus.request(
            world.bus.subjects.gensession, b'{"client_ip": "203.0.113.7"}', timeout=5
        )
        answer = json.loads(msg.data)
        assert sorted(answer) == ["cert_digest", "connect_token", "gameserver_ip", "gameserver_port"]
        raw = base64.b64decode(answer["connect_token"])
        private = open_private(raw, KEY, protocol_id=BEVY.netcode_protocol_id, dialect=Dialect.LIGHTYEAR)
        assert private.user_data == bytes(256)
        assert answer["gameserver_ip"] == "127.0.0.1"


@pytest.mark.parametrize("payload", [b"[]", b"{", b'{"client_ip": 7}', b"x" * 5000])
async def test_gensession_tells_errors_by_headers(world: World, payload: bytes) -> None:
    """As NATS micro services do."""
    async with world.matchmaker(BEVY):
        msg = await world.bus.request(world.bus.subjects.gensession, payload, timeout=5)
        assert (msg.headers or {})["Nats-Service-Error-Code"] == "400"
        assert (msg.headers or {})["Nats-Service-Error"]


async def test_gensession_is_discovered_like_any_micro_service(world: World) -> None:
    """`$SRV.INFO.gensession` names it, its version and its queue group."""
    async with world.matchmaker(BEVY):
        msg = await world.bus.request("$SRV.INFO.gensession", b"", timeout=5)
        info = json.loads(msg.data)
        assert (info["name"], info["version"]) == ("gensession", "0.0.1")
        endpoint = info["endpoints"][0]
        assert endpoint["subject"] == world.bus.subjects.gensession
        assert endpoint["queue_group"] == "session_queue"


async def test_a_bevygap_session_writes_the_mappings(world: World) -> None:
    """Client id and session id both ways, and an unclaimed entry that goes when the player has come."""
    async with world.matchmaker(BEVY):
        ready = await world.play("bevy", "1")
        buckets = world.buckets
        by_client = await buckets.sessions_ly2eg.get(ready.client_id)
        by_session = await buckets.sessions_eg2ly.get(ready.session_id)
        assert by_client is not None
        assert by_session is not None
        assert (by_client.value, by_session.value) == (ready.session_id, ready.client_id)
        assert await buckets.unclaimed_sessions.get(ready.session_id) is not None
        token = ConnectToken.decode(base64.b64decode(ready.token), Dialect.LIGHTYEAR)
        assert token.expire_timestamp - token.create_timestamp == 15
        await world.server_of(ready).connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)

        async def claimed() -> bool:
            return await buckets.unclaimed_sessions.get(ready.session_id) is None

        await world.eventually(claimed, "the session is not unclaimed any more")


async def test_other_games_write_no_mappings(world: World) -> None:
    """They cost writes that nobody reads."""
    async with world.matchmaker(ARENA):
        await world.play()
        assert not await world.buckets.sessions_ly2eg.list()
        assert not await world.buckets.unclaimed_sessions.list()


def test_gensession_means_the_only_bevygap_game() -> None:
    """Else the first one, or the one that the settings name."""
    other = msgspec.structs.replace(ARENA, name="other")
    assert default_game(games_of(ARENA, BEVY), "") is BEVY
    assert default_game(games_of(ARENA, other), "") is ARENA
    assert default_game(games_of(ARENA, other), "other/1") is other
    with pytest.raises(ConfigError, match="arena/1, other/1"):
        default_game(games_of(ARENA, other), "chess/1")


async def test_a_sessions_mapping_is_put_again(world: World) -> None:
    """As long as its token may lead to a connection: a server that finds none exits, with everybody's game."""
    async with world.matchmaker(BEVY) as matchmaker:
        matchmaker.parts.mappings.renew_after = 0.1
        ready = await world.play("bevy", "1")
        written = await world.buckets.sessions_ly2eg.get(ready.client_id)
        assert written is not None

        async def again() -> bool:
            now = await world.buckets.sessions_ly2eg.get(ready.client_id)
            return now is not None and now.value == ready.session_id and now.revision > written.revision

        await world.eventually(again, "the mapping is put again")
