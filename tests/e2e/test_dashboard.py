"""The developer's dashboard of a real `tipoff up`: what it shows, what its buttons do, and who may not."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SERVER = """
import sys
from tipoff import Game, GameServer

class Duel(Game):
    def on_join(self, player):
        print("hello", player.name, flush=True)
        if player.name == "Mallory":
            raise RuntimeError("no seat for " + player.name)

GameServer(Duel(), capacity=2).main()
"""
GAMES = """
[[game]]
name = "duel"
version = "1"
seats = 2
min_ready = 1
max_deployments = 1
[game.process]
command = ["python", "server.py"]
env = { DUEL_SECRET = "hunter2hunter2" }

[[game]]
name = "broken"
version = "2"
seats = 2
min_ready = 1
[game.process]
command = ["python", "broken.py"]
"""
BROKEN = "def main():\n    import maps_of_nobody\n\nmain()\n"


class Dashboard:
    """A page of the dashboard without a browser."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self.client = client
        self.headers = {"X-Tipoff-Dashboard": token}

    async def do(self, operation: str, **body: Any) -> Any:
        answer = await self.client.post(f"/_tipoff/do/{operation}", json=body, headers=self.headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        async with self.client.stream("GET", "/_tipoff/events", headers=self.headers) as answer:
            assert answer.status_code == 200
            yield _parsed(answer.aiter_lines())

    async def snapshot(self) -> Any:
        async with self.events() as events:
            name, data = await anext(events)
            assert name == "snapshot"
            return data

    async def shows(self, part: str, what: str) -> Any:
        """The first item of that part of a snapshot whose JSON has `what`, when there is one."""

        async def found() -> Any:
            items = (await self.snapshot())[part]
            return next((item for item in items if what in json.dumps(item)), None)

        return await eventually(found, f"{what} among the {part}", 60)


async def _parsed(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


@asynccontextmanager
async def dashboard(up: RunningUp) -> AsyncIterator[Dashboard]:
    async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=60) as client:
        page = await client.get("/_tipoff")
        assert page.status_code == 200
        found = re.search(r'name="dashboard-token" content="([^"]+)"', page.text)
        assert found is not None
        yield Dashboard(client, found[1])


def project(path: Path) -> Path:
    (path / "server.py").write_text(SERVER)
    (path / "broken.py").write_text(BROKEN)
    games = path / "games.toml"
    games.write_text(GAMES)
    return games


async def test_the_dashboard_shows_and_steers_the_system(tmp_path: Path) -> None:
    """Games, servers, sessions, lines, tracebacks, notes; kick, drain, restart; and nothing secret."""
    async with running_up(tmp_path / "state", games=project(tmp_path)) as up, dashboard(up) as page:
        assert [game["name"] for game in (await page.snapshot())["games"]] == ["duel", "broken"]

        error = await page.shows("errors", "maps_of_nobody")
        assert error["game"] == "broken"
        assert error["traceback"].startswith("Traceback (most recent call last):\n  File ")
        assert "in main\n" in error["traceback"]
        assert error["traceback"].endswith("ModuleNotFoundError: No module named 'maps_of_nobody'")

        server = await page.shows("deployments", '"duel"')
        async with page.events() as events, connect(up.url, game="duel", version="1", name="Ann") as ann:
            async for name, data in events:
                if name == "session" and data["id"] == ann.session_id and data["state"] == "active":
                    break
            assert (data["name"], data["deployment_id"]) == ("Ann", server["id"])
            line = await page.shows("lines", "hello Ann")
            assert line["deployment_id"] == server["id"]
            kicked = await page.do("kick", session_id=ann.session_id)
            assert kicked["state"] == "active"
            async for name, data in events:
                if name == "session" and data["id"] == ann.session_id and data["state"] == "gone":
                    break
            assert "developer" in data["reason"]

        await page.do("drain", deployment_id=server["id"], now=True)

        async def another() -> Any:
            records = (await page.snapshot())["deployments"]
            return next((r for r in records if r["game"] == "duel" and r["id"] != server["id"]), None)

        second = await eventually(another, "another server", 60)
        await eventually(lambda: _ready(page, second["id"]), "the other server is ready", 60)
        restarted = await page.do("restart", game="duel", version="1")
        assert restarted["servers"] == [second["id"]]
        await page.shows("notes", "a server of duel 1 starts")

        everything = json.dumps(await page.snapshot())
        password = up.nats_settings.password.reveal()
        for secret in (password, "hunter2hunter2", page.headers["X-Tipoff-Dashboard"]):
            assert secret not in everything
        for key in (tmp_path / "state" / "keys").glob("*.key"):
            assert key.read_text() not in everything


async def _ready(page: Dashboard, deployment_id: str) -> bool:
    records = (await page.snapshot())["deployments"]
    return any(r["id"] == deployment_id and r["state"] == "ready" for r in records)


async def test_a_traceback_of_a_callback_is_shown_whole(tmp_path: Path) -> None:
    """At the page that is open, within the stream."""
    async with running_up(tmp_path / "state", games=project(tmp_path)) as up, dashboard(up) as page:
        async with page.events() as events:
            try:
                async with connect(up.url, game="duel", version="1", name="Mallory") as player:
                    async for _ in player:
                        pass
            except Exception:  # how it ends is not what is tested here
                pass
            async for name, data in events:
                if name == "error" and "Mallory" in data["traceback"]:
                    break
        assert 'raise RuntimeError("no seat for " + player.name)' in data["traceback"]
        assert data["traceback"].endswith("RuntimeError: no seat for Mallory")


async def test_other_pages_and_machines_get_nothing(tmp_path: Path) -> None:
    """By plain HTTP: a foreign Origin, another Host, a proxy's header, no secret; nothing happens to the servers."""
    state = tmp_path / "state"
    environ = {"TIPOFF_HTTPD_ORIGINS": "*"}  # for players' pages; it does not open the dashboard
    async with running_up(state, games=project(tmp_path), environ=environ) as up, dashboard(up) as page:
        client = page.client
        server = await page.shows("deployments", '"duel"')
        body = {"deployment_id": server["id"], "now": True}
        with_secret = page.headers
        refused: list[tuple[dict[str, str], str]] = [
            ({}, "no secret"),
            ({"X-Tipoff-Dashboard": "x"}, "a wrong one"),
            (with_secret | {"Origin": "http://attacker.example"}, "a foreign page"),
            (with_secret | {"Origin": "null"}, "a sandboxed page"),
            (with_secret | {"Origin": "http://127.0.0.1:1"}, "another program of this machine"),
            (with_secret | {"Host": "attacker.example"}, "a name that was pointed here"),
            (with_secret | {"Host": "attacker.example", "Origin": "http://attacker.example"}, "its page"),
            (with_secret | {"Sec-Fetch-Site": "cross-site"}, "a browser says so"),
            (with_secret | {"X-Forwarded-For": "203.0.113.9"}, "a visitor by a proxy"),
        ]
        for headers, why in refused:
            answer = await client.post("/_tipoff/do/drain", json=body, headers=headers)
            assert answer.status_code == 403, why
            assert (await client.get("/_tipoff/events", headers=headers)).status_code == 403, why
            if with_secret.items() <= headers.items():
                visit = {name: value for name, value in headers.items() if name not in with_secret}
                opened = await client.get("/_tipoff", headers=visit)
                assert opened.status_code == 403, why
                assert with_secret["X-Tipoff-Dashboard"] not in opened.text
        form = await client.post(
            "/_tipoff/do/drain",
            content=json.dumps(body),
            headers={"Content-Type": "text/plain", "Origin": "http://attacker.example"},
        )
        assert form.status_code == 403
        preflight = await client.options(
            "/_tipoff/do/drain",
            headers={
                "Origin": "http://attacker.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "x-tipoff-dashboard",
            },
        )
        assert "x-tipoff-dashboard" not in preflight.headers.get("access-control-allow-headers", "")
        assert await _ready(page, server["id"])
        framed = await client.get("/_tipoff")
        assert framed.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in framed.headers["content-security-policy"]
        for wrong in (b"", b"[]", b"{}", b'{"deployment_id": 7}', b'{"deployment_id": "../x"}', b"\xff"):
            bad = await client.post("/_tipoff/do/drain", content=wrong, headers=with_secret)
            assert bad.status_code == 400, wrong
        unknown = await client.post("/_tipoff/do/format-the-disk", content=b"{}", headers=with_secret)
        assert unknown.status_code == 400


async def test_the_page_at_the_root_is_the_games_own_or_the_dashboard(tmp_path: Path) -> None:
    """A game's web/ goes first; without one the dashboard is at `/`, too; and it can be left out."""
    games = project(tmp_path)
    async with running_up(tmp_path / "a", games=games) as up, httpx.AsyncClient(trust_env=False) as client:
        for path in ("/", "/_tipoff", "/_tipoff/"):
            answer = await client.get(up.url + path, follow_redirects=True)
            assert "dashboard-token" in answer.text, path
        assert (await client.head(up.url + "/")).status_code == 200
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.html").write_text("my game")
    async with running_up(tmp_path / "a", games=games) as up, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(up.url + "/")).text == "my game"
        assert (await client.head(up.url + "/")).status_code == 200
        assert "dashboard-token" in (await client.get(up.url + "/_tipoff")).text
    without = running_up(tmp_path / "a", games=games, arguments=("--no-dashboard",))
    async with without as up, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(up.url + "/_tipoff")).status_code == 404
        assert (await client.get(up.url + "/_tipoff/events")).status_code == 404
