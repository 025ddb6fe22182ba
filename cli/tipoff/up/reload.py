"""Restarts a game's servers when its files change, for `tipoff up --reload`.

`SourceFiles` decides which games a change concerns, and `syntax_error` whether the new code can start at all;
`reload_games` watches the files and asks the matchmaker to restart. A game's files are the Python files below the
directory of its program, and those that its command names; `--reload-include` adds patterns. Other files are left out,
since a game may write files itself, and would restart itself for ever.
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tipoff.operate.admin import restart
from tipoff.up.options import UpOptions
from tipoff.up.readiness import wait_until_playable
from tipoff_shared.errors import ConfigError, TipoffError
from tipoff_shared.games import Game, SomeGames
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks

_SETTLE_MS = 200
"""Editors write a file in several steps, and a branch is checked out file by file."""


@dataclass(frozen=True, slots=True)
class _Program:
    """Where the code of one game is."""

    game: Game
    folder: Path
    named: frozenset[Path]


class SourceFiles:
    """The files of the games in `games_file` that run as processes. `include`: patterns of further file names, like
    `*.json`. Raises `ConfigError` when no game has a process to restart."""

    def __init__(self, games_file: Path, games: Iterable[Game], include: Collection[str] = ()) -> None:
        self._project = games_file.resolve().parent
        self._patterns = ("*.py", *include)
        self._programs = [
            _program(game, self._project)
            for game in games
            if game.orchestrator == "launcher" and game.process
        ]
        if not self._programs:
            raise ConfigError(f"--reload: no game in {games_file} runs as a process of this machine")

    @property
    def roots(self) -> list[Path]:
        """The directories to watch, none of them within another one."""
        wanted = sorted({self._project, *(program.folder for program in self._programs)})
        return [path for path in wanted if not any(path.is_relative_to(o) and path != o for o in wanted)]

    def is_source(self, path: Path) -> bool:
        """Whether a change of the file restarts a game."""
        return any(path in program.named for program in self._programs) or any(
            fnmatch.fnmatch(path.name, pattern) for pattern in self._patterns
        )

    def concerned(self, paths: Collection[Path]) -> list[Game]:
        """The games to restart when these files have changed: those whose code it is; every game for a file that is
        below no game's own directory, such as a module that several share."""
        found = []
        for program in self._programs:
            for path in filter(self.is_source, paths):
                within = [other for other in self._programs if path.is_relative_to(other.folder)]
                if path in program.named or program in within or not within:
                    found.append(program.game)
                    break
        return found

    def shown(self, path: Path) -> str:
        """The path as a person wrote it: relative to games.toml."""
        return str(path.relative_to(self._project)) if path.is_relative_to(self._project) else str(path)


def _program(game: Game, project: Path) -> _Program:
    assert game.process is not None
    cwd = (project / game.process.cwd).resolve()
    named = frozenset(path for word in game.process.command if (path := (cwd / word).resolve()).is_file())
    folders = {path.parent for path in named if path.is_relative_to(project)}
    return _Program(game, folders.pop() if len(folders) == 1 else cwd, named)


def syntax_error(paths: Iterable[Path]) -> str:
    """The first syntax error in the Python files among `paths`, as Python shows it; "" when there is none."""
    for path in sorted(paths):
        if path.suffix != ".py":
            continue
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except OSError:
            continue  # it is gone
        except (SyntaxError, ValueError) as exc:
            return "".join(traceback.format_exception_only(exc)).rstrip()
    return ""


async def keep_reloading(
    bus: Bus,
    sources: SourceFiles,
    games: SomeGames,
    options: UpOptions,
    say: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """As `reload_games`, with the files of the games that there are at each moment."""
    changed = asyncio.Event()
    games.subscribe(lambda _: changed.set())
    async with Tasks("files") as tasks:
        while True:
            watching = tasks.start(reload_games(bus, sources, say, stop), "watch")
            await changed.wait()
            changed.clear()
            try:
                sources = SourceFiles(options.games, games.all(), options.reload_include)
            except ConfigError as exc:
                say(f"{exc}; what was watched before still is")
                continue
            finally:
                watching.cancel()


async def reload_games(
    bus: Bus, sources: SourceFiles, say: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Restart games as their files change, until cancelled or `stop` is set."""
    try:
        await _watch(bus, sources, say, stop)
    except (
        OSError,
        RuntimeError,
    ) as exc:  # what the watcher raises when the kernel has no room for more watches
        say(
            f"files are not watched any more: {exc}; see fs.inotify.max_user_watches, and start `tipoff up` again"
        )


async def _watch(bus: Bus, sources: SourceFiles, say: Callable[[str], None], stop: asyncio.Event) -> None:
    from watchfiles import Change, DefaultFilter, awatch

    ignored = DefaultFilter()

    def wanted(change: Change, path: str) -> bool:
        return ignored(change, path) and sources.is_source(Path(path))

    broken: set[Path] = set()
    waiting: asyncio.Task[None] | None = None
    watching = awatch(*sources.roots, watch_filter=wanted, debounce=_SETTLE_MS, step=50, stop_event=stop)
    async with Tasks("reload") as tasks:
        async for changes in watching:
            began = time.monotonic()
            paths = {Path(path) for _, path in changes}
            broken |= paths
            names = ", ".join(sorted(sources.shown(path) for path in paths))
            if error := await asyncio.to_thread(syntax_error, broken):
                say(f"{names} changed, and cannot be loaded; the servers that run go on\n{error}")
                continue
            games = sources.concerned(broken)
            broken.clear()
            if waiting is not None:
                waiting.cancel()
            if restarted := await _restart(bus, games, f"{names} changed"[:200], say):
                waiting = tasks.start(_tell_ready(bus, restarted, say, stop, began), "tell")


async def _restart(bus: Bus, games: Sequence[Game], why: str, say: Callable[[str], None]) -> list[Game]:
    done = []
    for game in games:
        try:
            ended = await restart(bus, game.name, game.version, why)
        except TipoffError as exc:
            say(f"{why}, but {game.name} {game.version} could not be restarted: {exc}")
            continue
        say(f"{why}: {game.name} {game.version} restarts ({len(ended.servers)} server(s))")
        done.append(game)
    return done


async def _tell_ready(
    bus: Bus, games: Sequence[Game], say: Callable[[str], None], stop: asyncio.Event, began: float
) -> None:
    missing = await wait_until_playable(bus, games, stop)
    for game in games:
        if game.min_ready and game not in missing:
            say(f"{game.name} {game.version} is ready again ({time.monotonic() - began:.1f} s)")
