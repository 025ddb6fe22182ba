"""The faults that can be ordered from the fake: each does what it says, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.orchestrator.launcher_world import Eventually, Spec
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.fake import FakeOrchestrator


@pytest.fixture
async def fake() -> AsyncIterator[FakeOrchestrator]:
    fake = FakeOrchestrator()
    yield fake
    await fake.close()


async def state(fake: FakeOrchestrator, spec: DeploySpec) -> RunState | None:
    known = await fake.get(spec.deployment_id)
    return None if known is None else known.state


async def test_errors_come_as_often_as_ordered(fake: FakeOrchestrator, spec: Spec) -> None:
    """Then all is well again, and nothing was started meanwhile."""
    fake.fail("deploy", NoCapacity("full"), times=2)
    for _ in range(2):
        with pytest.raises(NoCapacity):
            await fake.deploy(spec())
    assert fake.living == []
    await fake.deploy(spec())
    assert len(fake.living) == 1


async def test_a_lost_answer_has_started_the_server(fake: FakeOrchestrator, spec: Spec) -> None:
    """Created, but the caller sees a time-out; a repeat finds it."""
    fake.lose_answers()
    wanted = spec()
    with pytest.raises(OrchestratorUnavailable) as caught:
        await fake.deploy(wanted)
    assert caught.value.may_have_started
    assert fake.living == [wanted.deployment_id]
    await fake.deploy(wanted)
    assert fake.started[wanted.deployment_id] == 1


async def test_hooks_hear_of_starts_stops_and_deaths(spec: Spec, eventually: Eventually) -> None:
    """Each once, coroutine functions and plain ones."""
    told: list[str] = []

    async def on_start(spec: DeploySpec) -> None:
        told.append(f"start {spec.deployment_id}")

    fake = FakeOrchestrator(
        on_start=on_start,
        on_stop=lambda id: told.append(f"stop {id}"),
        on_death=lambda id: told.append(f"death {id}"),
    )
    for id in ("a", "b"):
        await fake.deploy(spec(id=id))
    await eventually(lambda: len(told) == 2)
    await fake.stop("a")
    await fake.stop("a")
    await fake.kill("b")
    assert told == ["start a", "start b", "stop a", "death b"]
    await fake.close()


async def test_a_slow_start_a_death_and_a_server_that_is_never_ready(
    spec: Spec, eventually: Eventually
) -> None:
    """Time is real, but short."""
    fake = FakeOrchestrator(start_delay=0.05, dies_after=0.05)
    fake.never_ready()
    never, slow = spec(), spec()
    await fake.deploy(never)
    await fake.deploy(slow)
    assert await state(fake, slow) is RunState.STARTING
    heard: list[RunState] = []

    async def listen() -> None:
        async for event in fake.events():
            heard.append(event.state)  # noqa: PERF401 # read while it grows

    task = asyncio.create_task(listen())
    await eventually(lambda: heard == [RunState.RUNNING, RunState.STOPPED])
    assert await state(fake, never) is RunState.STARTING
    await fake.close()
    await task


async def test_lists_can_lie(fake: FakeOrchestrator, spec: Spec) -> None:
    """Empty once, or without one server, which may live or not."""
    shown, hidden, vanished = spec(), spec(), spec()
    for wanted in (shown, hidden, vanished):
        await fake.deploy(wanted)
    fake.empty_lists()
    assert await fake.list() == []
    fake.hide(hidden.deployment_id)
    await fake.vanish(vanished.deployment_id)
    assert [known.deployment_id for known in await fake.list()] == [shown.deployment_id]
    assert await state(fake, hidden) is not None
    assert await state(fake, vanished) is None
    assert fake.living == [shown.deployment_id, hidden.deployment_id]


async def test_events_can_be_lost_and_doubled(
    fake: FakeOrchestrator, spec: Spec, eventually: Eventually
) -> None:
    """They are hints."""
    heard: list[Deployment] = []

    async def listen() -> None:
        async for event in fake.events():
            heard.append(event)  # noqa: PERF401 # read while it grows

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    fake.lose_events()
    fake.double_events()
    await fake.deploy(lost := spec())

    async def lost_runs() -> bool:
        return await state(fake, lost) is RunState.RUNNING

    await eventually(lost_runs)
    await fake.deploy(doubled := spec())
    await eventually(lambda: [event.deployment_id for event in heard] == [doubled.deployment_id] * 2)
    await fake.close()
    await task


async def test_more_servers_than_allowed_are_refused(spec: Spec) -> None:
    """As a real host does."""
    fake = FakeOrchestrator(max_servers=1)
    await fake.deploy(spec())
    with pytest.raises(NoCapacity):
        await fake.deploy(spec())
    await fake.close()
