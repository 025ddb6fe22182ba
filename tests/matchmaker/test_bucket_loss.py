"""What one matchmaker forgets, and whom it asks, when NATS has lost a bucket."""

from __future__ import annotations

import pytest
from nats.aio.msg import Msg

from tests.matchmaker.fleet import Fleet
from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.reconciler.bucket_loss import BucketLoss
from tipoff_shared.errors import Unavailable
from tipoff_shared.records import DeploymentState, Report, SessionState, decode_command

pytestmark = pytest.mark.row(85)


class Loss:
    """A loss that is noticed, and what is heard of it."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = fleet
        parts = fleet.parts
        self.lost: dict[str, float] = {}
        self.loss = BucketLoss(
            parts.bus, self, parts.deployments, parts.sessions, parts.liveness, parts.hearing, parts.tasks
        )
        self.asked: list[str] = []
        self.unsettled = 0
        lost = Hearing.lost

        def noted(hearing: Hearing) -> None:
            self.unsettled += 1
            lost(hearing)

        monkeypatch.setattr(Hearing, "lost", noted)

    def subscribe(self, listener: object) -> None:
        """As `BucketAges` does; losses are noticed by the test."""

    async def listen(self, *servers: str) -> None:
        for server in servers:

            async def heard(msg: Msg, server: str = server) -> None:
                if isinstance(decode_command(msg.data), Report):
                    self.asked.append(server)

            await self.fleet.world.bus.nc.subscribe(self.fleet.world.bus.subjects.commands(server), cb=heard)
        await self.fleet.world.bus.flush()

    async def noticed(self, bucket: str) -> None:
        self.loss.noticed(bucket)
        await self.fleet.settled()
        await self.fleet.world.bus.flush()


@pytest.fixture
def loss(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Loss:
    return Loss(fleet, monkeypatch)


async def test_lost_deployments_are_forgotten_and_only_these(loss: Loss) -> None:
    await loss.fleet.server()
    for other in ("sessions", "gameservers", "active_connections", "fleets"):
        await loss.noticed(other)
    assert loss.fleet.parts.deployments.get("one") is not None
    await loss.noticed("deployments")
    assert loss.fleet.parts.deployments.get("one") is None


async def test_lost_sessions_are_forgotten(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[None] = []
    monkeypatch.setattr(loss.fleet.parts.sessions, "forget_all", lambda: forgotten.append(None))
    await loss.noticed("deployments")
    assert len(forgotten) == 0
    await loss.noticed("sessions")
    assert len(forgotten) == 1
    assert loss.unsettled == 0


async def test_lost_leases_mean_nothing_and_revisions_begin_anew(loss: Loss) -> None:
    fleet = loss.fleet
    await fleet.server()
    await fleet.session("s", SessionState.ACTIVE)
    for _ in range(5):
        await fleet.says()
    await fleet.parts.liveness.refresh(at_start=True)
    await fleet.world.bus.js.purge_stream(fleet.world.buckets.gameservers.stream)
    await loss.noticed("gameservers")
    assert loss.unsettled == 1
    again = await fleet.says()
    await fleet.parts.liveness.lease_changed(again)
    assert fleet.trusted(), "what was known before does not count any longer"


async def test_servers_are_asked_for_lost_connections(loss: Loss) -> None:
    await loss.fleet.server()
    await loss.fleet.server(id="two")
    await loss.listen("one", "two")
    for other in ("deployments_other", "sessions", "gameservers"):
        await loss.noticed(other)
    assert loss.asked == []
    await loss.noticed("active_connections")
    await loss.fleet.world.eventually(lambda: sorted(loss.asked) == ["one", "two"], "they are asked")
    assert loss.unsettled == 2


async def test_servers_that_cannot_be_asked_report_by_themselves(
    loss: Loss, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("NATS is away")

    await loss.fleet.server()
    monkeypatch.setattr(loss.fleet.parts.bus, "publish", away)
    await loss.noticed("active_connections")
    assert "failed" not in caplog.text


@pytest.mark.parametrize(("lost", "asked"), [("active_connections", True), ("sessions", False)])
async def test_a_server_whose_record_is_back_is_asked_while_connections_are_lost(
    loss: Loss, lost: str, asked: bool
) -> None:
    loss.lost = {lost: 1.0}
    await loss.listen("one")
    await loss.fleet.server(DeploymentState.STARTING, deadline=9e9)
    await loss.fleet.settled()
    assert loss.asked == []
    await loss.fleet.parts.liveness.lease_changed(await loss.fleet.says())
    await loss.fleet.settled()
    await loss.fleet.world.bus.flush()
    await loss.fleet.world.eventually(lambda: loss.asked == (["one"] if asked else []), "it is asked")
