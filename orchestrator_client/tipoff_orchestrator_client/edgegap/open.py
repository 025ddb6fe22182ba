"""Opens what speaks to Edgegap, from settings and games.toml: one client, whose rate limits all of it shares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import ValidationError

from tipoff_orchestrator_client.base import Orchestrator
from tipoff_orchestrator_client.edgegap import ORCHESTRATOR, SESSIONS
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.orchestrator import EdgegapOrchestrator
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.verify import verify
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import Bus


def load_settings() -> Settings:
    """From the environment; raises `ConfigError` naming the variable and what is allowed, never its value."""
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        name = name if name.startswith("TIPOFF_") else f"TIPOFF_EDGEGAP_{name}"
        raise ConfigError(f"{name}: {first['msg']}") from None


def client_from(settings: Settings) -> EdgegapClient:
    """Raises `ConfigError` when there is no token."""
    return EdgegapClient(settings.url, settings.api_token(), timeout=settings.timeout, share=settings.share)


@asynccontextmanager
async def open_edgegap(
    names: Collection[str], bus: Bus, games: Games, settings: Settings | None = None
) -> AsyncIterator[dict[str, Orchestrator]]:
    """Those of Edgegap's orchestrators that are in `names`, on one connection to Edgegap, for the time of the block.

    Raises `ConfigError` for settings or an application that cannot be used.
    """
    settings = load_settings() if settings is None else settings
    async with AsyncExitStack() as stack:  # left in reverse: first who asks, then the client
        client = await stack.enter_async_context(client_from(settings))
        opened: dict[str, Orchestrator] = {}
        if ORCHESTRATOR in names:
            opened[ORCHESTRATOR] = EdgegapOrchestrator(client, bus, games, settings)
        if SESSIONS in names:
            opened[SESSIONS] = SessionServers(client, bus, games, settings)
        for orchestrator in opened.values():
            stack.push_async_callback(orchestrator.close)
        await verify(client, [game for game in games.all() if game.orchestrator in names])
        yield opened
