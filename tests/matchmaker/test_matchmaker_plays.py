"""A play request from its first to its last message, on real NATS."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace

import msgspec
import pytest

from tests.matchmaker.world import ARENA, KEY, Answers, World, failed
from tipoff_shared import names
from tipoff_shared.messages import (
    Acknowledged,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
)
from tipoff_shared.nats.connection import connect
from tipoff_shared.netcode import open_private
from tipoff_shared.records import DeploymentState, LeaseState, SessionState
from tipoff_shared.user_data import decode_user_data

WARM = msgspec.structs.replace(ARENA, min_ready=1)
SMALL = msgspec.structs.replace(ARENA, seats=1, max_deployments=1)


async def test_a_player_gets_a_server_that_is_started_for_him(world: World) -> None:
    """Cold: progress, then the way in; when he has left, everything is given back."""
    async with world.matchmaker():
        answers = await world.ask()
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert answers.progress
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await server.disconnect(ready)
        await world.nothing_is_left()


async def test_a_free_seat_is_handed_out_without_ado(world: World) -> None:
    """Warm: acknowledged, accepted, ready, and nothing else; the record was created `ready`."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        answers = await world.ask()
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert [type(f) for f in answers.seen] == [Acknowledged, SessionRequestAccepted, SessionReady]
        entry = await world.buckets.sessions.get(ready.session_id)
        assert entry is not None
        assert entry.value.state is SessionState.READY
        assert entry.value.generation == 1
        assert entry.value.client_ip == "203.0.113.7"


async def test_the_token_opens_and_names_the_session(world: World) -> None:
    """The gameserver learns everything from the token: session, deployment, boot, client id, addresses."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        raw = base64.b64decode(ready.token)
        private = open_private(raw, KEY, protocol_id=WARM.netcode_protocol_id)
        mine = decode_user_data(private.user_data)
        assert mine is not None
        assert (mine.session_id, mine.deployment_id, mine.boot_id, mine.generation) == (
            ready.session_id,
            server.id,
            server.lease.boot_id,
            1,
        )
        assert str(private.client_id) == ready.client_id != "0"
        assert [str(address) for address in private.addresses] == server.lease.internal
        udp = server.lease.transports.udp
        assert udp is not None
        assert (ready.ip, ready.port) == (udp.host, udp.port)
        assert ready.transports == server.lease.transports
        stored = await world.buckets.connect_tokens.get(ready.session_id)
        assert stored is not None
        assert stored.value == ready.token


async def test_the_same_request_id_again_leads_to_the_same_seat(world: World) -> None:
    """A fresh token, but the client id and the seat of before."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        request_id = names.new_request_id()
        first = await world.play(request_id=request_id)
        second = await world.play(request_id=request_id)
        assert second.token != first.token
        assert (second.client_id, second.session_id, second.deployment_id) == (
            first.client_id,
            first.session_id,
            first.deployment_id,
        )
        assert await world.seats() == [first.session_id]


async def test_twenty_duplicates_at_once_are_one_session(world: World) -> None:
    """One server started, one client id, one seat: whichever of the matchmakers gets them."""
    async with world.matchmaker(), world.matchmaker():
        request_id = names.new_request_id()
        asked = await asyncio.gather(*(world.ask(request_id=request_id) for _ in range(20)))
        answers = [await one.end() for one in asked]
        ready = [answer for answer in answers if isinstance(answer, SessionReady)]
        assert len(ready) == 20
        assert len({answer.client_id for answer in ready}) == 1
        assert len({answer.token for answer in ready}) == 20
        await world.eventually(
            lambda: world.seats_are([ready[0].session_id]), "the losers' seats are free again"
        )
        assert len(world.fake.started) == 1


async def test_a_duplicate_follows_a_request_that_waits(world: World) -> None:
    """Both hear the progress, both get the seat."""
    world.announce = False
    async with world.matchmaker():
        request_id = names.new_request_id()
        first = await world.ask(request_id=request_id)
        await first.until(ProgressReport)
        second = await world.ask(request_id=request_id)
        await second.until(ProgressReport)
        await world.announce_all()
        one, two = await first.end(), await second.end()
        assert isinstance(one, SessionReady)
        assert isinstance(two, SessionReady)
        assert one.client_id == two.client_id


