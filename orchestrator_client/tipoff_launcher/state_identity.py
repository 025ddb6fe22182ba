"""Tells a state directory from its copies, so that no launcher adopts or stops the servers of another one.

`identity.json` in the directory holds a random id and where the directory is: its device and inode, which a copy does
not share and a renamed directory keeps. Each record names the id of its directory as `owner`.

    found                                                      the launcher
    no identity: a new directory, or that of an older release  makes one
    the directory is where its identity says                   keeps it
    it is not, and the original is still there                 is a copy: makes its own, and leaves the others' servers
    it is not, and no recorded server runs (a backup)          the same
    it is not, the original is gone, recorded servers run      refuses; `adopt_copied` takes them over
"""

from __future__ import annotations

import logging
import secrets
from enum import StrEnum
from pathlib import Path

import msgspec

from tipoff_launcher.backends.process.identity import LINUX, Identity, boot, lives
from tipoff_launcher.edgegap_compat.arbitrium import SECRET_FILE
from tipoff_launcher.edgegap_compat.context_endpoint import PORT_FILE
from tipoff_launcher.records import Record, Records, write_whole
from tipoff_orchestrator_client.base import RunState
from tipoff_shared.errors import ConfigError
from tipoff_shared.log_writer.process import LOCK

log = logging.getLogger(__name__)

IDENTITY = "identity.json"


class Place(msgspec.Struct, frozen=True):
    """Where a directory is. `boot`: of the machine; device numbers may change with it."""

    device: int
    inode: int
    boot: str

    def is_same(self, other: Place | None) -> bool:
        """Whether both are the same directory: a copy on the same file system has another inode, one on another file
        system another device."""
        if other is None or self.inode != other.inode:
            return False
        return self.device == other.device or self.boot != other.boot


class StateIdentity(msgspec.Struct, frozen=True):
    """A state directory: its id, where it was last, and the ids of the directories it was copied from."""

    id: str
    place: Place
    path: str
    copied_from: tuple[str, ...] = ()

    def owns(self, record: Record) -> bool:
        """Whether the record's server belongs to this directory. Records of an older release name no owner."""
        return record.owner == self.id or (not record.owner and not self.copied_from)


class Finding(StrEnum):
    """What a directory is to its identity."""

    NEW = "new"
    SAME = "same"
    COPY = "copy"
    UNKNOWN = "unknown"


def find(known: StateIdentity | None, here: Place, original: Place | None, *, servers_run: bool) -> Finding:
    """What a directory at `here` is. Pure.

    `original` is what now stands at the path of `known`, None for nothing; `servers_run`: whether a server that is
    recorded in the directory runs, or may run.
    """
    if known is None:
        return Finding.NEW
    if known.place.is_same(here):
        return Finding.SAME
    if known.place.is_same(original) or not servers_run:
        return Finding.COPY
    return Finding.UNKNOWN


def claim(state_dir: Path, *, adopt_copied: bool = False) -> StateIdentity:
    """The identity of a locked state directory, written before it is used. A copy gets one of its own, and loses the
    original's secrets. Raises `ConfigError` when it is not clear whose servers are recorded in it."""
    try:
        return _claim(state_dir.absolute(), adopt_copied)
    except OSError as exc:
        raise ConfigError(f"{exc.filename}: {exc.strerror}; the launcher keeps its identity there") from exc


def _claim(directory: Path, adopt_copied: bool) -> StateIdentity:
    records, _ = Records(directory).load()
    known = _read(directory, records)
    here = place_of(directory)
    assert here is not None  # it is locked
    original = place_of(Path(known.path)) if known is not None else None
    finding = find(known, here, original, servers_run=any(map(_may_run, records)))
    if finding is Finding.UNKNOWN and not adopt_copied:
        origin = known.path if known is not None and known.path else "another one"
        raise ConfigError(
            f"the state directory {directory} is a copy of {origin}, or was moved here from another file system, and "
            f"game servers recorded in it run: if it was moved, set TIPOFF_LAUNCHER_ADOPT_COPIED=true to take them "
            f"over; if it is a copy, remove {directory / 'deployments'}"
        )
    if known is None or finding is Finding.COPY:
        copied_from = (*known.copied_from, known.id) if known is not None else ()
        identity = StateIdentity(secrets.token_hex(8), here, str(directory), copied_from)
        if known is not None:
            log.warning(
                "%s is a copy of the state directory %s: the servers recorded in it are not touched",
                directory,
                known.path or known.id,
            )
            _remove_what_is_the_originals(directory)
    else:
        identity = msgspec.structs.replace(known, place=here, path=str(directory))
    if identity != known or not (directory / IDENTITY).exists():
        write_whole(directory / IDENTITY, msgspec.json.format(msgspec.json.encode(identity)))
    return identity


def place_of(directory: Path) -> Place | None:
    """Where a directory is; None when there is none."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return Place(found.st_dev, found.st_ino, boot() if LINUX else "")


def _read(directory: Path, records: list[Record]) -> StateIdentity | None:
    """The identity in the directory, or at least its id, where records were copied without it."""
    try:
        return msgspec.json.decode((directory / IDENTITY).read_bytes(), type=StateIdentity)
    except FileNotFoundError:
        pass
    except (msgspec.DecodeError, UnicodeError):
        log.warning("%s cannot be read and is written anew", directory / IDENTITY)
    owner = next((record.owner for record in records if record.owner), "")
    return StateIdentity(owner, Place(0, 0, ""), "") if owner else None


def _may_run(record: Record) -> bool:
    if record.state is RunState.STOPPED or not record.native_id:
        return False
    if record.backend != "process":  # only its engine knows
        return True
    identity = Identity.parse(record.native_id)
    return identity is not None and lives(identity)


def _remove_what_is_the_originals(directory: Path) -> None:
    """The secret of its servers' tokens, the port of their endpoint, and what writes their logs: in a copy made of hard
    links, those are the very pipes."""
    pipes = directory.glob("deployments/*/.*.pipe")
    for path in (directory / SECRET_FILE, directory / PORT_FILE, directory / LOCK, *pipes):
        path.unlink(missing_ok=True)
