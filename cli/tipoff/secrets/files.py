"""Reads and writes the files of a secrets directory: in place, with the mode that each needs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tipoff_shared.errors import ConfigError

READABLE, PRIVATE = 0o444, 0o400


def mode_of(path: Path) -> int:
    """The mode of a secret's file."""
    return PRIVATE if path.name == "ca.key" else READABLE


def set_mode(path: Path) -> None:
    """Give the file the mode of a secret. Raises `ConfigError`."""
    try:
        if path.stat().st_mode & 0o777 != mode_of(path):
            path.chmod(mode_of(path))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made the directory") from exc


def is_there(path: Path) -> bool:
    """Whether the file exists and is not empty; an empty one is left over from a write that broke off."""
    return path.is_file() and path.stat().st_size > 0


def read(path: Path) -> str:
    """The text of a file. Raises `ConfigError`."""
    try:
        return path.read_text()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made it") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not text") from exc


def write(path: Path, text: str, mode: int) -> None:
    """Write into the existing file, which keeps its inode, else into a new one that appears when it is complete.
    Raises `ConfigError`."""
    try:
        if path.is_dir():  # Docker creates one in place of a missing file to mount
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
