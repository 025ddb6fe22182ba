"""Runs the whole stack of one profile for a soak: nats-server, launcher, matchmakers, httpds, each a process.

Every service reaches NATS through its own link, which a fault can freeze or cut; game servers use the launcher's.
A service that dies is started again, as by any supervisor. Game servers outlive the launcher, which adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import httpx

from tests.e2e.steps import free_port
from tests.faults.tcp_link import Link, link_to
from tests.isolated.world import IsolatedNats
from tests.polling import eventually
from tipoff.up.child_process import dies_with_parent
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.games import GameKey
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.settings import NatsSettings

CHURN, LASTING = "churn", "lasting"
"""The two games: players come and go on one, and stay on the other."""
PROFILES = ("trusted", "isolated")
TOKEN_TIMEOUT = 10
RESUME_TTL = 5
"""Seconds after which a connection ends on which nothing is heard."""
_READY = 60.0
_GAME = """
[[game]]
name = "{name}"
version = "1"
private_key_env = "SOAK_KEY"
seats = {seats}
min_ready = 1
max_deployments = {max_deployments}
empty_ttl = 5
claim_time = 15
token_timeout = {TOKEN_TIMEOUT}
resume_ttl = {RESUME_TTL}

[game.process]
command = ["python", "-m", "tipoff_arena.server"]
env = {{ ARENA_BOTS = "0", ARENA_TICK_RATE = "10" }}
"""
_GAMES = {CHURN: (8, 4), LASTING: (16, 2)}
"""Game -> seats, max_deployments."""
SettingsOf: TypeAlias = Callable[[str], NatsSettings]
"""Role -> how it connects to NATS."""
LIMITS: dict[GameKey, int] = {(game, "1"): limit for game, (_, limit) in _GAMES.items()}


class Part:
    """One service: a process that is started again whenever it dies."""

    def __init__(
        self,
        name: str,
        module: str,
        environment: Mapping[str, str],
        log: Path,
        files: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.starts = 0
        self._module, self._environment, self._log, self._files = module, environment, log, files
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The present process's id; 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    async def keep(self) -> None:
        """Run the process, again and again, until cancelled; then stop it in order."""
        try:
            while True:
                began = time.monotonic()
                with self._log.open("ab") as out:
                    self._process = await asyncio.create_subprocess_exec(
                        sys.executable,
                        "-m",
                        self._module,
                        env=dict(self._environment),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        pass_fds=self._files,
                        start_new_session=True,  # Ctrl-C reaches only the soak
                        preexec_fn=dies_with_parent(),
                    )
                self.starts += 1
                await self._process.wait()
                await asyncio.sleep(0.2 if time.monotonic() - began > 5 else 1)  # as a supervisor would
        finally:
            await self._stop()

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the present process, if it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


class KeptNats:
    """The nats-server; `down` holds back its restart."""

    def __init__(self, server: EmbeddedNats) -> None:
        self.server = server
        self.down = 0.0

    @property
    def pid(self) -> int:
        """The present process's id."""
        return self.server.process.pid

    async def keep(self) -> None:
        """Start it again, `down` seconds after its death, until cancelled."""
        while True:
            await self.server.process.wait()
            await asyncio.sleep(self.down)  # the fault
            await self.server.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the present process."""
        if self.server.process.returncode is None:
            self.server.process.send_signal(number)


@dataclass(slots=True)
class Stack:
    """A running stack. `bus` sees everything in NATS, `launcher_dir` holds the game servers' records."""

    profile: str
    url: str
    bus: Bus
    nats: KeptNats
    launcher_dir: Path
    monitor: str
    """URL of nats-server's monitoring."""
    logs: Path
    parts: dict[str, Part] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    """Matchmaker or httpd -> URL of its metrics."""

    @property
    def replicas(self) -> list[str]:
        """The names of the matchmakers and httpds."""
        return [name for name in self.parts if name != "launcher"]

    async def missing(self) -> str:
        """Why `/readyz` is not 200, "" if it is."""
        try:
            async with httpx.AsyncClient(timeout=5) as client:
                answer = await client.get(f"{self.url}/readyz")
        except httpx.HTTPError as exc:
            return f"httpd: {type(exc).__name__}"
        return "" if answer.status_code == 200 else str(answer.json().get("missing"))


