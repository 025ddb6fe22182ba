"""The isolated profile with everything real: a launcher, game servers as processes, roles and accounts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.echo_processes import echo_games, pid_of, quick_settings
from tests.faults.real_servers import active, echoes
from tests.isolated.world import IsolatedNats
from tests.matchmaker.world import World
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings as LauncherSettings
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_shared.games import Games
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import SessionState

pytestmark = pytest.mark.slow  # processes


@dataclass(frozen=True, slots=True)
class House:
    world: World
    nats: IsolatedNats
    directory: Path
    games: Games

    @asynccontextmanager
    async def launcher(self, **changes: object) -> AsyncIterator[Launcher]:
        password = self.directory / "gameserver.password"
        password.write_text(self.nats.settings("gameserver").password.reveal())
        given: dict[str, object] = {
            "state_dir": self.directory / "launcher",
            "stop_grace": 0.5,
            "server_nats_user": "gameserver",
            "server_nats_password_file": str(password),
        }
        settings = LauncherSettings(**(given | changes))  # type: ignore[arg-type] # checked by pydantic
        async with run_launcher(settings, self.games, self.nats.settings("launcher")) as launcher:
            yield launcher

    @asynccontextmanager
    async def matchmaker(self, **changes: object) -> AsyncIterator[Matchmaker]:
        given: dict[str, object] = {"server_auth_seed_file": self.nats.auth_seed_file}
        settings = quick_settings(profile="isolated", **(given | changes))
        async with run_matchmaker(settings, self.games, self.nats.settings("matchmaker")) as matchmaker:
            yield matchmaker


@pytest.fixture
async def house(isolated_nats: IsolatedNats, eyes: Bus, tmp_path: Path) -> AsyncIterator[House]:
    games = echo_games(tmp_path, start_timeout=3)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World(eyes, isolated_nats.settings("matchmaker")))
        yield House(world, isolated_nats, tmp_path, games)


async def test_a_server_process_has_its_own_credentials_and_its_death_frees_its_seats(house: House) -> None:
    """It gets its own user and its event key, and nothing of the launcher's; killed by kill -9, its seats
    are free at once."""
    async with (
        house.launcher(stop_servers_on_exit=True),
        house.matchmaker(),
        active(house.world) as (ready, player),
    ):
        assert await echoes(player)
        pid = await pid_of(house.world, ready)
        environment = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_text)
        variables = dict(item.split("=", 1) for item in environment.split("\0") if "=" in item)
        assert variables["NATS_USER"] == f"gs-{ready.deployment_id}"
        assert (variables["TIPOFF_PROFILE"], len(variables["TIPOFF_EVENT_KEY"])) == ("isolated", 64)
        assert house.nats.settings("launcher").password.reveal() not in environment
        assert variables["TIPOFF_EVENT_KEY"] not in await asyncio.to_thread(
            Path(f"/proc/{pid}/cmdline").read_text
        )
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        session = await house.world.session_becomes(ready.session_id, SessionState.GONE)
        print(f"kill -9 to session over: {(time.monotonic() - began) * 1000:.0f} ms")
        assert "SIGKILL" in session.reason
        await house.world.eventually(lambda: house.world.seats_are([]), "its seat is free")


async def test_without_credentials_for_servers_nothing_is_started(house: House) -> None:
    """A server nobody trusts is not given the launcher's."""
    async with (
        house.launcher(server_nats_user="", server_nats_password_file="") as launcher,
        house.matchmaker(server_auth_seed_file=None),
    ):
        answer = await (await house.world.ask(timeout=5)).end()
        assert not isinstance(answer, SessionReady)
        assert launcher.supervisor.living() == []


async def test_a_launcher_that_starts_anew_without_matchmakers_stops_nobody(house: House) -> None:
    """No lease is written then, so that its absence means nothing; the player goes on, and is known afterwards."""
    async with AsyncExitStack() as stays:
        async with house.launcher(), house.matchmaker():
            ready, player = await stays.enter_async_context(active(house.world))
        await house.world.eventually(lambda: _lease_is_gone(house, ready), "the lease has expired")
        async with house.launcher(stop_servers_on_exit=True, adopt_grace=0.5) as launcher:
            began = time.monotonic()
            while time.monotonic() - began < 2:  # four times the grace
                assert await echoes(player)
                await asyncio.sleep(0.2)  # it plays on for all of that time
            assert [d.deployment_id for d in launcher.supervisor.living()] == [ready.deployment_id]
            async with house.matchmaker():
                await house.world.eventually(lambda: _has_lease(house, ready), "its lease is there again")
                await asyncio.sleep(1)  # twice the grace
                assert await echoes(player)
                await house.world.session_becomes(ready.session_id, SessionState.ACTIVE)


async def _lease_is_gone(house: House, ready: SessionReady) -> bool:
    return not await _has_lease(house, ready)


async def _has_lease(house: House, ready: SessionReady) -> bool:
    return await house.world.buckets.gameservers.get(ready.deployment_id) is not None