async def test_a_request_that_has_ended_is_not_opened_again(world: World) -> None:
    """409: a new play wants a new request id."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        request_id = names.new_request_id()
        ready = await world.play(request_id=request_id)
        await world.server_of(ready).connect(ready)
        await world.server_of(ready).disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        answers = await world.ask(request_id=request_id)
        assert failed(await answers.end()).code == 409


async def test_a_request_id_is_good_for_one_game(world: World) -> None:
    """409 for the same id with another game."""
    other = msgspec.structs.replace(ARENA, name="other")
    async with world.matchmaker(ARENA, other):
        request_id = names.new_request_id()
        await world.play(request_id=request_id)
        answers = await world.ask("other", request_id=request_id)
        assert failed(await answers.end()).code == 409


@pytest.mark.parametrize(
    ("game", "version", "payload", "code"),
    [
        ("chess", "1", None, 404),
        ("arena", "2", None, 404),
        ("arena", "1", b"{", 400),
        ("arena", "1", b"[]", 400),
        ("arena", "1", b'{"game":1}', 400),
        ("arena", "1", b'{"game":"ar*","version":"1"}', 400),
        ("arena", "1", b'{"game":"other","version":"1"}', 400),
        ("arena", "1", b"[" * 3000, 400),
        ("arena", "1", b'{"game":"arena","version":"1","request_id":"short"}', 400),
    ],
)
async def test_bad_requests_get_a_typed_error(
    world: World, game: str, version: str, payload: bytes | None, code: int
) -> None:
    """Whatever comes, an error and an end; nothing is written."""
    async with world.matchmaker(ARENA, msgspec.structs.replace(ARENA, name="secret")):
        answers = await world.ask(game, version, payload=payload)
        error = failed(await answers.end())
        assert error.code == code
        assert "secret" not in error.message  # other games are nobody's business
        assert not await world.buckets.sessions.list()


async def test_a_developer_hears_which_games_there_are(world: World) -> None:
    """Where players may be told reasons, as `tipoff up` sets it."""
    async with world.matchmaker(ARENA, msgspec.structs.replace(ARENA, name="pong"), tell_reasons=True):
        error = failed(await (await world.ask("chess")).end())
        assert error.message == "unknown game or version: chess 1 is not here, but arena 1, pong 1"


async def test_a_version_with_dots_arrives_in_both_spellings(world: World) -> None:
    """bevygap publishes `v0.0.1` as three subject tokens, we as one."""
    dotted = msgspec.structs.replace(WARM, version="v0.0.1")
    async with world.matchmaker(dotted):
        await world.play("arena", "v0.0.1")
        bare = world.bus.subjects.request("arena", "x").removesuffix("x") + "v0.0.1"
        answers = await world.ask("arena", "v0.0.1", subject=bare)
        assert isinstance(await answers.end(), SessionReady)


async def test_the_subject_alone_may_name_the_game(world: World) -> None:
    """The bytes that bevygap's httpd publishes for `POST /matchmaker/request/{game}/{version}`."""
    async with world.matchmaker(WARM):
        subject = world.bus.subjects.request("arena", "1")
        answers = await world.ask(subject=subject, payload=b'{"client_ip":"203.0.113.7"}')
        assert isinstance(await answers.end(), SessionReady)
        answers = await world.ask(subject=subject, payload=b'{"client_ip":"203.0.113.7","game":"other"}')
        assert failed(await answers.end()).code == 400


async def test_too_many_at_once_are_turned_away(world: World) -> None:
    """503 with Retry-After, at once, for those beyond the bound; those before it are served."""
    world.announce = False
    async with world.matchmaker(max_requests=2):
        waiting = [await world.ask() for _ in range(2)]
        for one in waiting:
            await one.until(ProgressReport)
        refused = await world.ask()
        assert failed(await refused.end(timeout=1)).code == 503
        assert float(refused.headers["Retry-After"]) > 0
        await world.announce_all()
        for one in waiting:
            assert isinstance(await one.end(), SessionReady)


async def test_nobody_waits_beyond_his_deadline(world: World) -> None:
    """408 at the time the asker gave, and nothing is left of it."""
    world.announce = False
    async with world.matchmaker():
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await world.ask(timeout=0.6)
        error = failed(await answers.end())
        assert error.code == 408
        assert 0.5 < loop.time() - began < 1.5
        await world.session_becomes(answers.session_id, SessionState.GONE)


