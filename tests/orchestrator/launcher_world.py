"""What the tests of this folder share: the shapes of their fixtures, a server's lease, and what is known of its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tipoff_orchestrator_client.base import DeploySpec, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports
from tipoff_shared.records import GameserverLease, LeaseState

Spec = Callable[..., DeploySpec]
Eventually = Callable[..., Awaitable[None]]
RunningServers = Callable[..., list[int]]
"""Pids."""
RunningContainers = Callable[..., list[str]]
"""Ids."""
MakeGame = Callable[..., Game]


def lease(spec: DeploySpec) -> GameserverLease:
    """As a server that is ready writes it."""
    return GameserverLease(
        spec.deployment_id, "b" * 16, spec.game, spec.version, LeaseState.READY, Transports(), spec.capacity
    )


async def state_of(client: LauncherOrchestrator, spec: DeploySpec) -> RunState | None:
    known = await client.get(spec.deployment_id)
    return None if known is None else known.state


def is_stopped(client: LauncherOrchestrator, spec: DeploySpec) -> Callable[[], Awaitable[bool]]:
    """For `eventually`: the launcher knows that it has ended."""

    async def stopped() -> bool:
        return await state_of(client, spec) is RunState.STOPPED

    return stopped
