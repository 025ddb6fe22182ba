"""Polling several that are waited for, when Edgegap's answer about one of them cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.edgegap.edgegap_world import sleeper
from tests.polling import eventually
from tipoff_edgegap_emulator import Fail, Rules, Vanishes
from tipoff_matchmaker.allocators.edgegap.session_watch import SessionWatch
from tipoff_orchestrator_client.base import DeploySpec, RunState
from tipoff_orchestrator_client.edgegap.api.answers import Session
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import Unreadable
from tipoff_orchestrator_client.edgegap.poller.poll_loop import PollLoop
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.nats.connection import Bus


class TwoSessions:
    """Edgegap: one session's answer is garbage, the other one is ready."""

    async def session(self, session_id: str) -> Session:
        if session_id == "a":
            raise Unreadable("no JSON")
        return Session(session_id, ready=True, request_id="4f2a")


async def test_a_session_that_cannot_be_read_delays_no_other() -> None:
    """In whatever order they are polled."""
    poll = PollLoop(cast(Bus, None), Settings(poll_first=60, poll_slowest=60), "session")
    watch = SessionWatch(cast(EdgegapClient, TwoSessions()), poll)
    bad = asyncio.ensure_future(watch.until_ready("a", "a"))
    good = asyncio.ensure_future(watch.until_ready("b", "b"))
    await asyncio.sleep(0)
    running = asyncio.ensure_future(watch.run())
    async with asyncio.timeout(1):
        assert (await good).request_id == "4f2a"
    assert not bad.done()
    for task in (bad, running):
        task.cancel()
    await asyncio.wait((bad, running))


@pytest.mark.slow
async def test_a_deployment_that_cannot_be_read_delays_no_other(
    edgegap: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status of both is read."""
    async with edgegap(sleeper(), matchmaker=False) as world, world.orchestrator() as orchestrator:
        for id in ("arena-1", "arena-2"):
            await orchestrator.deploy(DeploySpec(id, "arena", "1", 4))
        asked: set[str] = set()
        both = asyncio.Event()

        async def status(self: EdgegapClient, request_id: str) -> None:
            asked.add(request_id)
            if len(asked) == 2:
                both.set()
            raise Unreadable("no JSON")

        monkeypatch.setattr(EdgegapClient, "status", status)
        events = orchestrator.events()
        listening = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(2):
            await both.wait()
        listening.cancel()
        await asyncio.wait((listening,))


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 404])
async def test_a_status_that_lags_behind_the_create_ends_nothing(
    edgegap: Callable[..., Any], status: int
) -> None:
    """What was ordered a moment ago is not gone because its id is not known yet."""
    async with edgegap(sleeper(), matchmaker=False) as world, world.orchestrator() as orchestrator:
        world.emulator.misbehave("status", Fail(status, "unknown"), times=2)
        await orchestrator.deploy(DeploySpec("arena-1", "arena", "1", 4))
        events = orchestrator.events()
        async with asyncio.timeout(4):
            assert (await anext(events)).state is RunState.RUNNING
        assert world.emulator.count("status", status) == 2
        assert len(world.emulator.deployments) == 1
        await events.aclose()


@pytest.mark.slow
async def test_what_edgegap_has_told_of_and_knows_no_more_is_gone(edgegap: Callable[..., Any]) -> None:
    """At once, however young it is."""
    async with edgegap(sleeper(), matchmaker=False) as world, world.orchestrator() as orchestrator:
        world.emulator.misbehave("life", Vanishes(0.3), times=1)
        await orchestrator.deploy(DeploySpec("arena-1", "arena", "1", 4))
        events = orchestrator.events()

        async def gone() -> bool:
            found = await orchestrator.get("arena-1")
            return found is None or found.state is RunState.STOPPED

        async with asyncio.timeout(4):
            assert (await anext(events)).state is RunState.RUNNING
            await world.emulator.until(lambda e: not e.deployments)
            await eventually(gone, "it is not known any more")
            assert (await anext(events)).state is RunState.STOPPED
        await events.aclose()


@pytest.mark.slow
async def test_a_repeated_deploy_of_another_matchmaker_follows_the_server_too(
    edgegap: Callable[..., Any],
) -> None:
    """The one that ordered it has died: that it runs is heard within one look, not at its next round."""
    spec = DeploySpec("arena-1", "arena", "1", 4)
    async with edgegap(sleeper(), matchmaker=False, rules=Rules(start_delay=0.8)) as world:
        async with world.orchestrator() as dead:
            await dead.deploy(spec)
        async with world.orchestrator() as orchestrator:
            events = orchestrator.events()
            heard = asyncio.ensure_future(anext(events))
            assert (await orchestrator.deploy(spec)).state is RunState.STARTING
            async with asyncio.timeout(4):
                assert (await heard).state is RunState.RUNNING
            await events.aclose()
