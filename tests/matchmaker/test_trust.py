"""Which servers may get players, as their records and their leases change."""

from __future__ import annotations

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tipoff_shared.records import DeploymentState

PLANNED, STARTING, READY = DeploymentState.PLANNED, DeploymentState.STARTING, DeploymentState.READY
DRAINING, STOPPING, GONE = DeploymentState.DRAINING, DeploymentState.STOPPING, DeploymentState.GONE


async def becomes(fleet: Fleet, state: DeploymentState) -> None:
    await fleet.parts.deployments.change("one", lambda record: msgspec.structs.replace(record, state=state))


@pytest.mark.parametrize("before", [PLANNED, STARTING])
async def test_a_server_that_becomes_ready_is_trusted_at_once(fleet: Fleet, before: DeploymentState) -> None:
    heard: list[tuple[str, bool]] = []
    fleet.parts.trust.subscribe(lambda id: heard.append((id, id in fleet.parts.trust)))
    await fleet.server(before)
    assert not fleet.trusted()
    await becomes(fleet, READY)
    assert fleet.trusted()
    assert heard == [("one", True)]


async def test_a_server_that_was_ready_before_is_trusted_when_it_is_heard(fleet: Fleet) -> None:
    """Another matchmaker made it ready, perhaps long ago."""
    await fleet.server(READY)
    assert not fleet.trusted()


@pytest.mark.parametrize("state", [STARTING, DRAINING, STOPPING, GONE])
async def test_no_other_state_makes_a_server_trusted(fleet: Fleet, state: DeploymentState) -> None:
    await fleet.server(PLANNED)
    await becomes(fleet, state)
    assert not fleet.trusted()


async def test_a_server_that_is_gone_is_forgotten(fleet: Fleet) -> None:
    await fleet.server(READY)
    fleet.parts.trust.add("one")
    await becomes(fleet, STOPPING)
    assert fleet.trusted(), "its players play until it is gone"
    await becomes(fleet, GONE)
    assert not fleet.trusted()


async def test_listeners_hear_of_each_change_once(fleet: Fleet) -> None:
    heard: list[tuple[str, bool]] = []
    trust = fleet.parts.trust
    for _ in range(2):
        trust.subscribe(lambda id: heard.append((id, id in trust)))
    trust.remove("one")
    for _ in range(2):
        trust.add("one")
    trust.add("two")
    for _ in range(2):
        trust.remove("one")
    assert heard == [("one", True)] * 2 + [("two", True)] * 2 + [("one", False)] * 2
    assert "two" in trust
