"""A player whose connection was lost gets its seat back from any matchmaker, and nobody else does."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.faults.real_servers import RealServers, active, playing, real_world
from tests.gameserver.players import UdpPlayer
from tests.matchmaker.world import ARENA, World
from tipoff_gameserver import Player
from tipoff_shared.messages import Failed, SessionReady
from tipoff_shared.records import SessionState
from tipoff_shared.settings import NatsSettings

pytestmark = pytest.mark.row(99)

LIVELY = msgspec.structs.replace(ARENA, token_timeout=3, resume_ttl=60, min_ready=1)


async def dropped(servers: RealServers, ready: SessionReady, player: UdpPlayer) -> Player:
    """The player falls silent, and its server has noticed."""
    player.silent = True
    game = servers.of(ready).game
    (*_, (_, found)) = await game.saw("drop")  # type: ignore[attr-defined] # a Recorder
    assert isinstance(found, Player)
    return found


async def again(world: World, ready: SessionReady) -> SessionReady:
    answer = await world.resume(ready)
    assert isinstance(answer, SessionReady), answer
    assert (answer.session_id, answer.client_id) == (ready.session_id, ready.client_id)
    assert answer.deployment_id == ready.deployment_id
    assert answer.resume_key == ready.resume_key
    assert answer.token != ready.token
    return answer


async def test_a_lost_player_comes_back_and_the_session_never_ends(settings: NatsSettings) -> None:
    async with (
        real_world(settings) as (world, servers),
        world.matchmaker(LIVELY),
        active(world) as (ready, player),
    ):
        lost = await dropped(servers, ready, player)
        async with playing(await again(world, ready)) as back:
            back.send(b"hello")
            assert await back.receive() == b"hello"
            assert servers.of(ready).players.all() == (lost,)
            record = await world.session(ready.session_id)
            assert record is not None
            assert (record.state, record.generation) == (SessionState.ACTIVE, 2)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        assert await world.seats() == []


async def test_any_matchmaker_gives_the_seat_back_also_one_that_started_meanwhile(
    settings: NatsSettings,
) -> None:
    """The one that gave the seat is gone, and no matchmaker was there when the connection was lost."""
    async with real_world(settings) as (world, servers):
        async with world.matchmaker(LIVELY):
            ready = await world.play()
        async with playing(ready) as player:
            await dropped(servers, ready, player)
            async with world.matchmaker(LIVELY), playing(await again(world, ready)) as back:
                back.send(b"hello")
                assert await back.receive() == b"hello"


async def test_two_matchmakers_asked_at_once_give_two_tokens_of_which_either_is_good(
    settings: NatsSettings,
) -> None:
    """As when httpd asks everybody; they do not get in each other's way."""
    async with (
        real_world(settings) as (world, servers),
        world.matchmaker(LIVELY, instance="one"),
        world.matchmaker(LIVELY, instance="two"),
        active(world) as (ready, player),
    ):
        await dropped(servers, ready, player)
        answers = await asyncio.gather(*(again(world, ready) for _ in range(6)))
        record = await world.session(ready.session_id)
        assert record is not None
        assert record.generation == 7
        assert len({answer.token for answer in answers}) == 6
        async with playing(answers[3]) as back:
            back.send(b"hello")
            assert await back.receive() == b"hello"


async def test_a_seat_that_was_given_up_is_not_given_back(settings: NatsSettings) -> None:
    """After a goodbye, and after `resume_ttl`: 409, which says so."""
    hasty = msgspec.structs.replace(LIVELY, resume_ttl=1)
    async with real_world(settings) as (world, servers), world.matchmaker(hasty):
        async with active(world) as (leaves, _):
            pass
        async with active(world) as (late, player):
            await dropped(servers, late, player)
            for ready in (leaves, late):
                await world.session_becomes(ready.session_id, SessionState.GONE)
                answer = await world.resume(ready)
                assert isinstance(answer, Failed)
                assert answer.code == 409
        assert await world.seats() == []


@pytest.mark.row(100)
async def test_a_hundred_wrong_keys_change_nothing_for_the_owner(settings: NatsSettings) -> None:
    """Nor do the key of another session and one in another spelling; then the owner comes back."""
    async with (
        real_world(settings) as (world, servers),
        world.matchmaker(LIVELY),
        active(world) as (other, _),
        active(world) as (ready, player),
    ):
        lost = await dropped(servers, ready, player)
        before = await world.session(ready.session_id)
        key = str(ready.resume_key)
        wrong = [f"{n:022d}" for n in range(98)] + [str(other.resume_key), key.swapcase()]
        for guess in wrong:
            answer = await world.resume(ready, guess)
            assert isinstance(answer, Failed)
            assert answer.code == 403
        assert await world.session(ready.session_id) == before
        assert lost.dropped
        async with playing(await again(world, ready)) as back:
            back.send(b"mine")
            assert await back.receive() == b"mine"


@pytest.mark.row(100)
async def test_the_key_is_nowhere_but_in_the_answer(
    settings: NatsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the record, not in a log at its most talkative, not in what a debugger shows."""
    caplog.set_level("DEBUG")
    async with (
        real_world(settings) as (world, _),
        world.matchmaker(LIVELY),
        active(world) as (ready, _player),
    ):
        key = str(ready.resume_key)
        await again(world, ready)
        await world.resume(ready, "x" * 22)
        record = await world.session(ready.session_id)
        assert key not in msgspec.json.encode(record).decode()
        assert key not in repr(ready)
    assert key not in caplog.text


@pytest.mark.parametrize("changes", [{"resume_ttl": 0}, {"bevygap": True, "dialect": "lightyear"}], ids=str)
async def test_games_that_hold_no_seats_give_no_key(
    settings: NatsSettings, changes: dict[str, object]
) -> None:
    """And what they answer has no member that was not there before."""
    game = msgspec.structs.replace(LIVELY, **changes)  # type: ignore[arg-type] # members of Game
    async with real_world(settings) as (world, _), world.matchmaker(game):
        ready = await world.play()
        assert b"resume" not in msgspec.json.encode(ready)
        answer = await world.resume(ready, "x" * 22)
        assert isinstance(answer, Failed)
        assert answer.code == 409


async def test_a_resume_request_without_its_key_gets_no_other_seat(settings: NatsSettings) -> None:
    """As an httpd of an earlier release passes it on: 400, where a new seat would be a surprise."""
    async with real_world(settings) as (world, _), world.matchmaker(LIVELY):
        ready = await world.play()
        payload = msgspec.json.encode({"game": "arena", "version": "1", "session": ready.session_id})
        answer = await (await world.ask(payload=payload)).end()
        assert isinstance(answer, Failed)
        assert answer.code == 400
        assert await world.seats() == [ready.session_id]


async def test_who_never_got_through_gets_a_token_by_the_key_too(settings: NatsSettings) -> None:
    """The seat waits for its player a little longer, and not for ever."""
    async with real_world(settings) as (world, _), world.matchmaker(LIVELY):
        ready = await world.play()
        fresh = await again(world, ready)
        async with playing(fresh) as player:
            player.send(b"here")
            assert await player.receive() == b"here"
