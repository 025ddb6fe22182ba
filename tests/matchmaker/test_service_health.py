"""What matchmakers say of the whole system: from their own knowledge, and from each other's heartbeats."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.fleet.start_backoff import SHORT_LIFE, StartBackoff
from tipoff_matchmaker.orchestrators.resilient import ResilientOrchestrator
from tipoff_matchmaker.service import Matchmaker
from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared.health_report import NOTHING, Report, decode_report, encode_report, header_text
from tipoff_shared.messages import Failed, SessionReady, SessionRequestAccepted
from tipoff_shared.records import DeploymentState
from tipoff_shared.subjects import HEALTH_HEADER

AWAY = OrchestratorUnavailable("nobody listens", retryable=True)


@pytest.mark.row(77)
async def test_an_orchestrator_that_comes_and_goes_is_an_outage() -> None:
    """Three failures within half a minute count, whatever succeeds in between, as it does in a restart loop. One or two
    do not: a launcher may be restarted."""
    fake = FakeOrchestrator()
    guarded = ResilientOrchestrator(fake)
    for number in range(3):
        fake.fail("list", AWAY)
        assert not guarded.outage(), number
        with pytest.raises(OrchestratorError):
            await guarded.list()
        await guarded.list()
    assert "nobody listens" in guarded.outage()
    assert guarded.outage().startswith("it answers, but failed 3 times within 30 s")
    fake.fail("list", AWAY)
    with pytest.raises(OrchestratorError):
        await guarded.list()
    assert guarded.outage().startswith("nobody listens")


@pytest.mark.row(77)
async def test_a_player_who_comes_when_the_orchestrator_is_back_gets_a_seat(world: World) -> None:
    """Not the error of the time before; until then it is said that no servers start."""
    async with world.matchmaker(breaker_failures=2, breaker_pause=60, start_failures=1) as matchmaker:
        world.fake.fail("deploy", AWAY, times=1000)
        answers = await world.ask()
        assert isinstance(await answers.end(), Failed)
        (degraded,) = matchmaker.parts.health.report().degraded
        assert degraded == "orchestrator fake starts no servers: nobody listens"
        world.fake.mend("deploy")
        waits = await world.ask()
        await waits.until(SessionRequestAccepted)
        world.fake.restarted()
        assert matchmaker.parts.health.report().degraded == ()
        assert isinstance(await waits.end(timeout=4), SessionReady)
        assert matchmaker.parts.health.report() == NOTHING


@pytest.mark.row(77)
async def test_every_matchmaker_reports_what_the_reconciler_knows(world: World) -> None:
    """Only one of two asks the orchestrator, and readiness may ask the other one."""
    async with world.matchmaker(lease_ttl=2.0) as first, world.matchmaker(lease_ttl=2.0) as second:
        world.fake.fail("list", AWAY, times=60)

        async def both() -> bool:
            reports = [one.parts.health.report() for one in (first, second)]
            return all(any("nobody listens" in text for text in report.blocking) for report in reports)

        await world.eventually(both, "both report it", timeout=30)
        answer = await world.bus.request(world.bus.subjects.ping_matchmaker, b"", timeout=2)
        assert answer.headers is not None
        assert "nobody listens" in decode_report(answer.headers[HEALTH_HEADER]).blocking[0]


@pytest.mark.row(77)
async def test_a_game_whose_servers_end_soon_after_their_start(world: World) -> None:
    """They become ready and end: named with their last words, started with growing pauses; with a game beside it that
    works, players can be served."""
    crashing = msgspec.structs.replace(ARENA, min_ready=1)
    works = msgspec.structs.replace(ARENA, name="chess", min_ready=1)
    async with world.matchmaker(crashing, works, backoff=0.05) as matchmaker:
        killing = asyncio.create_task(_kill_when_ready(world, matchmaker, "arena"))
        try:

            async def told() -> bool:
                degraded = matchmaker.parts.health.report().degraded
                return any(text.startswith("game arena 1: its servers end soon") for text in degraded)

            await world.eventually(told, "the game is named", timeout=30)
            assert matchmaker.parts.health.report().blocking == ()
        finally:
            killing.cancel()


def test_crashes_delay_the_next_start_and_a_long_life_forgives_them() -> None:
    """The first may be an accident."""
    starts = StartBackoff()
    starts.ended(0.5, "exit 1", monotonic=0, first_pause=1)
    assert (starts.crashes, starts.not_before) == (1, 0)
    starts.ended(0.5, "exit 1", monotonic=1, first_pause=1)
    starts.ended(0.5, "exit 1", monotonic=2, first_pause=1)
    starts.ended(0.5, "exit 1", monotonic=3, first_pause=1)
    assert starts.crashes == 4
    assert starts.not_before >= 5
    starts.ended(SHORT_LIFE, "killed", monotonic=60, first_pause=1)
    assert starts.crashes == 0


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_a_report_of_anybody_is_a_report(data: bytes) -> None:
    """Heartbeats of other releases, and garbage."""
    report = decode_report(data)
    assert len(report.blocking) <= 20


@given(st.lists(st.text(max_size=400), max_size=30), st.lists(st.text(max_size=400), max_size=30))
def test_a_report_survives_the_wire_and_fits_into_a_header(blocking: list[str], degraded: list[str]) -> None:
    """One line of ASCII, whatever a server's last words were."""
    report = Report(tuple(blocking), tuple(degraded)).shortened()
    assert decode_report(encode_report(report)) == report
    text = header_text(report)
    assert text.isascii()
    assert "\n" not in text
    assert decode_report(text) == report
    assert json.loads(text)["blocking"] == list(report.blocking)
    assert Report() == NOTHING


async def _kill_when_ready(world: World, matchmaker: Matchmaker, game: str) -> None:
    """Each server of the game ends a moment after it is ready."""
    while True:
        for record in matchmaker.parts.deployments.of(game, "1"):
            if record.state is DeploymentState.READY:
                await world.fake.kill(record.id)
        await asyncio.sleep(0.1)  # the fault's own rhythm
