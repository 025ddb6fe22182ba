"""Published games between releases: the previous one reads its file at its start and knows of no revision."""

from __future__ import annotations

import msgspec
import pytest

from tests.compat.mixed_releases import NEW, OLD, MixedSystem, echoes
from tipoff.operate.reload import publish, unfollowed
from tipoff_shared.errors import Unavailable
from tipoff_shared.games.toml import parse_games, read_games

pytestmark = [pytest.mark.slow, pytest.mark.row(98)]


@pytest.mark.parametrize(("matchmaker", "launcher"), [(NEW, OLD), (OLD, NEW)])
async def test_a_part_that_does_not_follow_is_named_and_players_are_served(
    system: MixedSystem, matchmaker: str, launcher: str
) -> None:
    await system.start(matchmaker=matchmaker, launcher=launcher)
    path = system.directory / "games.toml"
    (game,) = parse_games(read_games(path))
    more = msgspec.structs.replace(game, min_ready=2)
    if matchmaker == OLD:  # nobody has made the bucket
        with pytest.raises(Unavailable, match="has a matchmaker run here"):
            await publish(system.bus, [more], str(path))
    else:
        done = await publish(system.bus, [more], str(path))

        async def only_the_launcher() -> bool:
            told = await unfollowed(system.bus, done.revision, [more], 0)
            return len(told) == 1 and "of an earlier release" in told[0]

        await system.eventually(only_the_launcher, "the launcher is named", 30)

        async def two_servers() -> bool:
            return len((await system.status())["deployments"]) >= 2

        await system.eventually(two_servers, "the published min_ready", 30)
    async with system.play() as player:
        await echoes(player)
