"""Answers servers over HTTP, each with its own token: it returns their context, and stops them when they ask for it.

    GET    /v1/context/{deployment id}/{number}      header `authorization: <ARBITRIUM_CONTEXT_TOKEN>`
    DELETE /v1/self/stop/{deployment id}/{number}    header `authorization: <ARBITRIUM_DELETE_TOKEN>`

The URLs and tokens come with the server's environment (arbitrium.py). The answer to a wrong token does not reveal
whether a deployment exists.
"""

from __future__ import annotations

import hmac
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tipoff_launcher.edgegap_compat.arbitrium import CONTEXT_PATH, STOP_PATH, ServerTokens
from tipoff_launcher.edgegap_compat.small_http import Answer, Request, SmallHttp
from tipoff_shared.errors import ConfigError

log = logging.getLogger(__name__)

PORT_FILE = "context.port"
_MAX_ID = 63
"""Characters of the longest deployment id."""


class ContextEndpoint:
    """Decides each answer. `context(id)` is None for a server that does not run here; `stop(id)` begins to stop one."""

    def __init__(
        self,
        tokens: ServerTokens,
        *,
        context: Callable[[str], dict[str, Any] | None],
        stop: Callable[[str], None],
    ) -> None:
        self._tokens = tokens
        self._context = context
        self._stop = stop

    async def answer(self, request: Request) -> Answer:
        """The answer to one request; raises nothing."""
        for path, method, token in (
            (CONTEXT_PATH, "GET", self._tokens.context_token),
            (STOP_PATH, "DELETE", self._tokens.delete_token),
        ):
            if not request.path.startswith(path + "/"):
                continue
            if request.method != method:
                return _message(405, f"{method} is expected here", ("allow", method))
            deployment_id, _, number = request.path.removeprefix(path + "/").partition("/")
            deployment_id = deployment_id[: _MAX_ID + 1]
            right = hmac.compare_digest(
                request.authorization.encode("latin-1", "replace"), token(deployment_id).encode()
            )
            if not right or number != str(self._tokens.number(deployment_id)):
                return _message(401, "the token in the authorization header is not that of this deployment")
            found = self._context(deployment_id)
            if found is None:
                return _message(410, "this deployment has ended")
            if method == "GET":
                return Answer(200, msgspec.json.encode(found))
            self._stop(deployment_id)
            return _message(202, "the deployment is being stopped")
        return _message(404, "there is nothing here")


def _message(status: int, message: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, msgspec.json.encode({"message": message}), headers)


def bind(listen: tuple[str, int], state_dir: Path) -> socket.socket:
    """The endpoint's socket. Port 0 is any free port, and the same one again after a restart, because servers that
    outlive the launcher know its URL. Raises `ConfigError`."""
    host, port = listen
    kept = _kept_port(state_dir) if port == 0 else 0
    for number in (kept, port) if kept else (port,):
        try:
            sock = _bound(host, number)
        except OSError as exc:
            if number != kept:
                raise ConfigError(
                    f"TIPOFF_LAUNCHER_CONTEXT_LISTEN={host}:{port}: {exc.strerror}; choose another address or port"
                ) from exc
            log.warning("port %d is in use: servers started earlier can no longer reach this launcher", kept)
            continue
        if port == 0 and sock.getsockname()[1] != kept:
            with suppress(OSError):  # the next launcher then uses another port
                (state_dir / PORT_FILE).write_text(f"{sock.getsockname()[1]}\n")
        return sock
    raise AssertionError("the last attempt returns or raises")


def _bound(host: str, port: int) -> socket.socket:
    # asyncio turns off Nagle's algorithm, which costs 40 ms per answer, only where the protocol is named.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _kept_port(state_dir: Path) -> int:
    try:
        port = int((state_dir / PORT_FILE).read_text())
    except (OSError, ValueError):
        return 0
    return port if 1024 <= port <= 65535 else 0


@asynccontextmanager
async def serve_contexts(endpoint: ContextEndpoint, sock: socket.socket) -> AsyncIterator[None]:
    """Answer on `sock` for the time of the block."""
    http = SmallHttp(endpoint.answer)
    await http.open(sock)
    try:
        yield
    finally:
        await http.close()
