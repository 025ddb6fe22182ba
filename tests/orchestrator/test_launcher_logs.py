"""The output of game servers over NATS: new lines as they come, of those who run and of those who have ended."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.orchestrator.launcher_world import KEY, LauncherWorld, Spec
from tests.polling import eventually
from tipoff_launcher.service import Launcher
from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_orchestrator_client.wire import LogRequest
from tipoff_shared.nats.connection import Bus


async def test_new_lines_come_as_they_are_written(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """In order, none twice; who waits gets them at once, and who asks for the end gets only that."""
    ticker = await client.deploy(spec("ticker"))
    seen: list[str] = []
    cursors: dict[str, str] = {}
    while len(seen) < 60:
        (log,) = await client.logs(LogRequest(cursors=dict(cursors), tail=-1, wait=5))
        seen += log.lines
        cursors[log.deployment_id] = log.cursor
    assert seen == [str(n) for n in range(1, len(seen) + 1)]
    (log,) = await client.logs(LogRequest(tail=2))
    assert (log.deployment_id, log.game, log.running) == (ticker.deployment_id, "ticker", True)
    assert len(log.lines) == 2


async def test_a_server_that_crashed_at_once_is_read_from_its_first_line(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """With why it ended, and without the secrets that it printed; one from before is not repeated."""
    await client.deploy(spec("crash"))
    await eventually(lambda: _has_ended(client, "crash"))
    now = time.time()
    await client.deploy(spec("blab"))
    await eventually(lambda: _has_ended(client, "blab"))
    crash, blab = sorted(await client.logs(LogRequest(whole_since=now)), key=lambda log: log.game != "crash")
    assert (crash.lines, blab.lines) == ((), ("***", "***"))
    assert "exited with code 1" in blab.reason
    (crash,) = await client.logs(LogRequest("crash", tail=9))
    assert crash.lines == ("starting up", "no map called dust2")
    assert KEY.reveal().hex() not in str(blab)


async def test_one_game_or_one_server_can_be_chosen(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """Another name chooses nothing."""
    for game in ("sleeper", "sleeper", "stubborn"):
        await client.deploy(spec(game))
    for select, count in (("", 3), ("sleeper", 2), ("stubborn-3", 1), ("sleep", 0)):
        assert len(await client.logs(LogRequest(select))) == count, select


async def test_who_waits_for_lines_waits_no_longer_than_asked_and_hears_of_a_new_server(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """A server that says nothing is heard of once."""
    (before,) = (await client.deploy(spec("sleeper")),)
    cursors = {log.deployment_id: log.cursor for log in await client.logs(LogRequest())}
    assert list(cursors) == [before.deployment_id]
    began = time.monotonic()
    await client.logs(LogRequest(cursors=cursors, wait=0.3))
    assert time.monotonic() - began >= 0.3
    waits = asyncio.create_task(client.logs(LogRequest(cursors=cursors, wait=8)))
    new = await client.deploy(spec("sleeper"))
    async with asyncio.timeout(4):
        assert new.deployment_id in [log.deployment_id for log in await waits]


async def test_readers_of_logs_do_not_keep_servers_from_starting(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec
) -> None:
    """However many wait: one too many is told so."""
    async with launchers.start(max_requests=2) as launcher:
        waiting = [asyncio.create_task(client.logs(LogRequest(wait=8))) for _ in range(20)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert {type(task.exception()) for task in done} == {OrchestratorUnavailable}
        async with asyncio.timeout(3):
            await client.deploy(spec("sleeper"))
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert launcher.supervisor.living()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"wait": 11}',
        b'{"wait": -1}',
        b'{"select": "%s"}' % (b"x" * 129),
        b'{"cursors": {"sleeper-1": "../x"}}',
    ],
)
async def test_a_request_that_is_none_is_refused(
    launcher: Launcher, client: LauncherOrchestrator, nats: Bus, spec: Spec, payload: bytes
) -> None:
    """With a sentence, and without harm."""
    await client.deploy(spec("sleeper"))
    answer = await nats.request(nats.subjects.launcher("local", "logs"), payload, timeout=3)
    assert b'"error"' in answer.data
    assert len(await client.logs(LogRequest())) == 1


async def _has_ended(client: LauncherOrchestrator, game: str) -> bool:
    try:
        return all(not log.running for log in await client.logs(LogRequest(game)))
    except OrchestratorError:
        return False
