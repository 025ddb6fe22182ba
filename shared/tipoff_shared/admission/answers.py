"""Makes the parts of an HTTP answer that need no web framework, and notices a client that disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from tipoff_shared.errors import NotAuthenticated, TipoffError, Unavailable
from tipoff_shared.messages import Failed, encode_feedback

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's `receive`."""


def error_body(error: TipoffError) -> bytes:
    """`{"Error": [code, reason]}`, the JSON that every endpoint answers an error with."""
    return encode_feedback(Failed(error.code, error.message))


def retry_after(error: TipoffError) -> int | None:
    """The whole seconds of a Retry-After header, at least 1; None when the error does not say when to ask again."""
    return max(1, round(error.retry_after)) if error.retry_after else None


def error_headers(error: TipoffError) -> dict[str, str]:
    """The headers of an answer with this error: Retry-After where it is known, and how to log in (RFC 6750, 3)."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, NotAuthenticated) else {}
    if (seconds := retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    return headers


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`. Cancels it and raises `Unavailable` when the client disconnects first.

    `receive` is that of the request, whose body has been read. Cancelling cancels `work`.
    """
    working = asyncio.ensure_future(work)

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Unavailable("the client has disconnected")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
