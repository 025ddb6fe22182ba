"""When `tipoff up` is ready: as soon as `/readyz` of its httpd says so."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import time

from tipoff.up.child_process import Part
from tipoff_shared.errors import Unavailable

READY_TIMEOUT = 30.0


async def wait_until_ready(host: str, port: int, tls: bool, parts: list[Part], stop: asyncio.Event) -> bool:
    """True when `/readyz` is good, False when `stop` came first; raises `Unavailable` with the reason."""
    deadline = time.monotonic() + READY_TIMEOUT
    reason = "no answer yet"
    while time.monotonic() < deadline and not stop.is_set():
        for part in parts:
            if part.failed_to_start:
                raise Unavailable(f"{part.name} does not start: {part.last_words()}")
        good, reason = await asyncio.to_thread(_ask_ready, host, port, tls)
        if good:
            return True
        await asyncio.sleep(0.02)  # start-up, before any player: httpd has no other way to tell
    if stop.is_set():
        return False
    raise Unavailable(
        f"not ready after {READY_TIMEOUT:.0f} s: {reason}; the logs are in {parts[0].log_path.parent}"
    )


def _ask_ready(host: str, port: int, tls: bool) -> tuple[bool, str]:
    address = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 # compared, not bound
    try:
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = (
                False,
                ssl.CERT_NONE,
            )  # our own server, asked if it is up
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address, port, timeout=3, context=context
            )
        else:
            connection = http.client.HTTPConnection(address, port, timeout=3)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return answer.status == 200, answer.read(300).decode(errors="replace")
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        return False, f"httpd: {exc}"
