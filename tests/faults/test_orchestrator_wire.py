"""Silence and nonsense on the launcher's wire, from a launcher that lies; and an orchestrator that hangs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.faults.fake_orchestrator import playing
from tests.matchmaker.world import ARENA, World, failed
from tipoff_matchmaker.fleet import stop
from tipoff_matchmaker.orchestrators.resilient import LIMITS, ResilientOrchestrator
from tipoff_matchmaker.service import Matchmaker
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    OrchestratorUnavailable,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game
from tipoff_shared.records import SessionState


class LyingLauncher:
    """Answers what the test says, to every operation; None: nothing at all."""

    def __init__(self) -> None:
        self.replies: dict[str, Callable[[dict[str, object]], bytes | None]] = {}
        self.asked: Counter[str] = Counter()

    async def serve(self, world: World) -> None:
        for operation in ("deploy", "get", "stop", "list"):
            await world.bus.nc.subscribe(
                world.bus.subjects.launcher("local", operation), cb=self._answering(operation)
            )
        await world.bus.flush()

    def _answering(self, operation: str):  # type: ignore[no-untyped-def] # a callback of nats-py
        async def answer(msg) -> None:  # type: ignore[no-untyped-def]
            self.asked[operation] += 1
            reply = self.replies.get(operation, lambda asked: b"{}")(msgspec.json.decode(msg.data))
            if reply is not None:
                await msg.respond(reply)

        return answer


def started(asked: dict[str, object], **changes: object) -> bytes:
    """A launcher's answer to deploy, with something changed."""
    known = {name: asked[name] for name in ("deployment_id", "game", "version")}
    return msgspec.json.encode({"deployment": {**known, "state": "running", **changes}})


def udp(external: object) -> dict[str, object]:
    return {"udp": {"internal": 1, "external": external, "protocol": "UDP"}}


NONSENSE: dict[str, Callable[[dict[str, object]], bytes | None]] = {
    "silence": lambda asked: None,
    "empty": lambda asked: b"",
    "not JSON": lambda asked: b"<html>502 Bad Gateway</html>",
    "cut short": lambda asked: started(asked)[:-9],
    "a list": lambda asked: b"[]",
    "deep": lambda asked: b"[" * 100_000,
    "huge": lambda asked: b'{"deployment": "' + b"x" * 900_000 + b'"}',
    "nothing": lambda asked: b"{}",
    "another one's": lambda asked: started(asked, deployment_id="arena-other"),
    "null host": lambda asked: started(asked, host=None),
    "port 70000": lambda asked: started(asked, host="127.0.0.1", ports=udp(70000)),
    "port as text": lambda asked: started(asked, host="127.0.0.1", ports=udp("http")),
    "unknown state": lambda asked: started(asked, state="confused"),
    "an odd error": lambda asked: b'{"error": {"kind": "?", "message": "?", "retryable": true}}',
}


QUICK = ("silence", "not JSON", "port 70000")
"""The others differ from these in how they are read, not in what follows."""


@asynccontextmanager
async def by_wire(world: World, game: Game = ARENA, **changes: object) -> AsyncIterator[Matchmaker]:
    """A matchmaker whose only orchestrator is reached by the launcher's wire, with short deadlines."""
    quick = LauncherOrchestrator(world.bus, deadline=0.3, deploy_deadline=0.3, stop_deadline=0.3)
    async with world.matchmaker(
        game, orchestrator=quick, deploy_tries=2, start_failures=1, breaker_pause=0.2, **changes
    ) as matchmaker:
        yield matchmaker


@pytest.mark.row(39, 40)
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(reply, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, reply in NONSENSE.items()
    ],
)
async def test_an_answer_that_is_no_answer_is_a_typed_error_in_time(
    world: World, reply: Callable[[dict[str, object]], bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The player hears 502, the server that may be there is stopped, nothing is left."""
    monkeypatch.setattr(stop, "STOP_RETRY", 0.3)
    launcher = LyingLauncher()
    launcher.replies = dict.fromkeys(("deploy", "get", "list", "stop"), reply)
    await launcher.serve(world)
    async with by_wire(world):
        answers = await world.ask(timeout=5)
        assert failed(await answers.end()).code == 502
        assert launcher.asked["deploy"] == 2
        launcher.replies.clear()  # it has come to its senses
        await world.nothing_is_left()
        assert launcher.asked["stop"] >= 1


@pytest.mark.row(40)
async def test_a_server_that_runs_without_ports_is_given_up(world: World) -> None:
    """For a game that is ready when it runs: nobody could dial it."""
    launcher = LyingLauncher()
    launcher.replies["deploy"] = started
    launcher.replies["list"] = lambda asked: b'{"deployments": []}'
    await launcher.serve(world)
    async with by_wire(world, msgspec.structs.replace(ARENA, ready="running")):
        answers = await world.ask(timeout=5)
        assert failed(await answers.end()).code == 502
        await world.nothing_is_left()


@pytest.mark.row(39)
def test_an_answer_beyond_all_measure_is_not_even_read() -> None:
    """Whatever NATS would let through."""
    with pytest.raises(OrchestratorUnavailable, match="over 8388608 bytes"):
        wire.decode_deployments(b" " * (wire.MAX_REPLY + 1))


@pytest.mark.row(39)
async def test_an_orchestrator_that_hangs_does_not_stop_the_reconciler(world: World) -> None:
    """Sessions end and seats come free while it answers nothing."""
    impatient = ResilientOrchestrator(world.fake, limits=dict.fromkeys(LIMITS, 0.2))
    async with world.matchmaker(orchestrator=impatient):
        ready = await playing(world)
        asked = asyncio.Event()

        async def never() -> list[Deployment]:
            asked.set()
            return await asyncio.get_running_loop().create_future()

        world.fake.list = never  # type: ignore[method-assign] # the fault
        await asyncio.wait_for(asked.wait(), 5)
        await world.server_of(ready).disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.nothing_is_left()
