"""Demo mode: the page, its events, and the button."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg

from tipoff.up.embedded_nats import embedded_nats
from tipoff_matchmaker_httpd.routes.demo import MAX_QUEUED, DemoFeed, public_reason
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import Transports
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    LeaseState,
    SessionRecord,
    SessionState,
)


def session(name: str, state: SessionState = SessionState.READY) -> SessionRecord:
    return SessionRecord(
        name, state, "arena", "1", "77", "mm-1", 1.0, client_ip="203.0.113.9", deployment_id="d1"
    )


def deployment(name: str) -> DeploymentRecord:
    return DeploymentRecord(
        name,
        DeploymentState.READY,
        "arena",
        "1",
        "launcher",
        16,
        1.0,
        seats={"s1": 9.0},
        internal=["10.0.0.1:1"],
    )


def lease(name: str) -> GameserverLease:
    return GameserverLease(name, "b", "arena", "1", LeaseState.READY, Transports(), 16, players=3, pid=4711)


class Events:
    """Server-sent events as a browser reads them."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self, within: float = 5.0) -> tuple[str, Any]:
        name = ""
        async with asyncio.timeout(within):
            async for line in self._lines:
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    return name, json.loads(line[6:])
        raise EOFError("the stream ended")

    async def until(self, name: str, **members: Any) -> dict[str, Any]:
        """The first event of that name with these members."""
        while True:
            got, data = await self.next()
            if got == name and all(data.get(key) == value for key, value in members.items()):
                return dict(data)


@asynccontextmanager
async def watching(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[Events]:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30) as client,
        client.stream("GET", url + "/demo/events", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Events(answer.aiter_lines())


@pytest.fixture
async def buckets(nats: Any) -> Buckets:
    return await create_buckets(nats)


async def test_a_page_sees_what_is_and_what_changes(start: Any, buckets: Buckets, eventually: Any) -> None:
    """A snapshot, then each record as it changes, to its end."""
    await buckets.deployments.put("d1", deployment("d1"))
    await buckets.sessions.put("s0", session("s0", SessionState.GONE))
    httpd = await start(demo=True)
    await eventually(lambda: bool(httpd.parts.feed.view("deployment")))
    async with watching(httpd.url) as events:
        name, snapshot = await events.next()
        assert name == "snapshot"
        assert [record["id"] for record in snapshot["deployments"]] == ["d1"]
        assert snapshot["deployments"][0]["seats"] == {"s1": 9.0}
        assert snapshot["sessions"] == []
        revision = await buckets.sessions.create("s1", session("s1", SessionState.REQUESTED))
        await events.until("session", id="s1", state="requested")
        await buckets.sessions.update("s1", session("s1"), revision)
        await events.until("session", id="s1", state="ready")
        await buckets.gameservers.put("d1", lease("d1"))
        assert (await events.until("gameserver", deployment_id="d1"))["players"] == 3
        await buckets.gameservers.delete("d1")
        await events.until("gameserver", deployment_id="d1", state="gone")
        await buckets.deployments.delete("d1")
        await events.until("deployment", id="d1", state="gone")


async def test_nothing_of_a_player_is_shown(start: Any, buckets: Buckets, eventually: Any) -> None:
    """Neither address nor client id, and nothing of the host's inside."""
    await buckets.deployments.put("d1", deployment("d1"))
    await buckets.sessions.put("s1", session("s1"))
    await buckets.gameservers.put("d1", lease("d1"))
    httpd = await start(demo=True)
    await eventually(
        lambda: all(httpd.parts.feed.view(kind) for kind in ("deployment", "session", "gameserver"))
    )
    text = httpd.parts.feed.snapshot().decode()
    for secret in ("203.0.113.9", '"77"', "mm-1", "10.0.0.1", "4711"):
        assert secret not in text


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("the player left", "the player left"),
        ("exited with code 3; its last words: password is hunter2", "exited with code 3"),
        ("did not start: no answer from 203.0.113.9:4433\nmore", "did not start: no answer from …"),
        ("no answer from [2001:db8::7]:4433", "no answer from …"),
        ("at 12:30:05 it ended", "at 12:30:05 it ended"),
        ("x" * 500, "x" * 119 + "…"),
    ],
)
def test_visitors_see_the_first_clause_of_a_reason(reason: str, shown: str) -> None:
    """Short, and without addresses."""
    assert public_reason(reason) == shown


async def test_pages_are_counted(start: Any, eventually: Any) -> None:
    """Over the bound 503; a closed page makes room. The page works before there are any buckets."""
    httpd = await start(demo=True, demo_listeners=1)
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
        async with watching(httpd.url) as events:
            assert await events.next() == ("snapshot", {"deployments": [], "sessions": [], "gameservers": []})
            assert (await client.get("/demo/events")).status_code == 503
        await eventually(lambda: not httpd.parts.feed.listeners)
    async with watching(httpd.url) as events:
        await events.next()


@pytest.mark.row(69)
async def test_one_address_does_not_take_all_streams(start: Any, eventually: Any) -> None:
    """It has a share; when all are taken, the oldest stream of the address that has most ends. The forwarded address
    of a trusted proxy counts."""
    httpd = await start(
        demo=True, demo_listeners=5, demo_listeners_per_address=3, trusted_proxies=("127.0.0.1",)
    )

    def of(last: int) -> dict[str, str]:
        return {"X-Forwarded-For": f"203.0.113.{last}"}

    async with (
        httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client,
        watching(httpd.url, of(1)) as oldest,
        watching(httpd.url, of(1)) as younger,
        watching(httpd.url, of(1)),
        watching(httpd.url, of(2)),
        watching(httpd.url, of(3)),
    ):
        await oldest.next()
        assert (await client.get("/demo/events", headers=of(1))).status_code == 429
        async with watching(httpd.url, of(4)) as other:
            await other.next()
            with pytest.raises(EOFError):
                await oldest.next()
            assert await younger.next()
            # Now each has two at most: a newcomer's second would be as many, so nobody goes for it.
            assert (await client.get("/demo/events", headers=of(4))).status_code == 503
            assert httpd.parts.feed.listeners == 5
    await eventually(lambda: not httpd.parts.feed.listeners)


