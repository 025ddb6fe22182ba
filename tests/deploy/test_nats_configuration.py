"""What the deployed configurations make of nats-server, as it says itself."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.deployed_nats import DeployedNats


@pytest.fixture(params=["nats.conf", "dev.conf"])
def told(request: pytest.FixtureRequest, tmp_path: Path, source_tree: Path) -> tuple[str, dict[str, Any]]:
    """The file's name, and the server's answers about itself."""
    server = DeployedNats(tmp_path, source_tree, request.param)
    server.start()
    try:
        answers: dict[str, Any] = {}
        for page in ("varz", "jsz", "healthz"):
            with urllib.request.urlopen(f"{server.monitoring}/{page}", timeout=5) as answer:
                answers[page] = json.load(answer)
        return request.param, answers
    finally:
        server.stop()


def test_a_deployed_server_is_healthy_locked_and_limited(told: tuple[str, dict[str, Any]]) -> None:
    """Healthy, nobody in without a password, JetStream within limits; in production TLS and every write on the disk."""
    name, answers = told
    production = name == "nats.conf"
    assert answers["healthz"]["status"] == "ok"
    assert answers["varz"]["auth_required"] is True
    assert answers["varz"].get("tls_required", False) is production
    assert answers["jsz"]["config"].get("sync_always", False) is production
    assert answers["jsz"]["config"]["max_storage"] == 4 << 30
    assert answers["jsz"]["config"]["max_memory"] == 256 << 20
    assert answers["varz"]["max_connections"] == 32768


def test_the_server_warns_of_nothing_in_its_configuration(tmp_path: Path, source_tree: Path) -> None:
    """Plain text passwords and unknown words would be warned of."""
    server = DeployedNats(tmp_path, source_tree, "nats.conf")
    server.start()
    server.stop()
    warned = [line for line in server.log.read_text().splitlines() if "[WRN]" in line or "[ERR]" in line]
    assert warned == []
