"""A player whose connection is lost comes back to its seat, in both profiles; between releases it does, or is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.compat.mixed_releases import NEW, OLD, MixedSystem, echoes
from tests.cut import Cuts
from tipoff_client_sdk import Progress, ServerLost, Stage, Transport

pytestmark = [pytest.mark.row(99), pytest.mark.slow]

WAY: list[Transport] = ["websocket"]


async def lose(system: MixedSystem, cuts: Cuts) -> bool:
    """Play, and lose the connection: whether the player came back to the same seat. Another one plays in any case."""
    stages: asyncio.Queue[Stage] = asyncio.Queue()

    def note(progress: Progress) -> None:
        stages.put_nowait(progress.stage)

    async with system.play(transports=WAY, progress=note) as player, system.play() as other:
        await echoes(player)
        assert cuts.tcp(int(player.server.rstrip("/").rpartition(":")[2])) == 1
        back = asyncio.ensure_future(_comes_back(stages))
        ended = asyncio.ensure_future(player.ended())
        try:
            async with asyncio.timeout(60):
                await asyncio.wait((back, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.cancel()
            ended.cancel()
        await echoes(other)
        if player.connected:
            await echoes(player, b"back")
            return True
    assert ended.done()
    assert isinstance(ended.result().error, ServerLost)
    return False


async def _comes_back(stages: asyncio.Queue[Stage]) -> None:
    while await stages.get() is not Stage.RESUMED:
        pass


async def test_a_player_comes_back_to_its_seat(system: MixedSystem) -> None:
    """And leaves it free in the end."""
    await system.start()
    with Cuts() as cuts:
        assert await lose(system, cuts)
    await system.becomes([], seats=0)


async def test_a_player_comes_back_to_its_seat_in_the_isolated_profile(isolated_system: MixedSystem) -> None:
    """The same; an untrusted server reports nothing more for it than before."""
    await isolated_system.start()
    with Cuts() as cuts:
        assert await lose(isolated_system, cuts)
    await isolated_system.becomes([], seats=0)


@pytest.mark.parametrize("service", ["httpd", "matchmaker"])
async def test_a_seat_is_still_held_when_a_service_was_restarted(system: MixedSystem, service: str) -> None:
    """It dies before the connection is lost, and starts again while the player is on the way back."""
    await system.start()
    stages: asyncio.Queue[Stage] = asyncio.Queue()
    with Cuts() as cuts:
        async with system.play(
            transports=WAY, progress=lambda progress: stages.put_nowait(progress.stage)
        ) as player:
            await echoes(player)
            system.services[service].kill()
            assert cuts.tcp(int(player.server.rstrip("/").rpartition(":")[2])) == 1
            while await stages.get() is not Stage.DROPPED:
                pass
            await (system.httpd if service == "httpd" else system.matchmaker)(NEW)
            async with asyncio.timeout(40):
                await _comes_back(stages)
            await echoes(player, b"back")
    await system.becomes([], seats=0)


@pytest.mark.parametrize(
    ("releases", "returns"),
    [
        ({"gameserver": OLD}, False),  # it has let the player go at once
        ({"matchmaker": OLD}, False),  # it gives no key
        ({"httpd": OLD}, False),  # it passes on no key
        ({"launcher": OLD}, True),
    ],
    ids=lambda value: "old " + "+".join(value) if isinstance(value, dict) else None,
)
async def test_releases_mix(system: MixedSystem, releases: dict[str, str], returns: bool) -> None:
    """Who does not come back hears at once that the server is lost, as before, and may play again."""
    await system.start(**releases)
    with Cuts() as cuts:
        assert await lose(system, cuts) is returns
    async with system.play() as again:
        await echoes(again)
