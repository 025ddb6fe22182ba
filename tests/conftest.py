"""What the tests share: one real nats-server for each test process, a namespace for each test."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import blocking
from tests.docker_engine import require_engine
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.settings import NatsSettings

# What one example takes says more of what else the machine does than of the code: no deadline for it.
hypothesis.settings.register_profile("tipoff", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tipoff")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: a test that needs a Docker engine is skipped, or fails, where there is none."""
    if item.get_closest_marker("docker"):
        require_engine()


@pytest.fixture(scope="session", autouse=True)
def _blocking_raises() -> Iterator[None]:
    with blocking.blocking_raises():
        yield


@pytest.fixture(autouse=True)
def _nothing_blocks() -> Iterator[None]:
    """Fails a test in which our code blocks an event loop, also where the code catches the exception."""
    blocking.blocked.clear()
    yield
    assert not blocking.blocked, "our code blocks an event loop: " + "\n".join(blocking.blocked)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNats]:
    """A real nats-server with JetStream, for this test process alone; its loop lives in its own thread."""
    store = tmp_path_factory.mktemp("nats")
    started: list[EmbeddedNats | BaseException] = []
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        try:
            async with embedded_nats(store) as server:
                started.append(server)
                ready.set()
                await asyncio.to_thread(stop.wait)
        except BaseException as exc:
            started.append(exc)
            ready.set()
            raise

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(20), "nats-server did not start within 20 s"
    server = started[0]
    if isinstance(server, BaseException):
        raise server
    yield server
    stop.set()
    thread.join(10)


@pytest.fixture
def namespace() -> str:
    """A namespace no other test uses."""
    return "t" + uuid.uuid4().hex[:12]


@pytest.fixture
def settings(nats_server: EmbeddedNats, namespace: str) -> NatsSettings:
    return nats_server.settings(namespace)


@pytest.fixture
async def nats(settings: NatsSettings) -> AsyncIterator[Bus]:
    """A connection to the real server, within the test's namespace."""
    async with connect(settings, name="test") as bus:
        yield bus


@pytest.fixture(scope="session")
def source_tree() -> Path:
    """The repository: where the tests lie, unless they were copied away to run against an installed wheel."""
    return Path(os.environ.get("TIPOFF_SOURCE_TREE") or Path(__file__).parent.parent)
