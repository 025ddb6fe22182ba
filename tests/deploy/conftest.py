"""nats-server as it is deployed: the configuration of deploy/nats with the secrets of `tipoff secrets init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.deployed_nats import DeployedNats, nats_server_version

NAMESPACE = "roles"
ACK_V2 = "feature_flags { js_ack_fc_v2: true }\n"


@pytest.fixture(scope="module", params=["", ACK_V2], ids=["", "js_ack_fc_v2"])
def roles(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, source_tree: Path
) -> Iterator[DeployedNats]:
    """One server on dev.conf, with a user for each role in the namespace `roles`; once more with the subjects for
    acknowledgements and flow control of a future nats-server."""
    if request.param and nats_server_version() < (2, 15):
        pytest.skip("js_ack_fc_v2 needs nats-server 2.15: TIPOFF_NATS_SERVER may name one")
    directory = tmp_path_factory.mktemp("deployed")
    server = DeployedNats(directory, source_tree, "dev.conf", namespace=NAMESPACE, more=request.param)
    server.start()
    yield server
    server.stop()
