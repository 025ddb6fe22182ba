"""Players on Edgegap: by deployments of ours and by its own sessions, with webhooks and without, from the first word to
everything given back."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.edgegap.edgegap_world import leave, sleeper, with_sessions
from tipoff_edgegap_emulator import Rules
from tipoff_shared.messages import SessionReady

Edgegap = Callable[..., Any]

BY_DEPLOYMENTS = sleeper()
BY_SESSIONS = with_sessions(sleeper())
BY_MATCHES = with_sessions(sleeper(), "match", seats=1)
DEPLOYMENTS = pytest.param(BY_DEPLOYMENTS, id="deployments")
SESSIONS = pytest.param(BY_SESSIONS, id="sessions")


@pytest.mark.parametrize(
    ("game", "hooks"),
    [
        pytest.param(BY_DEPLOYMENTS, True, id="deployments, webhooks"),
        pytest.param(BY_DEPLOYMENTS, False, id="deployments, polling", marks=pytest.mark.slow),
        pytest.param(BY_SESSIONS, True, id="sessions, webhooks", marks=pytest.mark.slow),
        pytest.param(BY_SESSIONS, False, id="sessions, polling"),
        pytest.param(BY_MATCHES, True, id="matches, webhooks", marks=pytest.mark.slow),
        pytest.param(BY_MATCHES, False, id="matches, polling", marks=pytest.mark.slow),
    ],
)
async def test_a_player_plays_and_everything_is_given_back(edgegap: Edgegap, game: Any, hooks: bool) -> None:
    """A server starts near the player, the seat is the game's named port, and after the last one left nothing runs."""
    async with edgegap(game, hooks=hooks) as world:
        ready = await world.play()
        (deployment,) = world.alive
        assert (ready.ip, ready.port) == ("127.0.0.1", deployment.ports["game"].external)
        await leave(world, world.bus, ready.session_id)
        await world.nothing_is_left()
        assert world.emulator.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("game", [DEPLOYMENTS, SESSIONS])
async def test_players_share_a_server(edgegap: Edgegap, game: Any) -> None:
    """Four at once are one deployment, and the fifth another."""
    async with edgegap(game) as world:
        seats = await asyncio.gather(*(world.play() for _ in range(4)))
        assert len(world.alive) == 1
        other = await world.play()
        assert len(world.alive) == 2
        assert other.deployment_id not in {seat.deployment_id for seat in seats}


@pytest.mark.slow
async def test_each_match_has_a_server_of_its_own(edgegap: Edgegap) -> None:
    """Kind Match: sessions do not share deployments."""
    async with edgegap(BY_MATCHES) as world:
        await asyncio.gather(*(world.play() for _ in range(3)))
        assert len(world.alive) == 3


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("game", [DEPLOYMENTS, SESSIONS])
async def test_with_webhooks_a_player_waits_no_longer_than_the_server_starts(
    edgegap: Edgegap, game: Any
) -> None:
    """At most 50 ms beyond the deployment's own start, but for moments in which this machine has other things to do;
    polling alone would take ten seconds here."""
    beyond: list[float] = []
    async with edgegap(game, hooks=True, rules=Rules(start_delay=0.5), poll_slowest=10) as world:
        for _ in range(5):
            before = set(world.emulator.state.deployments)
            ready = await world.play()
            now = time.time()
            (new,) = set(world.emulator.state.deployments) - before
            beyond.append(now - world.emulator.state.deployments[new].ready_at)
            await leave(world, world.bus, ready.session_id)
            await world.nothing_is_left()
    print(
        f"{game.orchestrator}: {[round(1000 * wait) for wait in beyond]} ms beyond the start", file=sys.stderr
    )
    assert sorted(beyond)[1] <= 0.05, beyond


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("game", [DEPLOYMENTS, SESSIONS])
async def test_without_webhooks_a_player_waits_one_look_longer(edgegap: Edgegap, game: Any) -> None:
    """One interval between looks at most (and what the answer itself takes)."""
    async with edgegap(game, rules=Rules(start_delay=0.7), poll_first=0.3, poll_slowest=0.3) as world:
        ready = await world.play()
        assert isinstance(ready, SessionReady)
        (deployment,) = world.alive
        assert time.time() - deployment.ready_at <= 0.3 + 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    "game",
    [
        pytest.param(msgspec.structs.replace(game, ready="context", bevygap=True), id=name)
        for name, game in (("deployments", BY_DEPLOYMENTS), ("sessions", BY_SESSIONS))
    ],
)
async def test_a_server_that_knows_only_edgegaps_name_for_itself_gets_players(
    edgegap: Edgegap, game: Any
) -> None:
    """As bevygap's do: its context names the request id."""
    async with edgegap(game, hooks=True) as world:
        answers = await world.ask()
        await world.emulator.until(lambda e: bool(e.deployments) and e.deployments[0].phase == "READY")
        (deployment,) = world.alive
        context = {"request_id": deployment.request_id, "public_ip": "127.0.0.1", "fqdn": "a.example"}
        await world.bus.publish(world.bus.subjects.contexts, msgspec.json.encode(context))
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert ready.port == deployment.ports["game"].external
