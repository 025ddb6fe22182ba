"""Real game servers behind the emulator: what they are told, what becomes of them."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.edgegap_emulator.emulator_account import Account, Accounts, at_once, phase
from tests.polling import eventually
from tipoff_edgegap_emulator import Phase, Rules
from tipoff_edgegap_emulator.options import Options

TELLER = """
[[game]]
name = "teller"
version = "1"
orchestrator = "edgegap"

[game.edgegap]
application = "arena-app"
version = "v1"

[game.process]
command = ["python", "-S", "server.py"]
env = { FROM_IMAGE = "1", GREETING = "image" }
"""

SERVER = """
import json, os, socket, sys
ports = json.loads(os.environ["ARBITRIUM_PORTS_MAPPING"])["ports"]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((os.environ["TIPOFF_BIND_HOST"], ports["udp"]["internal"]))
while True:
    data, peer = sock.recvfrom(2048)
    if data == b"die":
        sys.exit(3)
    told = {"environment": dict(os.environ), "arguments": sys.argv[1:]}
    sock.sendto(json.dumps(told).encode(), peer)
"""


async def ask(one: dict[str, Any], question: bytes = b"?") -> dict[str, Any]:
    """What the server at that status's address answers."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((one["public_ip"], one["ports"]["udp"]["external"]))

        async def answer() -> dict[str, Any]:
            await loop.sock_sendall(sock, question)
            async with asyncio.timeout(0.05):  # it binds its port a moment after it has started
                found: dict[str, Any] = json.loads(await loop.sock_recv(sock, 65536))
                return found

        return await eventually(answer, "it answers", 10, unready=(TimeoutError, ConnectionRefusedError))


@pytest.fixture
def server(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)


async def told(it: Account, **members: Any) -> tuple[str, dict[str, Any]]:
    request_id = await it.ready(**members)
    return request_id, await ask((await it.status(request_id)).json())


async def test_a_server_is_told_what_edgegap_tells_it(account: Accounts, server: None) -> None:
    """All eight variables; the deployment's own win over the version's, those over the image's."""
    options = at_once(environment=lambda game: {"GREETING": "version", "FROM_VERSION": "1"})
    async with account(options, text=TELLER) as it:
        variables = [{"key": "GREETING", "value": "deployment", "is_hidden": False}]
        request_id, found = await told(it, environment_variables=variables)
        env = found["environment"]
        assert (env["GREETING"], env["FROM_VERSION"], env["FROM_IMAGE"]) == ("deployment", "1", "1")
        assert env["ARBITRIUM_REQUEST_ID"] == request_id
        assert env["ARBITRIUM_PUBLIC_IP"] == "127.0.0.1"
        assert json.loads(env["ARBITRIUM_DEPLOYMENT_LOCATION"])["city"] == "Montreal"
        assert {name for name in env if name.startswith("ARBITRIUM_")} == {
            "ARBITRIUM_REQUEST_ID",
            "ARBITRIUM_PUBLIC_IP",
            "ARBITRIUM_PORTS_MAPPING",
            "ARBITRIUM_DEPLOYMENT_LOCATION",
            "ARBITRIUM_DELETE_URL",
            "ARBITRIUM_DELETE_TOKEN",
            "ARBITRIUM_CONTEXT_URL",
            "ARBITRIUM_CONTEXT_TOKEN",
        }


async def test_a_server_reads_its_context(account: Accounts, server: None) -> None:
    """What bevygap's plugin asks for at its start: members and types."""
    async with account(text=TELLER) as it:
        request_id, found = await told(it)
        env = found["environment"]
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            url, token = env["ARBITRIUM_CONTEXT_URL"], env["ARBITRIUM_CONTEXT_TOKEN"]
            context = (await client.get(url, headers={"authorization": token})).json()
            assert (await client.get(url)).status_code == 401
        assert (context["request_id"], context["public_ip"]) == (request_id, "127.0.0.1")
        assert isinstance(context["sockets"], int)
        assert {"city", "country"} <= set(context["location"])
        assert context["fqdn"].startswith(request_id)


async def test_nothing_of_ours_leaks_into_a_server(
    account: Accounts, server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator's own environment holds the token and passwords."""
    monkeypatch.setenv("TIPOFF_EDGEGAP_TOKEN", "canary-1")
    monkeypatch.setenv("NATS_PASSWORD", "canary-2")
    async with account(text=TELLER) as it:
        _, found = await told(it)
        assert "canary" not in json.dumps(found)


async def test_the_versions_arguments_reach_the_server(account: Accounts, server: None) -> None:
    """As bevygap's servers get their certificate authority."""
    async with account(text=TELLER) as it:
        pem = "-----BEGIN CERTIFICATE-----MIIB-----END CERTIFICATE-----"
        path = "/v1/app/arena-app/version/v1"
        assert (await it.client.patch(path, json={"arguments": f"--ca_contents '{pem}'"})).status_code == 200
        _, found = await told(it)
        assert found["arguments"] == ["--ca_contents", pem]


async def test_a_server_that_shall_be_restarted_is_the_same_deployment(
    account: Accounts, server: None
) -> None:
    """restart_policy always, Edgegap's default: same id, same ports, another process."""
    options = Options(rules=Rules(start_delay=0, restart_delay=0.01))
    async with account(options, text=TELLER) as it:
        await it.client.patch("/v1/app/arena-app/version/v1", json={"restart_policy": "always"})
        request_id = await it.ready()
        before = (await it.status(request_id)).json()
        await ask(before)
        await it.emulator.kill_server(request_id)
        await it.emulator.until(
            lambda e: e.state.deployments[request_id].restarts == 1 and bool(e.fleet.running)
        )
        await ask(before)
        assert phase(it.emulator, request_id) is Phase.READY
