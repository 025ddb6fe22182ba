"""What a matchmaker looks at before it serves: settings, the application, its version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.edgegap.edgegap_world import EdgegapWorld, sleeper, with_sessions
from tipoff_edgegap_emulator import Fail
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.verify import verify
from tipoff_orchestrator_client.registry import open_edgegap
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import EdgegapSpec
from tipoff_shared.secret import Secret
from tipoff_shared.service import load_settings

Edgegap = Callable[..., Any]


async def refused(world: EdgegapWorld) -> str:
    with pytest.raises(ConfigError) as caught:
        async with open_edgegap(
            ["edgegap", "edgegap-sessions"], world.bus, world.games, world.edgegap_settings
        ):
            pass
    return str(caught.value)


async def test_all_that_is_wrong_with_a_version_is_said_at_start(edgegap: Edgegap) -> None:
    """Not by the first player's empty hands."""
    async with edgegap(sleeper(), matchmaker=False) as world:
        version = world.emulator.state.catalogue.versions["arena-app", "v1"]
        version |= {"is_active": False, "docker_tag": "latest", "ports": []}
        said = await refused(world)
        for part in ("'arena'", "is not active", "`latest`", "no port 'game'"):
            assert part in said


async def test_an_application_or_version_that_is_not_there_is_said(edgegap: Edgegap) -> None:
    """With the command that makes one."""
    async with edgegap(sleeper(), matchmaker=False) as world:
        del world.emulator.state.catalogue.versions["arena-app", "v1"]
        assert "configure-app" in await refused(world)
        del world.emulator.state.catalogue.applications["arena-app"]
        assert "no application 'arena-app'" in await refused(world)


async def test_sessions_must_be_of_the_kind_that_the_game_says(edgegap: Edgegap) -> None:
    async with edgegap(with_sessions(sleeper()), matchmaker=False) as world:
        config = world.emulator.state.catalogue.versions["arena-app", "v1"]["session_config"]
        config |= {"kind": "Match", "sockets": 1}
        assert "kind match" in await refused(world)


async def test_a_wrong_token_is_said_without_it(edgegap: Edgegap) -> None:
    async with edgegap(sleeper(), matchmaker=False, token="wrong-canary") as world:
        said = await refused(world)
        assert "TIPOFF_EDGEGAP_TOKEN" in said
        assert "wrong-canary" not in said


async def test_a_matchmaker_starts_while_edgegap_is_away(
    edgegap: Edgegap, caplog: pytest.LogCaptureFixture
) -> None:
    """It has players to look after; that nothing was verified is logged."""
    async with edgegap(sleeper(), matchmaker=False) as world:
        world.emulator.misbehave("application", Fail(503))
        async with world.orchestrator():
            pass
    assert "is not verified: Edgegap answers 503" in caplog.text


async def test_several_games_are_looked_at_and_all_problems_told(edgegap: Edgegap) -> None:
    games = [
        msgspec.structs.replace(sleeper(), version=str(n), edgegap=EdgegapSpec("arena-app", f"v{n}"))
        for n in (1, 2, 3)
    ]
    async with edgegap(*games, matchmaker=False) as world:
        for name in ("v1", "v3"):
            world.emulator.state.catalogue.versions["arena-app", name]["is_active"] = False
        said = await refused(world)
        assert "'v1'" in said
        assert "'v2'" not in said
        assert "'v3'" in said


@pytest.mark.slow
async def test_of_many_games_every_one_is_looked_at() -> None:
    """Though our own rate limit lets only a few look-ups go in a second."""

    def answer(request: httpx.Request) -> httpx.Response:
        document = {"name": "arena-app", "is_active": False}
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(document).encode()))

    games = [
        msgspec.structs.replace(sleeper(), version=str(n), edgegap=EdgegapSpec("arena-app", f"v{n}"))
        for n in range(15)
    ]
    transport = httpx.MockTransport(answer)
    async with EdgegapClient("https://api.example", Secret("t"), transport=transport) as client:
        with pytest.raises(ConfigError) as caught:
            await verify(client, games)
    assert str(caught.value).count("is not active") == 15


def test_settings_that_cannot_be_are_told_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never by their value: it may be a secret in the wrong place."""
    monkeypatch.setenv("TIPOFF_EDGEGAP_URL", "my-secret-token")
    with pytest.raises(ConfigError, match="TIPOFF_EDGEGAP_URL") as caught:
        load_settings(Settings)
    assert "my-secret-token" not in str(caught.value)
    monkeypatch.setenv("TIPOFF_EDGEGAP_URL", "https://api.edgegap.com/")
    assert load_settings(Settings).url == "https://api.edgegap.com"


def test_webhooks_need_a_key(tmp_path: Path) -> None:
    """One that httpd has, too."""
    with pytest.raises(ConfigError, match="TIPOFF_HOOK_KEY"):
        Settings(hook_url="https://play.example").hooks("")
    assert Settings().hooks("") is None
    file = tmp_path / "hook.key"
    file.write_text("0123456789abcdef\n")
    assert Settings(hook_url="https://play.example", hook_key_file=file).hooks("") is not None
