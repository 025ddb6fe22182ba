"""The files of a secrets directory: read, written in place, with the rights each needs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tipoff_shared.errors import ConfigError

READABLE, PRIVATE = 0o444, 0o400


def mode_of(path: Path) -> int:
    return PRIVATE if path.name == "ca.key" else READABLE


def set_mode(path: Path) -> None:
    """The mode a secret has. Raises `ConfigError`."""
    try:
        if path.stat().st_mode & 0o777 != mode_of(path):
            path.chmod(mode_of(path))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made the directory") from exc


def is_there(path: Path) -> bool:
    """A file with something in it: an empty one is of a try that broke off."""
    return path.is_file() and path.stat().st_size > 0


def read(path: Path) -> str:
    """Raises `ConfigError`."""
    try:
        return path.read_text()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made it") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not text") from exc


def write(path: Path, text: str, mode: int) -> None:
    """Into the file that is there, else a new one that nobody reads before it is whole. Raises `ConfigError`."""
    try:
        if path.is_dir():  # Docker makes one where a file to mount is missing
            path.rmdir()
        if path.exists():
            path.chmod(0o600)
            with path.open("r+") as file:
                file.truncate()
                _fill(file.fileno(), text)
            path.chmod(mode)
            return
        fresh = path.with_name(f".{path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _fill(descriptor, text)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        fresh.rename(path)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made the directory") from exc


def _fill(descriptor: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
