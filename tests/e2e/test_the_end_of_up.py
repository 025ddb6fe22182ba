"""The end of `tipoff up`, orderly or not: nothing is left running, and the next one cleans up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.e2e.steps import all_given_back, processes_of
from tests.polling import eventually
from tipoff.operate.admin import drain, restart
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import connect
from tipoff_shared.nats.connection import connect as connect_nats


async def test_ctrl_c_leaves_nothing_running(own_up: RunningUp) -> None:
    """One SIGINT, at most 10 s, and no process of ours is left."""
    async with connect(own_up.url, game="arena", version="1"):
        before = processes_of(own_up.state_dir)
        assert len(before) >= 5  # nats-server, launcher, matchmaker, httpd, a game server
    assert await own_up.stop(timeout=10) == 0
    assert processes_of(own_up.state_dir) == []
    assert not (own_up.state_dir / "up.json").exists()


async def end_by_signal(up: RunningUp, deployment: str) -> None:
    up.process.send_signal(signal.SIGINT)


async def end_by_drain(up: RunningUp, deployment: str) -> None:
    async with connect_nats(up.nats_settings, name="test") as bus:
        await drain(bus, deployment, now=True)


async def end_by_restart(up: RunningUp, deployment: str) -> None:
    async with connect_nats(up.nats_settings, name="test") as bus:
        await restart(bus, "arena")


@pytest.mark.slow
@pytest.mark.row(95)
@pytest.mark.parametrize("end", [end_by_signal, end_by_drain, end_by_restart])
@pytest.mark.parametrize("transport", ["udp", "websocket"])
async def test_who_plays_hears_goodbye_when_the_server_is_stopped(
    own_up: RunningUp, transport: str, end: Callable[[RunningUp, str], Awaitable[None]]
) -> None:
    """Nothing has to be killed, whatever the server's own patience with its players after a signal."""
    async with connect(own_up.url, game="arena", version="1", transports=[transport]) as player:
        await end(own_up, player.deployment_id)
        ending = await asyncio.wait_for(player.ended(), 30)
        assert ending.error is None, ending
    assert await own_up.stop(timeout=30) == 0
    assert not [line for line in own_up.output if "killed" in line]


@pytest.mark.slow
async def test_a_killed_up_leaves_nothing_running(own_up: RunningUp) -> None:
    """kill -9 of `tipoff up` itself: the kernel ends its parts, and their game servers with them."""
    own_up.process.kill()
    await own_up.process.wait()

    async def none_left() -> bool:
        return processes_of(own_up.state_dir) == []

    await eventually(none_left, "every process gone", 5)


@pytest.mark.slow
async def test_up_starts_again_on_what_a_killed_one_left(own_up: RunningUp, games_file: Path) -> None:
    """Records of servers that are gone are cleaned away, and a new player is served."""
    async with connect(own_up.url, game="arena", version="1"):
        own_up.process.kill()
        await own_up.process.wait()
    async with running_up(own_up.state_dir, games=games_file) as again:
        async with connect(again.url, game="arena", version="1", timeout=20):
            pass
        await eventually(lambda: all_given_back(again), "nothing of before left", 15)
