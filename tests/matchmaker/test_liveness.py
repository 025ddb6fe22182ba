"""How one matchmaker judges whether a server lives: messages of leases, questions to orchestrators, and what follows.

The parts are composed without their loops, so that nothing else repairs, or causes, what is looked at.
"""

from __future__ import annotations

import asyncio
import dataclasses

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA
from tipoff_orchestrator_client.base import Deployment, DeploySpec, OrchestratorUnavailable, RunState
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.changes import Change
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease, LeaseState

GONE, READY, PLANNED, STARTING = (
    DeploymentState.GONE,
    DeploymentState.READY,
    DeploymentState.PLANNED,
    DeploymentState.STARTING,
)


# Leases.


async def test_a_lease_makes_a_server_ready_and_trusted(fleet: Fleet) -> None:
    await fleet.server(STARTING)
    await fleet.parts.liveness.lease_changed(await fleet.says())
    assert fleet.record().state is READY
    assert fleet.trusted()


async def test_a_lease_from_before_the_start_makes_nobody_trusted(fleet: Fleet) -> None:
    """It may be older than a crash. One that is written afterwards counts, the very first, too."""
    await fleet.server(boot_id="boot")
    before = await fleet.says()
    await fleet.says("other")
    await fleet.parts.liveness.refresh(at_start=True)
    fleet.parts.liveness.forget_all()
    await fleet.parts.liveness.refresh(at_start=True)
    fleet.parts.trust.remove("one")
    await fleet.parts.liveness.lease_changed(before)
    assert not fleet.trusted()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    assert fleet.trusted()


async def test_without_leases_at_the_start_the_first_counts(fleet: Fleet) -> None:
    await fleet.parts.liveness.refresh(at_start=True)
    await fleet.server(boot_id="boot")
    await fleet.parts.liveness.lease_changed(await fleet.says())
    assert fleet.trusted()


async def test_a_message_that_was_overtaken_changes_nothing(fleet: Fleet) -> None:
    await fleet.server(boot_id="boot")
    old = await fleet.says(capacity=2)
    new = await fleet.says(capacity=3)
    await fleet.parts.liveness.lease_changed(old)
    assert not fleet.trusted(), "the key says something else by now, and its message comes"
    await fleet.parts.liveness.lease_changed(new)
    assert fleet.record().capacity == 3
    fleet.parts.trust.remove("one")
    await fleet.parts.liveness.lease_changed(old)
    await fleet.parts.liveness.lease_changed(new)
    assert not fleet.trusted(), "each is known already"


async def test_a_message_of_a_lease_that_is_gone_by_now_changes_nothing(fleet: Fleet) -> None:
    await fleet.server()
    message = await fleet.says()
    await fleet.falls_silent()
    await fleet.parts.liveness.lease_changed(message)
    assert not fleet.trusted()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boot_id", "another"),
        ("state", LeaseState.DRAINING),
        ("transports", Transports(udp=UdpAddress("127.0.0.1", 7778))),
        ("cert_digest", "ab" * 32),
        ("capacity", 3),
        ("internal", ["10.0.0.1:7777"]),
        ("websocket_port", 8080),
        ("locked", True),
    ],
)
async def test_whatever_changes_in_the_lease_of_a_trusted_server_is_written_down(
    fleet: Fleet, field: str, value: object
) -> None:
    await fleet.server(seats={"s": 9e9})
    await fleet.parts.liveness.lease_changed(await fleet.says())
    before = fleet.record()
    await fleet.parts.liveness.lease_changed(await fleet.says(**{field: value}))
    after = fleet.record()
    assert after != before
    assert getattr(after, field).value == value if field == "state" else getattr(after, field) == value


@pytest.mark.row(91)
async def test_a_lock_that_another_release_has_dropped_is_back_with_the_next_heartbeat(fleet: Fleet) -> None:
    """It writes the whole record, without what it does not know."""
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says(locked=True))
    assert fleet.record().locked
    await fleet.parts.deployments.change("one", lambda record: msgspec.structs.replace(record, locked=False))
    await fleet.parts.liveness.lease_changed(await fleet.says(locked=True))
    assert fleet.record().locked


