"""An emulator whose game servers are processes that do nothing, and a client that speaks to it as anybody could."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import httpx

from tipoff_edgegap_emulator import Emulator, Options, Phase, Rules
from tipoff_shared.games import Games
from tipoff_shared.games.toml import load_games

GAMES = """
[[game]]
name = "arena"
version = "1"
orchestrator = "edgegap"
seats = 4

[game.edgegap]
application = "arena-app"
version = "v1"

[game.process]
command = ["sleep", "600"]
"""


class Account:
    """An emulator and the requests of a client that has the token."""

    def __init__(self, emulator: Emulator, client: httpx.AsyncClient, games: Games) -> None:
        self.emulator = emulator
        self.games = games
        self.client = client

    async def deploy(self, **members: Any) -> httpx.Response:
        return await self.client.post("/v2/deployments", json=order(**members))

    async def ready(self, **members: Any) -> str:
        """A deployment that runs: its request id."""
        answer = await self.deploy(**members)
        assert answer.status_code == 202, answer.text
        request_id: str = answer.json()["request_id"]
        await self.emulator.until(lambda it: phase(it, request_id) is Phase.READY)
        return request_id

    async def status(self, request_id: str) -> httpx.Response:
        return await self.client.get(f"/v1/status/{request_id}")

    async def session(self, **members: Any) -> httpx.Response:
        body = {"app_name": "arena-app", "version_name": "v1", "ip_list": ["203.0.113.7"]} | members
        return await self.client.post("/v1/session", json=body)


class Accounts(Protocol):
    def __call__(self, options: Options | None = None, *, text: str = GAMES) -> Any: ...


def order(**members: Any) -> dict[str, Any]:
    """A good body for `POST /v2/deployments`."""
    user = {"user_type": "ip_address", "user_data": {"ip_address": "203.0.113.7"}}
    return {"application": "arena-app", "version": "v1", "users": [user]} | members


def phase(emulator: Emulator, request_id: str) -> Phase | None:
    one = emulator.state.find(request_id)
    return None if one is None else one.phase


def at_once(**members: Any) -> Options:
    """Servers start without delay."""
    return Options(rules=Rules(start_delay=0.0), **members)


def load(directory: Path, text: str = GAMES) -> Games:
    (directory / "games.toml").write_text(text)
    return load_games(directory / "games.toml", missing_keys="random")
