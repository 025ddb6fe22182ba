"""What the UDP listener does at once, and what it looks at again between a client's request and its seat."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from tests.gameserver.players import (
    Recorder,
    UdpPlayer,
    by_udp,
    by_websocket,
    deaf_udp,
    ready,
    token_for,
    token_of,
    within_turns,
)
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, LeaveReason, Player
from tipoff_shared.ban_list import new_ban
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import Failed
from tipoff_shared.nats.connection import Bus
from tipoff_shared.netcode import Address, ClientState
from tipoff_shared.records import Bans, encode


def seen(game: Recorder, kind: str) -> list[tuple[Any, ...]]:
    return [event for event in game.happened if event[0] == kind]


async def test_a_player_that_sends_nothing_hears_the_game_at_once(alone: GameServer, game: Recorder) -> None:
    """Each time, and not with its next keep-alive."""
    async with by_udp(token_of(await ready(alone))) as player:
        ((_, joined),) = await game.saw("join")
        assert isinstance(joined, Player)
        for number in range(5):
            for message in (b"one", b"two"):
                joined.send(message)
            assert await within_turns(lambda: player.received.qsize() == 2), f"message {number}"
            assert [player.received.get_nowait() for _ in range(2)] == [b"one", b"two"]


async def test_the_game_hears_a_player_at_once(alone: GameServer, game: Recorder) -> None:
    async with by_udp(token_of(await ready(alone))) as player:
        for number in range(1, 6):
            player.send(b"move")
            assert await within_turns(lambda count=number: len(seen(game, "message")) == count), (
                f"message {number}"
            )


async def test_who_is_disconnected_hears_so_at_once(alone: GameServer, game: Recorder) -> None:
    async with by_udp(token_of(await ready(alone))) as player:
        ((_, joined),) = await game.saw("join")
        player.send(b"x")
        assert await player.receive() == b"x"  # nothing is on its way any longer
        joined.kick()
        assert await within_turns(lambda: player.state is ClientState.DISCONNECTED)
        assert [event[2] for event in seen(game, "leave")] == [LeaveReason.KICKED]


async def test_all_hear_of_the_end_at_once(game: Recorder) -> None:
    """Not by a time-out."""
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server:
        tokens = [token_of(await ready(server)) for _ in range(2)]
        async with by_udp(tokens[0]) as one, by_udp(tokens[1]) as other:
            await server.__aexit__(None, None, None)
            for player in (one, other):
                await player.reaches(ClientState.DISCONNECTED, timeout=1)


async def test_leaving_is_heard_at_once_and_frees_the_seat(
    deployment: Context, kv: Buckets, game: Recorder
) -> None:
    async with GameServer(game, context=replace(deployment, capacity=1)) as server:
        for number in (1, 2, 3):
            async with by_udp(token_for(server, f"s{number}")):
                await game.saw("join", number)
            assert await within_turns(lambda count=number: len(seen(game, "leave")) == count)
            assert seen(game, "leave")[-1][2] is LeaveReason.LEFT


async def banned(bus: Bus, server: GameServer, subject: str) -> None:
    """Wait until the server knows of the ban."""
    ban = new_ban("address", subject, until=time.time() + 60, reason="spam")
    await bus.publish(bus.subjects.commands("arena-1"), encode(Bans([ban], first=True)))

    async def refused() -> bool:
        async with by_websocket(server, token_for(server, "probe", client_id=77)) as probe:
            return isinstance(probe.answer, Failed)

    await eventually(refused, "the ban is known")


@pytest.mark.row(68)
async def test_who_is_banned_between_request_and_challenge_stays_out(
    deployment: Context, game: Recorder, kv: Buckets, nats: Bus
) -> None:
    async with GameServer(game, context=deployment) as server, deaf_udp(token_for(server, "s1")) as late:
        await eventually(lambda: kv.gameservers.get("arena-1"), "NATS is connected")
        await late.was_challenged()
        await banned(nats, server, "127.0.0.0/8")
        late.answer_challenge()
        await late.hears()
        assert "s1" not in [event[1].session_id for event in seen(game, "join")]
        # What else is wrong with a token is said where bans are looked at, too.
        async with by_udp(token_for(server, boot_id="0123456789abcdef"), wait=False) as wrong:
            await wrong.reaches(ClientState.CONNECTION_DENIED)


@pytest.mark.parametrize(("everywhere", "answered"), [(False, False), (True, True)])
async def test_a_token_for_another_address_is_good_only_where_addresses_are_not_known(
    game: Recorder, everywhere: bool, answered: bool
) -> None:
    """A stand-alone server on every interface does not know what players dial."""
    listen = "0.0.0.0:0" if everywhere else "127.0.0.1:0"
    async with GameServer(game, stand_alone=True, listen=listen) as server:
        assert server.transports.udp is not None
        here = Address("127.0.0.1", server.transports.udp.port)
        elsewhere = token_for(server, address=Address("127.0.0.9", 9))
        async with deaf_udp(elsewhere, to=here) as player:
            if answered:
                await player.was_challenged()
                return
            async with by_udp(token_for(server, address=here)):  # a handshake later
                assert not player.has_heard()


async def test_a_request_that_is_repeated_is_answered_and_seated_once(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """Its answers are lost, and come all at once."""
    async with GameServer(game, context=deployment) as server, deaf_udp(token_for(server, "s1")) as player:
        await player.was_challenged()
        for _ in range(3):
            player.answer_challenge()
        await game.saw("join")
        async with by_udp(token_for(server, "s2")) as other:
            other.send(b"x")
            assert await other.receive() == b"x"
        assert len(seen(game, "join")) == 2


async def test_two_players_on_one_address_are_two(deployment: Context, game: Recorder, kv: Buckets) -> None:
    """Each hears its own, whoever leaves first."""
    async with GameServer(game, context=deployment) as server:
        players: list[UdpPlayer] = []
        async with by_udp(token_for(server, "s1")) as one:
            async with by_udp(token_for(server, "s2")) as other:
                players += [one, other]
                for player, text in zip(players, (b"one", b"other"), strict=True):
                    player.send(text)
                for player, text in zip(players, (b"one", b"other"), strict=True):
                    assert await player.receive() == text
            ((_, left, _),) = await game.saw("leave")
            assert left.session_id == "s2"
            one.send(b"still")
            assert await one.receive() == b"still"
            assert [player.session_id for player in server.players] == ["s1"]
