"""Other ways to run it: with TLS, for the local network, parts by themselves in their own namespace."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.e2e.steps import all_given_back, free_port
from tests.polling import eventually
from tipoff.testing import running_up
from tipoff.up.addresses import lan_address
from tipoff.up.child_process import ChildProcess, ProcessSpec
from tipoff_client_sdk import connect
from tipoff_shared.errors import UnknownGame
from tipoff_shared.settings import NatsSettings


@pytest.mark.slow
async def test_with_tls_page_and_game_are_both_encrypted(tmp_path: Path, games_file: Path) -> None:
    """`--tls-cert --tls-key`: https for the page, wss for the game; a browser on https allows nothing else."""
    cert, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(cert))
    arguments = ("--tls-cert", str(cert), "--tls-key", str(key))
    async with running_up(tmp_path / "state", games=games_file, arguments=arguments) as up:
        assert up.url.startswith("https://")
        async with connect(up.url, game="arena", version="1", transports=("websocket",), ssl=trust) as player:
            assert player.server.startswith("wss://")
            await player.receive()


@pytest.mark.slow
async def test_host_auto_lets_a_friend_join(tmp_path: Path, games_file: Path) -> None:
    """`--host auto` puts the address in the local network into tokens, and this machine still plays."""
    lan = lan_address()
    if lan is None:
        pytest.skip("this machine has no network besides loopback")
    async with running_up(tmp_path / "state", games=games_file, arguments=("--host", "auto")) as up:
        assert lan in up.url
        async with connect(up.url, game="arena", version="1") as player:
            assert player.server.startswith(f"{lan}:")


@asynccontextmanager
async def served(
    nats: NatsSettings, namespace: str, games: Path, state: Path, port: int
) -> AsyncIterator[str]:
    """The three roles as `tipoff serve` runs them, in its own namespace; the URL."""
    env = (
        os.environ
        | nats.to_environment()
        | {
            "TIPOFF_NAMESPACE": namespace,
            "TIPOFF_GAMES": str(games),
            "TIPOFF_KEYS_DIR": str(state / "keys"),
            "TIPOFF_LAUNCHER_STATE_DIR": str(state),
            "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": "true",
            "TIPOFF_HTTPD_PORT": str(port),
        }
    )
    modules = ("tipoff_launcher", "tipoff_matchmaker", "tipoff_matchmaker_httpd")
    running: list[ChildProcess] = []
    try:
        for module in modules:
            spec = ProcessSpec(module, module, module, env, state / f"{module}.log")
            running.append(await ChildProcess.start(spec))
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in reversed(running):
            await process.stop(6)


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    """State directory of a second system, with the key of its game."""
    keys = tmp_path / "blue" / "keys"
    keys.mkdir(parents=True)
    (keys / "arena.9.key").write_text("17" * 32)
    return keys.parent


@pytest.mark.slow
async def test_two_namespaces_on_one_nats_never_see_each_other(
    tmp_path: Path, blue: Path, games_file: Path
) -> None:
    """A second system beside the first, by `tipoff serve`: neither has the other's games, servers or players."""
    games = tmp_path / "games.toml"
    games.write_text(
        '[[game]]\nname = "arena"\nversion = "9"\nempty_ttl = 1\n'
        '[game.process]\ncommand = ["python", "-m", "tipoff_arena.server"]\nenv = { ARENA_BOTS = "0" }\n'
    )
    async with running_up(tmp_path / "state", games=games_file) as up:
        async with served(up.nats_settings, "blue", games, blue, free_port()) as url:

            async def ready() -> bool:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
                except OSError:
                    return False
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.readline()
                writer.close()
                return b" 200 " in answer

            await eventually(ready, "the second system ready", 20)
            async with (
                connect(url, game="arena", version="9") as there,
                connect(up.url, game="arena", version="1") as here,
            ):
                seen = {d["id"] for d in (await up.status())["deployments"]}
                assert here.deployment_id in seen
                assert there.deployment_id not in seen
            with pytest.raises(UnknownGame):
                async with connect(up.url, game="arena", version="9"):
                    pass
            with pytest.raises(UnknownGame):
                async with connect(url, game="arena", version="1"):
                    pass
        await eventually(lambda: all_given_back(up), "nothing taken", 5)
