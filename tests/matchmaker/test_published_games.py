"""Matchmakers follow the published games: with a real nats-server, a fake orchestrator and no restart."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from tests.matchmaker.world import ARENA, FAST, KEY, World
from tests.polling import eventually
from tipoff.operate.reload import publish, unfollowed
from tipoff.operate.status import ask_matchmakers
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import ConfigError, Unavailable, UnknownGame
from tipoff_shared.games import Game, Games
from tipoff_shared.games.current import OwnGames
from tipoff_shared.games.revision import GamesRevision
from tipoff_shared.games_follower import CURRENT, GamesFollower
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.messages import Failed
from tipoff_shared.records import DeploymentState

pytestmark = pytest.mark.row(98)

DUEL = msgspec.structs.replace(ARENA, name="duel")
MORE = msgspec.structs.replace(ARENA, min_ready=2, max_deployments=4)


class File:
    """A games.toml with keys, that a test changes. `broken`: it cannot be read."""

    def __init__(self, *games: Game) -> None:
        self.games = games
        self.broken = False

    def read(self, also: object = ()) -> OwnGames:
        if self.broken:
            raise ConfigError("games.toml:7: broken")
        return OwnGames({game.key: game for game in self.games}, {game.key: KEY for game in self.games})

    def load(self) -> Games:
        own = self.read()
        return Games(own.games, own.keys, Path(), read_again=self.read)


async def _ready(world: World, game: Game) -> int:
    listed = await world.buckets.deployments.list()
    return sum(
        entry.value.state is DeploymentState.READY and entry.value.game == game.name
        for entry in listed.values()
    )


def _matchmaker(world: World, file: File, **changes: object) -> AbstractAsyncContextManager[Matchmaker]:
    settings = Settings(**{**FAST, **changes})  # type: ignore[arg-type] # checked by pydantic
    return run_matchmaker(settings, file.load(), world.nats_settings, {"fake": world.fake})


async def _publish(world: World, matchmaker: Matchmaker, *games: Game) -> None:
    """And wait until it is followed."""
    done = await publish(world.bus, games, "games.toml")

    async def followed() -> bool:
        return matchmaker.parts.published.revision == done.revision

    await eventually(followed, "the revision is followed", 30)


async def test_a_published_game_is_played_and_limits_apply_without_a_restart(world: World) -> None:
    file = File(ARENA)
    async with asyncio.timeout(60), _matchmaker(world, file) as matchmaker:
        await world.play()
        file.games = (ARENA, DUEL)
        await _publish(world, matchmaker, MORE, DUEL)
        assert (await world.play("duel")).deployment_id.startswith("duel")

        async def warm() -> bool:
            return await _ready(world, ARENA) >= 2

        await eventually(warm, "two servers are kept ready, as is published", 30)
        status = await ask_matchmakers(world.bus)
        assert status[0].games_revision == matchmaker.parts.published.revision
        assert await unfollowed(world.bus, status[0].games_revision, [DUEL], 20) == []


async def test_players_of_a_removed_game_play_on_and_its_servers_end_with_them(world: World) -> None:
    """Who waits for it, and who comes, is told that it is not there."""
    one = msgspec.structs.replace(DUEL, seats=1, max_deployments=1)
    async with asyncio.timeout(60), _matchmaker(world, File(ARENA, one)) as matchmaker:
        playing = await world.play("duel")
        await world.server_of(playing).connect(playing)
        waiting = await world.ask("duel")
        line = matchmaker.parts.lines[one.key]

        async def waits() -> bool:
            return bool(line)

        await eventually(waits, "another one waits", 30)
        await _publish(world, matchmaker, ARENA)
        answer = await waiting.end()
        assert isinstance(answer, Failed)
        assert (answer.code, answer.message) == (UnknownGame.code, "this game or version was removed")
        refused = await (await world.ask("duel")).end()
        assert isinstance(refused, Failed)
        assert refused.code == UnknownGame.code
        for _ in range(3):
            await matchmaker.parts.reconciler.once()
        assert await _ready(world, one) == 1, "its player plays on"
        await world.server_of(playing).disconnect(playing)
        # A server of a removed game may be empty for as long as any other.
        assert [r.id for r in matchmaker.parts.deployments.of(*one.key)] == [playing.deployment_id]
        file_again = (ARENA, one)
        await _publish(world, matchmaker, *file_again)
        assert (await world.play("duel")).deployment_id == playing.deployment_id


async def test_the_published_games_win_over_the_file_of_a_matchmaker_that_starts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns of what differs."""
    await publish(world.bus, [MORE], "games.toml", check_running=False)
    async with asyncio.timeout(60), _matchmaker(world, File(ARENA, DUEL)) as matchmaker:
        assert matchmaker.parts.published.revision

        async def warm() -> bool:
            return await _ready(world, ARENA) >= 2

        await eventually(warm, "the published min_ready", 30)
        assert isinstance(await (await world.ask("duel")).end(), Failed)
        assert "duel 1 is not published" in caplog.text


