"""Real matchmaker processes around the world of tests/matchmaker, to kill and to stop. They reach the fake orchestrator
as they would a launcher: by its wire, on NATS."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from tests.matchmaker.world import ARENA, FAST, KEY, World
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import Deployment, OrchestratorError
from tipoff_shared.games import Game

GAME = msgspec.structs.replace(ARENA, orchestrator="launcher", empty_ttl=2.0)

_GAMES = """
[[game]]
name = "{game.name}"
version = "{game.version}"
private_key_env = "ARENA_KEY"
seats = {game.seats}
max_deployments = {game.max_deployments}
min_ready = {game.min_ready}
empty_ttl = {game.empty_ttl}
request_timeout = {game.request_timeout}
start_timeout = {game.start_timeout}
claim_time = {game.claim_time}
token_timeout = {game.token_timeout}

[game.process]
command = ["python", "server.py"]
"""


class Process:
    """One `python -m tipoff_matchmaker`. `said` is what it has logged."""

    def __init__(self, process: asyncio.subprocess.Process, instance: str) -> None:
        self.process = process
        self.instance = instance
        self.said: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.said.append(line.decode(errors="replace").rstrip())  # tests read it meanwhile

    def kill(self) -> None:
        self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: it neither works nor dies."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def dies(self, timeout: float = 15) -> int:
        """Its exit code, as soon as it has ended."""
        async with asyncio.timeout(timeout):
            await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()  # a stopped one dies of it, too
            await self.process.wait()
        await self._reader


class Processes:
    """The matchmaker processes of one test."""

    def __init__(self, world: World, directory: Path, stack: AsyncExitStack) -> None:
        self.world = world
        self._games = directory / "games.toml"
        self._stack = stack
        self._count = 0

    async def start(self, *, fail_at: str = "", game: Game = GAME, **settings: object) -> Process:
        """One that serves, with quick settings, which `settings` change; it dies at fail point `fail_at`."""
        self._count += 1
        instance = f"m{self._count}"
        self._games.write_text(_GAMES.format(game=game))
        environ = {
            f"TIPOFF_MATCHMAKER_{name.upper()}": str(value) for name, value in (FAST | settings).items()
        }
        environ |= {"TIPOFF_GAMES": str(self._games), "ARENA_KEY": KEY.reveal().hex(), "FAILPOINT": fail_at}
        environ["TIPOFF_MATCHMAKER_INSTANCE"] = instance
        alive = asyncio.Event()

        async def heard(msg: Msg) -> None:
            alive.set()

        subjects = self.world.bus.subjects
        sub = await self.world.bus.nc.subscribe(subjects.alive(instance), cb=heard)
        process = Process(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tipoff_matchmaker",
                env=os.environ | self.world.nats_settings.to_environment() | environ,
                stderr=asyncio.subprocess.PIPE,
            ),
            instance,
        )
        self._stack.push_async_callback(process.close)

        async def serves() -> bool:
            assert process.process.returncode is None, process.said
            return any("serves" in line for line in process.said)

        await self.world.eventually(serves, f"{instance} serves", timeout=20)
        async with asyncio.timeout(5):
            await alive.wait()
        await sub.unsubscribe()
        return process


@asynccontextmanager
async def matchmaker_processes(world: World, directory: Path) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_launcher(world))
        yield Processes(world, directory, stack)


@asynccontextmanager
async def _launcher(world: World) -> AsyncIterator[None]:
    """The fake orchestrator, answering as the launcher `local`."""
    fake, bus = world.fake, world.bus

    async def deploy(data: bytes) -> bytes:
        return wire.encode_deployment(await fake.deploy(wire.decode_deploy(data)))

    async def get(data: bytes) -> bytes:
        return wire.encode_deployment(await fake.get(wire.decode_one(data)))

    async def stop(data: bytes) -> bytes:
        await fake.stop(wire.decode_one(data))
        return wire.encode_done()

    async def list_(data: bytes) -> bytes:
        return wire.encode_deployments(await fake.list())

    def answer(operation: Callable[[bytes], Awaitable[bytes]]) -> Callable[[Msg], Awaitable[None]]:
        async def received(msg: Msg) -> None:
            try:
                data = await operation(msg.data)
            except OrchestratorError as exc:
                data = wire.encode_error(exc)
            await bus.publish(msg.reply, data)

        return received

    async def tell(event: Deployment) -> None:
        await bus.publish(bus.subjects.launcher("local", "events"), wire.encode_deployment(event))

    async def events() -> None:
        async for event in fake.events():
            await tell(event)

    subs = [
        await bus.nc.subscribe(bus.subjects.launcher("local", name), cb=answer(operation))
        for name, operation in {"deploy": deploy, "get": get, "stop": stop, "list": list_}.items()
    ]
    follower = asyncio.create_task(events())
    try:
        yield
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        for sub in subs:
            await sub.unsubscribe()
