"""Is this process well? Asked from outside: by a container's health check, `python -m tipoff_shared.health [URL]`.

A part without an HTTP port touches the file that `TIPOFF_HEALTH_FILE` names, every two seconds while it can do its
work; the check finds the file fresh, or fails. A part with a port is asked there. Without the variable nothing is
written. A check is a process of its own, every few seconds in every container: what it does not need is imported late.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping

VARIABLE = "TIPOFF_HEALTH_FILE"
BEAT = 2.0
STALE = 12.0
"""Seconds without a beat after which a part is not well: a few beats, and longer than any callback of a game should
hold its event loop."""


class HealthFile:
    """The file that says so; does nothing where the environment names none."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        name = (os.environ if environ is None else environ).get(VARIABLE, "")
        self._path: str | None = name or None

    def touch(self) -> None:
        """All is well, now. A file that cannot be written is told once."""
        if self._path is None:
            return
        try:
            with open(self._path, "ab"):
                os.utime(self._path)
        except OSError as exc:
            import logging

            logging.getLogger(__name__).warning("%s: %s; the health check will fail", VARIABLE, exc)
            self._path = None

    async def beat(self, well: Callable[[], bool]) -> None:
        """Touch it regularly while `well()`; until cancelled. Returns at once where there is no file."""
        import asyncio

        while self._path is not None:
            if well():
                self.touch()
            await asyncio.sleep(BEAT)


def check(arguments: list[str], environ: Mapping[str, str], now: float) -> str:
    """What is wrong, or "". With a URL as argument that answers 200 all is well, else by the age of the file."""
    if arguments:
        return _check_url(arguments[0])
    name = environ.get(VARIABLE, "")
    if not name:
        return f"{VARIABLE} is not set, and no URL is given"
    try:
        age = now - os.stat(name).st_mtime
    except OSError as exc:
        return f"no sign of life yet: {exc}"
    return "" if age < STALE else f"the last sign of life is {age:.0f} s old"


def _check_url(url: str) -> str:
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return f"{url}: http://HOST:PORT/PATH is expected"
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=4)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        return f"{url}: {str(exc) or type(exc).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"{url}: HTTP {status}"


def main() -> None:
    """Exit code 0: well; 1: not, and why on standard output (which `docker inspect` shows)."""
    wrong = check(sys.argv[1:], os.environ, time.time())
    print(wrong or "ok")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