async def test_without_a_published_revision_the_file_counts(world: World) -> None:
    """As in earlier releases."""
    async with asyncio.timeout(60), _matchmaker(world, File(DUEL)) as matchmaker:
        await world.play("duel")
        assert (await ask_matchmakers(world.bus))[0].games_revision == 0
        assert matchmaker.parts.published.problems == []


async def test_a_game_without_its_key_is_told_to_operators_until_the_file_has_it(world: World) -> None:
    """The others are played; the file is read again by itself."""
    file = File(ARENA)
    async with asyncio.timeout(90), _matchmaker(world, file) as matchmaker:
        await _publish(world, matchmaker, ARENA, DUEL)
        await world.play()
        revision = matchmaker.parts.published.revision
        told = await unfollowed(world.bus, revision, [], 20)
        assert len(told) == 1
        assert "game duel 1: its private key is not here" in told[0]
        assert any("duel 1" in text for text in matchmaker.parts.health.own().degraded)
        file.games = (ARENA, DUEL)

        async def playable() -> bool:
            return not matchmaker.parts.published.problems

        await eventually(playable, "the mended file is read", 30)
        await world.play("duel")


async def test_a_broken_file_of_a_matchmaker_keeps_nothing_else_from_being_followed(world: World) -> None:
    """What it knew of commands and keys stays in effect."""
    file = File(ARENA)
    async with asyncio.timeout(60), _matchmaker(world, file) as matchmaker:
        file.broken = True
        await _publish(world, matchmaker, MORE)
        assert any("games.toml:7: broken" in text for text in matchmaker.parts.published.problems)
        await world.play()


async def test_a_lost_or_unreadable_revision_changes_nothing(world: World) -> None:
    """Operators are told."""
    async with asyncio.timeout(60), _matchmaker(world, File(ARENA, DUEL)) as matchmaker:
        published = matchmaker.parts.published
        await _publish(world, matchmaker, ARENA, DUEL)
        await world.buckets.games.delete(CURRENT)

        async def told() -> bool:
            await published.refresh()
            return any("has lost the published games" in text for text in published.problems)

        await eventually(told, "the loss is told", 30)
        await world.play("duel")
        await Bucket(world.bus, "games", bytes).put(CURRENT, b"no revision")

        async def unread() -> bool:
            await published.refresh()
            return any("cannot be read" in text for text in published.problems)

        await eventually(unread, "that it cannot be read is told", 30)
        await world.play("duel")
        await _publish(world, matchmaker, ARENA, DUEL)
        assert published.problems == []


async def test_what_servers_were_started_with_cannot_change_while_they_run(world: World) -> None:
    """A new version can have it; so can the game once none of its servers runs."""
    other = msgspec.structs.replace(ARENA, protocol_id=7)
    await publish(world.bus, [ARENA], "games.toml")
    async with asyncio.timeout(60), _matchmaker(world, File(ARENA)):
        await world.play()
        with pytest.raises(ConfigError, match=r"protocol_id of game 'arena' version '1' cannot change"):
            await publish(world.bus, [other], "games.toml")
        await publish(world.bus, [ARENA, msgspec.structs.replace(other, version="2")], "games.toml")


async def test_a_part_without_the_bucket_goes_on_with_its_file(world: World) -> None:
    """Beside matchmakers of an earlier release."""
    follower = GamesFollower(Bucket(world.bus, "games_of_nobody", GamesRevision), File(ARENA).load())
    with pytest.raises(Unavailable):
        await follower.refresh()
    assert (follower.revision, follower.problems) == (0, [])
