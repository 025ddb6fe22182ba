"""A system may be upgraded service by service: the previous release's services work with the new ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.compat.mixed_releases import NEW, OLD, MixedSystem, echoes

PACKAGES = [
    "tipoff_shared",
    "tipoff_matchmaker",
    "tipoff_matchmaker_httpd",
    "tipoff_launcher",
    "tipoff_gameserver",
]


async def one_play(system: MixedSystem) -> None:
    """A player connects, is answered and leaves; the seat is free again."""
    async with system.play() as player:
        await echoes(player)
        await system.becomes(["active"], seats=1)
    await system.becomes([], seats=0)


async def killed_server(system: MixedSystem) -> None:
    """A player's game server is killed: the session ends, the seat is free, and the next player plays."""
    async with system.play() as player:
        await echoes(player)
        await system.becomes(["active"], seats=1)
        os.kill(await system.server_pid(), signal.SIGKILL)
        await system.becomes([], seats=0)
    await one_play(system)


@pytest.mark.slow
async def test_the_previous_release_is_what_its_services_run(previous_release: Path) -> None:
    """Nothing else would be mixed."""
    code = f"for name in {PACKAGES}: print(__import__(name).__file__)"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env=os.environ | {"PYTHONPATH": str(previous_release)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert [Path(line).parent.parent for line in out.decode().split()] == [previous_release] * len(PACKAGES)


@pytest.mark.slow
async def test_a_player_of_an_old_httpd_gets_a_seat_from_a_new_matchmaker(system: MixedSystem) -> None:
    await system.start(httpd=OLD)
    await one_play(system)


@pytest.mark.slow
@pytest.mark.parametrize(
    "releases",
    [
        {"httpd": OLD},
        {"matchmaker": OLD},
        {"launcher": OLD},
        {"gameserver": OLD},
        {"launcher": OLD, "gameserver": OLD},
        {"matchmaker": OLD, "httpd": OLD},
        {"matchmaker": OLD, "httpd": OLD, "launcher": OLD},
        {"matchmaker": OLD, "httpd": OLD, "gameserver": OLD},
    ],
    ids=lambda releases: "old " + "+".join(releases),
)
async def test_mixed_services_play_and_reap(system: MixedSystem, releases: dict[str, str]) -> None:
    """What is not named is new."""
    await system.start(**releases)
    await one_play(system)
    await killed_server(system)


@pytest.mark.slow
@pytest.mark.parametrize(
    "releases",
    [
        {"gameserver": OLD},  # with a key and a NATS user of its own
        {"launcher": OLD},  # its servers have the game's key, and share a NATS user
        {"launcher": OLD, "gameserver": OLD},
        {"matchmaker": OLD},
        {"matchmaker": OLD, "httpd": OLD, "launcher": OLD},
    ],
    ids=lambda releases: "old " + "+".join(releases),
)
async def test_mixed_services_play_and_reap_in_the_isolated_profile(
    isolated_system: MixedSystem, releases: dict[str, str]
) -> None:
    """Game servers send sealed events; the other release's matchmaker reads and applies them."""
    await isolated_system.start(**releases)
    await one_play(isolated_system)
    await killed_server(isolated_system)


@pytest.mark.slow
async def test_matchmakers_of_both_releases_share_the_players(system: MixedSystem) -> None:
    """Both serve some; no server gets more players than it has seats, and all seats are given back."""
    system.games(gameserver=NEW)
    await system.launcher(NEW)
    await system.matchmaker(OLD, instance="old")
    await system.matchmaker(NEW, instance="new")
    await system.httpd(NEW)
    await system.ready()
    count = 20
    connected, leave = asyncio.Semaphore(0), asyncio.Event()

    async def play() -> None:
        async with system.play() as player:
            await echoes(player)
            connected.release()
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(play())
        for _ in range(count):
            await connected.acquire()
        await system.becomes(["active"] * count, seats=count)
        status = await system.status()
        assert {session["owner"] for session in status["sessions"]} == {"old", "new"}
        assert all(len(server["seats"]) <= server["capacity"] for server in status["deployments"])
        leave.set()
    await system.becomes([], seats=0)
    await killed_server(system)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(OLD, NEW), (NEW, OLD)])
async def test_a_matchmaker_takes_over_from_one_of_the_other_release(
    system: MixedSystem, first: str, second: str
) -> None:
    """The one that works on a player's request is killed while the player waits for a server."""
    system.games(gameserver=NEW, min_ready=0, start_timeout=5)
    killed = await system.matchmaker(first, instance="first")
    await system.httpd(NEW)
    await system.ready()
    async with asyncio.TaskGroup() as group:

        async def play() -> None:
            async with system.play(timeout=40) as player:
                await echoes(player)
                await system.becomes(["active"], seats=1)

        group.create_task(play())  # no launcher yet: it waits

        async def requested() -> bool:
            return [s["owner"] for s in (await system.status())["sessions"]] == ["first"]

        await system.eventually(requested, "the first matchmaker has the request")
        await system.matchmaker(second, instance="second")
        killed.kill()
        await system.launcher(NEW)
    await system.becomes([], seats=0)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(OLD, NEW), (NEW, OLD)], ids=["upgrade", "roll back"])
async def test_a_player_plays_on_while_every_service_changes_its_release(
    system: MixedSystem, first: str, second: str
) -> None:
    """What one release has stored, the other reads: records in NATS, and the launcher's files."""
    system.games(gameserver=first)
    launcher = await system.launcher(first, stop_servers=False)
    matchmaker = await system.matchmaker(first)
    httpd = await system.httpd(first)
    await system.ready()
    async with system.play() as player:
        await echoes(player)
        await system.becomes(["active"], seats=1)
        pid = await system.server_pid()
        for service, start in (
            (launcher, lambda: system.launcher(second)),
            (matchmaker, lambda: system.matchmaker(second)),
            (httpd, lambda: system.httpd(second)),
        ):
            await service.stop()
            await start()
            await echoes(player)
        await system.ready()
        await one_play_beside(system)
        assert await system.server_pid() == pid
        await system.becomes(["active"], seats=1)
    await system.becomes([], seats=0)
    await killed_server(system)


async def one_play_beside(system: MixedSystem) -> None:
    """Another player comes and leaves while one plays."""
    async with system.play() as player:
        await echoes(player)
        await system.becomes(["active", "active"], seats=2)
    await system.becomes(["active"], seats=1)
