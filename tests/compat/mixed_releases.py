"""Runs one system whose services come from two releases: the code under test, and the previous release's wheel.

Every service is a process of this interpreter. The previous release's processes find its unpacked wheel first on
PYTHONPATH; whatever else they import is what this environment has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import httpx

from tests import polling
from tipoff.operate.status import read_status
from tipoff_client_sdk import ConnectOptions, Player, connect
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.settings import NatsSettings

NEW = "new"
OLD = "old"

GAME = "echo"
VERSION = "1"

_SERVER = """
import tipoff_gameserver

class Echo:
    def on_message(self, player, data):
        if data == b"who":
            data = f"{getattr(player, 'user_id', '')}/{player.name}".encode()
        if data == b"kick":
            player.kick("as you wish")
        player.send(data)

tipoff_gameserver.GameServer(Echo(), tick_rate=20).main()
"""

_GAMES = """
[[game]]
name = "{name}"
version = "{version}"
private_key_env = "ECHO_KEY"
seats = 8
max_deployments = 3
min_ready = {min_ready}
empty_ttl = 60
start_timeout = {start_timeout}

[game.process]
command = ["{python}", "server.py"]
env = {{ PYTHONPATH = "{path}", TIPOFF_LEASE_TTL = "2" }}
"""

_MATCHMAKER = {
    "TIPOFF_MATCHMAKER_LEASE_TTL": "2",
    "TIPOFF_MATCHMAKER_LEASE_GRACE": "1",
    "TIPOFF_MATCHMAKER_OWNER_SILENCE": "1",
    "TIPOFF_MATCHMAKER_LISTING_INTERVAL": "1",
    "TIPOFF_MATCHMAKER_SWEEP_INTERVAL": "0.5",
    "TIPOFF_MATCHMAKER_DRAIN_TIMEOUT": "1",
    "TIPOFF_MATCHMAKER_TELL_REASONS": "true",
}


class Service:
    """One process of the system. `release` is where its code comes from, `output` what it has logged."""

    def __init__(self, name: str, release: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.release = release
        self.process = process
        self.output: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.output.append(line.decode(errors="replace").rstrip())  # read while it grows

    async def stop(self) -> None:
        """SIGTERM, 10 s, SIGKILL; idempotent. Fails when the service has logged a traceback."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await self._reader
        assert not any("Traceback" in line for line in self.output), self.tail()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def tail(self) -> str:
        """Its last lines, for a failure's message."""
        return "\n".join([f"{self.name} ({self.release}):", *self.output[-30:]])


