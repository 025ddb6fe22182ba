"""nats-server as it is deployed: the configuration of deploy/nats with the secrets of `tipoff secrets init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.deployed_nats import DeployedNats

NAMESPACE = "roles"


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory, source_tree: Path) -> Iterator[DeployedNats]:
    """One server on dev.conf, with a user for each role in the namespace `roles`."""
    server = DeployedNats(tmp_path_factory.mktemp("deployed"), source_tree, "dev.conf", namespace=NAMESPACE)
    server.start()
    yield server
    server.stop()
