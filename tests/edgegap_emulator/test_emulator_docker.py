"""The emulator's deployments as containers of a real engine."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.docker_engine import docker
from tests.edgegap_emulator.emulator_account import order, phase
from tipoff_edgegap_emulator import Phase
from tipoff_edgegap_emulator.service import run_emulator
from tipoff_edgegap_emulator.settings import EmulatorSettings

GAMES = """
[[game]]
name = "sleeper"
version = "1"
orchestrator = "edgegap"

[game.edgegap]
application = "arena-app"
version = "v1"

[game.docker]
image = "python:3.13-slim"
command = ["sleep", "600"]
"""


@pytest.mark.slow
@pytest.mark.docker
async def test_a_deployment_is_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what Edgegap tells it in its environment, and gone when it is stopped."""
    (tmp_path / "games.toml").write_text(GAMES)
    monkeypatch.setenv("TIPOFF_GAMES", str(tmp_path / "games.toml"))
    monkeypatch.setenv("TIPOFF_EDGEGAP_TOKEN", "token-of-the-test")
    monkeypatch.setenv("TIPOFF_LAUNCHER_DOCKER_PULL", "never")
    settings = EmulatorSettings(port=0, start_delay=0, backend="docker")
    async with (
        run_emulator(settings) as emulator,
        httpx.AsyncClient(
            base_url=emulator.url,
            headers={"authorization": f"token {emulator.token}"},
            timeout=30,
            trust_env=False,
            verify=False,
        ) as client,
    ):
        variables = [{"key": "TIPOFF_PRIVATE_KEY", "value": "ab" * 32, "is_hidden": True}]
        answer = await client.post("/v2/deployments", json=order(environment_variables=variables))
        request_id = answer.json()["request_id"]
        await emulator.until(lambda e: phase(e, request_id) is Phase.READY, timeout=30)
        name = f"tipoff-edgegap-{request_id}"
        environment = docker("exec", name, "env")
        assert f"ARBITRIUM_REQUEST_ID={request_id}" in environment
        assert "abab" not in docker("inspect", name)
        assert docker("exec", name, "cat", "/run/tipoff/private_key") == "ab" * 32
        assert (await client.delete(f"/v1/stop/{request_id}")).status_code == 200
        await emulator.until(lambda e: not e.fleet.running, timeout=30)
        assert docker("ps", "-a", "-q", "--filter", f"name={name}") == ""
