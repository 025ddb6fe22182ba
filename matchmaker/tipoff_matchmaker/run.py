"""Running a matchmaker: what stands around it is opened before it, and closed after it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from tipoff_matchmaker.isolated.rules import check_games
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import Orchestrator
from tipoff_orchestrator_client.registry import open_orchestrators, orchestrator_names
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import connect
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)


@asynccontextmanager
async def run_matchmaker(
    settings: Settings,
    games: Games,
    nats_settings: NatsSettings,
    orchestrators: Mapping[str, Orchestrator] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Matchmaker]:
    """A matchmaker that serves, for the time of the block. Leaving drains it (within `settings.drain_timeout`).

    `orchestrators`: name -> orchestrator, which stay the caller's; None opens those that the games name, on the
    matchmaker's own connection. Raises `Unavailable` when NATS cannot be reached or has no JetStream, `ConfigError`
    for a game's orchestrator that nobody knows.
    """
    if settings.profile == "isolated":
        check_games(games.all())
    async with AsyncExitStack() as stack:
        # Left in reverse: first no more work is taken and what is in hand is finished (`stop`), then the background
        # tasks end, then the orchestrators' clients and the connection close.
        bus = await stack.enter_async_context(connect(nats_settings, name=f"matchmaker {settings.instance}"))
        buckets = await create_buckets(bus)
        if orchestrators is None:
            orchestrators = await stack.enter_async_context(
                open_orchestrators(orchestrator_names(games), bus, games)
            )
        name = f"matchmaker {settings.instance}"
        tasks = await stack.enter_async_context(Tasks(name))
        loops = await stack.enter_async_context(Tasks(name, lambda exc: matchmaker.failed.set()))
        matchmaker = Matchmaker(settings, games, bus, buckets, orchestrators, tasks, loops, clock)
        stack.enter_context(matchmaker.metrics.serve(settings.metrics_host, settings.metrics_port))
        await stack.enter_async_context(matchmaker.peers.listening(loops))
        stack.push_async_callback(matchmaker.stop)
        await matchmaker.start()
        log.info("matchmaker %s serves %d game(s)", settings.instance, len(games.all()))
        yield matchmaker
