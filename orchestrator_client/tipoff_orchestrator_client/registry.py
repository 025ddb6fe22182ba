"""Which orchestrators there are, by the names that games.toml uses.

Built in: `launcher`, `edgegap`, `edgegap-sessions`. Others come from installed packages by the entry-point group
`tipoff.orchestrators`: the entry point's name is the orchestrator's, and it loads a callable `(bus) -> Orchestrator`
(or a coroutine function):

    [project.entry-points."tipoff.orchestrators"]
    mycloud = "my_package:open_orchestrator"
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias, cast

from tipoff_orchestrator_client.base import Orchestrator
from tipoff_orchestrator_client.edgegap import NAMES as EDGEGAP
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import Bus

ENTRY_POINTS = "tipoff.orchestrators"

Factory: TypeAlias = Callable[[Bus], Orchestrator | Awaitable[Orchestrator]]


def orchestrator_names(games: Games) -> list[str]:
    """The names that the games use, each once, in the order in which they stand there."""
    return list(dict.fromkeys(game.orchestrator for game in games.all()))


def known_orchestrators(*, allow_fake: bool = False) -> list[str]:
    """Every name that may stand in games.toml here."""
    return sorted(
        {*_built_in(allow_fake), *EDGEGAP, *(point.name for point in entry_points(group=ENTRY_POINTS))}
    )


@asynccontextmanager
async def open_orchestrators(
    names: Iterable[str], bus: Bus, games: Games | None = None, *, allow_fake: bool = False
) -> AsyncIterator[dict[str, Orchestrator]]:
    """The orchestrators of these names, for the time of the block; leaving closes them and stops no server.

    Raises `ConfigError` for a name that is not known here, or an entry point that cannot be used. `fake` is for
    tests, and known only where it is allowed. `games`: what they may start, where they have to know it (Edgegap).
    """
    opened: dict[str, Orchestrator] = {}
    async with AsyncExitStack() as stack:
        names = dict.fromkeys(names)
        if games is not None and (at_edgegap := [name for name in names if name in EDGEGAP]):
            from tipoff_orchestrator_client.edgegap.open import open_edgegap  # httpx is needed by nobody else

            opened |= await stack.enter_async_context(open_edgegap(at_edgegap, bus, games))
        for name in names:
            if name in opened:
                continue
            orchestrator = await _open(name, bus, allow_fake)
            stack.push_async_callback(orchestrator.close)
            opened[name] = orchestrator
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
    return cast(Factory, factory)  # what it returns is checked when it has returned
