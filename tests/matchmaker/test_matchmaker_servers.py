"""Servers: kept ready, started when wanted, ended when done, and missed at once when they die."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import msgspec
import pytest

from tests.matchmaker.world import ARENA, WithPorts, World, failed
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    Port,
    RunState,
)
from tipoff_shared.errors import Unavailable
from tipoff_shared.messages import ProgressReport, SessionReady, Transports, UdpAddress
from tipoff_shared.names import new_boot_id
from tipoff_shared.records import DeploymentState, LeaseState, SessionState

WARM = msgspec.structs.replace(ARENA, min_ready=1)
ONE = msgspec.structs.replace(ARENA, max_deployments=1)


async def test_a_server_is_kept_ready_beside_those_with_players(world: World) -> None:
    """min_ready counts servers without a player; when they have left, the surplus ends."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        await world.servers_ready(2)
        server = world.server_of(ready)
        await server.connect(ready)
        await server.disconnect(ready)
        await world.nothing_is_left(servers=1)


async def test_the_one_allowed_server_is_all_there_is(world: World) -> None:
    """max_deployments wins over min_ready."""
    async with world.matchmaker(msgspec.structs.replace(WARM, max_deployments=1)) as matchmaker:
        await world.servers_ready(1)
        await world.play()
        await matchmaker.parts.reconciler.once()
        await matchmaker.parts.reconciler.once()
        assert len(world.fake.started) == 1


async def test_a_game_nobody_can_start_is_told_at_once(world: World) -> None:
    """502, long before the deadline: there is no hope."""
    world.fake.games = set()
    async with world.matchmaker():
        answers = await world.ask()
        error = failed(await answers.end(timeout=2))
        assert (error.code, error.message) == (502, "no server could be started")
        await world.nothing_is_left()


async def test_a_developer_may_want_the_reason_told(world: World) -> None:
    """By setting: what the orchestrator said, in one line of bounded length."""
    world.fake.fail("deploy", NotConfigured("no such image:\n" + "x" * 5000))
    async with world.matchmaker(tell_reasons=True):
        answers = await world.ask()
        error = failed(await answers.end())
        assert error.message.startswith("no server could be started: no such image: xxx")
        assert len(error.message) < 250


async def test_a_start_that_fails_for_now_is_tried_again(world: World) -> None:
    """Two answers "not now", then a server; the player only sees progress."""
    world.fake.fail("deploy", OrchestratorUnavailable("busy", retryable=True), times=2)
    async with world.matchmaker():
        assert isinstance(await world.play(), SessionReady)
        assert len(world.fake.started) == 1


async def test_a_start_that_always_fails_is_told_after_a_few_tries(world: World) -> None:
    """502 with Retry-After; nothing is left of the tries."""
    world.fake.fail("deploy", OrchestratorUnavailable("broken", retryable=True), times=100)
    async with world.matchmaker(deploy_tries=2, start_failures=2):
        answers = await world.ask()
        assert failed(await answers.end()).code == 502
        assert float(answers.headers["Retry-After"]) > 0
        await world.nothing_is_left()


async def test_a_lost_answer_starts_nothing_twice(world: World) -> None:
    """The call that timed out had started the server: the same one is used."""
    world.fake.lose_answers(1)
    async with world.matchmaker():
        ready = await world.play()
        assert list(world.fake.started) == [ready.deployment_id]


async def test_players_of_a_server_that_dies_at_its_start_get_another(world: World) -> None:
    """Their session goes on waiting, with one attempt more."""
    world.announce = False
    async with world.matchmaker():
        answers = await world.ask()
        await world.eventually(lambda: world.ran(1), "the first server runs")
        world.announce = True
        await world.fake.kill(next(iter(world.servers)), "exited with code 1")
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        session = await world.session(ready.session_id)
        assert session is not None
        assert session.attempt == 2
        assert any("did not start" in text for text in answers.progress)


