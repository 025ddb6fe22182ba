"""Asks Edgegap, for a server that runs there, by what name browsers reach it, and to end it when the match is over."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace

import msgspec

from tipoff_gameserver.context import Context, Port
from tipoff_shared.errors import Malformed
from tipoff_shared.primitives.retry import retry
from tipoff_shared.primitives.text import describe
from tipoff_shared.secret import Secret

log = logging.getLogger(__name__)

_TIMEOUT = 3.0
_TRIES = 3
_FIRST_PAUSE = 0.5
"""Seconds; all tries together take far less than a server has for its start."""
_MAX_ANSWER = 256 * 1024
_NAME = re.compile(r"[a-zA-Z0-9-]{1,63}(\.[a-zA-Z0-9-]{1,63}){1,20}", re.ASCII)


class _Ports(msgspec.Struct):
    """What a deployment's context says of names and ports."""

    fqdn: str = ""
    ports: dict[str, Port] | None = None


def secure_url(document: bytes, port: Port) -> str:
    """`wss://NAME:PORT/` where Edgegap speaks TLS before our WebSocket port, "" where it does not. `document`: the
    deployment's context, JSON, whose ports say so as the status does (A: context-tls). Raises `Malformed`."""
    try:
        told = msgspec.json.decode(document, type=_Ports)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a deployment's context: {exc}") from exc
    same = [each for each in (told.ports or {}).values() if each.internal == port.internal]
    if not (port.tls_upgrade or any(each.tls_upgrade for each in same)):
        return ""
    if not _NAME.fullmatch(told.fqdn):  # a certificate is for a name
        raise Malformed("the context has no name (fqdn) that a certificate could be for")
    return f"wss://{told.fqdn}:{port.external}/"


async def with_secure_url(context: Context) -> Context:
    """The context, with the URL that browsers dial where Edgegap speaks TLS before our WebSocket port.

    Never fails: without that name a server still takes native clients, and its log says so.
    """
    port = context.ports.get("websocket")
    if not context.context_url or context.websocket_url or port is None:
        return context
    if not context.context_url.startswith(("http://", "https://")):
        log.warning("ARBITRIUM_CONTEXT_URL is not an http(s) URL; browsers on https cannot reach this server")
        return context

    async def ask() -> Context:
        document = await _request("GET", context.context_url, context.context_token)
        return replace(context, websocket_url=secure_url(document, port))

    try:
        return await retry(
            ask,
            tries=_TRIES,
            first_pause=_FIRST_PAUSE,
            retry_if=lambda exc: isinstance(exc, OSError | Malformed),
            on_failure=lambda _, exc: log.warning(
                "asking Edgegap by what name browsers reach us: %s", describe(exc)
            ),
        )
    except (OSError, Malformed) as exc:  # TimeoutError and urllib's URLError are OSErrors
        log.warning("asking Edgegap by what name browsers reach us: %s", describe(exc))
    log.error("Edgegap does not say by what name browsers reach this server: those on https stay out")
    return context


async def end_deployment(url: str, token: Secret) -> None:
    """Ask Edgegap to end this deployment. A failure is logged: the matchmaker sees the ended lease and ends it too."""
    if not url.startswith(("http://", "https://")):
        log.warning("ARBITRIUM_DELETE_URL is not an http(s) URL; the deployment is left to its orchestrator")
        return
    try:
        await _request("DELETE", url, token)
    except OSError as exc:
        log.warning("Edgegap could not be told that the match is over: %s", exc)


async def _request(method: str, url: str, token: Secret) -> bytes:
    """The answer's body, at most `_MAX_ANSWER` bytes of it. Raises `OSError`."""

    def request() -> bytes:
        import urllib.request  # rarely needed, and a tenth of this package's time to import

        asked = urllib.request.Request(url, method=method, headers={"authorization": token.reveal()})
        with urllib.request.urlopen(asked, timeout=_TIMEOUT) as answer:  # the URL comes from Edgegap itself
            body: bytes = answer.read(_MAX_ANSWER)
            return body

    async with asyncio.timeout(_TIMEOUT + 1):
        return await asyncio.to_thread(request)
