"""What a matchmaker does at once, with its reconciler switched off: nothing here is repaired by the next round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.matchmaker.world import ARENA, Gameserver, WithPorts, World, failed
from tipoff_matchmaker.presence_reader import CONNECTIONS, LEASES
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.tokens import Endpoint, Tokens
from tipoff_orchestrator_client.base import Deployment, DeploySpec
from tipoff_shared.errors import OrchestratorFailed, Unavailable
from tipoff_shared.games import Game
from tipoff_shared.messages import ProgressReport, SessionReady, Transports, UdpAddress
from tipoff_shared.names import new_request_id
from tipoff_shared.records import DeploymentRecord, DeploymentState, LeaseState, SessionState

TWO = msgspec.structs.replace(ARENA, min_ready=2, max_deployments=2, empty_ttl=3600)
ONE = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=3600)


@asynccontextmanager
async def only_events(world: World, *games: Game, **changes: object) -> AsyncIterator[Matchmaker]:
    """A matchmaker whose reconciler looks once, at the start."""
    changes = {"sweep_interval": 3600, "listing_interval": 3600, **changes}
    async with world.matchmaker(*games, **changes) as matchmaker:
        yield matchmaker


async def _no_longer_trusted(matchmaker: Matchmaker, deployment_id: str) -> bool:
    return deployment_id not in matchmaker.parts.trust


async def _trusted(matchmaker: Matchmaker, deployment_id: str) -> bool:
    return deployment_id in matchmaker.parts.trust


async def _goes_silent(server: Gameserver, how: str) -> None:
    server.beating = False
    if how == "goodbye":
        await server.world.buckets.gameservers.delete(server.id)


@pytest.mark.parametrize("how", ["goodbye", "expiry"])
async def test_players_go_elsewhere_while_a_server_is_not_known_to_live(world: World, how: str) -> None:
    """Its orchestrator says that it runs: it hangs, perhaps. When it is heard again, it gets players again."""
    world.lease_ttl = 1.0 if how == "expiry" else 60.0
    async with only_events(world, TWO) as matchmaker:
        await world.servers_ready(2)
        first = await world.play()
        suspect = world.server_of(first)
        await _goes_silent(suspect, how)
        await world.eventually(
            lambda: _no_longer_trusted(matchmaker, suspect.id), "it is suspected", timeout=5
        )
        elsewhere = [(await world.play()).deployment_id for _ in range(2)]
        assert suspect.id not in elsewhere
        suspect.beating = True
        await suspect.beat()
        await world.eventually(lambda: _trusted(matchmaker, suspect.id), "it is heard again")
        # It has one player, the other two: the fullest is filled first, then it gets the next.
        again = [(await world.play()).deployment_id for _ in range(4)]
        assert again.count(suspect.id) == 2


async def test_who_waits_gets_a_seat_on_a_server_that_is_heard_again(world: World) -> None:
    world.lease_ttl = 60.0
    async with only_events(world, ONE) as matchmaker:
        (record,) = await world.servers_ready(1)
        server = world.servers[record.id]
        await _goes_silent(server, "goodbye")
        await world.eventually(lambda: _no_longer_trusted(matchmaker, server.id), "it is suspected")
        waiting = await world.ask()
        assert (await waiting.next()) is not None
        await server.beat()
        ready = await waiting.end()
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id == server.id


@pytest.mark.parametrize("how", ["goodbye", "event"])
async def test_a_servers_death_is_noticed_by_its_first_sign(world: World, how: str) -> None:
    """A lease that is gone, or the orchestrator's word: one of them is enough."""
    world.lease_ttl = 60.0
    async with only_events(world, ONE):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        if how == "event":
            await world.fake.kill(server.id)
        else:
            await world.fake.vanish(server.id)
            await _goes_silent(server, "goodbye")
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.deployment_becomes(server.id, DeploymentState.GONE)


@pytest.mark.parametrize("host", ["0.0.0.0", "no-such-host.invalid"])
async def test_a_ready_server_that_announces_an_unusable_address_is_stopped(world: World, host: str) -> None:
    async with only_events(world, msgspec.structs.replace(ONE, min_ready=0)):
        ready = await world.play()
        server = world.server_of(ready)
        await server.become(transports=Transports(udp=UdpAddress(host, 7777)))
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: world.living(0), "it is stopped")


