"""Makes one HTTP call whose answer has a bounded size, whatever the other side sends. Needs httpx."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

IDENTITY = {"accept-encoding": "identity", "user-agent": "tipoff"}
"""Headers of every client that makes such calls: with a compressed answer a small one can become huge."""


class UnusableAnswer(Exception):
    """The answer is too long or compressed. The text continues a sentence: `the answer ...`."""


async def exchange(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    most: int,
    content: bytes | None = None,
    params: Mapping[str, int | str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and the body of at most `most` bytes. Raises `UnusableAnswer` and what httpx raises.

    Each read has the client's time-out, so the caller needs a deadline of its own. Cancelling is safe.
    """
    async with client.stream(method, url, content=content, params=params, headers=headers) as response:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnusableAnswer("is compressed, against our request")
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > most:
                raise UnusableAnswer(f"is over {most} bytes")
            parts.append(part)
        return response.status_code, response.headers, b"".join(parts)