async def test_a_request_nobody_waits_for_takes_no_seat(world: World) -> None:
    """Without a reply inbox there is nobody to claim it."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        await world.bus.publish(world.bus.subjects.request("arena", "1"), b'{"game":"arena","version":"1"}')
        await world.play()
        assert len(await world.seats()) == 1


async def test_when_all_is_full_players_wait_in_line(world: World) -> None:
    """Told so, with their place; served in the order of their coming as seats become free."""
    async with world.matchmaker(SMALL):
        playing = await world.play()
        line: list[Answers] = []
        for _ in range(3):
            answers = await world.ask()
            report = await answers.until(ProgressReport)
            assert isinstance(report, ProgressReport)
            assert "full" in report.text
            line.append(answers)
        assert "number 3" in line[2].progress[0]
        for answers in line:
            server = world.server_of(playing)
            await server.connect(playing)
            await server.disconnect(playing)
            ready = await answers.end()
            assert isinstance(ready, SessionReady)
            playing = ready
        assert len(world.fake.started) == 1


async def test_many_who_wait_start_as_many_servers_as_they_need(world: World) -> None:
    """Ten players, four seats each: three servers, not ten."""
    world.fake.start_delay = 0.2
    async with world.matchmaker():
        asked = [await world.ask() for _ in range(10)]
        for answers in asked:
            assert isinstance(await answers.end(), SessionReady)
        assert len(world.fake.started) == 3


async def test_never_more_servers_than_allowed(world: World) -> None:
    """Two matchmakers together keep to max_deployments; who finds no seat gets 408."""
    tight = msgspec.structs.replace(ARENA, seats=2, max_deployments=2)
    async with world.matchmaker(tight), world.matchmaker(tight):
        asked = [await world.ask(timeout=1.5) for _ in range(7)]
        ends = [await answers.end() for answers in asked]
        assert sum(isinstance(end, SessionReady) for end in ends) == 4
        assert {failed(end).code for end in ends if not isinstance(end, SessionReady)} == {408}
        assert len(world.fake.started) == 2


async def test_the_fullest_server_is_filled_first(world: World) -> None:
    """With one seat free on one server and all on another, the one is taken."""
    two = msgspec.structs.replace(ARENA, min_ready=2, empty_ttl=60)
    async with world.matchmaker(two):
        await world.servers_ready(2)
        first = [await world.play() for _ in range(3)]
        assert len({ready.deployment_id for ready in first}) == 1
        fourth, fifth = await world.play(), await world.play()
        assert fourth.deployment_id == first[0].deployment_id
        assert fifth.deployment_id != fourth.deployment_id


async def test_games_and_versions_never_share_a_server(world: World) -> None:
    """Each has servers of its own, and its own address in the token."""
    other = msgspec.structs.replace(ARENA, name="other")
    newer = msgspec.structs.replace(ARENA, version="2")
    async with world.matchmaker(ARENA, other, newer):
        ready = [await world.play(*key) for key in (("arena", "1"), ("other", "1"), ("arena", "2"))]
        assert len({answer.deployment_id for answer in ready}) == 3
        for answer, key in zip(ready, (("arena", "1"), ("other", "1"), ("arena", "2")), strict=True):
            lease = world.server_of(answer).lease
            assert (lease.game, lease.version) == key


async def test_namespaces_never_see_each_other(world: World) -> None:
    """Two systems on one NATS: other servers, other sessions, and no answer across."""
    elsewhere = replace(world.nats_settings, namespace=world.nats_settings.namespace + "b")
    async with (
        connect(elsewhere, name="other world") as bus,
        World(bus, elsewhere) as other,
        world.matchmaker(),
        other.matchmaker(),
    ):
        here, there = await world.play(), await other.play()
        assert here.deployment_id in world.servers
        assert there.deployment_id in other.servers
        assert len(await world.buckets.sessions.list()) == len(await other.buckets.sessions.list()) == 1


async def test_a_matchmaker_that_stops_tells_those_who_wait(world: World) -> None:
    """503 with Retry-After; the same request id goes on at another matchmaker, with the same client id."""
    world.announce = False
    request_id = names.new_request_id()
    async with world.matchmaker():
        answers = await world.ask(request_id=request_id)
        await answers.until(ProgressReport)
    assert failed(await answers.end()).code == 503
    assert float(answers.headers["Retry-After"]) > 0
    before = await world.session(answers.session_id)
    assert before is not None
    assert before.state is SessionState.REQUESTED
    async with world.matchmaker():
        again = await world.ask(request_id=request_id)
        await again.until(SessionRequestAccepted)
        await world.announce_all()
        ready = await again.end()
        assert isinstance(ready, SessionReady)
        assert ready.client_id == before.client_id


async def test_a_matchmaker_that_stops_finishes_what_it_can(world: World) -> None:
    """Requests with a seat in reach are answered, not dropped."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        asked = [await world.ask() for _ in range(4)]
        await world.bus.flush()  # the requests are with the matchmaker, answers may not be
    ends = [await answers.end() for answers in asked]
    assert all(isinstance(end, SessionReady) or failed(end).code == 503 for end in ends)


async def test_the_ping_is_answered_by_a_matchmaker_that_serves(world: World) -> None:
    """httpd's readiness asks this."""
    async with world.matchmaker() as matchmaker:
        answer = await world.bus.request(world.bus.subjects.ping_matchmaker, b"", timeout=1)
        assert answer.data.decode() == matchmaker.parts.settings.instance


async def test_a_server_that_drains_gets_no_new_player(world: World) -> None:
    """The next player goes elsewhere; the drained server ends with its last player."""
    async with world.matchmaker():
        first = await world.play()
        server = world.server_of(first)
        await server.connect(first)
        await server.become(state=LeaseState.DRAINING)
        await world.deployment_becomes(server.id, DeploymentState.DRAINING)
        second = await world.play()
        assert second.deployment_id != first.deployment_id
        await server.disconnect(first)
        await world.eventually(lambda: world.is_gone(server.id), "the drained server has ended")


async def test_a_store_that_takes_nothing_is_told(world: World) -> None:
    """A full bucket: 503 with Retry-After instead of silence until the deadline."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        info = await world.bus.js.stream_info(world.buckets.sessions.stream)
        info.config.max_bytes = 1
        await world.bus.js.update_stream(info.config)
        answers = await world.ask()
        assert failed(await answers.end()).code == 503
        assert float(answers.headers["Retry-After"]) > 0