async def test_a_slow_page_gets_a_snapshot_instead() -> None:
    """Its queue is bounded."""
    feed = DemoFeed()
    page = feed.events(feed.claim(ip_address("127.0.0.1")))
    assert b"event: snapshot" in await anext(page)
    for number in range(MAX_QUEUED + 10):
        feed.changed("session", f"s{number}", session(f"s{number}"), number + 1)
    read: list[bytes] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):  # all that is queued; then nothing comes
            while True:
                read.append(await anext(page))
    assert 1 < len(read) <= MAX_QUEUED
    assert read[0].startswith(b"event: snapshot")


async def test_an_old_change_does_not_undo_a_new_one() -> None:
    """A watch may repeat what a listing knew already."""
    feed = DemoFeed()
    feed.changed("session", "s1", session("s1", SessionState.ACTIVE), 5)
    feed.changed("session", "s1", session("s1", SessionState.REQUESTED), 4)
    feed.changed("session", "s1", None, 3)
    assert [view["state"] for view in feed.view("session")] == ["active"]
    feed.changed("session", "s1", None, 6)
    assert not feed.view("session")


async def test_the_view_survives_a_restart_of_nats(tmp_path: Path, eventually: Any) -> None:
    """The same page goes on, with what changed after the restart."""
    async with embedded_nats(tmp_path / "nats") as server:
        settings = server.settings("demo")
        async with connect(settings, name="matchmaker") as bus:
            buckets = await create_buckets(bus)
            await buckets.sessions.put("s1", session("s1"))
            async with (
                run_httpd(Settings(port=0, demo=True, drain_timeout=0.2), settings) as httpd,
                watching(httpd.url) as events,
            ):
                await events.next()
                server.process.kill()
                await server.process.wait()
                await server.start()
                await eventually(lambda: bus.connected)
                await buckets.sessions.put("s2", session("s2"))
                await events.until("session", id="s2")


class Launcher:
    """Answers `kill`."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.answer = b"{}"

    async def received(self, msg: Msg) -> None:
        self.killed.append(json.loads(msg.data)["deployment_id"])
        await msg.respond(self.answer)


@pytest.fixture
async def launcher(nats: Any) -> Launcher:
    stub = Launcher()
    await nats.nc.subscribe(nats.subjects.launcher("local", "kill"), cb=stub.received)
    await nats.flush()
    return stub


async def test_the_button_kills_a_server(start: Any, launcher: Launcher) -> None:
    """From the page that this httpd serves, and from nowhere else."""
    httpd = await start(demo=True, origins=("*",))
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
        own = {"Origin": httpd.url}
        assert (await client.post("/demo/kill/arena-1", headers=own)).status_code == 202
        assert launcher.killed == ["arena-1"]
        for headers in (
            {},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://evil.example:1", "Host": "evil.example:1"},  # DNS rebinding
        ):
            answer = await client.post("/demo/kill/arena-1", headers=headers)
            assert (answer.status_code, answer.json()["Error"][0]) == (403, 403)
        assert (await client.post("/demo/kill/a%20b", headers=own)).status_code == 400
        assert (await client.get("/demo/kill/arena-1", headers=own)).status_code == 405
        launcher.answer = b'{"error":{"kind":"unknown","message":"no such server"}}'
        answer = await client.post("/demo/kill/arena-2", headers=own)
        assert answer.json() == {"Error": [502, "the launcher: no such server"]}
        assert launcher.killed == ["arena-1", "arena-2"]


async def test_without_a_launcher_the_button_says_so(start: Any) -> None:
    """503."""
    httpd = await start(demo=True)
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
        assert (await client.post("/demo/kill/arena-1", headers={"Origin": httpd.url})).status_code == 503


async def test_the_page_and_its_files_are_served(start: Any, tmp_path: Path) -> None:
    """The built-in one, or your own; nothing outside of it."""
    (tmp_path / "index.html").write_text("<p>mine")
    (tmp_path / "game.js").write_text("1")
    (tmp_path.parent / "secret.txt").write_text("secret")
    for settings, text in (({}, "<!doctype html>"), ({"web_dir": tmp_path}, "<p>mine")):
        httpd = await start(demo=True, **settings)
        async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
            page = await client.get("/")
            assert page.text.lower().startswith(text)
            assert page.headers["x-frame-options"] == "DENY"
            for path in ("/web/../secret.txt", "/web/%2e%2e/secret.txt", "/web/..%2fsecret.txt"):
                assert (await client.get(path)).status_code == 404
    async with httpx.AsyncClient(base_url=httpd.url, trust_env=False) as client:
        script = await client.get("/web/game.js")
    assert script.text == "1"
    assert script.headers["cache-control"] == "no-cache"


async def test_a_directory_without_a_page_is_refused(start: Any, tmp_path: Path) -> None:
    """At start, not when the first browser comes."""
    with pytest.raises(ConfigError, match=r"index\.html"):
        await start(demo=True, web_dir=tmp_path)
