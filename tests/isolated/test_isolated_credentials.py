"""Each game server has credentials of its own on NATS, and limits of its own: one takes nothing from the others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import nats.errors
import pytest
from nats.aio.client import Client

from tests.faults.nats_cluster import cluster_blocks
from tests.faults.real_servers import RealServers, active, echoes, playing
from tests.gameserver.players import UdpPlayer
from tests.isolated.attacker import enter
from tests.isolated.world import IsolatedNats, IsolatedWorld
from tests.matchmaker.world import ARENA, World
from tests.polling import eventually
from tipoff.nats_roles.isolated import SERVERS_ACCOUNT
from tipoff_matchmaker.isolated import credentials
from tipoff_matchmaker.isolated.open_connections import MAX_CONNECTIONS
from tipoff_matchmaker.service import Matchmaker
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import DeploymentState, SessionState
from tipoff_shared.settings import server_inbox_prefix, server_user

ONE_SEAT_EACH = msgspec.structs.replace(ARENA, seats=1, max_deployments=3, empty_ttl=60)


@contextlib.asynccontextmanager
async def matchmaker(isolated: IsolatedWorld, **changes: object) -> AsyncIterator[Matchmaker]:
    """One that answers nats-server's questions."""
    seed = isolated.nats.auth_seed_file
    async with isolated.world.matchmaker(
        ONE_SEAT_EACH, profile="isolated", server_auth_seed_file=seed, **changes
    ) as running:
        yield running


class Hostile:
    """Connections with the credentials of one deployment. `refused`: what NATS said."""

    def __init__(self, nats: IsolatedNats, deployment_id: str, password: str) -> None:
        self.deployment_id = deployment_id
        self.refused: list[str] = []
        self.open: list[Client] = []
        self._nats = nats
        self._password = password

    async def connect(self) -> Client:
        """One more connection. Raises `nats.errors.Error` and `OSError`."""
        settings = self._nats.settings("gameserver")
        nc = Client()

        async def said(exc: Exception) -> None:
            self.refused.append(str(exc))

        await nc.connect(
            servers=list(settings.servers),
            user=server_user(self.deployment_id),
            password=self._password,
            inbox_prefix=server_inbox_prefix(self.deployment_id).encode(),
            error_cb=said,
            allow_reconnect=False,
            max_reconnect_attempts=0,
        )
        self.open.append(nc)
        return nc

    async def comes_in(self, *, user: str = "", password: str = "") -> bool:
        """Whether one more connection is let in; it is closed again."""
        port = self._nats.server.port
        found = await enter(port, user or server_user(self.deployment_id), password or self._password)
        if found is None:
            return False
        found[1].close()
        await found[1].wait_closed()
        return True

    async def close(self) -> None:
        for nc in self.open:
            with contextlib.suppress(nats.errors.Error, OSError):
                await nc.close()


def password_of(running: Matchmaker, deployment_id: str) -> str:
    assert running.parts.event_secret is not None
    return running.parts.event_secret.password_of(deployment_id).reveal()


@contextlib.asynccontextmanager
async def hostile(
    isolated: IsolatedWorld, running: Matchmaker, ready: SessionReady
) -> AsyncIterator[Hostile]:
    """A program with everything that the server of `ready` knows."""
    found = Hostile(isolated.nats, ready.deployment_id, password_of(running, ready.deployment_id))
    try:
        yield found
    finally:
        await found.close()


async def users(isolated: IsolatedWorld) -> set[str]:
    """The users that are connected in the game servers' account."""
    question = json.dumps({"auth": True, "limit": 1000}).encode()
    answer = await isolated.world.bus.request(
        f"$SYS.REQ.ACCOUNT.{SERVERS_ACCOUNT}.CONNZ", question, timeout=2
    )
    return {one["authorized_user"] for one in json.loads(answer.data)["data"].get("connections") or ()}


@pytest.mark.row(65)
async def test_each_server_connects_as_itself_and_players_play(isolated: IsolatedWorld) -> None:
    async with (
        matchmaker(isolated),
        active(isolated.world) as (first, one),
        active(isolated.world) as (second, other),
    ):
        assert await users(isolated) == {server_user(r.deployment_id) for r in (first, second)}
        assert await echoes(one)
        assert await echoes(other)


