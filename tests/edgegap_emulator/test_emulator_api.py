"""The emulator as a client meets it: every endpoint over HTTP, servers that are real processes."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from tests.edgegap_emulator.emulator_account import Accounts, at_once, order, phase
from tipoff_edgegap_emulator import Options, Phase, Rules

SESSIONS = """
[[game]]
name = "arena"
version = "1"
orchestrator = "edgegap-sessions"
seats = 2

[game.edgegap]
application = "arena-app"
version = "v1"

[game.process]
command = ["sleep", "600"]
"""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIPOFF_EDGEGAP_TOKEN", raising=False)


async def test_a_deployment_from_order_to_end(account: Accounts) -> None:
    """202, ready with address and ports, listed, stopped, gone."""
    async with account() as it:
        request_id = await it.ready(tags=["mine"])
        status = (await it.status(request_id)).json()
        assert (status["running"], status["error"], status["public_ip"]) == (True, False, "127.0.0.1")
        assert status["ports"]["udp"]["external"] == status["ports"]["udp"]["internal"]
        listed = (await it.client.get("/v1/deployments")).json()
        assert [(one["request_id"], one["ready"], one["tags"]) for one in listed["data"]] == [
            (request_id, True, ["mine"])
        ]
        assert it.emulator.fleet.running == [request_id]
        assert (await it.client.delete(f"/v1/stop/{request_id}")).status_code == 200
        assert (await it.client.delete(f"/v1/stop/{request_id}")).status_code == 410
        assert (await it.client.get("/v1/deployments")).json()["data"] == []
        assert it.emulator.problems == []


async def test_an_answer_waits_for_no_acknowledgement(account: Accounts) -> None:
    """On a connection that is kept, Nagle's algorithm would hold each body back for 40 ms."""
    async with account(at_once(rates={})) as it:
        took: list[float] = []
        for _ in range(30):
            began = time.perf_counter()
            await it.client.get("/v1/deployments")
            took.append(time.perf_counter() - began)
        assert sorted(took)[20] < 0.03, took


async def test_states_are_spelt_in_three_ways(account: Accounts) -> None:
    """As the real one's are."""
    async with account(at_once(rates={})) as it:
        seen = set()
        for _ in range(40):
            request_id = (await it.deploy()).json()["request_id"]
            seen.add((await it.status(request_id)).json()["current_status"].replace("INITIALIZING", "X"))
            if len(seen) == 3:
                break
            await it.client.delete(f"/v1/stop/{request_id}")
        assert {word.removeprefix("Status.").removeprefix("STATUS_") for word in seen} <= {"X", "READY"}
        assert len(seen) >= 3


async def test_an_unknown_id_is_a_bad_request_of_status_and_not_found_of_stop(account: Accounts) -> None:
    async with account() as it:
        assert (await it.status("0123456789ab")).status_code == 400
        assert (await it.client.delete("/v1/stop/0123456789ab")).status_code == 404


@pytest.mark.parametrize("header", ["", "token wrong", "Bearer {token}", "{token}"])
async def test_without_the_right_token_nothing_is_said(account: Accounts, header: str) -> None:
    async with account() as it:
        headers = {"authorization": header.format(token=it.emulator.token)}
        async with httpx.AsyncClient(
            base_url=it.emulator.url, headers=headers, trust_env=False, verify=False
        ) as stranger:
            answer = await stranger.post("/v2/deployments", json=order())
        assert answer.status_code == 401
        assert it.emulator.deployments == []


