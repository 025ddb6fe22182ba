"""Connections are lost while NATS is away: no seat is lost, and none is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.faults.real_servers import active, playing, real_world, settled_sweeps
from tests.gameserver.players import Recorder, UdpPlayer
from tests.matchmaker.world import ARENA
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_gameserver import Player
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import SessionState

PATIENT = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60, token_timeout=3)

pytestmark = [pytest.mark.row(99), pytest.mark.slow]  # outages, and what follows them


@pytest.fixture
async def mortal_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server of this test's own, to kill."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server


async def falls_silent(game: object, player: UdpPlayer, kind: str) -> Player:
    """The player sends nothing more; who it is, when the game has heard of it."""
    assert isinstance(game, Recorder)
    player.silent = True
    found = (await game.saw(kind, timeout=30))[-1][1]
    assert isinstance(found, Player)
    return found


async def test_nats_dies_while_a_seat_is_held(mortal_nats: EmbeddedNats) -> None:
    """The player comes back to the same seat afterwards, and the reconciler has disturbed nobody."""
    game = msgspec.structs.replace(PATIENT, resume_ttl=120)
    async with (
        real_world(mortal_nats.settings("held")) as (world, servers),
        world.matchmaker(game) as matchmaker,
        active(world) as (ready, player),
    ):
        lost = await falls_silent(servers.of(ready).game, player, "drop")
        await mortal_nats.kill()
        await mortal_nats.start()
        await world.reconnected()
        await settled_sweeps(matchmaker, 2)
        again = await world.resume(ready)
        assert isinstance(again, SessionReady), again
        async with playing(again) as back:
            back.send(b"hello")
            assert await back.receive() == b"hello"
            assert servers.of(ready).players.all() == (lost,)
        await world.session_becomes(ready.session_id, SessionState.GONE, timeout=30)
        assert await world.seats() == []


async def test_a_hold_ends_while_nats_is_away(mortal_nats: EmbeddedNats) -> None:
    """The game hears of it in time; when NATS is back, the session is gone and the seat is free."""
    game = msgspec.structs.replace(PATIENT, resume_ttl=1)
    async with (
        real_world(mortal_nats.settings("ends")) as (world, servers),
        world.matchmaker(game),
        active(world) as (ready, player),
    ):
        await mortal_nats.kill()
        lost = await falls_silent(servers.of(ready).game, player, "leave")
        assert not lost.dropped
        await mortal_nats.start()
        await world.reconnected()
        await world.session_becomes(ready.session_id, SessionState.GONE, timeout=30)
        await world.eventually(lambda: world.seats_are([]), "the seat is free")