@asynccontextmanager
async def running_stack(
    directory: Path, profile: str, *, matchmakers: int = 2, httpds: int = 2
) -> AsyncIterator[Stack]:
    """A ready stack with its files in `directory`; everything is stopped in the end, in order.

    Raises `TimeoutError` when it is not ready within a minute.
    """
    logs = directory / "logs"
    logs.mkdir(parents=True, mode=0o700)
    monitor = free_port()
    nats, settings_of = _nats(directory, profile, f'http: "127.0.0.1:{monitor}"\n')
    environment = _common(directory) | {"SOAK_KEY": os.urandom(32).hex()}
    async with AsyncExitStack() as stack:
        await nats.start()
        kept = KeptNats(nats)
        stack.push_async_callback(nats.stop)
        stack.push_async_callback(_owned, asyncio.create_task(kept.keep()))
        # With IPPROTO_TCP, because asyncio turns Nagle's algorithm off only then.
        door = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP))
        door.bind(("127.0.0.1", 0))
        door.listen(512)
        bus = await stack.enter_async_context(connect(settings_of("eyes"), name="soak"))
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        running = Stack(profile, url, bus, kept, directory / "launcher", f"http://127.0.0.1:{monitor}", logs)
        roles = _roles(directory, profile, settings_of, door.fileno())
        for role, count in (("launcher", 1), ("matchmaker", matchmakers), ("httpd", httpds)):
            module, own, files = roles[role]
            for name in [role] if role == "launcher" else [f"{role}-{n + 1}" for n in range(count)]:
                link, settings = await stack.enter_async_context(link_to(settings_of(role)))
                running.links[name] = link
                metrics: dict[str, str] = {}
                if role != "launcher":
                    port = free_port()
                    metrics[f"TIPOFF_{role.upper()}_METRICS_PORT"] = str(port)
                    running.metrics[name] = f"http://127.0.0.1:{port}/metrics"
                part = Part(
                    name,
                    module,
                    environment | settings.to_environment() | own | metrics,
                    logs / f"{name}.log",
                    files,
                )
                running.parts[name] = part
                stack.push_async_callback(_owned, asyncio.create_task(part.keep()))

        async def ready() -> bool:
            return not await running.missing()

        await eventually(ready, "every part is ready", _READY)
        yield running


async def _owned(task: asyncio.Task[None]) -> None:
    """The end of a keeper: cancelled, and its own exception raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _common(directory: Path) -> dict[str, str]:
    games = directory / "games.toml"
    games.write_text(
        "".join(
            _GAME.format(
                TOKEN_TIMEOUT=TOKEN_TIMEOUT,
                RESUME_TTL=RESUME_TTL,
                name=name,
                seats=seats,
                max_deployments=limit,
            )
            for name, (seats, limit) in _GAMES.items()
        )
    )
    return dict(os.environ) | {"TIPOFF_GAMES": str(games)}


def _nats(directory: Path, profile: str, more: str) -> tuple[EmbeddedNats, SettingsOf]:
    """A nats-server that is not started, with `more` in its configuration, and the settings of each role.

    Trusted, all roles are one user, as in `tipoff up`; isolated, each has its own permissions.
    """
    if profile == "isolated":
        isolated = IsolatedNats(directory / "nats", more=more)
        return isolated.server, isolated.settings
    server = EmbeddedNats(directory / "nats", more=more)
    return server, lambda role: server.settings()


def _roles(
    directory: Path, profile: str, settings_of: SettingsOf, door: int
) -> dict[str, tuple[str, dict[str, str], tuple[int, ...]]]:
    """Role -> its module, its own environment, the files it inherits."""
    launcher = {
        "TIPOFF_LAUNCHER_STATE_DIR": str(directory / "launcher"),
        "TIPOFF_LAUNCHER_STOP_GRACE": "3",
        "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": "true",
    }
    if profile == "isolated":
        password = directory / "gameserver.password"
        password.touch(mode=0o600)
        password.write_text(settings_of("gameserver").password.reveal())
        launcher["TIPOFF_LAUNCHER_SERVER_NATS_USER"] = "gameserver"
        launcher["TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE"] = str(password)
    return {
        "launcher": ("tipoff_launcher", launcher, ()),
        "matchmaker": ("tipoff_matchmaker", {"TIPOFF_MATCHMAKER_PROFILE": profile}, ()),
        "httpd": ("tipoff_matchmaker_httpd", {"TIPOFF_HTTPD_LISTEN_FD": str(door)}, (door,)),
    }
