"""Bans as matchmakers carry them out: requests, waiting players, seats, players in a game, and game servers."""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.matchmaker.world import ARENA, Gameserver, World, failed
from tipoff.operate.admin import ban, list_bans
from tipoff_shared.ban_list import BanList, new_ban
from tipoff_shared.errors import Malformed
from tipoff_shared.messages import ProgressReport, SessionReady
from tipoff_shared.records import Ban, Bans, Command, Kick, SessionState

MALLORY, OTHER = "203.0.113.1", "203.0.114.1"
NETWORK = "203.0.113.0/24"
LASTING = msgspec.structs.replace(ARENA, empty_ttl=60)


def for_a_minute(subject: str = NETWORK, reason: str = "spam", kind: str = "address") -> Ban:
    return new_ban(kind, subject, until=time.time() + 60, reason=reason)


async def command_of(server: Gameserver, kind: type[Command]) -> Command:
    """The next command of this kind."""
    while not isinstance(command := await server.commands.get(), kind):
        pass
    return command


@pytest.mark.row(68)
async def test_a_banned_address_gets_no_seat_until_the_ban_ends(world: World) -> None:
    """403 names the end and the reason; others play; a lifted ban is over at once."""
    async with world.matchmaker(LASTING) as matchmaker:
        done = await ban(world.bus, for_a_minute())
        assert (done.kind, done.subject, done.reason, done.existed) == ("address", NETWORK, "spam", False)
        follower = matchmaker.parts.ban_follower
        await world.eventually(lambda: _knows(follower.bans, 1), "the matchmaker knows of it")
        refusal = failed(await (await world.ask(client_ip=MALLORY)).end())
        assert refusal.code == 403
        assert refusal.message.startswith("you are banned until ")
        assert refusal.message.endswith(" UTC: spam")
        assert isinstance(await (await world.ask(client_ip=OTHER)).end(), SessionReady)
        assert (await ban(world.bus, for_a_minute())).existed
        assert [one.subject for one in await list_bans(world.bus, time.time())] == [NETWORK]
        assert (await ban(world.bus, for_a_minute(), lift=True)).existed
        assert await list_bans(world.bus, time.time()) == []
        assert not (await ban(world.bus, for_a_minute(), lift=True)).existed

        async def may_play() -> bool:
            return isinstance(await (await world.ask(client_ip=MALLORY)).end(), SessionReady)

        await world.eventually(may_play, "may play again")


@pytest.mark.row(68)
async def test_a_ban_ends_what_the_player_has(world: World) -> None:
    """A game in progress, a seat not claimed yet and a place in line, on whichever matchmaker."""
    one = msgspec.structs.replace(LASTING, seats=2, max_deployments=1)
    async with world.matchmaker(one), world.matchmaker(one):
        playing, unclaimed = await world.play(client_ip=MALLORY), await world.play(client_ip="203.0.113.2")
        server = world.server_of(playing)
        await server.connect(playing)
        await world.session_becomes(playing.session_id, SessionState.ACTIVE)
        waiting = await world.ask(client_ip="203.0.113.3")
        await waiting.until(ProgressReport)
        await ban(world.bus, for_a_minute())
        kick = await command_of(server, Kick)
        assert isinstance(kick, Kick)
        assert "you are banned until" in kick.reason
        refusal = failed(await waiting.end())
        assert refusal.code in (403, 409)
        assert "you are banned until" in refusal.message
        for ready in (playing, unclaimed):
            await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: world.seats_are([]), "the seats are free")


@pytest.mark.row(68)
async def test_gensession_refuses_a_banned_address(world: World) -> None:
    """bevygap's clients come by it; the code is in the headers."""
    async with world.matchmaker(LASTING) as matchmaker:
        await ban(world.bus, for_a_minute())
        await world.eventually(lambda: _knows(matchmaker.parts.ban_follower.bans, 1), "the matchmaker knows")
        msg = await world.bus.request(
            world.bus.subjects.gensession, b'{"client_ip": "203.0.113.9"}', timeout=5
        )
        assert msg.headers is not None
        assert msg.headers["Nats-Service-Error-Code"] == "403"
        assert "you are banned until" in msg.headers["Nats-Service-Error"]


@pytest.mark.row(68)
async def test_game_servers_hear_of_bans_when_they_start_and_when_one_comes(world: World) -> None:
    """Users and clients too, which only they can see."""
    async with world.matchmaker(LASTING):
        await ban(world.bus, for_a_minute("mallory", kind="user"))
        ready = await world.play(client_ip=OTHER)
        server = world.server_of(ready)
        first = await command_of(server, Bans)
        assert isinstance(first, Bans)
        assert first.first
        assert [one.subject for one in first.bans] == ["mallory"]
        await ban(world.bus, for_a_minute("42", kind="client"))
        while True:
            more = await command_of(server, Bans)
            assert isinstance(more, Bans)
            if not more.first:
                break
        assert [one.subject for one in more.bans] == ["42"]


@pytest.mark.row(68)
async def test_a_matchmaker_that_starts_later_knows_the_bans(world: World) -> None:
    """They are written down, and expire there by themselves."""
    async with world.matchmaker(LASTING):
        await ban(world.bus, for_a_minute())
    async with world.matchmaker(LASTING) as late:
        await world.eventually(lambda: _knows(late.parts.ban_follower.bans, 1), "the next one knows")
        assert failed(await (await world.ask(client_ip=MALLORY)).end()).code == 403
    key = next(iter(await world.buckets.bans.list()))
    entry = await world.buckets.bans.get(key)
    assert entry is not None
    assert entry.value.until > time.time()


async def test_a_ban_that_makes_no_sense_is_refused(world: World) -> None:
    """What an operator's program sends is checked by the matchmaker, whatever the command line has checked."""
    async with world.matchmaker(LASTING):
        with pytest.raises(Malformed, match="at once"):
            await ban(world.bus, new_ban("user", "m", until=time.time() - 1))
        for wrong in (
            msgspec.structs.replace(for_a_minute(), subject="nowhere"),
            msgspec.structs.replace(for_a_minute(), reason="two\nlines"),
        ):
            with pytest.raises(Malformed):
                await ban(world.bus, wrong)
        assert await world.buckets.bans.list() == {}


async def _knows(bans: BanList, count: int) -> bool:
    return len(bans) == count