@pytest.mark.row(65)
async def test_a_server_reaches_its_own_subjects_alone(isolated: IsolatedWorld) -> None:
    """Neither its neighbour's events, even unsealed, nor its commands, nor its answers."""
    world = isolated.world
    async with (
        matchmaker(isolated) as running,
        active(world) as (mine, _),
        active(world) as (theirs, player),
        hostile(isolated, running, mine) as attacker,
    ):
        nc = await attacker.connect()
        subjects = world.bus.subjects
        answer = await nc.request(subjects.events(mine.deployment_id), b"garbage", timeout=2)
        assert "stream" in json.loads(answer.data)
        victims = [
            subjects.events(theirs.deployment_id),
            subjects.events("invented-1"),
            subjects.events("_probe_m1"),
            subjects.commands(mine.deployment_id),
            subjects.contexts,
        ]
        for subject in victims:
            await nc.publish(subject, b"garbage")
        await nc.flush()
        await nc.flush()
        assert len(attacker.refused) == len(victims)
        attacker.refused.clear()
        hears = [
            subjects.commands(theirs.deployment_id),
            subjects.commands("*"),
            f"{server_inbox_prefix(theirs.deployment_id)}.>",
            "_INBOX.>",
            ">",
            "$SYS.>",
        ]
        for subject in hears:
            await nc.subscribe(subject)
        await nc.flush()
        await nc.flush()
        assert len(attacker.refused) == len(hears)
        assert await echoes(player)


@pytest.mark.row(65)
async def test_only_a_living_deployments_password_lets_it_in(isolated: IsolatedWorld) -> None:
    world = isolated.world
    async with (
        matchmaker(isolated) as running,
        active(world) as (mine, _),
        active(world) as (theirs, _),
        hostile(isolated, running, mine) as attacker,
    ):
        assert await attacker.comes_in()
        assert not await attacker.comes_in(user=server_user(theirs.deployment_id))
        assert not await attacker.comes_in(password="0" * 64)
        assert not await attacker.comes_in(user="matchmaker")
        assert not await attacker.comes_in(user="gs-" + "x" * 100_000)
        never = password_of(running, "never-1")
        assert not await attacker.comes_in(user=server_user("never-1"), password=never)


_RELOADED = "Reloaded server configuration"


async def reload(isolated: IsolatedWorld, old: str, new: str) -> None:
    """Let nats-server read a changed configuration."""
    server = isolated.nats.server
    config, log = server.configuration, server.log_path
    text = await asyncio.to_thread(config.read_text)
    assert old in text
    before = (await asyncio.to_thread(log.read_text)).count(_RELOADED)
    await asyncio.to_thread(config.write_text, text.replace(old, new))
    server.process.send_signal(signal.SIGHUP)

    async def reloaded() -> bool:
        return (await asyncio.to_thread(log.read_text)).count(_RELOADED) > before

    await isolated.world.eventually(reloaded, "nats-server has read it")


async def lists(isolated: IsolatedWorld, deployment_id: str) -> list[int]:
    """The numbers of the connections that nats-server lists for this server."""
    question = json.dumps({"auth": True, "user": server_user(deployment_id)}).encode()
    answer = await isolated.world.bus.request(
        f"$SYS.REQ.ACCOUNT.{SERVERS_ACCOUNT}.CONNZ", question, timeout=2
    )
    return sorted(one["cid"] for one in json.loads(answer.data)["data"].get("connections") or ())


@pytest.mark.row(90)
@pytest.mark.parametrize("how", ["stopped", "stopped while nobody looks", "its record is gone"])
async def test_what_a_server_has_open_is_closed_when_its_deployment_ends(
    isolated: IsolatedWorld, how: str
) -> None:
    """Its program goes on in spite of that: it may not publish any more, nor come in again. Others keep theirs."""
    world = isolated.world
    async with contextlib.AsyncExitStack() as stays:
        running = await stays.enter_async_context(matchmaker(isolated))
        mine, _ = await stays.enter_async_context(active(world))
        theirs, player = await stays.enter_async_context(active(world))
        attacker = await stays.enter_async_context(hostile(isolated, running, mine))
        nc, other = await attacker.connect(), await attacker.connect()
        await nc.request(world.bus.subjects.events(mine.deployment_id), b"garbage", timeout=2)
        before = await lists(isolated, theirs.deployment_id)
        if how != "stopped":  # as if the matchmaker that ended it had died at once
            await running.parts.lease.give_up()
        running.parts.stopper.stop(mine.deployment_id, "the test says so")
        await world.deployment_becomes(mine.deployment_id, DeploymentState.GONE)
        began = time.monotonic()
        if how != "stopped":
            assert not nc.is_closed
            if how == "its record is gone":
                await world.buckets.deployments.delete(mine.deployment_id)
            await stays.enter_async_context(matchmaker(isolated))

        async def closed() -> bool:
            return nc.is_closed and other.is_closed

        await world.eventually(closed, "its connections are closed")
        print(f"{how}: closed {time.monotonic() - began:.3f} s later")
        assert not await attacker.comes_in()
        assert await echoes(player)
        assert await lists(isolated, theirs.deployment_id) == before