async def test_a_request_that_is_not_understood_is_told_why_and_recorded(account: Accounts) -> None:
    async with account() as it:
        answer = await it.client.post("/v2/deployments", json=order(users=[], nonsense=1))
        assert answer.status_code == 400
        assert set(answer.json()) == {"message", "details"}
        assert it.emulator.problems == [
            "POST /v2/deployments: users: at least 1 item(s) are expected",
            "POST /v2/deployments: nonsense: Edgegap knows no such member",
        ]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_no_json(account: Accounts, body: bytes) -> None:
    async with account() as it:
        assert (await it.client.post("/v2/deployments", content=body)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v2/deployments"), ("POST", "/v1/status/abc"), ("GET", "/"), ("GET", "/v3/x")],
)
async def test_an_endpoint_that_there_is_not(account: Accounts, method: str, path: str) -> None:
    async with account() as it:
        assert (await it.client.request(method, path)).status_code == 404
        assert len(it.emulator.problems) == 1


@pytest.mark.parametrize("path", ["//v1/deployments", "/v1//deployments", "//v1///deployments"])
async def test_doubled_slashes_are_one(account: Accounts, path: str) -> None:
    """bevygap joins a base URL that ends in a slash with paths that begin with one."""
    async with account() as it:
        answer = await it.client.get(f"{it.emulator.url}{path}")
        assert (answer.status_code, it.emulator.problems) == (200, [])


async def test_what_query_edgegap_does_not_know(account: Accounts) -> None:
    async with account() as it:
        for query in ("tag=x", "page=0", "limit=-1", "page=x"):
            assert (await it.client.get(f"/v1/deployments?{query}")).status_code == 400


async def test_over_the_rate_limit_is_429(account: Accounts) -> None:
    """And within it is not."""
    async with account(at_once(rates={"status": 5})) as it:
        answers = [(await it.status("0123456789ab")).status_code for _ in range(7)]
        assert answers == [400] * 5 + [429] * 2
        assert it.emulator.count("status", 429) == 2


async def test_nothing_could_be_placed(account: Accounts) -> None:
    """422 with a request id; what is left behind is in error, listed, and can be stopped."""
    async with account(Options(rules=Rules(start_delay=0, capacity=1))) as it:
        await it.ready()
        answer = await it.deploy()
        assert answer.status_code == 422
        left = answer.json()["request_id"]
        status = (await it.status(left)).json()
        assert (status["error"], status["running"], status["error_detail"] != "") == (True, False, True)
        assert (await it.client.delete(f"/v1/stop/{left}")).status_code == 200
        assert len(it.emulator.deployments) == 1


@pytest.mark.parametrize("names", [{"application": "other"}, {"version": "v2"}])
async def test_what_there_is_not_cannot_be_deployed(account: Accounts, names: dict[str, str]) -> None:
    async with account() as it:
        assert (await it.deploy(**names)).status_code == 400


async def test_the_list_comes_in_pages(account: Accounts) -> None:
    """Each deployment on one of them, as long as nothing changes."""
    async with account(Options(rules=Rules(start_delay=60), rates={})) as it:
        made = {(await it.deploy()).json()["request_id"] for _ in range(7)}
        seen: list[str] = []
        page: int | None = 1
        while page is not None:
            answer = (await it.client.get("/v1/deployments", params={"page": page, "limit": 3})).json()
            seen += [one["request_id"] for one in answer["data"]]
            page = answer["pagination"]["next_page_number"]
        assert answer["total_count"] == 7
        assert (len(seen), set(seen)) == (7, made)
        assert len((await it.client.get("/v1/deployments")).json()["data"]) == 7


async def test_a_server_may_end_its_own_deployment(account: Accounts) -> None:
    """With the token it was given, and no other."""
    async with account() as it:
        request_id = await it.ready()
        path = f"/v1/self/stop/{request_id}/660"
        token = it.emulator.state.deployments[request_id].delete_token
        async with httpx.AsyncClient(base_url=it.emulator.url, trust_env=False, verify=False) as server:
            assert (await server.delete(path, headers={"authorization": "wrong"})).status_code == 401
            assert (await server.delete(path, headers={"authorization": token})).status_code == 200
        await it.emulator.until(lambda e: not e.fleet.running)
        assert phase(it.emulator, request_id) is Phase.TERMINATED


