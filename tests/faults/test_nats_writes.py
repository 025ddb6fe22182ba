"""NATS is connected and answers, but does not write: parts say so, players hear 503 at once, and all recovers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.small_disk import small_disk
from tests.matchmaker.world import ARENA, World, failed
from tests.polling import eventually
from tipoff.operate.status import ask_matchmakers
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff.up.nats_keeper import NatsKeeper
from tipoff_matchmaker_httpd.compose import compose
from tipoff_matchmaker_httpd.routes.health import readiness
from tipoff_matchmaker_httpd.settings import Settings as HttpdSettings
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import PROBE_KEY, Bucket, DoesNotWrite
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.kv.write_probe import WriteProbe
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.write_health import UNSTEADY, StreamWrites, WriteHealth
from tipoff_shared.settings import NatsSettings

WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)


@pytest.mark.slow
@pytest.mark.row(76)
async def test_a_full_disk_is_found_by_the_probe_and_forgotten_when_there_is_room(tmp_path: Path) -> None:
    """With a nats-server on its own disk that fills up and is freed."""
    with small_disk(tmp_path / "disk") as disk:
        async with (
            embedded_nats(disk.path / "nats", log_file=tmp_path / "nats.log") as server,
            connect(server.settings(), name="test") as bus,
        ):
            every = await create_buckets(bus)
            probe = WriteProbe(bus, every)
            assert not await probe.once()
            disk.fill()
            refused: Unavailable | None = None
            for number in range(100):
                try:
                    await every.sessions.put(f"s{number}", _record(20_000))  # type: ignore[arg-type]
                except Unavailable as exc:
                    refused = exc
                    break
            assert refused is not None
            assert "sessions" in await probe.once()
            assert bus.connected
            disk.free()
            if "2.12" in str(bus.nc.connected_server_version):
                await eventually(lambda: _well(probe), "writes work again", 20)
            else:  # this one must be restarted
                await server.stop()
                await server.start()
                await eventually(lambda: _well(probe), "writes work again", 20)


@pytest.mark.row(76)
async def test_after_one_write_without_an_answer_the_others_fail_at_once(nats: Bus) -> None:
    """No answer and no error, as from a stream whose disk was full: the first write waits for its time-out, the next
    hundred fail within it; other buckets work, and reads of this one."""
    every = await create_buckets(nats)
    sessions: Bucket[str] = Bucket(nats, "sessions", str, timeout=0.5)
    await sessions.put("before", "x")
    async with mute(nats, sessions):
        with pytest.raises(Unavailable):
            await sessions.put("a", "x")
        began = time.monotonic()
        results = await asyncio.gather(
            *(sessions.put(f"b{n}", "x") for n in range(100)), return_exceptions=True
        )
        assert all(isinstance(result, DoesNotWrite) and result.code == 503 for result in results)
        assert all(isinstance(result, DoesNotWrite) and result.retry_after for result in results)
        assert time.monotonic() - began < 0.2
        assert (await sessions.get("before")) is not None
        await every.cert_digests.put("10.0.0.1", "x")
        assert "sessions" in nats.writes.problem(time.monotonic())
    await eventually(lambda: _written(sessions), "writes work again", 10)


@pytest.mark.slow
@pytest.mark.row(76)
@pytest.mark.parametrize("name", ["sessions", "deployments", "connect_tokens"])
async def test_players_hear_503_at_once_while_a_bucket_takes_no_writes(
    settings: NatsSettings, name: str
) -> None:
    """Readiness and status name the bucket; with writes back, the next player gets a seat."""
    async with (
        connect(settings, name="world") as bus,
        World(bus, settings) as world,
        world.matchmaker(WARM) as matchmaker,
        compose(HttpdSettings.load(port=0, turn_relay=False), settings) as httpd,
    ):
        await world.servers_ready(1)
        assert (await readiness(httpd.state)).missing == []
        bucket: Bucket[object] = getattr(world.buckets, name)
        probe = matchmaker.parts.write_probe
        async with mute(bus, bucket):
            assert name in await probe.once()
            began = time.monotonic()
            answers = await world.ask(timeout=20)
            assert failed(await answers.end()).code == 503
            assert time.monotonic() - began < 3  # one trial of the write at most
            (missing,) = (await readiness(httpd.state)).missing
            assert name in missing
            (status,) = await ask_matchmakers(bus)
            assert any(name in problem for problem in status.problems)
        await eventually(lambda: _well(probe), "writes work again", 20)
        assert (await readiness(httpd.state)).missing == []
        assert isinstance(await (await world.ask(timeout=10)).end(), SessionReady)


@pytest.mark.row(76)
async def test_nobody_sees_a_probe(nats: Bus) -> None:
    """Neither listings nor readers of changes, however often it is written."""
    every = await create_buckets(nats)
    probe = WriteProbe(nats, every)
    async with every.active_connections.durable("reader") as changes, every.sessions.watch() as watched:
        await probe.once()
        await probe.once()
        await every.active_connections.put("s1", "42")
        assert [change.key for change, _ in await changes.fetch(timeout=2)] == ["s1"]
        assert await watched.fetch(timeout=0.2) == []
    assert list(await every.active_connections.list_latest()) == ["s1"]
    assert await every.sessions.list_latest() == {}
    assert (await nats.js.stream_info(every.sessions.stream)).state.messages == 1
    assert await every.sessions.get(PROBE_KEY) is None


def test_a_stream_that_failed_is_failing_until_it_has_worked_for_a_while() -> None:
    """Short writes may fit on a full disk where longer ones do not: one success is not enough."""
    health = WriteHealth()
    writes = health.of("KV_sessions")
    assert writes.well
    assert not writes.admit(0)
    writes.failed(0, "no space left on device")
    assert writes.admit(0) > 0
    assert health.problem(0) == "NATS does not write to sessions: no space left on device"
    assert not writes.admit(1)
    writes.succeeded(1)
    assert not writes.admit(1)  # writes are made again
    assert health.problem(1)
    writes.succeeded(UNSTEADY + 1)
    assert writes.well
    assert health.problem(UNSTEADY + 1) == ""


@pytest.mark.row(76)
@pytest.mark.parametrize("streams", [5, 15, 100])
def test_the_reason_is_not_lost_behind_the_names_of_many_buckets(streams: int) -> None:
    """On a full disk none works, and readiness shows the first 300 characters."""
    health = WriteHealth()
    for number in range(streams):
        writes = health.of(f"KV_bucket_of_some_name_{number:03}")
        writes.admit(0)
        writes.failed(0, "no space left on device")
    said = health.problem(0)
    assert "bucket_of_some_name_000" in said
    assert f"and {streams - 4} more: no space left on device" in said
    assert len(said) < 300


def test_after_a_reconnect_the_next_write_is_made() -> None:
    """The server may have been restarted."""
    health = WriteHealth()
    writes = health.of("KV_sessions")
    writes.failed(0, "no answer")
    assert writes.wait(0) > 0
    health.reconnected()
    assert not writes.admit(0)


@given(st.lists(st.tuples(st.sampled_from(["admit", "ok", "fail", "cancel"]), st.floats(0, 5)), max_size=60))
def test_a_write_is_let_through_again_whatever_happens(story: list[tuple[str, float]]) -> None:
    """No order of outcomes shuts a stream for longer than a trial takes."""
    writes, now = StreamWrites("KV_x"), 0.0
    for step, pause in story:
        now += pause
        match step:
            case "admit":
                writes.admit(now)
            case "ok":
                writes.succeeded(now)
            case "fail":
                writes.failed(now, "x")
            case _:
                writes.undecided(now)
    assert writes.wait(now + 3.0) == 0.0


@asynccontextmanager
async def mute(bus: Bus, bucket: Bucket[object]) -> AsyncIterator[None]:  # type: ignore[type-arg]
    """The bucket's stream acknowledges no write."""
    info = await bus.js.stream_info(bucket.stream)
    await bus.js.update_stream(info.config.evolve(no_ack=True))
    try:
        yield
    finally:
        await bus.js.update_stream(info.config)