@pytest.mark.row(90)
async def test_a_matchmaker_that_may_not_close_connections_says_so(
    isolated: IsolatedWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """As with the isolated.conf of an earlier release."""
    world = isolated.world
    await reload(isolated, "$SYS.REQ.SERVER.*.KICK", "nothing.*.KICK")
    async with (
        matchmaker(isolated) as running,
        active(world) as (mine, _),
        hostile(isolated, running, mine) as attacker,
    ):
        nc = await attacker.connect()
        running.parts.stopper.stop(mine.deployment_id, "the test says so")

        async def said() -> bool:
            return "tipoff secrets init" in caplog.text

        await world.eventually(said, "it is said")
        assert not nc.is_closed


@pytest.mark.slow
@pytest.mark.row(90)
async def test_one_server_keeps_no_more_connections_on_a_cluster_than_on_one_node(tmp_path: Path) -> None:
    """Each node lets in as many; what is too much altogether is closed, the newest first, and nothing of others'."""
    first, second = cluster_blocks(2).values()
    own = IsolatedNats(tmp_path / "n1", "iso", more=first)
    node = own.another_node(tmp_path / "n2", more=second)
    async with contextlib.AsyncExitStack() as stack:
        for server in (own.server, node):
            stack.push_async_callback(server.stop)
        await asyncio.gather(own.server.start(), node.start())
        bus = await stack.enter_async_context(connect(own.settings("eyes"), name="eyes", timeout=20))
        await eventually(lambda: has_leader(bus), "the cluster works", timeout=20)
        world = await stack.enter_async_context(World(bus, own.settings("matchmaker")))
        servers = RealServers(world, own.settings("gameserver"), lease_ttl=1)
        stack.push_async_callback(servers.close)
        isolated = IsolatedWorld(world, servers, own)
        running = await stack.enter_async_context(matchmaker(isolated))
        mine, _ = await stack.enter_async_context(active(world))
        theirs, player = await stack.enter_async_context(active(world))
        user, password = server_user(mine.deployment_id), password_of(running, mine.deployment_id)
        ends: list[list[asyncio.Task[bytes]]] = []
        for server in (own.server, node):
            ends.append([])
            for _ in range(MAX_CONNECTIONS - 1):  # it is refused while it has been let in too often just now
                came_in = functools.partial(enter, server.port, user, password)
                reader, writer = await eventually(came_in, "it comes in")
                stack.callback(writer.close)
                ends[-1].append(asyncio.create_task(reader.read()))

        def open_on(node: int) -> int:
            return sum(not end.done() for end in ends[node])

        await eventually(lambda: open_on(1) == 0, "with the server's own there are as many as on one node")
        assert open_on(0) == MAX_CONNECTIONS - 1, "the oldest stay"
        running.parts.stopper.stop(mine.deployment_id, "the test says so")

        await eventually(lambda: open_on(0) == open_on(1) == 0, "those on both nodes are closed")
        assert await echoes(player)
        # Each node answers for its own connections, and the first answer counts.
        await eventually(lambda: lists(isolated, theirs.deployment_id), "theirs are left")


async def has_leader(bus: Bus) -> bool:
    try:
        await bus.js.account_info()
    except nats.errors.Error:
        return False
    return True


class Attack:
    """A running attacker.py. `result`: what it says came of it, once the block is left."""

    def __init__(self) -> None:
        self.result: dict[str, float] = {}


@contextlib.asynccontextmanager
async def attacked(
    isolated: IsolatedWorld, running: Matchmaker, mode: str, deployment_id: str, subject: str
) -> AsyncIterator[Attack]:
    attack = Attack()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.isolated.attacker",
        mode,
        str(isolated.nats.server.port),
        server_user(deployment_id),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{password_of(running, deployment_id)}\n{subject}\n".encode())
    assert await process.stdout.readline() == b"attacking\n"
    try:
        yield attack
    finally:
        process.stdin.close()
        out = await process.stdout.read()
        await process.wait()
        attack.result = json.loads(out)


async def innocents_are_served(isolated: IsolatedWorld, player: UdpPlayer, theirs: SessionReady) -> float:
    """One more server starts, its player plays and leaves, another matchmaker connects, and the one who was there
    before plays on. Seconds from the leave to the end of its session."""
    world = isolated.world
    async with connect(isolated.nats.settings("matchmaker"), name="another matchmaker"):
        assert await echoes(player)
    async with active(world) as (third, other):
        assert await echoes(other)
    began = time.monotonic()
    await world.session_becomes(third.session_id, SessionState.GONE)
    took = time.monotonic() - began
    assert await world.buckets.gameservers.get(theirs.deployment_id) is not None
    session = await world.session(theirs.session_id)
    assert session is not None
    assert session.state is SessionState.ACTIVE
    return took


LASTING = 6
"""Seconds of an attack: two TTLs and the grace are 3 s."""


@pytest.mark.slow
@pytest.mark.row(65)
@pytest.mark.parametrize("mode", ["idle", "connect", "subscribe", "flood"])
async def test_one_hostile_server_takes_nothing_from_the_others(isolated: IsolatedWorld, mode: str) -> None:
    """It holds thousands of sockets, connects thousands of times, subscribes to a thousand subjects at a time, or sends
    garbage for ever. The figures: how long it takes until a leave is noticed, before the attack and during it."""
    world = isolated.world
    async with (
        matchmaker(isolated) as running,
        active(world) as (mine, _),
        active(world) as (theirs, player),
    ):
        quiet = await innocents_are_served(isolated, player, theirs)
        subject = {
            "subscribe": server_inbox_prefix(mine.deployment_id),
            "flood": world.bus.subjects.events(mine.deployment_id),
        }.get(mode, "")
        took = []
        async with attacked(isolated, running, mode, mine.deployment_id, subject) as attack:
            until = time.monotonic() + LASTING
            while time.monotonic() < until:
                took.append(await innocents_are_served(isolated, player, theirs))
            deaf = running.parts.hearing.deaf
        print(f"{mode}: {attack.result}")
        print(f"a leave is noticed after {quiet * 1000:.0f} ms, during the attack {max(took) * 1000:.0f} ms")
        assert not deaf
        if mode == "connect":
            assert attack.result["tries"] > 4200
            assert attack.result["open"] < MAX_CONNECTIONS, "with the server's own there are no more"
        elif mode == "idle":
            assert attack.result["open"] > 4200
        elif mode == "subscribe":
            assert attack.result["refused"] > 0


@pytest.mark.slow
@pytest.mark.row(65)
async def test_servers_come_back_when_matchmakers_and_nats_were_away(isolated: IsolatedWorld) -> None:
    """Without a matchmaker nobody is let in; a server tries again until one answers, and its player plays on."""
    world = isolated.world
    async with contextlib.AsyncExitStack() as stays:
        async with matchmaker(isolated):
            ready, player = await stays.enter_async_context(active(world))
        await isolated.nats.server.kill()
        await isolated.nats.server.start()
        await world.reconnected()
        assert await echoes(player)
        # An attempt to connect that nobody answers takes as long as ever: so the TTL is half the usual one.
        async with matchmaker(isolated, lease_ttl=5.0, lease_grace=1.0):

            async def connected() -> bool:
                return server_user(ready.deployment_id) in await users(isolated)

            await world.eventually(connected, "its server is connected again", timeout=20)
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            assert await echoes(player)


@pytest.mark.slow
@pytest.mark.row(65)
async def test_a_reload_of_nats_server_ends_nobody(isolated: IsolatedWorld) -> None:
    """Another user is in its file: what it does with connections, it does with those of game servers."""
    world = isolated.world
    async with matchmaker(isolated), active(world) as (ready, player):
        await reload(isolated, "{ user: eyes,", '{ user: spare, password: "spare" }\n      { user: eyes,')
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert await echoes(player)
            await asyncio.sleep(0.2)  # it plays on for all of that time

        async def connected() -> bool:
            return server_user(ready.deployment_id) in await users(isolated)

        await world.eventually(connected, "its server is connected")
        session = await world.session(ready.session_id)
        assert session is not None
        assert session.state is SessionState.ACTIVE


@pytest.mark.row(65)
async def test_matchmakers_without_the_seed_leave_servers_their_shared_user(isolated: IsolatedWorld) -> None:
    """As those of an earlier release do."""
    async with isolated.world.matchmaker(ONE_SEAT_EACH, profile="isolated"):
        ready = await isolated.world.play()
        async with playing(ready) as player:
            assert await echoes(player)
            assert await users(isolated) == {"gameserver"}


def test_the_account_that_servers_are_let_into_is_the_configured_one() -> None:
    assert credentials.ACCOUNT == SERVERS_ACCOUNT
