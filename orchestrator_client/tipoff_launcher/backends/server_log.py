"""Reads a server's log: its last lines when the server dies, and part after part for those who follow it. Moves aside a
log that has become too large.

Logs are kept small by what writes them: tipoff_shared/log_writer for processes, docker/container_log.py for containers.
What is moved here is the log of a server that an earlier release started.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tipoff_shared.errors import Malformed

_QUOTED_LINES = 5
_QUOTED_CHARACTERS = 600
_TAIL = 8192
"""Bytes at the end of the log that are searched for the last lines."""
_LONGEST_LINE = 16 * 1024
_CURSOR = re.compile(r"([0-9]{1,20}):([0-9]{1,20})", re.ASCII)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def open_log(path: Path) -> int:
    """A file descriptor that always appends, also after `rotate` has emptied the file."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def rotate(path: Path, max_bytes: int) -> bool:
    """Move the log to `.1` when it is larger than `max_bytes`, and return whether it was. A line written meanwhile
    may be lost. Raises `OSError`."""
    try:
        if path.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    old = path.with_name(path.name + ".1")
    with path.open("rb") as source, old.open("wb") as target:
        source.seek(
            -max_bytes, os.SEEK_END
        )  # of a server that writes faster than this, the newest part is kept
        target.write(source.read(max_bytes))  # not to the end of the file, which may grow without limit
    os.truncate(path, 0)
    return True


def last_lines(path: Path, secrets: Iterable[str] = ()) -> str:
    """The last few lines, joined into one for people, with each of `secrets` replaced by `***`; "" without a log."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() > _TAIL:
                file.seek(-_TAIL, os.SEEK_END)
                file.readline()  # the rest of a line may be the rest of a secret
            else:
                file.seek(0)
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for raw in _without(secrets, text).splitlines() if (line := _CONTROL.sub("", raw).strip())]
    quoted = " | ".join(lines[-_QUOTED_LINES:])
    return quoted if len(quoted) <= _QUOTED_CHARACTERS else "..." + quoted[-_QUOTED_CHARACTERS:]


@dataclass(frozen=True, slots=True)
class LogPart:
    """Lines of a log, in order, without control characters. `cursor`: where the next part begins, "" when there is no
    log yet. `lost`: older lines were dropped before they could be read."""

    lines: tuple[str, ...] = ()
    cursor: str = ""
    lost: bool = False


def check_cursor(cursor: str) -> str:
    """The cursor, unchanged. Raises `Malformed` unless it is "" or looks like one of `read_part`."""
    if cursor and not _CURSOR.fullmatch(cursor):
        raise Malformed("a cursor is what an earlier answer named")
    return cursor


def read_part(
    path: Path, cursor: str, *, tail: int, max_bytes: int, ended: bool, secrets: Iterable[str] = ()
) -> LogPart:
    """The next whole lines after `cursor`, at most `max_bytes` of them, with each of `secrets` replaced by `***`.

    Without a cursor: the last `tail` lines; with a negative `tail` from the oldest line that is kept. `ended`: nothing
    more will come, so that a last line without its end counts. A log that cannot be read is empty.
    """
    try:
        return _read_part(path, cursor, tail, max_bytes, ended, secrets)
    except FileNotFoundError:  # not written yet, or just moved aside: the next read finds it
        return LogPart(cursor=cursor)
    except OSError:
        return LogPart(cursor=cursor, lost=True)


def _read_part(
    path: Path, cursor: str, tail: int, max_bytes: int, ended: bool, secrets: Iterable[str]
) -> LogPart:
    found = _CURSOR.fullmatch(cursor)
    older = path.with_name(path.name + ".1")
    lost = False
    if found is None and tail < 0 and older.exists():
        found = _CURSOR.fullmatch(f"{older.stat().st_ino}:0")
    if found is not None and (number := int(found[1])) != path.stat().st_ino:
        if older.exists() and older.stat().st_ino == number:
            lines, at = _lines_from(older, int(found[2]), max_bytes, ended=True)
            if lines:
                return LogPart(_clean(lines, secrets), f"{number}:{at}")
        else:
            lost = True
        found = None
        tail = -1
    size, number = path.stat().st_size, path.stat().st_ino
    if found is not None:
        begin = int(found[2])
        if begin > size:  # moved aside by copying: an inode of before, a shorter file
            begin, lost = 0, True
    else:
        begin = 0 if tail < 0 else max(0, size - max_bytes)
    lines, at = _lines_from(path, begin, max_bytes, ended=ended)
    if found is None and tail >= 0:
        cut = lines[1:] if begin else lines  # the first line is the rest of one
        lines = cut[len(cut) - min(tail, len(cut)) :]
    return LogPart(_clean(lines, secrets), f"{number}:{at}", lost)


def _lines_from(path: Path, begin: int, max_bytes: int, *, ended: bool) -> tuple[list[bytes], int]:
    """The whole lines from byte `begin` on, and where the next one begins."""
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read(max_bytes)
    end = data.rfind(b"\n") + 1
    if (end == 0 and len(data) == max_bytes) or (ended and len(data) < max_bytes):
        end = len(data)
    return data[:end].splitlines(), begin + end


def _clean(lines: Iterable[bytes], secrets: Iterable[str]) -> tuple[str, ...]:
    text = _without(secrets, "\n".join(line[:_LONGEST_LINE].decode(errors="replace") for line in lines))
    return tuple(_CONTROL.sub("", line).rstrip() for line in text.split("\n")) if text else ()


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        if secret:
            text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    return text
