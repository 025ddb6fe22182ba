"""What makes a server ready, and what keeps it from it: its lease, its key, its addresses, its boot."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, games_of
from tipoff_matchmaker.errors import NoRecord
from tipoff_matchmaker.tokens import Tokens
from tipoff_orchestrator_client.base import Deployment, Port, RunState
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease, LeaseState, SessionState

READY, STARTING, GONE = DeploymentState.READY, DeploymentState.STARTING, DeploymentState.GONE


async def seen(fleet: Fleet, id: str = "one", **changes: object) -> None:
    lease = (await fleet.says(id, **changes)).value
    assert lease is not None
    await fleet.parts.readiness.lease_seen(lease)
    await fleet.settled()


async def test_a_record_that_this_process_does_not_know_yet_is_read(fleet: Fleet) -> None:
    record = DeploymentRecord("one", STARTING, "arena", "1", "fake", capacity=4, created_at=1.0, deadline=9e9)
    await fleet.world.buckets.deployments.create("one", record)
    await seen(fleet)
    assert (await fleet.written()).state is READY
    assert fleet.trusted()


async def test_a_known_record_costs_no_reading(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reads(_: str) -> None:
        raise AssertionError("it reads")

    await fleet.server(STARTING, deadline=9e9)
    monkeypatch.setattr(fleet.parts.deployments, "fetch", reads)
    await seen(fleet)
    assert fleet.trusted()


@pytest.mark.parametrize(("game", "version"), [("other", "1"), ("arena", "2")])
async def test_a_server_that_says_it_is_another_game_gets_no_players(
    fleet: Fleet, game: str, version: str
) -> None:
    await fleet.server(STARTING, deadline=9e9)
    await seen(fleet, game=game, version=version)
    assert fleet.record().state is STARTING
    assert not fleet.trusted()


async def test_a_lease_of_an_unknown_or_ended_server_is_nothing(fleet: Fleet) -> None:
    await seen(fleet, "unknown")
    await fleet.server()
    await fleet.parts.deployments.change("one", lambda r: msgspec.structs.replace(r, state=GONE))
    await seen(fleet)
    assert not fleet.trusted()
    assert not fleet.trusted("unknown")


@pytest.mark.parametrize(("reason", "expected"), [("blue won\n", "blue won"), ("", "the match is over")])
async def test_a_match_that_is_over_stops_its_server(fleet: Fleet, reason: str, expected: str) -> None:
    await fleet.server()
    fleet.parts.trust.add("one")
    stopped = fleet.parts.stopper.stop
    trusted: list[bool] = []
    fleet.parts.stopper.stop = lambda *args, **options: (  # type: ignore[method-assign]
        trusted.append(fleet.trusted()), stopped(*args, **options))[1]  # fmt: skip
    await seen(fleet, state=LeaseState.ENDED, reason=reason)
    record = await fleet.written()
    assert (record.state, record.reason) == (GONE, expected)
    assert trusted == [False], "players go elsewhere before"


@pytest.mark.parametrize(
    ("reason", "expected"), [("to be\nupdated", "to be updated"), ("", "the server no longer admits players")]
)
async def test_a_server_that_admits_no_more_drains(fleet: Fleet, reason: str, expected: str) -> None:
    await fleet.server(seats={"s": 9e9})
    await seen(fleet, state=LeaseState.DRAINING, reason=reason)
    record = await fleet.written()
    assert (record.state, record.reason) == (DeploymentState.DRAINING, expected)
    assert not fleet.trusted()


async def test_the_key_that_its_lease_names_is_the_one_of_its_tokens(fleet: Fleet) -> None:
    tokens = Tokens(games_of(ARENA), "")
    shared = tokens.key(ARENA, "one", own_key=False).fingerprint
    own = tokens.key(ARENA, "one", own_key=True).fingerprint
    await fleet.server(own_key=True)
    for key, expected in ((shared, False), (own, True), ("", True), ("another", True)):
        await seen(fleet, key=key)
        assert fleet.record().own_key is expected


async def test_a_server_with_a_foreign_key_is_said_to_refuse_its_players(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    await fleet.server()
    await seen(fleet, key="another")
    assert "has another netcode key (another) than arena 1" in caplog.text
    caplog.clear()
    await seen(fleet, key="")
    assert "netcode key" not in caplog.text


@pytest.mark.parametrize("state", [LeaseState.READY, LeaseState.DRAINING])
async def test_a_server_whose_address_cannot_be_used_is_stopped(fleet: Fleet, state: LeaseState) -> None:
    await fleet.server(STARTING, deadline=9e9)
    await seen(fleet, transports=Transports(udp=UdpAddress("0.0.0.0", 7777)), state=state)
    record = await fleet.written()
    assert record.state is GONE
    assert "0.0.0.0" in record.reason
    assert not fleet.trusted()


async def test_a_server_of_a_dropped_game_is_followed_without_its_addresses(fleet: Fleet) -> None:
    await fleet.server(game="dropped")
    await seen(fleet, game="dropped", key="another", transports=Transports(udp=UdpAddress("0.0.0.0", 7777)))
    assert fleet.record().boot_id == "boot"


@pytest.mark.parametrize(("boot", "ends"), [("", False), ("boot", False), ("earlier", True)])
async def test_sessions_of_an_earlier_boot_end(fleet: Fleet, boot: str, ends: bool) -> None:
    await fleet.server(boot_id=boot, seats={"s": 9e9, "t": 9e9})
    await fleet.session("s", SessionState.ACTIVE, boot_id=boot)
    await fleet.session("t", SessionState.ACTIVE, boot_id="boot")
    await seen(fleet)
    session, living = await fleet.world.session("s"), await fleet.world.session("t")
    assert living is not None
    assert living.state is SessionState.ACTIVE
    if ends:
        assert session is None or session.state in (SessionState.CLOSING, SessionState.GONE)
    else:
        assert session is not None
        assert session.state is SessionState.ACTIVE
    assert fleet.record().boot_id == "boot"
    assert fleet.trusted()


async def test_sessions_of_an_earlier_boot_end_also_when_the_record_is_gone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.server(boot_id="earlier", seats={"s": 9e9})
    await fleet.session("s", SessionState.ACTIVE, boot_id="earlier")

    def gone(*_: object) -> asyncio.Future[DeploymentRecord]:
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        future.set_exception(NoRecord("it has no record"))
        return future

    monkeypatch.setattr(fleet.parts.deployments, "change", gone)
    lease = (await fleet.says()).value
    assert isinstance(lease, GameserverLease)
    await fleet.parts.readiness.lease_seen(lease)
    session = await fleet.world.session("s")
    assert session is None or session.state in (SessionState.CLOSING, SessionState.GONE)


def running(**ports: Port) -> Deployment:
    return Deployment("one", "arena", "1", RunState.RUNNING, native_id="n", host="127.0.0.1", ports=ports)


async def test_what_an_orchestrator_says_makes_a_server_ready(fleet: Fleet) -> None:
    await fleet.server(STARTING, deadline=9e9)
    await fleet.parts.readiness.runs(running(udp=Port(7777, 7777, "UDP")), "ab" * 32)
    record = await fleet.written()
    assert (record.state, record.cert_digest) == (READY, "ab" * 32)
    assert record.transports.udp == UdpAddress("127.0.0.1", 7777)
    assert fleet.trusted()
    await fleet.parts.readiness.runs(
        Deployment("unknown", "arena", "1", RunState.RUNNING, native_id="n", host="127.0.0.1")
    )
    assert not fleet.trusted("unknown")


async def test_an_orchestrator_without_a_usable_address_makes_nothing_ready(fleet: Fleet) -> None:
    await fleet.server(STARTING, deadline=9e9)
    await fleet.parts.readiness.runs(running())
    await fleet.settled()
    assert not fleet.trusted()
    assert (await fleet.written()).state is GONE


async def test_the_address_of_a_server_that_is_gone_is_forgotten(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(Tokens, "forget", lambda self, id: forgotten.append(id))
    await fleet.server()
    await seen(fleet)
    assert forgotten == []
    await fleet.parts.deployments.change("one", lambda r: msgspec.structs.replace(r, state=GONE))
    assert forgotten == ["one"]
