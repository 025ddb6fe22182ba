"""Quotes the last lines of a server's log when the server dies, and moves aside a log that has become too large.

The log of a process is written by tipoff_shared/log_writer, which keeps it small; what is moved here is the log of a
server that an earlier release started, and the copy of a container's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_QUOTED_LINES = 5
_QUOTED_CHARACTERS = 600
_TAIL = 8192
"""Bytes at the end of the log that are searched for the last lines."""
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
    for secret in secrets:
        if secret:
            text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    lines = [line for raw in text.splitlines() if (line := _CONTROL.sub("", raw).strip())]
    quoted = " | ".join(lines[-_QUOTED_LINES:])
    return quoted if len(quoted) <= _QUOTED_CHARACTERS else "..." + quoted[-_QUOTED_CHARACTERS:]