async def test_every_message_that_was_handled_is_acknowledged(world: World) -> None:
    """Leases, connections and departures: none is delivered twice."""
    async with only_events(world, ONE):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await server.become(state=LeaseState.READY, capacity=3)
        await server.disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)

        async def all_acknowledged() -> bool:
            leases = await world.bus.js.consumer_info(world.buckets.gameservers.stream, LEASES)
            visits = await world.bus.js.consumer_info(world.buckets.active_connections.stream, CONNECTIONS)
            return leases.num_ack_pending == visits.num_ack_pending == 0

        await world.eventually(all_acknowledged, "nothing is left to acknowledge", timeout=3)


async def test_an_empty_server_stays_until_its_time_has_passed(world: World) -> None:
    """The reconciler retires it; a departure does not."""
    lasting = msgspec.structs.replace(ARENA, empty_ttl=1.0)
    async with world.matchmaker(lasting):
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await server.disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        emptied = asyncio.get_running_loop().time()
        await world.eventually(lambda: world.living(0), "it is retired")
        assert asyncio.get_running_loop().time() - emptied > 0.8


async def test_the_orchestrator_hears_where_the_players_are_who_wait(world: World) -> None:
    """`near`, by which some choose a location."""
    heard: list[DeploySpec] = []

    class Listening(WithPorts):
        async def deploy(self, spec: DeploySpec) -> Deployment:
            heard.append(spec)
            return await super().deploy(spec)

    async with only_events(world, ARENA, orchestrator=Listening(world.fake, {})):
        await world.play(client_ip="203.0.113.99")
    assert [spec.near for spec in heard] == [("203.0.113.99",)]


@pytest.mark.parametrize("failures", [1, 3])
async def test_a_seat_whose_write_failed_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    async with only_events(world, ONE) as matchmaker:
        await world.servers_ready(1)
        _fail_changes(matchmaker, monkeypatch, failures)
        assert isinstance(await world.play(), SessionReady)


async def test_who_waits_for_a_store_that_stays_away_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with only_events(world, ONE, progress_interval=60, backoff=0.0005) as matchmaker:
        await world.servers_ready(1)
        _fail_changes(matchmaker, monkeypatch, 1000)
        answers = await world.ask()
        assert failed(await answers.end(timeout=5)).code == 503


def _fail_changes(matchmaker: Matchmaker, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """The next changes of deployment records fail."""
    deployments = matchmaker.parts.deployments
    change = deployments.change
    left = failures

    def failing(deployment_id: str, apply: object) -> asyncio.Future[DeploymentRecord]:
        nonlocal left
        if left == 0:
            return change(deployment_id, apply)  # type: ignore[arg-type]
        left -= 1
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        future.set_exception(Unavailable("NATS is away"))
        return future

    monkeypatch.setattr(deployments, "change", failing)


async def test_a_seat_on_a_server_that_nobody_can_dial_is_given_back_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name does not resolve any longer."""
    async with only_events(world, ONE, seat_hold=3600):
        (record,) = await world.servers_ready(1)

        async def unresolvable(*_: object) -> Endpoint:
            raise OrchestratorFailed("no address")

        monkeypatch.setattr(Tokens, "endpoint", unresolvable)
        answers = await world.ask()
        assert failed(await answers.end()).code == OrchestratorFailed.code
        await world.eventually(lambda: world.seats_are([]), "the seat is free", timeout=3)
        assert (await world.deployment_becomes(record.id, DeploymentState.READY)).seats == {}


@pytest.mark.parametrize("state", ["waits", "plays"])
async def test_a_request_id_is_good_for_one_game(world: World, state: str) -> None:
    other = msgspec.structs.replace(ARENA, name="other")
    world.announce = state == "plays"
    async with only_events(world, ARENA, other):
        request_id = new_request_id()
        first = await world.ask("arena", request_id=request_id)
        if state == "plays":
            assert isinstance(await first.end(), SessionReady)
        else:
            await first.until(ProgressReport)
        answers = await world.ask("other", request_id=request_id)
        assert failed(await answers.end()).code == 409


async def test_a_record_that_was_deleted_is_forgotten(world: World) -> None:
    async with only_events(world, ONE) as matchmaker:
        (record,) = await world.servers_ready(1)

        async def known() -> bool:
            return matchmaker.parts.deployments.get(record.id) is not None

        async def forgotten() -> bool:
            return not await known()

        await world.eventually(known, "it is known")
        await world.buckets.deployments.delete(record.id)
        await world.eventually(forgotten, "it is forgotten")
