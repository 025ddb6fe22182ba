"""A bevygap server says once that it is ready: whatever is late or missing then is asked for again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.bevygap import contexts as contexts_module
from tipoff_matchmaker.bevygap.contexts import decode_context
from tipoff_orchestrator_client.base import Deployment, OrchestratorUnavailable, Port, RunState
from tipoff_shared.errors import Malformed, Unavailable
from tipoff_shared.records import DeploymentState

READY, STARTING, GONE = DeploymentState.READY, DeploymentState.STARTING, DeploymentState.GONE
GAME = msgspec.structs.replace(ARENA, ready="context")
WEB = msgspec.structs.replace(GAME, primary="webtransport")
PORTS = {"server": Port(7777, 7777, "UDP")}


class Told:
    """An orchestrator that a test lets answer; `calls` counts its answers about servers."""

    def __init__(self, world: World) -> None:
        self._inner = world.with_ports()
        self.name = self._inner.name
        self.answers: list[Deployment | Exception | None] = []
        self.native: dict[str, str] = {}
        self.asked: list[str] = []
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def get(self, deployment_id: str) -> Deployment | None:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def deployment_named(self, native_id: str) -> str | None:
        self.asked.append(native_id)
        return self.native.get(native_id)


def deployment(state: RunState = RunState.RUNNING, **changes: object) -> Deployment:
    known = {"host": "127.0.0.1", "ports": PORTS, **changes}
    return Deployment("one", "arena", "1", state, **known)  # type: ignore[arg-type] # by test


@asynccontextmanager
async def starting(
    world: World, monkeypatch: pytest.MonkeyPatch, game: object = GAME
) -> AsyncIterator[tuple[Fleet, Told]]:
    """A server that starts, and an orchestrator that is asked for it."""
    world.announce = False
    monkeypatch.setattr(contexts_module, "backoff", lambda *_, **__: 0.0)
    told = Told(world)
    async with world.parts(game, orchestrator=told, breaker_failures=100) as parts:  # type: ignore[arg-type] # by test
        fleet = Fleet(world, parts)
        await fleet.server(STARTING, deadline=9e9)
        yield fleet, told
        await fleet.settled()


def context(**changes: object) -> bytes:
    return msgspec.json.encode({"request_id": "one", "public_ip": "203.0.113.9", **changes})


@pytest.mark.parametrize(
    ("answers", "calls", "state"),
    [
        ([deployment()], 1, READY),
        ([deployment(RunState.STARTING, ports={}), deployment()], 2, READY),
        ([deployment(RunState.STARTING)], 1, READY),
        ([OrchestratorUnavailable("503", retryable=True)] * 6 + [deployment()], 7, READY),
        ([OrchestratorUnavailable("503", retryable=True)], 7, STARTING),
        ([deployment(RunState.STARTING, ports={})], 7, GONE),
        ([deployment(RunState.RUNNING, ports={})], 1, GONE),
        ([deployment(RunState.STOPPED)], 1, GONE),
        ([None], 1, STARTING),
    ],
    ids=[
        *("known", "late", "early", "silent for a while", "silent", "never known", "without ports", "ended"),
        "unknown",
    ],
)
async def test_where_a_ready_server_is_reached_is_asked_until_it_is_known(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[Deployment | Exception | None],
    calls: int,
    state: DeploymentState,
) -> None:
    """Seven times at most: the server is quicker than its orchestrator, perhaps."""
    async with starting(world, monkeypatch) as (fleet, told):
        told.answers = answers
        await fleet.parts.contexts.received(context())
        assert told.calls >= calls
        if state is not GONE:
            assert told.calls == calls
        await fleet.settled()
        record = fleet.parts.deployments.get("one")
        assert (GONE if record is None else record.state) in (
            (state,) if state is not GONE else (GONE, DeploymentState.STOPPING)
        )
        if state is READY:
            assert record is not None
            assert record.transports.udp is not None
            assert record.transports.udp.port == 7777


@pytest.mark.parametrize("written", ["before", "empty first", "never", "unreadable"])
async def test_a_certificates_digest_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """For a while; a server without one is of no use to players."""
    async with starting(world, monkeypatch, WEB) as (fleet, told):
        told.answers = [deployment()]
        digests = world.buckets.cert_digests
        if written == "unreadable":

            def away(*_: object) -> object:
                raise Unavailable("NATS is away")

            monkeypatch.setattr(digests, "watch", away)
        fleet.parts.contexts.timeout = 0.05 if written == "never" else 20
        if written == "before":
            await digests.put("203.0.113.9", "e3:76")
        elif written == "empty first":
            await digests.put("203.0.113.9", "")
            fleet.parts.tasks.start(_put_later(fleet), "later")
        await fleet.parts.contexts.received(context())
        await fleet.settled()
        record = fleet.parts.deployments.get("one")
        if written in ("never", "unreadable"):
            assert record is None
            return
        assert record is not None
        assert (record.state, record.cert_digest) == (READY, "e3:76")


async def _put_later(fleet: Fleet) -> None:
    await fleet.world.buckets.cert_digests.put("203.0.113.9", "e3:76")


async def test_a_server_may_call_itself_by_its_orchestrators_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked twice, since it may be written down a moment later; not when one of its ids is known."""
    async with starting(world, monkeypatch) as (fleet, told):
        told.answers = [deployment()]
        pauses: list[float] = []

        async def slept(seconds: float) -> None:
            pauses.append(seconds)
            told.native["4f2a"] = "one"

        monkeypatch.setattr(contexts_module, "asyncio", SimpleNamespace(sleep=slept))
        await fleet.parts.contexts.received(context(request_id="4f2a"))
        monkeypatch.undo()
        assert (told.asked, pauses) == (["4f2a", "4f2a"], [0.5])
        assert fleet.record().state is READY
        told.asked.clear()
        await fleet.parts.contexts.received(context(deployment_id="unknown", request_id="one"))
        assert told.asked == []


