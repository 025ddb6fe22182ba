"""Which netcode key a server has: its own, which opens only its own tokens, or the game's."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matchmaker.world import ARENA, KEY, World
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.readiness import from_lease
from tipoff_orchestrator_client.base import Deployment, DeploySpec, Orchestrator, RunState
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared.games import Game
from tipoff_shared.messages import SessionReady, Transports
from tipoff_shared.netcode import NetcodeError, PrivateKey, open_private
from tipoff_shared.records import DeploymentRecord, GameserverLease, LeaseState

BEVYGAP = msgspec.structs.replace(ARENA, bevygap=True)


def opens(key: PrivateKey, ready: SessionReady) -> bool:
    """Whether this key opens the player's token."""
    try:
        open_private(base64.b64decode(ready.token), key, protocol_id=ARENA.netcode_protocol_id)
    except NetcodeError:
        return False
    return True


def own_key(deployment_id: str) -> PrivateKey:
    return KEY.of_deployment(deployment_id)


class Earlier:
    """An orchestrator of a release that knows nothing of keys: its servers get the game's, whatever was asked."""

    def __init__(self, inner: FakeOrchestrator) -> None:
        self._inner = inner
        self.name = inner.name
        self.get, self.stop, self.events, self.close = inner.get, inner.stop, inner.events, inner.close

    async def deploy(self, spec: DeploySpec) -> Deployment:
        return replace(await self._inner.deploy(replace(spec, own_key=False)), own_key=None)

    async def list(self) -> list[Deployment]:
        return [replace(known, own_key=None) for known in await self._inner.list()]


async def record_of(world: World, ready: SessionReady) -> DeploymentRecord:
    entry = await world.buckets.deployments.get(ready.deployment_id)
    assert entry is not None
    return entry.value


@pytest.mark.row(66)
@given(st.text(max_size=80), st.text(max_size=80))
def test_each_deployment_has_a_key_that_leads_to_no_other(one: str, other: str) -> None:
    """The same id gives the same key; another id another one; none is the game's."""
    assert own_key(one) == own_key(one)
    assert (own_key(one) == own_key(other)) == (one == other)
    assert own_key(one) != KEY
    assert own_key(one).of_deployment(other) != own_key(other), "a server cannot derive its neighbour's"


@pytest.mark.row(66)
async def test_a_server_opens_only_its_own_players_tokens(world: World) -> None:
    async with world.matchmaker(msgspec.structs.replace(ARENA, seats=1), server_keys="own"):
        mine, theirs = await asyncio.gather(world.play(), world.play())
        assert mine.deployment_id != theirs.deployment_id
        assert opens(own_key(mine.deployment_id), mine)
        assert not opens(own_key(mine.deployment_id), theirs)
        assert not opens(KEY, mine)


@pytest.mark.row(66)
@pytest.mark.parametrize("game", [ARENA, BEVYGAP], ids=["in the trusted profile", "bevygap's"])
async def test_servers_that_know_one_key_get_tokens_under_it(world: World, game: Game) -> None:
    """In the trusted profile by default, so that one can go back to the release before; bevygap's always."""
    changes = {"server_keys": "own"} if game.bevygap else {}
    async with world.matchmaker(game, **changes):
        ready = await world.play()
        assert opens(KEY, ready)
        assert not (await record_of(world, ready)).own_key


@pytest.mark.row(66)
async def test_a_server_of_an_earlier_launcher_gets_tokens_under_the_games_key(world: World) -> None:
    """Its answer does not say that the server has its own key; the record then says so."""
    launcher: Orchestrator = Earlier(world.fake)
    async with world.matchmaker(orchestrator=launcher, server_keys="own") as matchmaker:
        ready = await world.play()
        await matchmaker.parts.reconciler.once()
        assert not (await record_of(world, ready)).own_key
        assert opens(KEY, await world.play())


@pytest.mark.row(66)
async def test_the_lease_of_a_server_decides_which_key_it_has(world: World) -> None:
    """The fingerprint in it wins over what the orchestrator says, also after a restart of the server with another."""
    async with world.matchmaker(server_keys="own") as matchmaker:
        ready = await world.play()
        server = world.server_of(ready)
        assert opens(own_key(ready.deployment_id), ready)
        await server.become(boot_id="second", key=KEY.fingerprint)

        async def follows() -> bool:
            return not (await record_of(world, ready)).own_key

        await world.eventually(follows, "the record follows the lease")
        await matchmaker.parts.reconciler.once()
        assert opens(KEY, await world.play())


@pytest.mark.row(66)
async def test_a_lease_with_a_foreign_key_is_logged_and_changes_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.matchmaker(server_keys="own"):
        ready = await world.play()
        await world.server_of(ready).become(boot_id="second", key="0123456789ab")

        async def logged() -> bool:
            return "it will refuse its players" in caplog.text

        await world.eventually(logged, "a warning says so")
        assert (await record_of(world, ready)).own_key


@pytest.mark.row(66)
async def test_no_server_gets_its_own_key_while_an_earlier_matchmaker_serves(world: World) -> None:
    """That one issues all tokens under the game's key. Its heartbeats are empty."""
    beating = asyncio.create_task(_empty_heartbeats(world))
    try:
        async with world.matchmaker(server_keys="own") as matchmaker:

            async def heard() -> bool:
                return not matchmaker.parts.peers.know_own_keys

            await world.eventually(heard, "the earlier one is heard")
            assert opens(KEY, await world.play())
    finally:
        beating.cancel()


async def _empty_heartbeats(world: World) -> None:
    while True:
        await world.bus.publish(world.bus.subjects.alive("earlier"), b"")
        await asyncio.sleep(0.1)  # the rhythm of heartbeats


def test_what_an_orchestrator_says_of_the_key_counts_until_the_server_is_ready() -> None:
    """A list that does not speak of keys changes nothing; an answer to `deploy` that does not, means the game's."""
    planned = state_machine.planned("d1", ARENA, 1.0, own_key=True)
    silent = Deployment("d1", "arena", "1", RunState.RUNNING)
    assert state_machine.placed(planned, silent) is planned
    assert not state_machine.placed(planned, silent, just_started=True).own_key
    assert not state_machine.placed(planned, replace(silent, own_key=False)).own_key
    served = state_machine.ready(planned, from_lease(_LEASE, own_key=True), 2.0)
    assert state_machine.placed(served, replace(silent, own_key=False)) is served


_LEASE = GameserverLease("d1", "b1", "arena", "1", LeaseState.READY, Transports(), 4)
