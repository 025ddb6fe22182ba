"""What a server gets from the launcher, and that secrets show nowhere."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.launcher_world import KEY, LauncherWorld, Spec
from tests.polling import eventually
from tipoff_launcher.service import Launcher
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import Bus
from tipoff_shared.settings import NatsSettings


async def dumped(client: LauncherOrchestrator, spec: DeploySpec, tmp_path: Path) -> dict[str, str]:
    """The environment of a server of the game `dump`."""
    file = tmp_path / "environment"
    await client.deploy(spec)
    await eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


async def test_a_server_learns_everything_from_its_environment(
    launcher: Launcher,
    client: LauncherOrchestrator,
    spec: Spec,
    games: Games,
    settings: NatsSettings,
    tmp_path: Path,
) -> None:
    """Its identity, where players and NATS are, and the file with its key."""
    wanted = spec("dump", environment={"MATCH_MAP": "dust"})
    found = await dumped(client, wanted, tmp_path)
    game = games.get("dump", "1")
    assert game is not None
    assert found["TIPOFF_DEPLOYMENT_ID"] == wanted.deployment_id
    assert (found["TIPOFF_GAME"], found["TIPOFF_VERSION"], found["TIPOFF_CAPACITY"]) == ("dump", "1", "4")
    assert (found["TIPOFF_PUBLIC_HOST"], found["TIPOFF_BIND_HOST"]) == ("127.0.0.1", "127.0.0.1")
    assert found["TIPOFF_PROTOCOL_ID"] == str(game.netcode_protocol_id)
    assert found["TIPOFF_DIALECT"] == "standard"
    assert found["MATCH_MAP"] == "dust"
    assert contents(found["TIPOFF_PRIVATE_KEY_FILE"]) == KEY.reveal().hex()
    again = NatsSettings.from_environment(found)
    assert (again.servers, again.namespace) == (settings.servers, settings.namespace)
    assert again.password.reveal() == settings.password.reveal()


@pytest.mark.row(66)
async def test_a_server_that_is_to_have_its_own_key_never_sees_the_games(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec, tmp_path: Path
) -> None:
    """It gets the derived key, and the launcher says so, also to those who list. Every other one gets the game's."""
    wanted = spec("dump", own_key=True)
    found = await dumped(client, wanted, tmp_path)
    own = KEY.of_deployment(wanted.deployment_id).reveal().hex()
    assert contents(found["TIPOFF_PRIVATE_KEY_FILE"]) == own
    assert not any(KEY.reveal().hex() in value for value in found.values())
    other = spec()
    assert (await client.deploy(wanted)).own_key is True
    assert (await client.deploy(other)).own_key is False
    listed = {one.deployment_id: one.own_key for one in await client.list()}
    assert listed == {wanted.deployment_id: True, other.deployment_id: False}


async def test_nothing_else_of_the_launchers_environment_is_passed_on(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    spec: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the launcher's secrets nor variables that change how Python works."""
    for name in ("TIPOFF_LAUNCHER_SECRET", "EDGEGAP_TOKEN", "PYTHONPATH", "LD_LIBRARY_PATH", "ARENA_KEY"):
        monkeypatch.setenv(name, "canary")
    async with launchers.start():
        found = await dumped(client, spec("dump"), tmp_path)
    assert "canary" not in found.values()
    allowed = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONUNBUFFERED"}
    by_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    others = {name for name in found if not name.startswith(("TIPOFF_", "ARBITRIUM_", "NATS_", "LC_"))}
    assert others <= allowed | by_the_shell


async def test_the_key_is_a_file_for_its_owner_and_goes_with_the_server(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """0600 in a 0700 directory; removed when the server has stopped."""
    wanted = spec()
    await client.deploy(wanted)
    directory = launcher.settings.state_dir / "deployments" / wanted.deployment_id
    file = directory / "private_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "record.json").stat().st_mode) == 0o600
    await client.stop(wanted.deployment_id)
    assert not file.exists()


async def test_no_secret_is_seen_anywhere(
    launcher: Launcher,
    client: LauncherOrchestrator,
    spec: Spec,
    settings: NatsSettings,
    nats: Bus,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in command lines, logs, records, answers or events, even if the server prints them."""
    caplog.set_level(logging.DEBUG)
    messages: list[bytes] = []

    async def saw(msg: Any) -> None:
        messages.append(msg.data)

    await nats.nc.subscribe(nats.subjects.launcher("local", "events"), cb=saw)
    await nats.flush()
    running, blab = spec(), spec("blab")
    await client.deploy(running)
    await client.deploy(blab)
    await eventually(lambda: not launcher.supervisor.runs(blab.deployment_id))
    ended = await client.get(blab.deployment_id)
    assert ended is not None
    assert "***" in ended.reason
    await eventually(lambda: len(messages) >= 3)
    records = [path.read_text() for path in launcher.settings.state_dir.glob("deployments/*/record.json")]
    seen = [*command_lines(), caplog.text, repr(ended), *records, *(data.decode() for data in messages)]
    for secret in (KEY.reveal().hex(), settings.password.reveal()):
        assert not [text for text in seen if secret.lower() in text.lower()]


def contents(path: str) -> str:
    return Path(path).read_text()


def command_lines() -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(Path(f"/proc/{entry}/cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return found


async def test_a_spec_cannot_change_how_the_server_is_started(
    launcher: Launcher, nats: Bus, spec: Spec
) -> None:
    """LD_PRELOAD and PYTHONPATH can run code: only GAME_... and MATCH_... are accepted."""
    client = LauncherOrchestrator(nats)
    for name in ("LD_PRELOAD", "PATH", "PYTHONPATH", "TIPOFF_GAME", "NATS_HOST", "BASH_ENV"):
        with pytest.raises(Exception, match="names are GAME_"):
            await client.deploy(spec("sleeper", environment={name: "/tmp/evil"}))
    assert await client.list() == []


async def test_a_server_that_outlives_sigterm_has_no_key_left_behind(
    launcher: Launcher, client: LauncherOrchestrator, spec: Spec
) -> None:
    """The key of a killed server is removed too."""
    wanted = spec("stubborn")
    await client.deploy(wanted)
    await asyncio.gather(client.stop(wanted.deployment_id), client.stop(wanted.deployment_id))
    assert not list(launcher.settings.state_dir.glob("deployments/*/private_key"))


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", None])
async def test_a_password_for_servers_that_cannot_be_used_is_named(
    launchers: LauncherWorld, tmp_path: Path, content: bytes | None
) -> None:
    """The error comes at the launcher's start, not when the first server fails to connect."""
    file = tmp_path / "gameserver.password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="SERVER_NATS_PASSWORD_FILE"):
        async with launchers.start(server_nats_user="gs", server_nats_password_file=str(file)):
            raise AssertionError
