"""Makes one HTTP call whose answer has a bounded size, whatever the other side sends. Needs httpx."""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

_HEADERS = {"accept-encoding": "identity", "user-agent": "tipoff"}
"""With a compressed answer, a small one can become huge."""


def make_client(
    *,
    timeout: httpx.Timeout | float,
    limits: httpx.Limits,
    base_url: str = "",
    headers: Mapping[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A pool of connections for `exchange`. It follows no redirect and keeps no cookie, which would carry what belongs
    to one call into the next."""
    return httpx.AsyncClient(
        base_url=base_url,
        headers={**_HEADERS, **(headers or {})},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        timeout=timeout,
        limits=limits,
        follow_redirects=False,
        transport=transport,
    )


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
    repeatable: bool = True,
) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and the body of at most `most` bytes. Raises `UnusableAnswer` and what httpx raises.

    A `repeatable` call is made a second time when its connection breaks, as one may that was kept alive too long. Each
    read has the client's time-out, so the caller needs a deadline of its own. Cancelling is safe.
    """
    request = client.build_request(method, url, content=content, params=params, headers=headers)
    try:
        return await _once(client, request, most)
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        if not repeatable:
            raise
        return await _once(client, request, most)


async def _once(
    client: httpx.AsyncClient, request: httpx.Request, most: int
) -> tuple[int, httpx.Headers, bytes]:
    response = await client.send(request, stream=True)
    try:
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
    finally:
        await response.aclose()
