"""Real httpds that serve the turn relay, and players at them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tipoff_matchmaker_httpd.server.run import RunningHttpd, run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.settings import NatsSettings

Start = Callable[..., Awaitable[RunningHttpd]]


@pytest.fixture
async def start(settings: NatsSettings) -> AsyncIterator[Start]:
    """`await start(**settings)`: an httpd with these settings, until the test ends."""
    async with AsyncExitStack() as stack:

        async def starting(**changes: Any) -> RunningHttpd:
            made = Settings.load(**({"port": 0, "drain_timeout": 2.0} | changes))
            return await stack.enter_async_context(run_httpd(made, settings))

        yield starting


@pytest.fixture
async def httpd(start: Start) -> RunningHttpd:
    return await start()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


class Say:
    """One player at one httpd: `await say("2,*,30,*,*")`."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self.url = url

    async def __call__(self, body: str | bytes) -> str:
        """The answer; its status is checked against it."""
        content = body.encode() if isinstance(body, str) else body
        response = await self._http.post(self.url, content=content)
        assert response.status_code == (200 if response.text.startswith("0/") else 400), response.text
        return response.text


async def paired(one: Say, other: Say, names: tuple[str, str] = ("Ada", "Bob")) -> tuple[str, str]:
    """Take two from registering to `0/8`; the game keys of `one` (player 0) and `other` (player 1)."""
    first = (await one(f"0,{names[0]},*,{names[1]},*")).removeprefix("0/0/")
    second = (await other(f"0,{names[1]},*,{names[0]},*")).removeprefix("0/0/")
    assert await other(f"2,*,{second},*,*") == f"0/3/{names[0]}"
    assert await one(f"2,*,{first},*,*") == f"0/4/{names[1]}"
    assert await one(f"3,*,{first},*,*") == "0/6/"
    assert await other(f"3,*,{second},*,*") == "0/5/"
    assert await other(f"4,*,{second},*,*") == "0/7/*"
    keys = []
    for say, key, player in ((one, first, "0"), (other, second, "1")):
        start, _, number = (await say(f"4,*,{key},*,*")).removeprefix("0/8/").partition("|")
        assert number == player
        keys.append(start)
    return keys[0], keys[1]


@pytest.fixture(name="paired")
def paired_fixture() -> Any:
    return paired


@pytest.fixture
def say(http: httpx.AsyncClient) -> Callable[..., Say]:
    """`say(httpd)`: a player at that httpd's /turn; `say(url=...)`: anywhere."""

    def saying(httpd: RunningHttpd | None = None, *, url: str = "") -> Say:
        return Say(http, url or f"{httpd.url if httpd else ''}/turn")

    return saying