async def test_a_heartbeat_costs_no_reading(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    beats = [await fleet.says(tick_ms=ms) for ms in (2.0, 3.0)]

    async def reads(*_: object) -> None:
        raise AssertionError("it reads")

    monkeypatch.setattr(fleet.parts.buckets.gameservers, "get", reads)
    for beat in beats:
        await fleet.parts.liveness.lease_changed(beat)
    assert fleet.trusted()


async def test_a_server_that_is_not_trusted_is_again_by_its_next_heartbeat(fleet: Fleet) -> None:
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    fleet.parts.trust.remove("one")
    await fleet.parts.liveness.lease_changed(await fleet.says(tick_ms=2.0))
    assert fleet.trusted()


@pytest.mark.parametrize(("expired", "why"), [(True, "it sends no heartbeat"), (False, "it said goodbye")])
async def test_a_lease_that_is_gone_is_a_suspicion_and_a_question(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, expired: bool, why: str
) -> None:
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    fleet.world.fake.fail("get", OrchestratorUnavailable("away", retryable=True))
    await fleet.parts.liveness.lease_changed(await fleet.falls_silent(expired=expired))
    assert not fleet.trusted()
    await fleet.settled()
    assert fleet.asked() == 1
    assert why in caplog.text
    assert fleet.record().state is READY, "an orchestrator that does not answer has not said that it is gone"


async def test_a_lease_that_is_back_is_no_suspicion(fleet: Fleet) -> None:
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    gone = await fleet.falls_silent()
    back = await fleet.says()
    await fleet.parts.liveness.lease_changed(gone)
    assert fleet.trusted()
    await fleet.parts.liveness.lease_changed(back)
    late = Change[GameserverLease]("one", None, back.revision - 1)
    await fleet.world.buckets.gameservers.delete("one")
    await fleet.parts.liveness.lease_changed(late)
    assert fleet.trusted(), "older than what is known"
    await fleet.settled()
    assert fleet.asked() == 0


async def test_a_lease_of_an_unknown_server_that_is_gone_asks_nobody(fleet: Fleet) -> None:
    await fleet.parts.liveness.lease_changed(await fleet.falls_silent("unknown"))
    await fleet.settled()
    assert fleet.asked() == 0


async def test_a_lease_that_is_gone_no_longer_vouches(fleet: Fleet) -> None:
    """Its orchestrator says that it runs; who sends no heartbeat may hang all the same."""
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    await fleet.parts.liveness.lease_changed(await fleet.falls_silent())
    await fleet.settled()
    assert not fleet.trusted()
    fleet.parts.liveness.confirm("one", "again")
    await fleet.settled()
    assert not fleet.trusted()


# Questions.


async def test_a_suspicion_that_was_wrong_ends_with_the_answer(fleet: Fleet) -> None:
    await fleet.server()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    fleet.parts.liveness.suspect("one", "a hint")
    assert not fleet.trusted()
    await fleet.settled()
    assert fleet.trusted()


@pytest.mark.parametrize(("boot_id", "trusted"), [("", True), ("boot", False)])
async def test_a_server_that_never_had_a_lease_is_trusted_by_its_orchestrator_only(
    fleet: Fleet, boot_id: str, trusted: bool
) -> None:
    await fleet.server(boot_id=boot_id)
    fleet.parts.liveness.suspect("one", "a hint")
    await fleet.settled()
    assert fleet.trusted() is trusted


@pytest.mark.parametrize("state", [STARTING, DeploymentState.DRAINING])
async def test_only_a_ready_server_is_trusted_by_an_answer(fleet: Fleet, state: DeploymentState) -> None:
    await fleet.server(state, deadline=9e9)
    fleet.parts.liveness.suspect("one", "a hint")
    await fleet.settled()
    assert not fleet.trusted()
    assert fleet.record().state is state


async def test_what_is_heard_during_a_question_is_asked_once_more(fleet: Fleet) -> None:
    await fleet.server()
    for why in ("one", "two", "three"):
        fleet.parts.liveness.confirm("one", why)
    await fleet.settled()
    assert fleet.asked() == 2
    fleet.parts.liveness.confirm("one", "later")
    await fleet.settled()
    assert fleet.asked() == 3


async def test_a_question_that_fails_says_what_raised_it(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.world.fake.fail("get", OrchestratorUnavailable("away", retryable=True), times=2)
    await fleet.server()
    for why in ("the first", "the second"):
        fleet.parts.liveness.confirm("one", why)
    await fleet.settled()
    assert "alive (the first)? away" in caplog.text
    assert "alive (the second)? away" in caplog.text


async def test_nothing_is_asked_any_more_when_this_process_ends(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(deployment_id: str) -> Deployment | None:
        fleet.world.fake.calls.append(("get", deployment_id))
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr(fleet.world.fake, "get", hangs)
    await fleet.server()
    for _ in range(2):
        fleet.parts.liveness.confirm("one", "a hint")
    await fleet.world.eventually(lambda: fleet.asked() == 1, "it is asked")
    await fleet.parts.tasks.close()
    assert not fleet.parts.tasks.running
    assert fleet.asked() == 1


async def test_nobody_asks_about_a_server_that_is_stopping_or_unknown(fleet: Fleet) -> None:
    await fleet.server()
    fleet.parts.stopper.stop("one", "enough")
    fleet.parts.liveness.confirm("one", "a hint")
    fleet.parts.liveness.confirm("unknown", "a hint")
    await fleet.settled()
    assert fleet.asked() == 0


async def test_a_server_of_an_unknown_orchestrator_is_left_alone(fleet: Fleet) -> None:
    await fleet.server(orchestrator="elsewhere")
    fleet.parts.liveness.confirm("one", "a hint")
    await fleet.settled()
    assert fleet.record().state is READY


@pytest.mark.parametrize("how", ["vanished", "stopped"])
@pytest.mark.parametrize("state", [STARTING, READY])
async def test_a_server_that_its_orchestrator_does_not_run_is_stopped(
    fleet: Fleet, how: str, state: DeploymentState
) -> None:
    heard: list[tuple[str, str]] = []
    fleet.parts.liveness.subscribe(lambda record, reason: heard.append((record.id, reason)))
    await fleet.server(state, deadline=9e9)
    fleet.parts.trust.add("one")
    fleet.world.fake.on_death = None
    if how == "vanished":
        await fleet.world.fake.vanish("one")
    else:
        await fleet.world.fake.kill("one", "killed by signal 9 (SIGKILL)")
    fleet.parts.liveness.confirm("one", "a hint")
    await fleet.settled()
    entry = await fleet.world.buckets.deployments.get("one")
    assert entry is not None
    assert entry.value.state is GONE
    assert entry.value.reason == (
        "the server is gone" if how == "vanished" else "killed by signal 9 (SIGKILL)"
    )
    assert not fleet.trusted()
    assert heard == ([("one", entry.value.reason)] if state is READY else []), "a start is its starter's"
    assert fleet.asked("stop") == 0, "it has said so itself"


async def test_players_go_elsewhere_before_the_stop_is_written_down(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.server()
    fleet.parts.trust.add("one")
    fleet.world.fake.on_death = None
    await fleet.world.fake.vanish("one")
    monkeypatch.setattr(fleet.parts.stopper, "stop", lambda *_, **__: None)
    fleet.parts.liveness.confirm("one", "a hint")
    await fleet.settled()
    assert not fleet.trusted()


async def test_a_planned_server_may_not_be_known_yet(fleet: Fleet) -> None:
    """Its start deadline holds. One that has stopped is known well enough."""
    record = DeploymentRecord("one", PLANNED, "arena", "1", "fake", capacity=4, created_at=1.0, deadline=9e9)
    await fleet.parts.deployments.create(record)
    fleet.parts.liveness.confirm("one", "a hint")
    await fleet.settled()
    assert fleet.record().state is PLANNED
    await fleet.world.fake.deploy(DeploySpec("one", "arena", "1", 4))
    fleet.world.fake.on_death = None
    await fleet.world.fake.kill("one")
    fleet.parts.liveness.confirm("one", "a hint")
    await fleet.settled()
    assert fleet.parts.deployments.get("one") is None


async def test_a_server_that_is_gone_while_we_start_it_is_stopped_there_as_well(fleet: Fleet) -> None:
    """Our call to start it may be on its way still."""
    record = DeploymentRecord("one", STARTING, "arena", "1", "fake", capacity=4, created_at=1.0, deadline=9e9)
    await fleet.parts.deployments.create(record)
    fleet.world.fake.never_ready()
    fleet.parts.starter.start(ARENA, "one", ())
    await fleet.world.eventually(lambda: fleet.asked("deploy") == 1, "it is being started")
    fleet.world.fake.on_death = None
    await fleet.world.fake.vanish("one")
    fleet.parts.liveness.confirm("one", "a hint")
    await fleet.settled()
    assert fleet.asked("stop") == 1


# Events of orchestrators.


async def test_an_event_that_a_server_stopped_is_a_suspicion(fleet: Fleet) -> None:
    await fleet.server()
    fleet.parts.trust.add("one")
    async with Followed(fleet):
        fleet.world.fake.on_death = None
        await fleet.world.fake.kill("one")
        await fleet.world.eventually(lambda: fleet.parts.deployments.get("one") is None, "it is gone")
        assert not fleet.trusted()


class Followed:
    """Events of the fleet's orchestrator are read for the time of the block."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(
            self._fleet.parts.liveness.follow(self._fleet.parts.orchestrators["fake"])
        )
        await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))


@pytest.mark.parametrize(("reason", "why"), [("out of memory", "out of memory"), ("", "it stopped")])
async def test_an_event_raises_the_question_with_its_reason(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, reason: str, why: str
) -> None:
    await fleet.server()
    fleet.world.fake.fail("get", OrchestratorUnavailable("away", retryable=True), times=5)
    async with Followed(fleet):
        fleet.world.fake.tell(Deployment("one", "arena", "1", RunState.STOPPED, native_id="n", reason=reason))
        await fleet.world.eventually(lambda: f"alive ({why})?" in caplog.text, "it is asked")


async def test_events_tell_what_a_start_is_doing(fleet: Fleet) -> None:
    fleet.world.fake.never_ready()
    await fleet.server(STARTING, deadline=9e9)
    event = Deployment("one", "arena", "1", RunState.STARTING, native_id="n", reason="fetching the image")
    async with Followed(fleet):
        fleet.world.fake.tell(dataclasses.replace(event, deployment_id="unknown"))
        fleet.world.fake.tell(event)
        await fleet.world.eventually(
            lambda: fleet.parts.starter.doing([fleet.record()]) == "fetching the image", "it is known"
        )
    assert fleet.asked() == 0


async def test_an_event_that_it_runs_makes_no_server_ready_that_announces_itself(fleet: Fleet) -> None:
    fleet.world.fake.never_ready()
    await fleet.server(STARTING, deadline=9e9)
    async with Followed(fleet):
        fleet.world.fake.run("one")
        fleet.world.fake.tell(Deployment("two", "arena", "1", RunState.RUNNING, native_id="n"))
        await asyncio.sleep(0)
        await fleet.settled()
    assert fleet.asked() == 0
    assert fleet.record().state is STARTING


@pytest.mark.parametrize("state", [PLANNED, STARTING])
async def test_a_server_that_is_ready_by_running_is_asked_about_and_ready(
    running: Fleet, state: DeploymentState
) -> None:
    running.world.fake.never_ready()
    await running.server(state, deadline=9e9)
    async with Followed(running):
        running.world.fake.tell(Deployment("one", "arena", "1", RunState.RUNNING, native_id="n"))
        await running.world.eventually(lambda: running.asked() == 1, "the orchestrator is asked")
        await running.settled()
        assert running.record().state is state, "anybody may have sent the event"
        running.world.fake.run("one")
        await running.world.eventually(lambda: running.record().state is READY, "it is ready")
        await running.settled()
    assert running.trusted()
    assert running.asked() == 2


async def test_readiness_that_cannot_be_written_is_left_to_the_reconciler(
    running: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await running.server(STARTING, deadline=9e9)
    running.world.fake.run("one")

    async def away(*_: object) -> None:
        raise Unavailable("NATS is away")

    monkeypatch.setattr(running.parts.readiness, "runs", away)
    running.parts.liveness.confirm("one", "a hint")
    await running.settled()
    assert "left to the reconciler" in caplog.text or running.record().state is STARTING
    assert "task" not in caplog.text or "failed" not in caplog.text
