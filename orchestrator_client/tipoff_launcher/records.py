"""Keeps a record of each server in the state directory, written before the launcher acts, for the next launcher.

STATE_DIR/launcher.lock                 held by the launcher that uses the directory
STATE_DIR/identity.json                 tells the directory from its copies, see state_identity.py
STATE_DIR/deployments/ID/record.json    the `Record`
                         private_key    the game's key, readable by its owner only, while the server lives
                         server.log     the server's output; server.log.1: its older output
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tipoff_orchestrator_client.base import Deployment, Port, RunState
from tipoff_orchestrator_client.wire import check_deployment_id
from tipoff_shared.errors import ConfigError, Malformed

RECORD = "record.json"
PRIVATE_KEY = "private_key"
LOG = "server.log"


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One server. `native_id` is the back end's name for it, "" until it is known; times are Unix seconds.

    `stopping`: a stop was requested and must be completed. `isolated`: the server has the isolated profile, in which
    the matchmaker writes its lease. `own_key`: it has its own netcode key, not the game's.
    `owner`: the id of the state directory that the server belongs to, "" in records of an older release.
    """

    deployment_id: str
    namespace: str
    game: str
    version: str
    state: RunState
    backend: str
    created_at: float
    native_id: str = ""
    host: str = ""
    ports: dict[str, Port] = {}
    stopping: bool = False
    stopped_at: float = 0.0
    reason: str = ""
    proxy: str = ""
    digest_key: str = ""
    isolated: bool = False
    own_key: bool = False
    owner: str = ""

    @property
    def deployment(self) -> Deployment:
        """The record as the launcher's clients see it."""
        return Deployment(
            self.deployment_id,
            self.game,
            self.version,
            self.state,
            self.native_id,
            self.host,
            self.ports,
            self.reason,
            self.proxy,
            self.digest_key,
            self.own_key,
        )


_decoder = msgspec.json.Decoder(Record)


@contextmanager
def lock_state_dir(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for the time of the block: two launchers would adopt each other's servers. Raises
    `ConfigError`."""
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


class Records:
    """The records of one state directory. Each write replaces the file atomically and is readable by the owner only.
    There is no fsync: a power cut ends the servers too."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir.absolute() / "deployments"
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def directory(self, deployment_id: str) -> Path:
        """The directory of one server. Raises `Malformed` for an id that is none."""
        return self.root / check_deployment_id(deployment_id)

    def log(self, deployment_id: str) -> Path:
        """The file with the server's output."""
        return self.directory(deployment_id) / LOG

    def save(self, record: Record) -> None:
        """Write the record. Raises `OSError`."""
        directory = self.directory(record.deployment_id)
        directory.mkdir(exist_ok=True, mode=0o700)
        write_whole(directory / RECORD, msgspec.json.format(msgspec.json.encode(record)))

    def write_key(self, deployment_id: str, key: bytes) -> Path:
        """Write the game's private key and return its file. Raises `OSError`."""
        path = self.directory(deployment_id) / PRIVATE_KEY
        write_whole(path, key.hex().encode())
        return path

    def remove_key(self, deployment_id: str) -> None:
        """Remove the private key, when the server has ended."""
        (self.directory(deployment_id) / PRIVATE_KEY).unlink(missing_ok=True)

    def forget(self, deployment_id: str) -> None:
        """Remove the record, the key and the log."""
        shutil.rmtree(self.directory(deployment_id), ignore_errors=True)

    def load(self) -> tuple[list[Record], list[Path]]:
        """All readable records, and the directories without one."""
        records: list[Record] = []
        others: list[Path] = []
        for directory in sorted(self.root.iterdir()):
            if not directory.is_dir():
                continue
            try:
                record = _decoder.decode((directory / RECORD).read_bytes())
                check_deployment_id(record.deployment_id)
            except (OSError, msgspec.DecodeError, UnicodeError, RecursionError, Malformed):
                others.append(directory)
                continue
            if record.deployment_id == directory.name:
                records.append(record)
            else:
                others.append(directory)
        return records, others


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's content atomically; only its owner can read it. Raises `OSError`."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    new.replace(path)
