"""The whole system by `tipoff serve`, on deploy/nats/nats.conf: TLS, every part as the user of its own role.

What NATS does not permit would show: in the parts' logs, in nats-server's, or by something that does not work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.arena_servers import arena_toml
from tests.deploy.deployed_nats import DeployedNats
from tests.e2e.steps import command_lines, free_port
from tests.polling import eventually
from tipoff.operate.watch import watch_changes
from tipoff.secrets.directory import SecretsDirectory
from tipoff_client_sdk import Player, ServerLost, connect
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.hooks import HookKey
from tipoff_shared.nats.connection import connect as connect_nats

GAMES = arena_toml(seats=8, min_ready=1, max_deployments=4, empty_ttl=3, claim_time=5)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class System:
    """Parts as processes of `tipoff serve`, with nothing in their environment but what an operator sets."""

    def __init__(self, nats: DeployedNats, directory: Path) -> None:
        self.nats = nats
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.parts: dict[str, asyncio.subprocess.Process] = {}
        self.logs = directory / "logs"
        self.logs.mkdir()

    def environment(self, role: str) -> dict[str, str]:
        secrets = self.nats.secrets
        common = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        common |= self.nats.environment(role)
        common |= {
            "TIPOFF_GAMES": str(self.directory / "games.toml"),
            "TIPOFF_KEYS_DIR": str(secrets / "netcode"),
        }
        own = {
            "matchmaker": {},
            "httpd": {
                "TIPOFF_HTTPD_PORT": str(self.port),
                "TIPOFF_HTTPD_DEMO": "true",
                "TIPOFF_HOOK_KEY_FILE": str(secrets / "edgegap" / "hook.key"),
            },
            "launcher": {
                "TIPOFF_LAUNCHER_STATE_DIR": str(self.directory / "launcher"),
                "TIPOFF_LAUNCHER_DEMO": "true",
                "TIPOFF_LAUNCHER_SERVER_NATS_USER": "gameserver",
                "TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE": str(self.nats.password_file("gameserver")),
                "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": "true",
            },
        }
        return common | own[role]

    async def start(self, name: str) -> None:
        """`name`: a role, or a role with a number."""
        role = name.split("-")[0]
        with (self.logs / f"{name}.log").open("ab") as out:
            self.parts[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tipoff", "serve", role),
                env=self.environment(role),
                cwd=self.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    async def crash(self, name: str) -> None:
        self.parts[name].send_signal(signal.SIGKILL)
        await self.parts[name].wait()

    async def stop(self, name: str) -> int:
        process = self.parts[name]
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(15):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        return process.returncode or 0

    async def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient() as http:
                return (await http.get(f"{self.url}/readyz")).status_code == 200
        return False

    async def command(self, role: str, *arguments: str) -> Any:
        """`tipoff ... --json` as people run it: NATS_HOST and the like say where and who."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tipoff", *arguments, "--json"),
            env=self.nats.environment(role) | {"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            out, err = await process.communicate()
        assert (process.returncode, err.decode()) == (0, "")
        return json.loads(out)

    def said(self) -> dict[str, str]:
        """Every log there is: nats-server's, the parts', the game servers'."""
        logs = [self.nats.log, *self.logs.glob("*.log"), *(self.directory / "launcher").rglob("*.log*")]
        return {
            str(path.relative_to(self.directory)): path.read_text(errors="replace")
            for path in logs
            if path.is_file()  # not the pipes of servers that run
        }


@asynccontextmanager
async def playing(system: System) -> AsyncIterator[Player]:
    async with connect(system.url, game="arena", version="1") as player:
        await player.receive()
        yield player


async def _end_of(player: Player) -> None:
    async with asyncio.timeout(20):
        async for _ in player:
            pass


@pytest.fixture
async def system(tmp_path: Path, source_tree: Path) -> AsyncIterator[System]:
    """Two matchmakers, httpd, launcher and NATS with TLS, ready."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    nats = DeployedNats(tmp_path, source_tree, "nats.conf", namespace="prod")
    SecretsDirectory(nats.secrets, parse_games(read_games(games), str(games))).initialise()
    nats.start()
    system = System(nats, tmp_path)
    try:
        for name in ("launcher", "matchmaker-1", "matchmaker-2", "httpd"):
            await system.start(name)
        await eventually(system.ready, "the system ready", 30)
        yield system
    finally:
        for name in ("httpd", "matchmaker-2", "matchmaker-1", "launcher"):
            if name in system.parts:
                await system.stop(name)
        nats.stop()


@pytest.mark.row(56, 58)
async def test_every_part_does_all_its_work_with_the_rights_of_its_role_alone(system: System) -> None:
    """Plays, kicks, drains, kills, restarts; the demo's feed, the turn relay, a webhook, the operator's view: nothing
    is denied to anybody, and no secret shows."""
    secrets = _secrets(system.nats.secrets)
    exposed: set[str] = set()

    async with AsyncExitStack() as stack:
        # Two play; an operator watches, the page's strip and the turn relay work, a webhook arrives.
        one = await stack.enter_async_context(playing(system))
        two = await stack.enter_async_context(playing(system))
        watched = await _watched(system, one.session_id)
        assert "active" in watched
        await _use_httpd(system)
        exposed |= {line for line in command_lines().values() for secret in secrets if secret in line}
        assert set(_users_of_servers(system)) == {"gameserver"}

        # An admin kicks one and drains the server of the other.
        await system.command("admin", "kick", one.session_id, "--reason", "be nice")
        await _end_of(one)
        await system.command("admin", "drain", two.deployment_id)

        # NATS dies and comes back; a matchmaker and the launcher crash and come back.
        system.nats.kill()
        system.nats.start()
        await system.crash("matchmaker-1")
        await system.crash("launcher")
        await system.start("matchmaker-1")
        await system.start("launcher")
        await eventually(system.ready, "ready again", 30)
        three = await stack.enter_async_context(playing(system))
        assert three.deployment_id != two.deployment_id
        await two.receive()  # who was connected plays on
        victim = three.deployment_id
        await eventually(lambda: _killed_by_the_page(system, victim), "the launcher is back and kills", 20)
        with pytest.raises(ServerLost):
            await _end_of(three)

        # A restart in order: httpd and a matchmaker anew.
        for name in ("httpd", "matchmaker-2"):
            assert await system.stop(name) == 0
            await system.start(name)
        await eventually(system.ready, "ready after the restart", 30)
        await stack.enter_async_context(playing(system))

    async def given_back() -> bool:
        status = await system.command("operator", "status")
        return not status["sessions"] and not any(d["seats"] for d in status["deployments"])

    await eventually(given_back, "everything given back", 60)
    for name in ("httpd", "matchmaker-2", "matchmaker-1", "launcher"):
        assert await system.stop(name) == 0, name

    said = system.said()
    assert {name: _denials(text) for name, text in said.items() if _denials(text)} == {}
    assert exposed == set()
    assert [name for name, text in said.items() for secret in secrets if secret in text] == []
    assert len(said) >= 7


def _denials(text: str) -> list[str]:
    words = ("violation", "may not publish", "may not subscribe", "authorization")
    return [line for line in text.splitlines() if any(word in line.lower() for word in words)]


def _secrets(directory: Path) -> list[str]:
    """What must not show anywhere: passwords, and each key's lines."""
    found = [path.read_text().strip() for path in directory.rglob("*.password")]
    for path in directory.rglob("*.key"):
        found += [line for line in path.read_text().splitlines() if not line.startswith("-----")]
    assert len(found) >= 8
    return found


async def _watched(system: System, session_id: str) -> str:
    """What `tipoff watch` tells an operator of a session."""
    async with connect_nats(system.nats.settings("operator"), name="watch") as bus:
        told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        watching = asyncio.create_task(watch_changes(bus, told.put_nowait))
        try:
            async with asyncio.timeout(10):
                while True:
                    item = await told.get()
                    if item["key"] == session_id and isinstance(item["value"], dict):
                        return str(item["value"]["state"])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _use_httpd(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
        async with http.stream("GET", "/demo/events") as feed:
            async with asyncio.timeout(10):
                async for line in feed.aiter_lines():
                    if line.startswith("data:") and "arena" in line:
                        break
        registered = await http.post("/v1/turn/register", json={"name": "Ada"})
        assert registered.status_code == 200, registered.text
        answer = await http.post("/matchmaker/wannaplay")  # bevygap's micro service
        assert answer.status_code == 200, answer.text
        key = (system.nats.secrets / "edgegap" / "hook.key").read_text().strip()
        name = HookKey(key, system.nats.namespace).path_name("ready")
        assert (await http.post(f"/hook/{name}", content=b"{}")).status_code == 204


async def _killed_by_the_page(system: System, deployment_id: str) -> bool:
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
        answer = await http.post(f"/demo/kill/{deployment_id}", headers={"Origin": system.url})
    assert answer.status_code in (202, 503), answer.text
    return answer.status_code == 202


def _users_of_servers(system: System) -> list[str]:
    """As whom each game server is on NATS."""
    users: list[str] = []
    for pid, line in command_lines().items():
        if "tipoff_arena.server" not in line:
            continue
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
            if str(system.directory) in environment:
                users += [entry[10:] for entry in environment.split("\0") if entry.startswith("NATS_USER=")]
    return users
