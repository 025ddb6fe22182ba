"""Opens the orchestrators that games.toml names.

Built in are `launcher`, `edgegap` and `edgegap-sessions`. An installed package adds one by an entry point in the group
`tipoff.orchestrators`: its name is the orchestrator's name, and it loads a function or coroutine function
`(bus) -> Orchestrator`:

    [project.entry-points."tipoff.orchestrators"]
    mycloud = "my_package:open_orchestrator"
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, TypeAlias, cast

from tipoff_orchestrator_client import edgegap
from tipoff_orchestrator_client.base import Orchestrator, ServerDirectory
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.nats.connection import Bus

if TYPE_CHECKING:
    from tipoff_orchestrator_client.edgegap.settings import Settings as EdgegapSettings

ENTRY_POINTS = "tipoff.orchestrators"

Factory: TypeAlias = Callable[[Bus], Orchestrator | Awaitable[Orchestrator]]


def orchestrator_names(games: Iterable[Game]) -> list[str]:
    """The orchestrators that the games use, each once, in the order of games.toml."""
    return list(dict.fromkeys(game.orchestrator for game in games))


def known_orchestrators(*, allow_fake: bool = False) -> list[str]:
    """Every name that games.toml may use with the installed packages."""
    return sorted(
        {*_built_in(allow_fake), *edgegap.NAMES, *(point.name for point in entry_points(group=ENTRY_POINTS))}
    )


@asynccontextmanager
async def open_orchestrators(
    names: Iterable[str], bus: Bus, games: Games | None = None, *, allow_fake: bool = False
) -> AsyncIterator[dict[str, ServerDirectory]]:
    """The orchestrators of these names, during the block; leaving it closes them and stops no server.

    All are an `Orchestrator`, except `edgegap-sessions`: Edgegap itself starts the servers of its sessions. `games`:
    what Edgegap may start; without it Edgegap's names are unknown. `fake`, for tests, is known only with `allow_fake`.
    Raises `ConfigError` for an unknown name, or an entry point that cannot be used.
    """
    opened: dict[str, ServerDirectory] = {}
    async with AsyncExitStack() as stack:
        names = dict.fromkeys(names)
        if games is not None and (at_edgegap := [name for name in names if name in edgegap.NAMES]):
            opened |= await stack.enter_async_context(open_edgegap(at_edgegap, bus, games))
        for name in names:
            if name in opened:
                continue
            orchestrator = await _open(name, bus, allow_fake)
            stack.push_async_callback(orchestrator.close)
            opened[name] = orchestrator
        yield opened


@asynccontextmanager
async def open_edgegap(
    names: Collection[str], bus: Bus, games: Games, settings: EdgegapSettings | None = None
) -> AsyncIterator[dict[str, ServerDirectory]]:
    """Edgegap's orchestrators among `names`, during the block. They share one client, and so its rate limits.

    `settings`: by default those of the environment. Raises `ConfigError` for unusable settings, or an application or
    version that the games name and Edgegap does not have.
    """
    # Imported here, because they need httpx, which matchmakers without games at Edgegap do without.
    from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
    from tipoff_orchestrator_client.edgegap.orchestrator import EdgegapOrchestrator
    from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
    from tipoff_orchestrator_client.edgegap.settings import Settings
    from tipoff_orchestrator_client.edgegap.setup.verify import verify
    from tipoff_shared.service import load_settings

    settings = load_settings(Settings) if settings is None else settings
    async with AsyncExitStack() as stack:  # closes the orchestrators before their client
        client = await stack.enter_async_context(
            EdgegapClient(settings.url, settings.api_token(), timeout=settings.timeout, share=settings.share)
        )
        opened: dict[str, ServerDirectory] = {}
        if edgegap.ORCHESTRATOR in names:
            opened[edgegap.ORCHESTRATOR] = EdgegapOrchestrator(client, bus, games, settings)
        if edgegap.SESSIONS in names:
            opened[edgegap.SESSIONS] = SessionServers(client, bus, games, settings)
        for directory in opened.values():
            stack.push_async_callback(directory.close)
        await verify(client, [game for game in games.all() if game.orchestrator in names])
        yield opened


def _built_in(allow_fake: bool) -> dict[str, Factory]:
    built_in: dict[str, Factory] = {"launcher": LauncherOrchestrator}
    if allow_fake:
        built_in["fake"] = lambda bus: FakeOrchestrator()
    return built_in


async def _open(name: str, bus: Bus, allow_fake: bool) -> Orchestrator:
    factory = _built_in(allow_fake).get(name)
    if factory is None:
        found = entry_points(group=ENTRY_POINTS, name=name)
        if not found:
            raise ConfigError(
                f"orchestrator = {name!r} is not known here; known are "
                f"{', '.join(known_orchestrators(allow_fake=allow_fake))}. "
                f"A package adds one by an entry point in the group {ENTRY_POINTS!r}"
            )
        factory = _load(next(iter(found)))
    made = factory(bus)
    orchestrator = await made if inspect.isawaitable(made) else made
    if not isinstance(orchestrator, Orchestrator):
        raise ConfigError(
            f"orchestrator {name!r}: its entry point makes a {type(orchestrator).__name__}, "
            "which lacks methods of tipoff_orchestrator_client.base.Orchestrator"
        )
    return orchestrator


def _load(point: EntryPoint) -> Factory:
    try:
        factory = point.load()
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"orchestrator {point.name!r}: {point.value} cannot be loaded: {exc}") from exc
    if not callable(factory):
        raise ConfigError(f"orchestrator {point.name!r}: {point.value} is not callable")
    return cast(Factory, factory)  # its return value is checked by `_open`
