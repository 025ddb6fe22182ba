"""Presence in the trusted profile: which keys a server writes, and which it leaves to other servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.gameserver.players import Recorder, by_udp, by_websocket, token_for
from tests.isolated.world import IsolatedNats
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer
from tipoff_gameserver.presence import kv as presence_kv
from tipoff_gameserver.presence import reporter
from tipoff_gameserver.presence.kv import KvPresence
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import Transports
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import Command, GameserverLease, LeaseState


def lease() -> GameserverLease:
    return GameserverLease("arena-1", "b1", "arena", "1", LeaseState.READY, Transports(), 4)


def ignore(command: Command) -> None:
    pass


async def test_a_key_of_another_server_is_not_deleted(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """The session moved on: its key was written by its new server before this one noticed that it had left."""
    async with GameServer(game, context=deployment) as server:
        async with by_udp(token_for(server, "s1", client_id=9)):
            await eventually(lambda: kv.active_connections.get("s1"), "s1 is active")
            theirs = await kv.active_connections.put("s1", "9")
        await game.saw("leave")
    entry = await kv.active_connections.get("s1")
    assert entry is not None
    assert entry.revision == theirs


async def test_a_short_visit_leaves_another_servers_key_alone(deployment: Context, kv: Buckets) -> None:
    """The session sits elsewhere by now: its key is not ours to write or delete."""
    presence = KvPresence(deployment, "b1")
    presence.joined("s1", 7)
    presence.left("s1")
    theirs = await kv.active_connections.put("s1", "7")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    presence.joined("s2", 8)

    async def settled() -> bool:
        return await kv.active_connections.get("s2") is not None

    await eventually(settled, "what was in doubt before s2 is settled")
    entry = await kv.active_connections.get("s1")
    assert entry is not None
    assert entry.revision == theirs
    presence.joined("s1", 7)

    async def ours() -> bool:
        entry = await kv.active_connections.get("s1")
        return entry is not None and entry.revision > theirs

    await eventually(ours, "it came again: the key says that it is here")
    await presence.close(keep_lease=False)


async def test_a_key_that_is_missing_after_a_reconnect_is_written_again(
    deployment: Context, kv: Buckets
) -> None:
    """Whatever KV lost, or has again, is compared with who is connected."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    for session_id in ("here", "gone"):
        presence.joined(session_id, 1)
    await eventually(lambda: _sessions_are(kv, {"here", "gone"}), "both are active")
    presence.left("here")
    presence.left("gone")
    presence.joined("here2", 2)
    await eventually(lambda: _sessions_are(kv, {"here2"}), "one is active")
    await kv.active_connections.delete("here2")
    presence.resync()
    await eventually(lambda: _sessions_are(kv, {"here2"}), "it is active again")
    await presence.close(keep_lease=False)


@pytest.mark.parametrize("name", ["", "has spaces", ".dot", "*"])
async def test_a_session_of_bevygaps_whose_name_is_no_key_counts_as_unknown(
    deployment: Context, kv: Buckets, name: str
) -> None:
    """Who played under it could not be reported, and nobody after it."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    await kv.sessions_ly2eg.put("7", name)
    await kv.sessions_ly2eg.put("8", "session-8")
    assert await presence.look_up(7) is None
    assert await presence.look_up(8) == "session-8"
    await presence.close(keep_lease=False)


class Writes:
    """Fails the next puts into a bucket: instead of the write, after it, or by taking too long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing = 0
        self.how = "instead"
        self.bucket = ""
        self.tried = 0
        self.gate: asyncio.Event | None = None
        """Writes wait for it."""
        put = Bucket.put

        async def failing_put(bucket: Bucket[Any], *arguments: Any, **options: Any) -> int:
            if not self.bucket or self.bucket not in bucket.bucket:
                return await put(bucket, *arguments, **options)
            self.tried += 1
            if self.gate is not None:
                await self.gate.wait()
            if self.failing <= 0:
                return await put(bucket, *arguments, **options)
            self.failing -= 1
            if self.how == "after":
                await put(bucket, *arguments, **options)
            elif self.how == "too long":
                await asyncio.sleep(60)  # longer than anybody waits
            raise Unavailable("NATS is away, as ordered")

        monkeypatch.setattr(Bucket, "put", failing_put)

    def fail(self, bucket: str, count: int, how: str = "instead") -> None:
        self.bucket, self.failing, self.how, self.tried = bucket, count, how, 0


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    """Servers try again soon, and wait a little only."""
    monkeypatch.setattr(reporter, "RETRY", 0.02)
    monkeypatch.setattr(presence_kv, "WRITE_TIMEOUT", 0.1)
    return Writes(monkeypatch)


