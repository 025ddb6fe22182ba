"""A nats-server that was killed brings back old revisions of keys that had been removed.

With one message per subject, a new revision removes the one before it without a trace on disk. If the new one is then
removed as well (a handled tombstone, an expired record), a kill -9 brings the old one back (nats-server 2.12.8 and
2.15.1). So past sessions and connections are there again, as they were before they ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.faults.real_servers import active, echoes, real_world
from tests.matchmaker.world import ARENA, World
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_shared.records import SessionState

PAST = 10
GAME = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)


@pytest.fixture
async def mortal_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server of this test's own, to kill."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server


@pytest.mark.row(13, 62)
@pytest.mark.slow  # records expire, and a grace
async def test_old_sessions_and_connections_that_come_back_disturb_nobody_and_go_again(
    mortal_nats: EmbeddedNats, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten players have come and gone, one stays. After the kill only that one has a session, a seat, a connection; the
    log does not name each of the others."""
    async with (
        real_world(mortal_nats.settings("old")) as (world, _),
        world.matchmaker(GAME, gone_ttl=1.0, orphan_grace=1.0),
        active(world) as (stays, player),
    ):
        past = []
        for _ in range(PAST):
            async with active(world) as (left, _):
                past.append(left.session_id)
        await world.eventually(lambda: _only(world, stays.session_id), "nothing is left of the past players")
        await mortal_nats.kill()
        await mortal_nats.start()
        await world.reconnected()
        back = set(await world.buckets.active_connections.list()) | set(await world.buckets.sessions.list())
        print(f"{len(back & set(past))} of {PAST} past sessions came back")
        await world.eventually(lambda: _only(world, stays.session_id), "they are gone again", timeout=20)
        assert await echoes(player)
        session = await world.session(stays.session_id)
        assert session is not None
        assert session.state is SessionState.ACTIVE
        told = [record for record in caplog.records if "told to end its connection" in record.message]
        assert len(told) < PAST / 2


async def _only(world: World, session_id: str) -> bool:
    """Whether this session's are the only records of players, tombstones included."""
    return (
        set(await world.buckets.sessions.list()) == {session_id}
        and set(await world.buckets.active_connections.list_latest()) == {session_id}
        and await world.seats() == [session_id]
    )
