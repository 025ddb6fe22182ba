"""NATS dies and comes back; the process is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World, failed
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_shared.messages import ProgressReport, SessionReady
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionState
from tipoff_shared.settings import NatsSettings

WARM = msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=60)

GAMES = """
[[game]]
name = "arena"
version = "1"
private_key_env = "ARENA_KEY"
max_deployments = 1

[game.process]
command = ["python", "server.py"]
"""


@pytest.fixture
async def mortal_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server of this test's own, to kill."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def mortal_world(mortal_nats: EmbeddedNats) -> AsyncIterator[World]:
    settings = mortal_nats.settings("outage")
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world


async def _kill(server: EmbeddedNats) -> None:
    server.process.send_signal(signal.SIGKILL)
    await server.process.wait()


@pytest.mark.slow  # an outage longer than leases live, and time-outs of what was under way
async def test_after_an_outage_service_resumes_and_nobody_was_reaped(
    mortal_nats: EmbeddedNats, mortal_world: World
) -> None:
    """NATS killed for longer than every lease lives: who played plays on; who waits and who comes gets a seat; what
    happened meanwhile is handled."""
    world = mortal_world
    world.lease_ttl = 1.0
    async with world.matchmaker(WARM, lease_ttl=1.5, lease_grace=3) as matchmaker:
        await world.servers_ready(1)
        stays, leaves = await world.play(), await world.play()
        server = world.server_of(stays)
        for player in (stays, leaves):
            await server.connect(player)
            await world.session_becomes(player.session_id, SessionState.ACTIVE)
        await _kill(mortal_nats)
        await asyncio.sleep(1.5)  # the outage: longer than the leases live
        await mortal_nats.start()
        await world.reconnected()
        await server.beat()
        await server.disconnect(leaves)
        await world.session_becomes(leaves.session_id, SessionState.GONE)
        assert (await world.play()).deployment_id == server.id
        await matchmaker.parts.reconciler.once()
        await world.session_becomes(stays.session_id, SessionState.ACTIVE)


@pytest.mark.slow  # what was under way when NATS died times out after 5 s
async def test_a_request_outlives_a_short_outage(mortal_nats: EmbeddedNats, mortal_world: World) -> None:
    """It waits, NATS dies and is back, a server comes: the player gets his seat."""
    world = mortal_world
    world.announce = False
    async with world.matchmaker():
        answers = await world.ask()
        await answers.until(ProgressReport)
        await _kill(mortal_nats)
        await mortal_nats.start()
        await world.reconnected()
        await world.announce_all()
        assert isinstance(await answers.end(), SessionReady)


async def test_a_terminated_process_answers_whom_it_has_and_ends(
    settings: NatsSettings, world: World, tmp_path: Path
) -> None:
    """`python -m tipoff_matchmaker`: SIGTERM drains; those who wait hear 503 and may ask again; exit code 0."""
    (tmp_path / "games.toml").write_text(GAMES)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff_matchmaker",
        env=os.environ
        | settings.to_environment()
        | {"TIPOFF_GAMES": str(tmp_path / "games.toml"), "ARENA_KEY": "ab" * 32},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await world.eventually(world.matchmaker_answers, "the process serves", timeout=15)
        answers = await world.ask()
        await answers.until(ProgressReport)
        process.terminate()
        assert failed(await answers.end()).code in (502, 503)  # no launcher runs: 502 may come first
        async with asyncio.timeout(10):
            _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        assert b"abab" not in said  # the key
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
