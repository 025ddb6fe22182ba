"""Checks from outside whether a service is healthy: `python -m tipoff_shared.health [URL]`, for containers.

A service without an HTTP port touches the file that `TIPOFF_HEALTH_FILE` names every two seconds while it can work,
and the check fails when that file is old. A service with a port is asked there. Without the variable nothing is
written. Each check is a separate process, so imports that it does not need are deferred.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping

VARIABLE = "TIPOFF_HEALTH_FILE"
BEAT = 2.0
STALE = 12.0
"""Seconds without a beat after which a service counts as unhealthy: several beats, and longer than a game's callback
may hold the event loop."""


class HealthFile:
    """The health file of this process; does nothing where the environment names none."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        name = (os.environ if environ is None else environ).get(VARIABLE, "")
        self._path: str | None = name or None

    def touch(self) -> None:
        """Record that the process is healthy now. A file that cannot be written is logged once."""
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
        """Touch the file regularly while `well()` is true, until cancelled. Returns at once without a file."""
        import asyncio

        while self._path is not None:
            if well():
                self.touch()
            await asyncio.sleep(BEAT)


def check(arguments: list[str], environ: Mapping[str, str], now: float) -> str:
    """What is wrong, or "". With a URL, the answer must be 200; without, the file must be fresh."""
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

    from tipoff_shared.primitives.text import describe

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return f"{url}: http://HOST:PORT/PATH is expected"
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=4)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        return f"{url}: {describe(exc)}"
    finally:
        connection.close()
    return "" if status == 200 else f"{url}: HTTP {status}"


def main() -> None:
    """Exit with 0 when healthy, else with 1 and the reason on standard output, which `docker inspect` shows."""
    wrong = check(sys.argv[1:], os.environ, time.time())
    print(wrong or "ok")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
