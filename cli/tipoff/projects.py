"""Finds the project that a command is run in, the state directory of a project, and the `tipoff up` that is meant.

A project is a directory with a games.toml. Its state is in `projects/NAME-DIGEST` below tipoff's state directory, so
that two projects run side by side; the demo, which is no project, has that directory itself.

    --state-dir, TIPOFF_STATE_DIR    the `tipoff up` with this state directory
    in or below a project            that project's
    elsewhere                        the one that runs; of several, none is guessed
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tipoff.up.state_dir import UpInfo, default_state_dir, read_up_info
from tipoff_shared.errors import ConfigError

GAMES_FILE = "games.toml"
_PROJECTS = "projects"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)


class NoUp(ConfigError):
    """No `tipoff up` of this user runs."""


@dataclass(frozen=True, slots=True)
class RunningUp:
    """A `tipoff up` and its state directory."""

    state_dir: Path
    info: UpInfo

    @property
    def project(self) -> Path | None:
        """The directory of its games file; None where an earlier release does not say."""
        return Path(self.info.games).parent if self.info.games else None


def find_project(start: Path) -> Path | None:
    """The nearest directory with a games.toml, from `start` upwards; None where there is none.

    A games.toml says which programs run. So above `start` only one counts that belongs to this user, to root or to the
    owner of `start`: in a directory that everybody may write to, another user could have put one.
    """
    start = start.resolve()
    trusted: set[int] | None = None
    for directory in (start, *start.parents):
        try:
            owner = (directory / GAMES_FILE).stat().st_uid
            if directory == start or not hasattr(os, "getuid"):
                return directory
            trusted = trusted or {0, os.getuid(), start.stat().st_uid}
        except OSError:
            continue
        if owner in trusted:
            return directory
    return None


def state_dir_of(project: Path | None, environ: Mapping[str, str] | None = None) -> Path:
    """Where `tipoff up` keeps the state of a project, or of the demo (None), where no option says. `TIPOFF_STATE_DIR`
    wins. Raises `ConfigError` for a user without a home."""
    env = os.environ if environ is None else environ
    base = default_state_dir(env)
    if project is None or env.get("TIPOFF_STATE_DIR"):
        return base
    path = project.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:10]
    name = _NOT_IN_NAMES.sub("-", path.name)[:40].strip("-.") or "project"
    return base / _PROJECTS / f"{name}-{digest}"


def running_ups(environ: Mapping[str, str] | None = None) -> list[RunningUp]:
    """The `tipoff up` of this user that run without a state directory of their own, by path. Raises `ConfigError` for
    a user without a home."""
    base = default_state_dir(environ)
    found = []
    try:
        candidates = [base, *sorted((base / _PROJECTS).iterdir())]
    except OSError:
        candidates = [base]
    for state_dir in candidates:
        try:
            found.append(RunningUp(state_dir, read_up_info(state_dir)))
        except ConfigError:
            continue
    return found


def find_up(
    state_dir: Path | None, *, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> RunningUp:
    """The `tipoff up` that a command addresses. Raises `ConfigError`, which says what to write: `NoUp` when none
    runs."""
    env = os.environ if environ is None else environ
    if state_dir is not None or env.get("TIPOFF_STATE_DIR"):
        given = state_dir or default_state_dir(env)
        return RunningUp(given, read_up_info(given))
    project = find_project(cwd or Path.cwd())
    running = running_ups(env)
    if project is not None:
        ours = [up for up in running if up.project == project]
        if len(ours) == 1:
            return ours[0]
        if not running:
            raise NoUp(
                f"no `tipoff up` runs in the project {project}; start it there, "
                "or say where to look with --state-dir or --nats"
            )
        if not ours:
            raise ConfigError(
                f"no `tipoff up` runs in the project {project}; start it there, or name one of these:\n"
                + _listed(running)
            )
        running = ours
    if not running:
        raise NoUp(
            f"no `tipoff up` runs (its state would be in {default_state_dir(env)}); start it, "
            "or say where to look with --state-dir or --nats"
        )
    if len(running) > 1:
        raise ConfigError(
            f"{len(running)} `tipoff up` run; say which one with --state-dir, or go to its project:\n{_listed(running)}"
        )
    return running[0]


def _listed(running: list[RunningUp]) -> str:
    return "\n".join(
        f"  {up.info.url}  pid {up.info.pid}  {up.project or 'unknown games'}  "
        f"--state-dir {shlex.quote(str(up.state_dir))}"
        for up in running
    )