def _record(size: int) -> object:
    return msgspec.Raw(b'"' + b"x" * size + b'"')


async def _well(probe: WriteProbe) -> bool:
    return not await probe.once()


async def _written(bucket: Bucket[str]) -> bool:
    try:
        await bucket.put("after", "x")
    except Unavailable:
        return False
    return True


@pytest.mark.slow
@pytest.mark.row(76)
async def test_a_server_that_does_not_write_though_there_is_room_is_restarted(tmp_path: Path) -> None:
    """Once, after ten seconds; what was wrong and what is done are said; the bucket works again afterwards."""
    said: list[str] = []
    async with embedded_nats(tmp_path / "nats") as server, connect(server.settings(), name="test") as bus:
        every = await create_buckets(bus)
        first = server.process.pid
        keeper = NatsKeeper(server, tmp_path, said.append)
        tasks = [asyncio.create_task(keeper.keep()), asyncio.create_task(keeper.watch_writes(bus))]
        try:
            async with mute(bus, every.sessions):
                await eventually(lambda: _restarted(server, first), f"restarted; {said}", 30)
                await eventually(lambda: _async(bus.connected), "connected again", 20)
            assert "NATS does not write to sessions" in said[0]
            assert any("restarting nats-server" in line for line in said)
            await eventually(lambda: _async("NATS writes again" in said), f"said in {said}", 20)
            assert sum("restarting" in line for line in said) == 1
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.row(77)
async def test_a_nats_server_that_does_not_start_is_tried_again(tmp_path: Path) -> None:
    """Its binary cannot be run for a while: that is said, nothing ends, and it is back when it can."""
    said: list[str] = []
    async with embedded_nats(tmp_path / "nats") as server, connect(server.settings(), name="test") as bus:
        keeper = NatsKeeper(server, tmp_path, said.append)
        task = asyncio.create_task(keeper.keep())
        program = tmp_path / "nats-server"
        try:
            with pytest.MonkeyPatch.context() as changed:
                program.write_text("#!/bin/sh\necho this licence has expired\nexit 1\n")
                program.chmod(0o700)
                changed.setenv("TIPOFF_NATS_SERVER", str(program))
                await server.kill()
                await eventually(lambda: _async(len(said) >= 3), f"tried several times; {said}", 20)
            assert "SIGKILL" in said[0]
            assert "this licence has expired" in said[1]
            assert not task.done()
            await eventually(lambda: _async(bus.connected), "connected again", 20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _restarted(server: EmbeddedNats, first: int) -> bool:
    return server.process.pid != first and server.process.returncode is None


async def _async(value: bool) -> bool:
    return value
