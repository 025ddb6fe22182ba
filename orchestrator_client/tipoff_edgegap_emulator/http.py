"""Serves HTTP: an ASGI application on uvicorn's protocol, which can also send faulty answers (slow, huge, garbage)."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from tipoff_edgegap_emulator.fault_plan import Drip, Garbage, Huge

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]

MAX_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """`authorization` is the header's value; the repr leaves it out."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    authorization: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """`document` becomes JSON. `silent`: send no answer. `manner`: the fault with which the body is sent."""

    status: int = 200
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    manner: Drip | Huge | Garbage | None = None


Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]


_DOUBLED = re.compile("//+")


def application(handle: Handler) -> Callable[[_Message, _Receive, _Send], Awaitable[None]]:
    """The ASGI application that answers with `handle`."""

    async def app(scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                await _send(send, Answer(413, {"message": "Payload too large"}))
                return
            if not message.get("more_body"):
                break
        headers = {name.lower(): value for name, value in scope["headers"]}
        request = Request(
            scope["method"],
            _DOUBLED.sub("/", scope["path"]),  # the real service takes `//v1/...`
            dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
            body,
            headers.get(b"authorization", b"").decode("latin-1"),
        )
        answer = await handle(request)
        if answer.silent:
            await _until_gone(receive)
        else:
            await _send(send, answer)

    return app


async def _until_gone(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: _Send, answer: Answer) -> None:
    body = b"" if answer.document is None else json.dumps(answer.document).encode()
    if isinstance(answer.manner, Garbage):
        body = answer.manner.body
    size = answer.manner.size if isinstance(answer.manner, Huge) else len(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
    headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for part in _parts(body, answer.manner):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _parts(body: bytes, manner: Drip | Huge | Garbage | None) -> AsyncIterator[bytes]:
    if isinstance(manner, Huge):
        opening = b'{"message": "'[: manner.size]
        yield opening
        left = manner.size - len(opening)
        lot = b"x" * 65_536
        while left > 0:
            yield lot[:left]
            left -= len(lot)
            await asyncio.sleep(0)  # let the tests' tasks run
    elif isinstance(manner, Drip):
        for start in range(0, len(body), manner.size):
            yield body[start : start + manner.size]
            await asyncio.sleep(manner.every)
    elif body:
        yield body


@asynccontextmanager
async def listening(sock: socket.socket, handle: Handler) -> AsyncIterator[None]:
    """Serve on a bound socket during the block. Leaving it closes every connection, answered or not."""
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState

    config = Config(
        application(handle),
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the tests' clients give up on purpose
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config, state, {}), sock=sock, backlog=1024
    )
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            if (transport := connection.transport) is not None:
                transport.abort()
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=5)
        await server.wait_closed()