@pytest.mark.parametrize("why", ["missed", "ready", "no digest", "no key", "unknown"])
async def test_a_missed_context_is_made_good_by_the_digest(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Of a server that still starts, under a key of its own."""
    async with starting(world, monkeypatch, WEB) as (fleet, told):
        told.answers = [deployment()]
        if why != "no digest":
            await world.buckets.cert_digests.put("only-one", "e3:76")
        if why == "ready":
            await fleet.parts.deployments.change(
                "one", lambda r: msgspec.structs.replace(r, state=READY, cert_digest="old")
            )
        found = deployment(digest_key="" if why == "no key" else "only-one")
        if why == "unknown":
            await world.buckets.deployments.delete("one")
            fleet.parts.deployments.vanished("one")
        await fleet.parts.contexts.look_for_digest(found)
        await fleet.settled()
        record = fleet.parts.deployments.get("one")
        if why == "unknown":
            assert record is None
        else:
            assert record is not None
            expected = {"ready": (READY, "old"), "missed": (READY, "e3:76")}
            assert (record.state, record.cert_digest) == expected.get(why, (STARTING, ""))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b" " * (64 * 1024 - 2) + b"{}", "names no deployment"),
        (b" " * (64 * 1024 - 1) + b"{}", "at most 65536 bytes"),
        (b"[]", "not a deployment's context"),
        (b"\xff", "not a deployment's context"),
        (b'{"request_id": ""}', "names no deployment"),
        (b'{"request_id": 7}', "names no deployment"),
        (b'{"request_id": "' + b"x" * 101 + b'"}', "names no deployment"),
    ],
)
def test_what_is_no_context_is_told_so(data: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        decode_context(data)


def test_a_context_names_its_ids_and_its_address() -> None:
    """The deployment's own first; an address that is none is left out, because it becomes a key to watch."""
    found = decode_context(b'{"request_id": "b", "deployment_id": "a", "public_ip": "203.0.113.9"}')
    assert (found.ids, found.public_ip) == (("a", "b"), "203.0.113.9")
    for address in ('"*"', '">"', '""', "7", "null"):
        assert decode_context(b'{"request_id": "b", "public_ip": ' + address.encode() + b"}").public_ip == ""
    assert decode_context(b'{"request_id": "' + b"x" * 100 + b'"}').ids == ("x" * 100,)