@pytest.mark.parametrize("how", ["instead", "too long"])
async def test_a_lease_that_cannot_be_written_is_tried_again_and_logged_once(
    deployment: Context, kv: Buckets, writes: Writes, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Whoever waits for it goes on waiting; the next trouble is logged again."""
    caplog.set_level("INFO")
    presence = KvPresence(deployment, "b1")
    for number in (1, 2):
        writes.fail("gameservers", 2, how)
        if number == 1:
            await presence.start(lease, ignore)
        assert await presence.announce(5)
        assert writes.tried == 3
        assert caplog.text.count("the lease cannot be written") == number
        assert caplog.text.count("the lease is written again") == number
    writes.fail("gameservers", 0)
    assert await presence.announce(5)  # all is well, and nothing is to be said
    assert caplog.text.count("the lease is written again") == 2
    await presence.close(keep_lease=False)


@pytest.mark.parametrize("how", ["instead", "too long", "after"])
async def test_a_connection_that_cannot_be_written_is_tried_again_and_logged_once(
    deployment: Context, kv: Buckets, writes: Writes, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Others follow it."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    for number in (1, 2):
        writes.fail("active_connections", 2, how)
        presence.joined(f"first{number}", 1)
        presence.joined(f"second{number}", 2)
        expected = {f"{which}{n}" for which in ("first", "second") for n in range(1, number + 1)}
        await eventually(lambda expected=expected: _sessions_are(kv, expected), "both are active")
        # What was carried out is found, and need not be written again: between the two all was well.
        times = 2 if how == "after" else 1
        assert caplog.text.count("active_connections cannot be written") == times * number
    await presence.close(keep_lease=False)


@pytest.mark.parametrize("bucket", ["gameservers", "active_connections"])
async def test_when_nats_is_back_what_failed_is_tried_at_once(
    deployment: Context, kv: Buckets, writes: Writes, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    monkeypatch.setattr(reporter, "RETRY", 60)
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    writes.fail(bucket, 1)
    waiting = asyncio.ensure_future(presence.announce(5))
    presence.joined("s1", 1)
    await eventually(lambda: writes.failing == 0, "a write has failed")
    presence.resync()
    await eventually(lambda: _sessions_are(kv, {"s1"}), "it is active", timeout=2)
    assert await waiting
    await presence.close(keep_lease=False)


async def test_a_visit_whose_write_had_no_answer_ends_all_the_same(
    deployment: Context, kv: Buckets, writes: Writes
) -> None:
    """The write was carried out: the key is ours, and goes."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    writes.fail("active_connections", 1, "after")
    presence.joined("s1", 1)
    await eventually(lambda: writes.failing == 0, "a write has failed")
    presence.left("s1")
    await eventually(lambda: _sessions_are(kv, set()), "the key is gone")
    await presence.close(keep_lease=False)


async def test_who_leaves_while_its_arrival_is_written_is_gone(
    deployment: Context, kv: Buckets, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who comes back while its departure is, is here."""
    monkeypatch.setattr(presence_kv, "WRITE_TIMEOUT", 5)
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    writes.fail("active_connections", 0)
    writes.gate = asyncio.Event()
    presence.joined("s1", 1)
    presence.joined("s2", 2)
    await eventually(lambda: writes.tried == 1, "it is being written")
    presence.left("s1")
    writes.gate.set()
    await eventually(lambda: _sessions_are(kv, {"s2"}), "one left")
    presence.left("s2")
    presence.joined("s2", 2)
    presence.joined("s3", 3)
    await eventually(lambda: _sessions_are(kv, {"s2", "s3"}), "one came back")
    await presence.close(keep_lease=False)
    assert await kv.active_connections.list() == {}


async def test_all_who_wait_for_a_lease_hear_of_it(deployment: Context, kv: Buckets, writes: Writes) -> None:
    """Also who came while a write of it failed."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    writes.fail("gameservers", 1)
    writes.gate = asyncio.Event()
    both = [asyncio.ensure_future(presence.announce(2))]
    await eventually(lambda: writes.tried == 1, "it is being written")
    both.append(asyncio.ensure_future(presence.announce(2)))
    await asyncio.sleep(0)
    writes.gate.set()
    assert await asyncio.gather(*both) == [True, True]
    await presence.close(keep_lease=False)


async def test_what_stands_there_already_is_not_written_again_and_what_is_wrong_is(
    deployment: Context, kv: Buckets
) -> None:
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    for number in (1, 2):
        presence.joined(f"s{number}", number)
    await eventually(lambda: _sessions_are(kv, {"s1", "s2"}), "both are active")
    before = await kv.active_connections.get("s1")
    await kv.active_connections.put("s2", "99")
    presence.resync()

    async def corrected() -> bool:
        entry = await kv.active_connections.get("s2")
        return entry is not None and entry.value == "2"

    await eventually(corrected, "it is what it should be")
    assert await kv.active_connections.get("s1") == before
    await presence.close(keep_lease=False)


async def test_the_game_goes_on_without_nats_and_the_truth_is_there_when_it_is_back(
    deployment: Context, game: Recorder, isolated_nats: IsolatedNats
) -> None:
    """NATS is killed; one player leaves, one joins, one stays and plays; NATS comes back: KV says who plays now."""
    settings = isolated_nats.settings("eyes")
    async with connect(settings, name="test") as bus:
        kv = await create_buckets(bus)
        async with (
            GameServer(game, context=replace(deployment, nats=settings), tick_rate=50) as server,
            by_udp(token_for(server, "stays")) as stays,
        ):
            async with by_udp(token_for(server, "leaves")):
                await eventually(lambda: kv.active_connections.get("leaves"), "both are active")
                await isolated_nats.server.kill()
                ticks = server.ticks
            await game.saw("leave", 1)
            async with by_websocket(server, token_for(server, "joins")) as joins:
                stays.send(b"still here")
                assert await stays.receive() == b"still here"
                await eventually(lambda: server.ticks > ticks + 20, "ticks go on")
                await isolated_nats.server.start()
                await eventually(lambda: _sessions_are(kv, {"stays", "joins"}), "the truth is in KV", 15)
                await eventually(lambda: kv.gameservers.get("arena-1"), "the lease is there", 15)
                await joins.send(b"x")
                assert await joins.receive() == b"x"


async def _sessions_are(kv: Buckets, sessions: set[str]) -> bool:
    try:
        return set(await kv.active_connections.list()) == sessions
    except Unavailable:
        return False
