"""Each test has its own launcher, matchmaker and NATS: bevygap's parts know no namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server for this test alone, where nobody has made a bucket yet."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server
