"""Finds where programs of this user keep their state, also for users without a home directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tipoff_shared.errors import ConfigError


def state_home(environ: Mapping[str, str] | None = None) -> Path:
    """`XDG_STATE_HOME`, else `.local/state` in the user's home: `HOME`, else that of the user database.

    Raises `ConfigError` where none of them names a directory, as in a container that runs under a user id of its own.
    """
    env = os.environ if environ is None else environ
    if given := env.get("XDG_STATE_HOME"):
        return Path(given)
    home = env.get("HOME") or _home_of_this_user()
    if not home:
        raise ConfigError(
            "this user has no home directory: HOME is not set, and the user database does not know the user; name a "
            "directory for the state"
        )
    return Path(home) / ".local" / "state"


def _home_of_this_user() -> str:
    """The home directory in the user database; "" for a user whom it does not know."""
    try:
        import pwd
    except ImportError:  # Windows
        return str(Path.home())
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""
