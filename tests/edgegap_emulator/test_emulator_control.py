"""Orders for an emulator from another process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.edgegap_emulator.emulator_account import Accounts, phase
from tipoff_edgegap_emulator import Phase


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ({"operation": "status", "how": "Fail", "status": 503, "retry_after": 2, "times": 1}, 503),
        ({"operation": "status", "how": "Huge", "size": 10, "times": 1}, 200),
        ({"operation": "status", "how": "null_address"}, 200),
    ],
)
async def test_it_misbehaves_by_http(account: Accounts, order: dict[str, Any], status: int) -> None:
    async with account() as it:
        request_id = await it.ready()
        assert (await it.client.post("/emulator/misbehave", json=order)).status_code == 200
        answer = await it.status(request_id)
        assert answer.status_code == status
        if order["how"] == "null_address":
            assert answer.json()["public_ip"] is None
        await it.client.post("/emulator/behave")
        assert (await it.status(request_id)).json()["public_ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    "order",
    [
        None,
        [],
        {},
        {"operation": "status", "how": "Fail"},
        {"operation": "status", "how": "Nonsense"},
        {"operation": "nonsense", "how": "Fail", "status": 500},
        {"operation": "status", "how": "Fail", "status": "500"},
        {"operation": "status", "how": "Fail", "status": 500, "times": 0},
        {"operation": "status", "how": "Fail", "status": 500, "often": 3},
        {"operation": "status", "how": "NeverReady"},
    ],
)
async def test_an_order_that_is_not_understood(account: Accounts, order: Any) -> None:
    async with account() as it:
        answer = await it.client.post("/emulator/misbehave", content=json.dumps(order))
        assert answer.status_code == 400
        assert it.emulator.plan.take("status") is None


async def test_it_tells_what_it_has_seen(account: Accounts) -> None:
    async with account() as it:
        await it.ready()
        await it.deploy(nonsense=1)
        seen = (await it.client.get("/emulator")).json()
        assert (seen["deployments"], seen["requests"], seen["answers"]) == (
            1,
            {"deploy": 2},
            {"202": 1, "400": 1},
        )
        assert seen["problems"] == ["POST /v2/deployments: nonsense: Edgegap knows no such member"]


async def test_a_server_dies_by_http(account: Accounts) -> None:
    async with account() as it:
        request_id = await it.ready()
        assert (await it.client.post(f"/emulator/kill/{request_id}")).status_code == 200
        await it.emulator.until(lambda e: phase(e, request_id) is Phase.TERMINATED)
        assert (await it.client.post("/emulator/kill/nobody")).status_code == 404


async def test_orders_need_the_token(account: Accounts) -> None:
    async with account() as it:
        for method, path in (("GET", ""), ("POST", "/misbehave"), ("POST", "/behave")):
            answer = await it.client.request(method, f"/emulator{path}", headers={"authorization": "token x"})
            assert answer.status_code == 401
