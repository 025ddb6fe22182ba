"""What the launcher writes down about each server before it acts, so that the next launcher can go on.

STATE_DIR/deployments/ID/record.json    this
                         private_key    the game's key, for its owner alone, while the server lives
                         server.log     what the server says; server.log.1: what it said before
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from tipoff_orchestrator_client.base import Deployment, Port, RunState
from tipoff_orchestrator_client.wire import check_deployment_id
from tipoff_shared.errors import Malformed

RECORD = "record.json"
PRIVATE_KEY = "private_key"
LOG = "server.log"


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One server of ours. `native_id` is the back end's name for it, "" until it is known; times are Unix seconds.

    `stopping`: a stop was asked for and must be carried through. `isolated`: of the isolated profile, where matchmakers
    write its lease.
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

    @property
    def deployment(self) -> Deployment:
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
        )


_decoder = msgspec.json.Decoder(Record)


class Records:
    """The records of one state directory. Every write is whole or not there at all (a rename), and for the owner
    alone. It is not forced to the disk: a power cut ends the servers too."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir.absolute() / "deployments"
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def directory(self, deployment_id: str) -> Path:
        return self.root / check_deployment_id(deployment_id)

    def log(self, deployment_id: str) -> Path:
        return self.directory(deployment_id) / LOG

    def save(self, record: Record) -> None:
        """Raises `OSError` when the disk does not take it."""
        directory = self.directory(record.deployment_id)
        directory.mkdir(exist_ok=True, mode=0o700)
        _write_whole(directory / RECORD, msgspec.json.format(msgspec.json.encode(record)))

    def write_key(self, deployment_id: str, key: bytes) -> Path:
        path = self.directory(deployment_id) / PRIVATE_KEY
        _write_whole(path, key.hex().encode())
        return path

    def remove_key(self, deployment_id: str) -> None:
        (self.directory(deployment_id) / PRIVATE_KEY).unlink(missing_ok=True)

    def forget(self, deployment_id: str) -> None:
        shutil.rmtree(self.directory(deployment_id), ignore_errors=True)

    def load(self) -> tuple[list[Record], list[Path]]:
        """Every record that can be read, and the directories without one."""
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


def _write_whole(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    new.replace(path)