async def test_a_server_that_is_never_ready_is_replaced(world: World) -> None:
    """After start_timeout it is stopped, and another one is started."""
    world.fake.never_ready(1)
    hasty = msgspec.structs.replace(ARENA, start_timeout=1.0)
    async with world.matchmaker(hasty):
        assert isinstance(await world.play(), SessionReady)
        assert len(world.fake.started) == 2
        await world.eventually(lambda: world.living(1), "the first one is stopped")


async def test_a_server_that_was_draining_when_first_seen_has_started(world: World) -> None:
    """Another matchmaker made it ready and drained it; this one saw only the last state. Its players stay."""
    world.announce = False
    async with world.matchmaker(WARM, sweep_interval=3600) as matchmaker:
        await world.eventually(lambda: world.living(1), "it was started")
        (record,) = await world.deployments()
        await world.deployment_becomes(record.id, DeploymentState.STARTING)
        await world.buckets.deployments.change(
            record.id,
            lambda now: msgspec.structs.replace(
                now, state=DeploymentState.DRAINING, seats={"session": time.time() + 60}
            ),
        )

        async def ended() -> bool:
            return not matchmaker.parts.starter.is_starting(record.id)

        await world.eventually(ended, "its start is over", timeout=ARENA.start_timeout / 2)
        await world.deployment_becomes(record.id, DeploymentState.DRAINING)


class RunsAtOnce(WithPorts):
    """The answer to `deploy` says already that the server runs."""

    async def deploy(self, spec: DeploySpec) -> Deployment:
        return dataclasses.replace(await super().deploy(spec), state=RunState.RUNNING)


async def test_a_start_whose_record_cannot_be_written_for_a_moment_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NATS is away when the server already runs: the reconciler makes it ready."""
    world.announce = False
    orchestrator = RunsAtOnce(world.fake, {"udp": Port(7777, 7777, "UDP")})
    running = msgspec.structs.replace(ARENA, ready="running")
    async with world.matchmaker(running, orchestrator=orchestrator) as matchmaker:
        readiness = matchmaker.parts.readiness
        runs, failed_with = readiness.runs, [Unavailable("NATS is away")] * 2  # its start, and its event

        async def fails_first(deployment: Deployment, cert_digest: str = "") -> None:
            if failed_with:
                raise failed_with.pop()
            await runs(deployment, cert_digest)

        monkeypatch.setattr(readiness, "runs", fails_first)
        ready = await world.play()
        assert isinstance(ready, SessionReady)
        assert (failed_with, len(world.fake.started)) == ([], 1)
    assert [line.getMessage() for line in caplog.records if line.levelname == "ERROR"] == []


async def test_when_there_is_no_room_players_wait_and_are_told(world: World) -> None:
    """No capacity is no failure: as soon as there is some, they play."""
    world.fake.fail("deploy", NoCapacity("full", retryable=True, retry_after=0.3))
    async with world.matchmaker():
        answers = await world.ask()
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert any("no room" in text for text in answers.progress)


async def test_seats_of_a_killed_server_are_free_within_seconds(world: World) -> None:
    """By the orchestrator's event; the next play gets another server."""
    async with world.matchmaker(ONE):
        ready = await world.play()
        await world.server_of(ready).connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        began = time.monotonic()
        await world.fake.kill(ready.deployment_id)
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: world.seats_are([]), "no seat is left")
        assert time.monotonic() - began < 3
        assert "signal 9" in session.reason
        again = await world.play()
        assert again.deployment_id != ready.deployment_id
        assert not await world.buckets.active_connections.list()


async def test_a_server_that_vanished_without_a_word_is_missed(world: World) -> None:
    """No event, no answer, no lease after a while: its sessions end."""
    async with world.matchmaker():
        ready = await world.play()
        await world.fake.vanish(ready.deployment_id)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.nothing_is_left()