async def test_a_server_that_dies_ends_its_deployment(account: Accounts) -> None:
    """The version's restart_policy is never."""
    async with account() as it:
        request_id = await it.ready()
        await it.emulator.kill_server(request_id)
        await it.emulator.until(lambda e: phase(e, request_id) is Phase.TERMINATED)


async def test_a_server_that_cannot_be_started_is_a_deployment_in_error(account: Accounts) -> None:
    from tests.edgegap_emulator.emulator_account import GAMES

    async with account(text=GAMES.replace('["sleep", "600"]', '["./nonsense"]')) as it:
        request_id = (await it.deploy()).json()["request_id"]
        await it.emulator.until(lambda e: phase(e, request_id) is Phase.ERROR)
        assert "nonsense" in (await it.status(request_id)).json()["error_detail"]


async def test_a_seat_session_from_order_to_end(account: Accounts) -> None:
    async with account(text=SESSIONS) as it:
        answer = await it.session()
        assert answer.status_code == 200, answer.text
        path = f"/v1/session/{answer.json()['session_id']}"
        await it.emulator.until(lambda e: bool(e.deployments) and e.deployments[0].phase is Phase.READY)
        found = (await it.client.get(path)).json()
        assert (found["ready"], found["status"], found["kind"]) == (True, "Ready", "Seat")
        assert (found["deployment"]["sockets"], found["deployment"]["sockets_usage"]) == (2, 1)
        assert found["deployment"]["ports"]["udp"]["external"] > 0
        listed = (await it.client.get("/v1/sessions")).json()["data"]
        assert [one["session_id"] for one in listed] == [found["session_id"]]
        ended = await it.client.delete(path)
        assert (ended.status_code, ended.json()["session_id"]) == (200, found["session_id"])
        assert (await it.client.delete(path)).status_code == 404
        assert len(it.emulator.deployments) == 1
        assert it.emulator.problems == []


async def test_a_version_without_sessions_takes_none(account: Accounts) -> None:
    async with account() as it:
        assert (await it.session()).status_code == 400


async def test_an_account_can_be_filled_by_the_api(account: Accounts) -> None:
    """Application, version, change; a secret is never shown again."""
    async with account(at_once(empty=True)) as it:
        assert (await it.client.get("/v1/app/arena-app")).status_code == 404
        body = {"name": "arena-app", "is_active": True, "image": "", "is_telemetry_agent_active": False}
        made = await it.client.post("/v1/app", json=body)
        assert made.status_code == 200
        version: dict[str, Any] = {
            "name": "v1",
            "docker_repository": "registry.edgegap.com",
            "docker_image": "org/arena",
            "docker_tag": "1.0",
            "req_cpu": 256,
            "req_memory": 512,
            "ports": [{"port": 7777, "protocol": "UDP", "name": "udp"}],
            "envs": [{"key": "SECRET", "value": "canary", "is_secret": True}],
        }
        path = "/v1/app/arena-app/version"
        assert (await it.client.post(path, json=version)).status_code == 200
        assert (await it.client.post(path, json=version)).status_code == 409
        assert "canary" not in (await it.client.get(f"{path}/v1")).text
        changed = await it.client.patch(f"{path}/v1", json={"docker_tag": "1.1"})
        assert changed.json()["version"]["docker_tag"] == "1.1"
        assert (await it.client.patch(f"{path}/v2", json={"docker_tag": "1.1"})).status_code == 404
        await it.ready()


async def test_leaving_ends_every_server(account: Accounts) -> None:
    async with account() as it:
        await it.ready()
        fleet = it.emulator.fleet
        assert len(fleet.running) == 1
    assert fleet.running == []


async def test_many_at_once(account: Accounts) -> None:
    """Eight servers have ports of their own."""
    async with account() as it:
        ids = await asyncio.gather(*(it.ready() for _ in range(8)))
        numbers = [port.external for one in it.emulator.deployments for port in one.ports.values()]
        assert len(set(ids)) == 8
        assert len(set(numbers)) == len(numbers) == 16
        assert json.dumps(numbers)
