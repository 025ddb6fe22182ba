"""What the tests of a faulty orchestrator share: what it says while busy, what it was asked to start, one who plays."""

from __future__ import annotations

from collections import Counter

from tests.matchmaker.world import World
from tipoff_orchestrator_client.base import OrchestratorUnavailable
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import SessionState

BUSY = OrchestratorUnavailable("503 busy", retryable=True)


async def playing(world: World) -> SessionReady:
    """One who asked, got a seat and has connected."""
    ready = await world.play()
    await world.server_of(ready).connect(ready)
    await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    return ready


def deploys(world: World) -> Counter[str]:
    """How often each deployment was asked for."""
    return Counter(id for operation, id in world.fake.calls if operation == "deploy")