async def test_a_server_without_a_lease_is_stopped_after_a_grace(world: World) -> None:
    """It runs, but says nothing (it hangs): no new players at once, stopped when the grace is over."""
    async with world.matchmaker(msgspec.structs.replace(ARENA, max_deployments=2)):
        ready = await world.play()
        world.server_of(ready).die()
        await world.deployment_becomes(ready.deployment_id, DeploymentState.GONE)
        await world.nothing_is_left()


async def test_a_lease_that_comes_back_in_time_harms_nobody(world: World) -> None:
    """A gap in the heartbeat is a suspicion, not a proof."""
    async with world.matchmaker(lease_grace=20) as matchmaker:
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await world.buckets.gameservers.forget(server.id, 2**62)
        await matchmaker.parts.reconciler.once()
        await server.beat()
        await matchmaker.parts.reconciler.once()
        assert (await world.session_becomes(ready.session_id, SessionState.ACTIVE)).reason == ""
        assert (await world.play()).deployment_id == ready.deployment_id


async def test_a_restarted_server_ends_the_sessions_of_its_former_life(world: World) -> None:
    """Another boot id at the same address: old seats are free, new players come."""
    async with world.matchmaker(ONE):
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await server.become(boot_id=new_boot_id())
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert "restarted" in session.reason
        again = await world.play()
        assert again.deployment_id == ready.deployment_id
        renewed = await world.session(again.session_id)
        assert renewed is not None
        assert renewed.boot_id == server.lease.boot_id


async def test_the_end_of_a_match_ends_the_server(world: World) -> None:
    """A lease that says `ended`: sessions end, the server is stopped."""
    async with world.matchmaker():
        ready = await world.play()
        await world.server_of(ready).connect(ready)
        await world.server_of(ready).become(state=LeaseState.ENDED)
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert "over" in session.reason
        await world.nothing_is_left()


async def test_a_game_may_be_ready_as_soon_as_it_runs(world: World) -> None:
    """Mode `running`: no lease; the orchestrator's host and ports are where players go."""
    world.announce = False
    orchestrator = world.with_ports(udp=7777)
    running = msgspec.structs.replace(ARENA, ready="running")
    async with world.matchmaker(running, orchestrator=orchestrator):
        ready = await world.play()
        assert (ready.ip, ready.port) == ("127.0.0.1", 7777)
        await world.fake.kill(ready.deployment_id)
        await world.session_becomes(ready.session_id, SessionState.GONE)


async def test_a_game_may_be_ready_by_its_context(world: World) -> None:
    """Mode `context`: bevygap's message makes it ready."""
    world.announce = False
    orchestrator = world.with_ports(udp=7777)
    context = msgspec.structs.replace(ARENA, ready="context")
    async with world.matchmaker(context, orchestrator=orchestrator):
        answers = await world.ask()
        await answers.until(ProgressReport)
        await world.eventually(lambda: world.ran(1), "the server runs")
        await world.bus.publish(world.bus.subjects.contexts, b'{"nonsense": true}')
        await world.bus.publish(world.bus.subjects.contexts, b'{"request_id": "unknown"}')
        message = msgspec.json.encode({"request_id": next(iter(world.servers)), "public_ip": "127.0.0.1"})
        await world.bus.publish(world.bus.subjects.contexts, message)
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert ready.port == 7777


async def test_a_webtransport_server_is_ready_with_its_certificates_digest(world: World) -> None:
    """Its digest may come after its context; it is part of the answer."""
    world.announce = False
    orchestrator = world.with_ports(server=7777)
    game = msgspec.structs.replace(ARENA, ready="context", primary="webtransport")
    async with world.matchmaker(game, orchestrator=orchestrator):
        answers = await world.ask()
        await world.eventually(lambda: world.ran(1), "the server runs")
        message = msgspec.json.encode({"request_id": next(iter(world.servers)), "public_ip": "203.0.113.9"})
        await world.bus.publish(world.bus.subjects.contexts, message)
        await world.buckets.cert_digests.put("203.0.113.9", "e3:76")
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert (ready.cert_digest, ready.port) == ("e3:76", 7777)


