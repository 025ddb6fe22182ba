"""nats-server as it is deployed: the configuration of deploy/nats with the secrets of `tipoff secrets init`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent.parent
for _area in ("deploy", "e2e", "matchmaker"):
    if str(_TESTS / _area) not in sys.path:
        sys.path.insert(0, str(_TESTS / _area))

from deployed_nats import DeployedNats  # noqa: E402 # found by the path above

NAMESPACE = "roles"


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory, source_tree: Path) -> Iterator[DeployedNats]:
    """One server on dev.conf, with a user for each role in the namespace `roles`."""
    server = DeployedNats(tmp_path_factory.mktemp("deployed"), source_tree, "dev.conf", namespace=NAMESPACE)
    server.start()
    yield server
    server.stop()
