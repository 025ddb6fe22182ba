"""Each way in which the emulator misbehaves to order (rows 37 to 45 of the catalogue are played with these)."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from tests.edgegap_emulator.emulator_account import Accounts, order, phase
from tipoff_edgegap_emulator import (
    Dies,
    Drip,
    Fail,
    Garbage,
    GoesWrong,
    Huge,
    NeverReady,
    Phase,
    Silent,
    Spoil,
    Vanishes,
    empty_list,
    null_address,
    port_70000,
    without_ports,
)

UNANSWERED = httpx.Timeout(10, read=0.05)
"""A connection comes about, however slow the machine; only the answer is not waited for."""


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_failure_and_then_health(account: Accounts, status: int) -> None:
    async with account() as it:
        it.emulator.misbehave("deploy", Fail(status, retry_after=1.5), times=1)
        first = await it.deploy()
        assert (first.status_code, first.headers["retry-after"]) == (status, "1.5")
        assert it.emulator.deployments == []
        assert (await it.deploy()).status_code == 202


async def test_a_failure_that_was_carried_out(account: Accounts) -> None:
    async with account() as it:
        it.emulator.misbehave("deploy", Fail(500, carried_out=True), times=1)
        assert (await it.deploy()).status_code == 500
        assert len(it.emulator.deployments) == 1


async def test_no_answer_but_created_late(account: Accounts) -> None:
    """Row 38."""
    async with account() as it:
        it.emulator.misbehave("deploy", Silent(carried_out_after=0.15), times=1)
        with pytest.raises(httpx.ReadTimeout):
            await it.client.post("/v2/deployments", json=order(tags=["late"]), timeout=UNANSWERED)
        assert it.emulator.deployments == []
        await it.emulator.until(lambda e: [one.tags for one in e.deployments] == [["late"]])


async def test_no_answer_and_nothing_done(account: Accounts) -> None:
    async with account() as it:
        taken = it.emulator.misbehave("deploy", Silent(carried_out_after=None))
        with pytest.raises(httpx.ReadTimeout):
            await it.client.post("/v2/deployments", json=order(), timeout=UNANSWERED)
        assert (taken.taken, it.emulator.deployments) == (1, [])


async def test_an_answer_that_drips(account: Accounts) -> None:
    async with account() as it:
        it.emulator.misbehave("list", Drip(every=0.01, size=20))
        began = time.monotonic()
        answer = await it.client.get("/v1/deployments")
        assert answer.json()["data"] == []
        assert time.monotonic() - began > 0.05


async def test_an_answer_without_end(account: Accounts) -> None:
    """A client that reads on gets all of it; one that stops reading stops it."""
    async with account() as it:
        it.emulator.misbehave("list", Huge(1_000_000), times=1)
        assert len((await it.client.get("/v1/deployments")).content) == 1_000_000
        it.emulator.misbehave("list", Huge(), times=1)
        async with it.client.stream("GET", "/v1/deployments") as answer:
            assert answer.headers["content-length"] == "104857600"
            async for _ in answer.aiter_bytes(1000):
                break
        assert (await it.client.get("/v1/deployments")).status_code == 200


async def test_an_answer_that_is_no_json(account: Accounts) -> None:
    async with account() as it:
        it.emulator.misbehave("list", Garbage())
        with pytest.raises(json.JSONDecodeError):
            (await it.client.get("/v1/deployments")).json()


async def test_ports_and_addresses_that_nobody_can_use(account: Accounts) -> None:
    """Row 40: missing ports, null for an address, port 70000; in a status, a list and a session alike."""
    async with account() as it:
        request_id = await it.ready()
        it.emulator.misbehave("status", Spoil(without_ports), times=1)
        assert "ports" not in (await it.status(request_id)).json()
        it.emulator.misbehave("status", Spoil(null_address), times=1)
        assert (await it.status(request_id)).json()["public_ip"] is None
        it.emulator.misbehave("list", Spoil(port_70000), times=1)
        listed = (await it.client.get("/v1/deployments")).json()["data"][0]
        assert {port["external"] for port in listed["ports"].values()} == {70_000}
        healthy = (await it.status(request_id)).json()
        assert 0 < healthy["ports"]["udp"]["external"] < 65_536


async def test_a_list_that_is_empty_though_all_is_well(account: Accounts) -> None:
    """Row 45."""
    async with account() as it:
        request_id = await it.ready()
        it.emulator.misbehave("list", Spoil(empty_list), times=1)
        assert (await it.client.get("/v1/deployments")).json()["data"] == []
        assert (await it.client.get("/v1/deployments")).json()["data"][0]["request_id"] == request_id


async def test_a_deployment_that_never_gets_ready(account: Accounts) -> None:
    """Row 41."""
    async with account() as it:
        it.emulator.misbehave("life", NeverReady(), times=1)
        request_id = (await it.deploy()).json()["request_id"]
        other = await it.ready()
        assert phase(it.emulator, request_id) is Phase.INITIALIZING
        assert it.emulator.fleet.running == [other]
        assert (await it.client.delete(f"/v1/stop/{request_id}")).status_code == 202


async def test_a_deployment_that_goes_wrong(account: Accounts) -> None:
    async with account() as it:
        it.emulator.misbehave("life", GoesWrong("Pull image timeout exceeded"), times=1)
        request_id = (await it.deploy()).json()["request_id"]
        await it.emulator.until(lambda e: phase(e, request_id) is Phase.ERROR)
        status = (await it.status(request_id)).json()
        assert (status["error"], status["error_detail"]) == (True, "Pull image timeout exceeded")


async def test_ready_and_then_dead(account: Accounts) -> None:
    """Row 42."""
    async with account() as it:
        it.emulator.misbehave("life", Dies(after=0.02), times=1)
        request_id = (await it.deploy()).json()["request_id"]
        await it.emulator.until(lambda e: phase(e, request_id) is Phase.TERMINATED)
        assert it.emulator.deployments == []


async def test_ready_and_then_never_heard_of(account: Accounts) -> None:
    """Row 42: gone from the list and unknown; nothing of it runs."""
    async with account() as it:
        it.emulator.misbehave("life", Vanishes(after=0.02), times=1)
        request_id = (await it.deploy()).json()["request_id"]
        await it.emulator.until(lambda e: phase(e, request_id) is None and not e.fleet.running)
        assert (await it.status(request_id)).status_code == 400


async def test_ready_and_then_missing_from_the_list_alone(account: Accounts) -> None:
    async with account() as it:
        it.emulator.misbehave("life", Vanishes(hidden=True), times=1)
        request_id = (await it.deploy()).json()["request_id"]
        await it.emulator.until(lambda e: phase(e, request_id) is Phase.READY and not e.deployments)
        assert (await it.client.get("/v1/deployments")).json()["total_count"] == 0
        assert (await it.status(request_id)).json()["running"] is True


@pytest.mark.parametrize("status", [404, 410, 500])
async def test_a_stop_that_answers_otherwise(account: Accounts, status: int) -> None:
    """Row 44: done all the same, or not done at all."""
    async with account() as it:
        request_id = await it.ready()
        it.emulator.misbehave("stop", Fail(status, carried_out=status != 500), times=1)
        assert (await it.client.delete(f"/v1/stop/{request_id}")).status_code == status
        assert (phase(it.emulator, request_id) is Phase.READY) is (status == 500)


async def test_behaving_again(account: Accounts) -> None:
    async with account() as it:
        it.emulator.misbehave("list", Fail(500))
        assert (await it.client.get("/v1/deployments")).status_code == 500
        it.emulator.behave()
        assert (await it.client.get("/v1/deployments")).status_code == 200