async def test_a_certificate_digest_that_never_comes_is_an_error(world: World) -> None:
    """A typed one, and in time."""
    world.announce = False
    orchestrator = world.with_ports(server=7777)
    game = msgspec.structs.replace(ARENA, ready="context", primary="webtransport")
    async with world.matchmaker(
        game, orchestrator=orchestrator, start_failures=1, tell_reasons=True
    ) as matchmaker:
        matchmaker.parts.contexts.timeout = 0.3
        answers = await world.ask()
        await world.eventually(lambda: world.ran(1), "the server runs")
        message = msgspec.json.encode({"request_id": next(iter(world.servers)), "public_ip": "203.0.113.9"})
        await world.bus.publish(world.bus.subjects.contexts, message)
        error = failed(await answers.end())
        assert error.code == 502
        assert "certificate" in error.message


async def test_a_server_without_an_address_is_not_used(world: World) -> None:
    """It would be of no use to players: 502, and it is stopped."""
    world.transports = Transports()
    async with world.matchmaker(start_failures=1, tell_reasons=True):
        answers = await world.ask()
        error = failed(await answers.end())
        assert error.code == 502
        assert "no address" in error.message
        world.transports = None
        await world.nothing_is_left()


async def test_names_are_told_to_players_as_ipv4(world: World) -> None:
    """`SessionReady.ip` is a literal, whatever the server calls itself."""
    world.transports = Transports(udp=UdpAddress("localhost", 7777))
    async with world.matchmaker():
        ready = await world.play()
        assert (ready.ip, ready.port) == ("127.0.0.1", 7777)
        assert ready.transports.udp == UdpAddress("localhost", 7777)


async def test_a_server_nobody_knows_is_stopped(world: World) -> None:
    """Something carries our tag and is in no record: after the grace it is stopped."""
    async with world.matchmaker():
        await world.fake.deploy(DeploySpec("arena-stray", "arena", "1", 4))
        await world.eventually(lambda: world.living(0), "the stray server is stopped")


async def test_an_empty_list_reaps_nobody(world: World) -> None:
    """An orchestrator that forgets everything for a moment, and confirms it when asked, loses nobody a game."""
    async with world.matchmaker(WARM) as matchmaker:
        await world.servers_ready(1)
        ready = await world.play()
        await world.server_of(ready).connect(ready)
        world.fake.empty_lists(3)
        for _ in range(3):
            await matchmaker.parts.reconciler.once()
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        assert (await world.play()).deployment_id == ready.deployment_id


async def test_a_stop_that_fails_is_done_again(world: World) -> None:
    """A server is not gone before its orchestrator has said so."""
    world.fake.fail("stop", OrchestratorUnavailable("busy", retryable=True), times=3)
    async with world.matchmaker():
        ready = await world.play()
        await world.server_of(ready).connect(ready)
        await world.server_of(ready).disconnect(ready)
        await world.nothing_is_left()


async def test_start_failures_are_not_counted_one_by_one(world: World) -> None:
    """Three servers started together and failing together are one failure, not the end of hope."""
    world.fake.fail("deploy", OrchestratorError("bad luck", retryable=False), times=3)
    async with world.matchmaker(start_failures=2):
        asked = [await world.ask() for _ in range(10)]
        for answers in asked:
            assert isinstance(await answers.end(), SessionReady)


@pytest.mark.parametrize("state", [LeaseState.READY, LeaseState.DRAINING])
async def test_a_server_of_another_game_gets_no_players(world: World, state: LeaseState) -> None:
    """What a lease says must be what was started."""
    world.announce = False
    async with world.matchmaker():
        answers = await world.ask(timeout=1)
        await world.eventually(lambda: world.ran(1), "the server runs")
        server = next(iter(world.servers.values()))
        server.lease = msgspec.structs.replace(server.lease, game="other", state=state)
        await server.start()
        assert failed(await answers.end()).code == 408
        await asyncio.sleep(0)
