"""A whole process: environment, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.polling import eventually
from tipoff_gameserver import Context
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.netcode import Address, PrivateKey, issue_token
from tipoff_shared.records import GameserverLease, LeaseState
from tipoff_shared.settings import NatsSettings
from tipoff_shared.user_data import TokenUserData

SERVER = """
from tipoff_gameserver import GameServer
class Game:
    def on_message(self, player, data):
        if data == b"end":
            self.server.shutdown()
        player.send(data)
    def on_start(self, server):
        self.server = server
    def on_leave(self, player, reason):
        print("left:", reason, flush=True)
    def on_stop(self, server):
        print("stopped", flush=True)
GameServer(Game()).main()
"""


@asynccontextmanager
async def server_process(env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        env={key: value for key, value in os.environ.items() if not key.startswith("TIPOFF_")} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def environment(tmp_path: Path, settings: NatsSettings, deployment: Context) -> dict[str, str]:
    """What the launcher gives to a server."""
    key = tmp_path / "key"
    key.write_text(deployment.private_key.reveal().hex())
    return {
        **settings.to_environment(),
        "TIPOFF_DEPLOYMENT_ID": "arena-1",
        "TIPOFF_GAME": "arena",
        "TIPOFF_VERSION": "1",
        "TIPOFF_CAPACITY": "3",
        "TIPOFF_PUBLIC_HOST": "127.0.0.1",
        "TIPOFF_PROTOCOL_ID": "77",
        "TIPOFF_PRIVATE_KEY_FILE": str(key),
        "TIPOFF_DRAIN_GRACE": "1",
    }


async def lease_of(kv: Buckets) -> GameserverLease:
    async def there() -> bool:
        return await kv.gameservers.get("arena-1") is not None

    await eventually(there, "the lease", 15)
    entry = await kv.gameservers.get("arena-1")
    assert entry is not None
    return entry.value


def token(key: PrivateKey, lease: GameserverLease, session: str) -> bytes:
    return issue_token(
        key,
        protocol_id=77,
        client_id=5,
        public_addresses=[Address.parse(lease.internal[0])],
        user_data=TokenUserData(session, lease.deployment_id, lease.boot_id).encode(),
        now=time.time(),
    ).encode()


async def exit_code(process: asyncio.subprocess.Process, timeout: float = 10) -> int:
    async with asyncio.timeout(timeout):
        return await process.wait()


async def test_sigterm_drains_and_leaves_nothing_behind(
    environment: dict[str, str], deployment: Context, kv: Buckets
) -> None:
    """Nobody new comes in; who plays may stay for the grace period, is then sent away and written off; exit 0."""
    async with server_process(environment) as process:
        lease = await lease_of(kv)
        assert lease.capacity == 3
        assert lease.transports.websocket is not None
        async with connect(lease.transports.websocket.url) as ws:
            await ws.send(token(deployment.private_key, lease, "s1"))
            assert "Admitted" in str(await ws.recv())
            process.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return (await lease_of(kv)).state is LeaseState.DRAINING

            await eventually(draining, "the lease says draining")
            await ws.send(b"still playing")
            assert await ws.recv() == b"still playing"
            async with connect(lease.transports.websocket.url) as late:
                await late.send(token(deployment.private_key, lease, "s2"))
                assert "about to end" in str(await late.recv())
            await ws.wait_closed()
            assert ws.close_code == 1001
        assert await exit_code(process) == 0
        assert process.stdout is not None
        assert (await process.stdout.read()).decode().split("\n")[:2] == ["left: closed", "stopped"]
        assert await kv.gameservers.list() == {}
        assert await kv.active_connections.list() == {}


async def test_sigterm_on_an_empty_server_ends_it_at_once(environment: dict[str, str], kv: Buckets) -> None:
    async with server_process(environment | {"TIPOFF_DRAIN_GRACE": "600"}) as process:
        await lease_of(kv)
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0
        assert await kv.gameservers.list() == {}


async def test_a_second_signal_does_not_wait_for_players(
    environment: dict[str, str], deployment: Context, kv: Buckets
) -> None:
    async with server_process(environment | {"TIPOFF_DRAIN_GRACE": "600"}) as process:
        lease = await lease_of(kv)
        assert lease.transports.websocket is not None
        async with connect(lease.transports.websocket.url) as ws:
            await ws.send(token(deployment.private_key, lease, "s1"))
            await ws.recv()
            process.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return (await lease_of(kv)).state is LeaseState.DRAINING

            await eventually(draining, "the lease says draining")
            process.send_signal(signal.SIGINT)
            assert await exit_code(process) == 0
        assert await kv.active_connections.list() == {}


async def test_shutdown_ends_the_process_with_an_ended_lease(
    environment: dict[str, str], deployment: Context, kv: Buckets
) -> None:
    async with server_process(environment) as process:
        lease = await lease_of(kv)
        assert lease.transports.websocket is not None
        async with connect(lease.transports.websocket.url) as ws:
            await ws.send(token(deployment.private_key, lease, "s1"))
            await ws.recv()
            await ws.send(b"end")
            await ws.wait_closed()
        assert await exit_code(process) == 0
        assert (await lease_of(kv)).state is LeaseState.ENDED
        assert await kv.active_connections.list() == {}


async def test_settings_that_cannot_be_used_are_told_without_a_traceback(
    environment: dict[str, str],
) -> None:
    async with server_process(environment | {"TIPOFF_PORTS": "{"}) as process:
        assert await exit_code(process) == 2
        assert process.stderr is not None
        text = (await process.stderr.read()).decode()
    assert "error: TIPOFF_PORTS" in text
    assert "Traceback" not in text


async def test_a_stand_alone_process_says_where_it_is_and_ends_on_ctrl_c() -> None:
    async with server_process({"TIPOFF_LISTEN": "127.0.0.1:0"}) as process:
        assert process.stderr is not None
        async with asyncio.timeout(15):
            while b"ws://127.0.0.1:" not in (line := await process.stderr.readline()):
                assert line
        process.send_signal(signal.SIGINT)
        assert await exit_code(process) == 0


async def test_the_private_key_is_nowhere_in_the_log(
    environment: dict[str, str], deployment: Context, kv: Buckets
) -> None:
    """Neither the key nor the NATS password is ever written, whatever the log level."""
    async with server_process(environment | {"TIPOFF_LOG_LEVEL": "DEBUG"}) as process:
        lease = await lease_of(kv)
        assert lease.transports.websocket is not None
        async with connect(lease.transports.websocket.url) as ws:
            await ws.send(token(deployment.private_key, lease, "s1"))
            await ws.recv()
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0
        assert process.stderr is not None
        text = (await process.stderr.read()).decode()
    assert "joined" in text
    assert deployment.private_key.reveal().hex() not in text
    assert environment["NATS_PASSWORD"] not in text
