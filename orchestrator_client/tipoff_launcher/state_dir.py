"""The state directory is one launcher's alone: two would adopt each other's servers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tipoff_shared.errors import ConfigError


@contextmanager
def held(state_dir: Path) -> Iterator[None]:
    """Nobody else has it for the time of the block. Raises `ConfigError`."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state_dir / "launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"the launcher's state directory {state_dir} cannot be used: {exc.strerror}; choose another one "
            "(TIPOFF_LAUNCHER_STATE_DIR)"
        ) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"the state directory {state_dir} is in use by another launcher; stop it, or choose another one "
                "(TIPOFF_LAUNCHER_STATE_DIR)"
            ) from None
        yield
    finally:
        os.close(descriptor)