@dataclass
class MixedSystem:
    """A system to fill with services; `bus` sees everything in NATS.

    `settings_of` gives the NATS settings of a role; `releases` maps a release to the PYTHONPATH of its processes.
    """

    directory: Path
    bus: Bus
    settings_of: Callable[[str], NatsSettings]
    releases: dict[str, str]
    profile: str = "trusted"
    seed_file: Path | None = None
    """The seed by which new matchmakers answer nats-server; the previous release's do not know it."""
    services: dict[str, Service] = field(default_factory=dict)
    door: socket.socket = field(default_factory=socket.socket)

    @property
    def url(self) -> str:
        """Where players go."""
        return f"http://127.0.0.1:{self.door.getsockname()[1]}"

    def games(self, *, gameserver: str, min_ready: int = 1, start_timeout: float = 30) -> None:
        """Write games.toml: one game, its servers of release `gameserver`."""
        (self.directory / "server.py").write_text(_SERVER)
        text = _GAMES.format(
            name=GAME,
            version=VERSION,
            python=sys.executable,
            path=self.releases[gameserver],
            min_ready=min_ready,
            start_timeout=start_timeout,
        )
        (self.directory / "games.toml").write_text(text)

    async def matchmaker(self, release: str, *, instance: str = "matchmaker") -> Service:
        """Start a matchmaker, named `instance`."""
        environ = {
            **_MATCHMAKER,
            "TIPOFF_MATCHMAKER_INSTANCE": instance,
            "TIPOFF_MATCHMAKER_PROFILE": self.profile,
            **({"TIPOFF_MATCHMAKER_SERVER_AUTH_SEED_FILE": str(self.seed_file)} if self.seed_file else {}),
        }
        return await self._start("tipoff_matchmaker", release, "matchmaker", environ, name=instance)

    async def httpd(self, release: str, settings: Mapping[str, str] | None = None) -> Service:
        """Start httpd with further `settings`; it listens on `url`."""
        number = self.door.fileno()
        environ = {"TIPOFF_HTTPD_LISTEN_FD": str(number), **(settings or {})}
        return await self._start(
            "tipoff_matchmaker_httpd", release, "httpd", environ, name="httpd", fds=(number,)
        )

    async def launcher(self, release: str, *, stop_servers: bool = True) -> Service:
        """Start the launcher; `stop_servers`: whether its game servers stop with it."""
        environ = {
            "TIPOFF_LAUNCHER_STATE_DIR": str(self.directory / "launcher"),
            "TIPOFF_LAUNCHER_STOP_GRACE": "1",
            "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": str(stop_servers).lower(),
        }
        if self.profile == "isolated":
            password = self.directory / "gameserver.password"
            password.write_text(self.settings_of("gameserver").password.reveal())
            environ["TIPOFF_LAUNCHER_SERVER_NATS_USER"] = "gameserver"
            environ["TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE"] = str(password)
        return await self._start("tipoff_launcher", release, "launcher", environ, name="launcher")

    async def _start(
        self,
        module: str,
        release: str,
        role: str,
        environ: dict[str, str],
        *,
        name: str,
        fds: tuple[int, ...] = (),
    ) -> Service:
        common = {
            "PYTHONPATH": self.releases[release],
            "TIPOFF_GAMES": str(self.directory / "games.toml"),
            "ECHO_KEY": "ab" * 32,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            env=os.environ | self.settings_of(role).to_environment() | common | environ,
            cwd=self.directory,
            pass_fds=fds,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        service = self.services[name] = Service(name, release, process)
        return service

    async def start(
        self,
        *,
        matchmaker: str = NEW,
        httpd: str = NEW,
        launcher: str = NEW,
        gameserver: str = NEW,
        httpd_settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start one service of each kind, and wait until httpd is ready."""
        self.games(gameserver=gameserver)
        await self.launcher(launcher)
        await self.matchmaker(matchmaker)
        await self.httpd(httpd, httpd_settings)
        await self.ready()

    async def ready(self) -> None:
        """Wait until httpd says that it can serve players."""

        async def answers() -> bool:
            async with httpx.AsyncClient() as client:
                with contextlib.suppress(httpx.HTTPError):
                    return (await client.get(f"{self.url}/readyz", timeout=3)).status_code == 200
            return False

        await self.eventually(answers, "httpd is ready", 60)

    async def eventually(
        self, condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 20
    ) -> None:
        """Wait until `condition` holds; fails naming `what`, with the services' last words."""

        async def holds() -> bool:
            for service in self.services.values():
                assert service.process.returncode in (None, 0, -signal.SIGKILL), service.tail()
            return await condition()

        try:
            await polling.eventually(holds, what, timeout)
        except AssertionError as exc:
            exc.add_note("\n".join(service.tail() for service in self.services.values()))
            raise

    def play(self, **options: Unpack[ConnectOptions]) -> contextlib.AbstractAsyncContextManager[Player]:
        """A player of the new client SDK, in the game."""
        return connect(self.url, game=GAME, version=VERSION, **({"timeout": 20.0} | options))

    async def status(self) -> dict[str, list[dict[str, Any]]]:
        """As `tipoff status --json` of the new release."""
        return await read_status(self.bus)

    async def becomes(self, states: list[str], *, seats: int) -> None:
        """Wait until exactly these sessions live, in these states, and hold `seats` seats in all."""

        async def holds() -> bool:
            status = await self.status()
            taken = sum(len(deployment["seats"]) for deployment in status["deployments"])
            return [session["state"] for session in status["sessions"]] == states and taken == seats

        await self.eventually(holds, f"sessions {states}, {seats} seats taken")

    async def server_pid(self) -> int:
        """Process id of the game server that the one session is on, from its lease."""
        (session,) = (await self.status())["sessions"]
        lease = await buckets(self.bus).gameservers.get(session["deployment_id"])
        assert lease is not None
        return lease.value.pid

    async def stop(self) -> None:
        """Stop every service; the first fault is raised at the end."""
        self.door.close()
        async with asyncio.TaskGroup() as group:
            for service in self.services.values():
                group.create_task(service.stop())


async def who_is(player: Player) -> str:
    """What the game server says of the player: `USER ID/NAME`."""
    async with asyncio.timeout(20):
        while True:
            await player.send(b"who")  # a datagram may be lost
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    return (await player.receive()).decode()


async def echoes(player: Player, data: bytes = b"hello") -> None:
    """Send `data` until the game sends it back; fails after 10 s."""
    async with asyncio.timeout(10):
        while True:
            await player.send(data)  # a datagram may be lost
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while await player.receive() != data:
                        pass
                    return


@asynccontextmanager
async def mixed_system(
    directory: Path,
    bus: Bus,
    settings_of: Callable[[str], NatsSettings],
    previous: Path,
    *,
    profile: str = "trusted",
    seed_file: Path | None = None,
) -> AsyncIterator[MixedSystem]:
    """A system without services; they stop with it. `previous`: the unpacked wheel of the previous release."""
    releases = {NEW: os.environ.get("PYTHONPATH", ""), OLD: str(previous)}
    system = MixedSystem(directory, bus, settings_of, releases, profile, seed_file)
    system.door.bind(("127.0.0.1", 0))
    system.door.listen()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(system.stop)
        yield system
