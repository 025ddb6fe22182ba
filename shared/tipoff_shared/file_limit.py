"""Keeps what a process opens within its limit of open files (`ulimit -n`), so that nothing fails for want of one.

Each socket is an open file. At the limit a listener accepts nothing, not even to say why; so limits of connections are
derived from it, and the refusal that a full listener gives (503) comes first.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

WANTED = 65536
RESERVED = 128
"""Open files for everything else: NATS, logs, listeners, what libraries open for a moment."""


def raise_file_limit() -> None:
    """Raise this process's soft limit towards the hard one; 1024 is the usual soft limit."""
    try:
        import resource
    except ImportError:  # not on every platform
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def file_limit() -> int | None:
    """The most files that this process may have open; None for no limit."""
    try:
        import resource
    except ImportError:  # not on every platform
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def hard_file_limit() -> int | None:
    """The most files that this process, and each one it starts, may have open after `raise_file_limit`; None for no
    limit."""
    try:
        import resource
    except ImportError:  # not on every platform
        return None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard


def within_file_limit(
    wanted: int, what: str, *, files_each: int = 1, reserved: int = RESERVED, limit: int | None = None
) -> int:
    """How many of `wanted` things, which open `files_each` files each, this process can have: at least 1. Logs, once
    for each call, when they are fewer. `what` names them and their setting. `limit`: instead of `file_limit()`."""
    most = file_limit() if limit is None else limit
    if most is None:
        return wanted
    possible = max(1, (most - reserved) // files_each)
    if possible >= wanted:
        return wanted
    log.warning(
        "at most %d %s instead of %d: this process may have %d files open; raise that limit with `ulimit -n` or "
        "LimitNOFILE=",
        possible,
        what,
        wanted,
        most,
    )
    return possible
