"""Bans at httpd: a banned player hears so before anything is asked, by every way in."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.polling import eventually
from tipoff_shared.ban_list import ban_key, new_ban
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import Ban

PROXIED = {"X-Forwarded-For": "203.0.113.7"}


async def write(kv: Buckets, subject: str) -> Ban:
    ban = new_ban("address", subject, until=time.time() + 60, reason="spam")
    await kv.bans.put(ban_key(ban), ban, ttl=60)
    return ban


@pytest.mark.row(68)
async def test_a_banned_player_is_refused_by_every_way_in(
    start: Any, nats: Bus, matchmaker: Any, ask: Any
) -> None:
    """403 with the end of the ban; the player's address counts, not its proxy's; others are served."""
    kv = await create_buckets(nats)
    httpd = await start(trusted_proxies=("127.0.0.1",), default_game="arena", default_version="1")
    await write(kv, "203.0.113.0/24")
    await eventually(lambda: len(httpd.parts.state.bans.bans) == 1, "httpd knows of it")
    got = await ask(httpd, additional_headers=PROXIED)
    assert (got.error, got.code) == (403, 1008)
    assert "you are banned until" in got.messages[-1]["Error"][1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{httpd.port}") as client:
        for path in ("/matchmaker/request/arena/1", "/matchmaker/wannaplay"):
            answer = await client.post(path, headers=PROXIED)
            assert answer.status_code == 403, (path, answer.text)
            assert "spam" in answer.text
        assert matchmaker.requests == []
        other = await client.post("/matchmaker/request/arena/1", headers={"X-Forwarded-For": "203.0.114.7"})
        assert other.status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'reason="ban"' in metrics


@pytest.mark.row(68)
async def test_a_ban_is_over_when_it_is_lifted_or_its_time_has_come(
    start: Any, nats: Bus, matchmaker: Any, ask: Any
) -> None:
    """While NATS is away, what is known stays in force; a header of a stranger changes nothing."""
    kv = await create_buckets(nats)
    httpd = await start()
    bans = httpd.parts.state.bans.bans
    ban = await write(kv, "127.0.0.1")
    await eventually(lambda: len(bans) == 1, "httpd knows of it")
    assert (await ask(httpd, additional_headers=PROXIED)).error == 403
    await kv.bans.delete(ban_key(ban))
    await eventually(lambda: len(bans) == 0, "httpd knows that it is over")
    assert (await ask(httpd)).error is None


async def test_without_the_bucket_httpd_serves_everybody(httpd: Any, matchmaker: Any, ask: Any) -> None:
    """The matchmakers of an earlier release make none."""
    assert (await ask(httpd)).error is None
