"""The contract of presence, in both profiles, with a real nats-server and its accounts: what a game server reports
stands in KV, whatever NATS does. A stand-alone server's presence keeps the part of it that needs no NATS."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.gameserver.players import Recorder, by_udp, by_websocket, token_for
from tests.isolated.world import IsolatedNats
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, LeaveReason, PrivateKey
from tipoff_gameserver.presence import reporter
from tipoff_gameserver.presence.interface import NoPresence, Presence
from tipoff_gameserver.presence.reporter import Reporter
from tipoff_gameserver.running import presence_for
from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.event_secret import EventSecret
from tipoff_matchmaker.isolated.reader import EventReader
from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_matchmaker.metrics import Metrics
from tipoff_shared.ban_list import new_ban
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.kv.buckets import Buckets, buckets, create_buckets
from tipoff_shared.messages import Admitted, Failed, Transports
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.netcode.client import ClientState
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import (
    Bans,
    Command,
    DeploymentRecord,
    DeploymentState,
    Drain,
    Expect,
    GameserverLease,
    Kick,
    LeaseState,
    Report,
    SessionRecord,
    SessionState,
    encode,
)
from tipoff_shared.settings import NatsSettings
from tipoff_shared.user_data import TokenUserData

BOOT = "b1"


def lease() -> GameserverLease:
    return GameserverLease("arena-1", BOOT, "arena", "1", LeaseState.READY, Transports(), 4)


def ignore(command: Command) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Profile:
    """`context`: how the server is started; `kv` and `bus`: of a user who may see everything; `contexts`: what
    servers announced."""

    context: Context
    kv: Buckets
    bus: Bus
    contexts: asyncio.Queue[dict[str, object]]

    def presence(self) -> Reporter:
        """What a server with this context reports by, without the server."""
        presence = presence_for(self.context, BOOT)
        assert isinstance(presence, Reporter)
        return presence

    async def record(self, session_id: str, client_id: int, boot_id: str = BOOT) -> None:
        """The session's record, as a matchmaker writes it before it issues a token."""
        context = self.context
        record = SessionRecord(
            session_id,
            SessionState.READY,
            context.game,
            context.version,
            str(client_id),
            "m1",
            time.time(),
            deployment_id=context.deployment_id,
            boot_id=boot_id,
        )
        await self.kv.sessions.put(session_id, record)

    async def seat(self, server: GameServer, session_id: str, client_id: int) -> bytes:
        """A token, after the session's record."""
        await self.record(session_id, client_id, server.boot_id)
        return token_for(server, session_id, client_id=client_id)

    async def sessions(self) -> set[str]:
        return set(await self.kv.active_connections.list())

    async def sessions_are(self, *expected: str) -> bool:
        try:
            return await self.sessions() == set(expected)
        except Unavailable:
            return False

    async def has_lease(self, state: LeaseState = LeaseState.READY) -> bool:
        try:
            entry = await self.kv.gameservers.get(self.context.deployment_id)
        except Unavailable:
            return False
        return entry is not None and entry.value.state is state

    async def has_no_lease(self) -> bool:
        return await self.kv.gameservers.get(self.context.deployment_id) is None


@asynccontextmanager
async def open_profile(name: str, isolated_nats: IsolatedNats, eyes: Bus) -> AsyncIterator[Profile]:
    """`trusted`, or `isolated` with the part of a matchmaker that writes what servers report."""
    kv = await create_buckets(eyes)
    contexts: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    context = Context(
        deployment_id="arena-1",
        game="arena",
        version="1",
        private_key=PrivateKey.generate(),
        protocol_id=77,
        capacity=4,
        drain_grace=2.0,
    )
    await kv.deployments.create(
        "arena-1", DeploymentRecord("arena-1", DeploymentState.READY, "arena", "1", "fake", 4, time.time())
    )

    async def told(data: bytes) -> None:
        contexts.put_nowait(msgspec.json.decode(data))

    async with AsyncExitStack() as stack:
        if name == "trusted":

            async def heard(msg: Msg) -> None:
                await told(msg.data)

            await eyes.nc.subscribe(eyes.subjects.contexts, cb=heard)
            await eyes.flush()
            # Other tests cover the permissions of the trusted profile.
            context = dataclasses.replace(context, nats=isolated_nats.settings("eyes"))
        else:
            bus = await stack.enter_async_context(
                connect(isolated_nats.settings("matchmaker"), name="matchmaker")
            )
            secret = EventSecret(bus)
            await secret.ensure()
            tasks = await stack.enter_async_context(Tasks("events"))
            own = buckets(bus)
            ages, store = BucketAges(bus, own, tasks, time.time), DeploymentStore(own.deployments, tasks)
            writer = EventWriter(bus, ages, own, store, told)
            reader = EventReader(bus, writer, store, Metrics(), tasks, secret.key_of)
            tasks.start(reader.run(), "reader")
            context = dataclasses.replace(
                context, nats=isolated_nats.settings("gameserver"), event_key=secret.key_of("arena-1")
            )
        yield Profile(context, kv, eyes, contexts)


@pytest.fixture(params=["trusted", "isolated"])
async def profile(
    request: pytest.FixtureRequest, isolated_nats: IsolatedNats, eyes: Bus
) -> AsyncIterator[Profile]:
    async with open_profile(request.param, isolated_nats, eyes) as profile:
        yield profile


@pytest.fixture(params=["stand-alone", "trusted", "isolated"])
async def presence(
    request: pytest.FixtureRequest, isolated_nats: IsolatedNats, eyes: Bus
) -> AsyncIterator[Presence]:
    if request.param == "stand-alone":
        yield NoPresence()
        return
    async with open_profile(request.param, isolated_nats, eyes) as profile:
        yield profile.presence()


# --- every presence, a stand-alone server's too ---------------------------------------------------------------


async def test_announce_returns_when_others_know(presence: Presence) -> None:
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    assert presence.connected
    await presence.close(keep_lease=False)


async def test_joins_and_leaves_never_wait_and_may_repeat(presence: Presence) -> None:
    await presence.start(lease, ignore)
    for _ in range(2):
        presence.joined("s1", 2**64 - 1)
        presence.left("s1")
        presence.left("never seen")
    await presence.close(keep_lease=False)
    await presence.close(keep_lease=False)


async def test_an_unknown_client_id_has_no_session(presence: Presence) -> None:
    await presence.start(lease, ignore)
    await presence.announce(5)
    assert await presence.look_up(1) is None
    await presence.close(keep_lease=False)


async def test_it_can_be_closed_without_having_started(presence: Presence) -> None:
    await presence.close(keep_lease=False)


# --- both profiles --------------------------------------------------------------------------------------------


async def test_a_report_over_nats_needs_nats(profile: Profile) -> None:
    with pytest.raises(ConfigError, match="no NATS"):
        type(profile.presence())(dataclasses.replace(profile.context, nats=None), BOOT)


async def test_it_is_connected_from_the_first_report_to_the_end(profile: Profile) -> None:
    presence = profile.presence()
    assert not presence.connected
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    assert presence.connected
    await presence.close(keep_lease=False)
    assert not presence.connected


async def test_an_announcement_does_not_wait_for_the_next_refresh(profile: Profile) -> None:
    """Which comes after 20 seconds."""
    presence = presence_for(dataclasses.replace(profile.context, lease_ttl=60), BOOT)
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    for _ in range(2):
        assert await presence.announce(1)
    await presence.close(keep_lease=False)


async def test_what_changes_is_told_before_the_next_refresh(profile: Profile) -> None:
    """Which comes after 20 seconds: who joins, who leaves, and all of it when NATS may have lost it."""
    presence = presence_for(dataclasses.replace(profile.context, lease_ttl=60), BOOT)
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    for session_id, client_id in (("s1", 1), ("s2", 2)):
        await profile.record(session_id, client_id)
        presence.joined(session_id, client_id)
        await eventually(lambda session_id=session_id: profile.sessions_are(session_id), "it is active")
        if session_id == "s1":
            presence.left("s1")
            await eventually(profile.sessions_are, "it is gone")
    await profile.kv.active_connections.forget("s2", 1 << 40)
    await profile.kv.gameservers.purge("arena-1")
    assert isinstance(presence, Reporter)
    presence.resync()
    await eventually(lambda: profile.sessions_are("s2"), "it is active again")
    await eventually(profile.has_lease, "the lease is there again")
    await presence.close(keep_lease=False)


async def test_nobody_waits_for_the_end_of_a_server_that_has_nothing_to_report(
    profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    """One that never reached NATS, or on which nobody has played."""
    async with asyncio.timeout(0.9):
        never_started = profile.presence()
        never_started.joined("s1", 1)
        await never_started.close(keep_lease=False)
        empty = profile.presence()
        await empty.start(lease, ignore)
        assert await empty.announce(5)
        await empty.close(keep_lease=False)
    assert "has to expire by itself" not in caplog.text
    await eventually(profile.has_no_lease, "the lease is withdrawn")


async def test_it_closes_at_once_at_any_time(profile: Profile) -> None:
    """Also in the middle of connecting or of the first reports; nothing is left behind."""
    await profile.record("s1", 1)
    for delay in (0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01):
        presence = profile.presence()
        await presence.start(lease, ignore)
        presence.joined("s1", 1)
        await asyncio.sleep(delay)  # the moment is what is tested
        async with asyncio.timeout(1.5):
            await presence.close(keep_lease=False)
    await eventually(profile.has_no_lease, "no lease is left")
    await eventually(profile.sessions_are, "no session is left")


async def test_a_server_shows_itself_and_its_players(profile: Profile, game: Recorder) -> None:
    """Lease and context at the start, connections while somebody plays, nothing of it afterwards."""
    async with GameServer(game, context=profile.context, tick_rate=20) as server:
        await eventually(profile.has_lease, "the lease")
        async with asyncio.timeout(5):
            context = await profile.contexts.get()
        assert context["deployment_id"] == context["request_id"] == "arena-1"
        entry = await profile.kv.gameservers.get("arena-1")
        assert entry is not None
        lease = entry.value
        assert (lease.boot_id, lease.transports) == (server.boot_id, server.transports)
        async with (
            by_udp(await profile.seat(server, "s1", 11)),
            by_websocket(server, await profile.seat(server, "s2", 12)),
        ):
            await eventually(lambda: profile.sessions_are("s1", "s2"), "both are active")
            entries = await profile.kv.active_connections.list()
            assert {key: entry.value for key, entry in entries.items()} == {"s1": "11", "s2": "12"}
        await eventually(profile.sessions_are, "the connections are gone")
    await eventually(profile.has_no_lease, "the lease is withdrawn")


async def test_a_closed_server_leaves_nothing_behind(profile: Profile, game: Recorder) -> None:
    async with (
        GameServer(game, context=profile.context) as server,
        by_udp(await profile.seat(server, "s1", 11)),
        by_websocket(server, await profile.seat(server, "s2", 12)),
    ):
        await eventually(lambda: profile.sessions_are("s1", "s2"), "both are active")
        await server.__aexit__(None, None, None)
        await eventually(profile.sessions_are, "the connections are gone")
        await eventually(profile.has_no_lease, "the lease is withdrawn")


async def test_a_shut_down_server_says_that_it_has_ended(profile: Profile, game: Recorder) -> None:
    server = GameServer(game, context=profile.context)
    running = asyncio.create_task(server.run())
    await eventually(profile.has_lease, "the lease")
    async with by_udp(await profile.seat(server, "s1", 11)):
        await server.shutdown()
        await eventually(lambda: profile.has_lease(LeaseState.ENDED), "it says so")
        async with asyncio.timeout(5):
            await running
    await eventually(profile.sessions_are, "nobody plays")
    assert await profile.has_lease(LeaseState.ENDED)


async def test_a_kick_command_ends_the_connection(profile: Profile, game: Recorder) -> None:
    async with GameServer(game, context=profile.context) as server:
        await eventually(profile.has_lease, "the lease")
        async with by_websocket(server, await profile.seat(server, "s1", 11)) as player:
            await profile.bus.publish(
                profile.bus.subjects.commands("arena-1"), encode(Kick("s1", "you again"))
            )
            await player.ws.wait_closed()
            assert player.ws.close_reason == "you again"
        ((_, _, reason),) = await game.saw("leave")
        assert reason == LeaveReason.KICKED
        await eventually(profile.sessions_are, "the connection is gone")


@pytest.mark.row(91)
async def test_a_lock_is_in_the_lease_when_it_has_been_awaited(profile: Profile, game: Recorder) -> None:
    """Also one from before the server was announced; and a token issued by then is good."""

    async def locked() -> bool:
        entry = await profile.kv.gameservers.get("arena-1")
        return entry is not None and entry.value.locked and entry.value.state is LeaseState.READY

    async def open_again() -> bool:
        return await profile.has_lease() and not await locked()

    async with GameServer(game, context=profile.context) as server:
        assert not server.locked
        await server.lock()
        assert server.locked
        await eventually(locked, "it is locked")
        async with by_udp(await profile.seat(server, "s1", 11)):
            await game.saw("join")
        await server.unlock()
        await server.unlock()
        assert not server.locked
        await eventually(open_again, "it is open")
        server.lock()
        await eventually(locked, "it is locked")


@pytest.mark.row(91)
async def test_a_game_knows_who_is_on_the_way(profile: Profile, game: Recorder) -> None:
    """Until the player is here, its session is over, or the time has passed."""
    async with GameServer(game, context=profile.context) as server:
        await eventually(profile.has_lease, "the lease")
        entry = await profile.kv.gameservers.get("arena-1")
        assert entry is not None
        assert entry.value.expects

        def expected() -> list[str]:
            return [player.session_id for player in server.expected]

        for command in (Expect("s1", 60), Expect("s2", 60), Expect("s3", 0.05), Expect("s4", 60)):
            await profile.bus.publish(profile.bus.subjects.commands("arena-1"), encode(command))
        await eventually(lambda: expected() == ["s1", "s2", "s4"], "three are on the way")
        assert 50 < server.expected[0].seconds <= 60
        async with by_udp(await profile.seat(server, "s1", 11)):
            await eventually(lambda: expected() == ["s2", "s4"], "one is here")
            await profile.bus.publish(profile.bus.subjects.commands("arena-1"), encode(Kick("s4", "")))
            await eventually(lambda: expected() == ["s2"], "one will not come")


@pytest.mark.row(68)
@pytest.mark.parametrize(
    ("kind", "subject"), [("address", "127.0.0.0/8"), ("client", "11"), ("user", "mallory")]
)
async def test_a_banned_player_is_kicked_and_comes_in_no_more(
    profile: Profile, game: Recorder, kind: str, subject: str
) -> None:
    """By address, client id, or the user that a login put into the token; on both transports; until it is lifted."""
    async with GameServer(game, context=profile.context) as server:
        await eventually(profile.has_lease, "the lease")

        async def token(session_id: str) -> bytes:
            await profile.record(session_id, 11, server.boot_id)
            data = TokenUserData(session_id, "arena-1", server.boot_id, user_id="mallory")
            return token_for(server, client_id=11, user_data=data.encode())

        ban = new_ban(kind, subject, until=time.time() + 60, reason="spam")
        commands = profile.bus.subjects.commands("arena-1")
        async with by_websocket(server, await token("s1")) as player:
            assert isinstance(player.answer, Admitted)
            await profile.bus.publish(commands, encode(Bans([ban], first=True)))
            await player.ws.wait_closed()
            assert (player.ws.close_reason or "").startswith("you are banned until")
        async with by_websocket(server, await token("s2")) as player:
            assert isinstance(player.answer, Failed)
            assert player.answer.code == 403
            assert player.answer.message.endswith("spam")
        async with by_udp(await token("s3"), wait=False) as banned:
            await banned.reaches(ClientState.CONNECTION_DENIED)
        lifted = msgspec.structs.replace(ban, until=1.0)
        await profile.bus.publish(commands, encode(Bans([lifted])))
        async with by_websocket(server, await token("s4")) as player:
            assert isinstance(player.answer, Admitted)


async def test_a_kick_for_a_session_that_is_not_here_removes_its_key(
    profile: Profile, game: Recorder
) -> None:
    await profile.kv.active_connections.put("ghost", "1")
    async with GameServer(game, context=profile.context):
        await eventually(profile.has_lease, "the lease")
        await profile.bus.publish(profile.bus.subjects.commands("arena-1"), encode(Kick("ghost")))
        await eventually(profile.sessions_are, "the key is gone")


async def test_a_drain_command_lets_nobody_in_and_ends_with_the_last_player(
    profile: Profile, game: Recorder
) -> None:
    """A command that cannot be read changes nothing."""
    server = GameServer(game, context=profile.context)
    running = asyncio.create_task(server.run())
    await eventually(profile.has_lease, "the lease")
    commands = profile.bus.subjects.commands("arena-1")
    async with by_udp(await profile.seat(server, "s1", 11)):
        await profile.bus.publish(commands, encode(Drain()))
        await profile.bus.publish(commands, b"nonsense")
        await eventually(lambda: server.state is LeaseState.DRAINING, "it drains")
        await eventually(lambda: profile.has_lease(LeaseState.DRAINING), "the lease says so")
        async with by_websocket(server, await profile.seat(server, "s2", 12)) as late:
            assert "about to end" in str(late.answer)
        assert not running.done()
    async with asyncio.timeout(5):
        await running


async def test_a_visit_too_short_to_be_written_is_told_all_the_same(profile: Profile) -> None:
    """Joined and left before anything went out: the delete is seen, so that the seat is free at once. It is told once,
    however often it is said that the player is not here."""
    presence = profile.presence()
    await presence.start(lease, ignore)
    await eventually(profile.has_lease, "the lease")
    for session_id, client_id in (("s1", 7), ("s2", 8)):
        await profile.record(session_id, client_id)
    seen: list[tuple[str, str | None]] = []
    async with profile.kv.active_connections.durable("reader") as changes:

        async def read_until(last: tuple[str, str | None]) -> None:
            async with asyncio.timeout(20):
                while not seen or seen[-1] != last:
                    for change, ack in await changes.fetch(timeout=1):
                        seen.append((change.key, change.value))
                        await ack()

        presence.joined("s1", 7)
        presence.left("s1")
        await read_until(("s1", None))
        seen.clear()
        presence.left("s1")
        presence.joined("s2", 8)
        await read_until(("s2", "8"))
    assert ("s1", "7") not in seen
    await presence.close(keep_lease=False)


async def test_a_nats_that_forgot_what_it_had_is_told_again(profile: Profile) -> None:
    """What KV lost in a restart is written again; sessions that left before stay away."""
    presence = profile.presence()
    await presence.start(lease, ignore)
    for session_id, client_id in (("here", 11), ("gone", 12)):
        await profile.record(session_id, client_id)
        presence.joined(session_id, client_id)
    await eventually(lambda: profile.sessions_are("here", "gone"), "both are active")
    presence.left("gone")
    await eventually(lambda: profile.sessions_are("here"), "one is active")
    await profile.kv.active_connections.forget("here", 1 << 40)
    presence.resync()
    await eventually(lambda: profile.sessions_are("here"), "it is active again")
    await presence.close(keep_lease=False)


async def test_a_server_starts_and_plays_before_nats_is_there(profile: Profile, game: Recorder) -> None:
    nowhere = NatsSettings(servers=("nats://127.0.0.1:1",), insecure=True)
    async with (
        GameServer(game, context=dataclasses.replace(profile.context, nats=nowhere)) as server,
        by_udp(token_for(server, "s1")) as player,
    ):
        player.send(b"anyway")
        assert await player.receive() == b"anyway"


class Connections:
    """The connections that servers make to NATS: how many there were, and the first `failing` find nobody."""

    def __init__(self) -> None:
        self.failing = 0
        self.made = 0
        self.buses: list[Bus] = []

    def connect(self, settings: NatsSettings, **options: Any) -> AbstractAsyncContextManager[Bus]:
        self.made += 1
        if self.made <= self.failing:
            settings = dataclasses.replace(settings, servers=("nats://127.0.0.1:1",))
            return connect(settings, timeout=0.05, **options)
        return self._kept(settings, **options)

    @asynccontextmanager
    async def _kept(self, settings: NatsSettings, **options: Any) -> AsyncIterator[Bus]:
        async with connect(settings, **options) as bus:
            self.buses.append(bus)
            yield bus


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Servers try again soon."""
    made = Connections()
    monkeypatch.setattr(reporter, "connect", made.connect)
    monkeypatch.setattr(reporter, "RETRY", 0.02)
    return made


async def test_a_server_that_started_while_nats_was_away_appears_when_it_is_there(
    profile: Profile, game: Recorder, connections: Connections
) -> None:
    """With those who play on it by then."""
    connections.failing = 2
    async with GameServer(game, context=profile.context) as server:
        token = await profile.seat(server, "s1", 11)
        async with by_udp(token):
            await eventually(profile.has_lease, "the lease")
            await eventually(lambda: profile.sessions_are("s1"), "the player")
    assert connections.made == 3
    await eventually(profile.has_no_lease, "it is withdrawn")


async def test_while_nats_stays_away_tries_become_rarer(
    profile: Profile, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a limit."""
    monkeypatch.setattr(reporter, "RETRY", 0.05)
    monkeypatch.setattr(reporter, "LONGEST_RETRY", 0.08)
    connections.failing = 8
    presence = profile.presence()
    began = time.monotonic()
    await presence.start(lease, ignore)
    await eventually(profile.has_lease, "the lease")
    pauses = 0.05 + 7 * 0.08
    # Each is half of it to all of it. Without the limit they take 5.7 s at least (0.05, 0.1, ..., 5 s).
    assert pauses / 2 < time.monotonic() - began < 5
    monkeypatch.setattr(connections, "failing", 0)
    await connections.buses[0].nc.close()
    await eventually(lambda: len(connections.buses) == 2, "a new connection")
    await presence.close(keep_lease=False)
    assert connections.made == 10


async def test_an_unreadable_certificate_authority_is_an_error_at_the_start(
    profile: Profile, game: Recorder
) -> None:
    assert profile.context.nats is not None
    nats = dataclasses.replace(profile.context.nats, ca_file="/does/not/exist", insecure=False)
    with pytest.raises(ConfigError, match="NATS_CA=/does/not/exist"):
        async with (
            asyncio.timeout(2),
            GameServer(game, context=dataclasses.replace(profile.context, nats=nats)),
        ):
            pass


async def test_a_connection_that_is_closed_for_good_is_replaced(
    profile: Profile, game: Recorder, connections: Connections
) -> None:
    """Commands come by the new one, and what happened in between is reported."""
    async with GameServer(game, context=profile.context) as server:
        stays = await profile.seat(server, "stays", 10)
        second = await profile.seat(server, "s2", 12)
        async with by_udp(stays), by_udp(await profile.seat(server, "s1", 11)) as leaves:
            await eventually(lambda: profile.sessions_are("stays", "s1"), "both players")
            await connections.buses[0].nc.close()
            await profile.kv.active_connections.forget("stays", 1 << 40)
            leaves.leave()
            async with by_websocket(server, second) as player:
                await eventually(lambda: profile.sessions_are("stays", "s2"), "one left, one came, one stays")
                assert connections.made == 2
                await profile.bus.publish(profile.bus.subjects.commands("arena-1"), encode(Kick("s2")))
                await player.ws.wait_closed()
        await eventually(profile.sessions_are, "nobody is left")


async def test_a_lease_that_cannot_be_described_is_tried_again_on_a_new_connection(
    profile: Profile, connections: Connections
) -> None:
    """An error of ours in one loop stops no other for ever."""
    failing = True

    def describe() -> GameserverLease:
        if failing:
            raise ZeroDivisionError("ours")
        return lease()

    presence = profile.presence()
    await presence.start(describe, ignore)
    await eventually(lambda: connections.made >= 2, "a new connection")
    failing = False
    await eventually(profile.has_lease, "the lease")
    await presence.close(keep_lease=False)


async def test_who_waits_for_a_report_hears_of_it_by_the_next_connection(
    profile: Profile, connections: Connections, isolated_nats: IsolatedNats, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether its connection was closed for good, or an error of ours ended it."""
    failing = False

    def describe() -> GameserverLease:
        if failing:
            raise ZeroDivisionError("ours")
        return lease()

    presence = presence_for(dataclasses.replace(profile.context, lease_ttl=600), BOOT)
    await presence.start(describe, ignore)
    assert await presence.announce(20)
    failing = True
    waiting = [asyncio.ensure_future(presence.announce(20))]
    await eventually(lambda: connections.made >= 2, "a new connection")
    failing = False
    assert await waiting[0]
    await isolated_nats.server.kill()
    waiting = [asyncio.ensure_future(presence.announce(20))]
    await eventually(lambda: "the game goes on" in caplog.text, "it was tried")
    waiting.append(asyncio.ensure_future(presence.announce(20)))
    await asyncio.sleep(0)
    await connections.buses[-1].nc.close()
    await isolated_nats.server.start()
    assert await asyncio.gather(*waiting) == [True, True]
    await presence.close(keep_lease=False)


async def test_the_lease_is_refreshed_every_third_of_its_time(profile: Profile) -> None:
    """With what is true by then."""
    context = dataclasses.replace(profile.context, lease_ttl=1)
    presence = presence_for(context, BOOT)
    players = 0

    def describe() -> GameserverLease:
        nonlocal players
        players += 1
        return msgspec.structs.replace(lease(), players=players)

    began = time.monotonic()
    await presence.start(describe, ignore)

    async def refreshed() -> bool:
        entry = await profile.kv.gameservers.get("arena-1")
        return entry is not None and entry.value.players >= 4

    await eventually(refreshed, "it was refreshed three times", timeout=3)
    assert 0.9 < time.monotonic() - began < 2
    await presence.close(keep_lease=False)


async def test_a_lease_that_is_to_be_seen_stays_and_no_session_does(profile: Profile) -> None:
    presence = profile.presence()
    await presence.start(lease, ignore)
    for session_id, client_id in (("s1", 1), ("s2", 2)):
        await profile.record(session_id, client_id)
        presence.joined(session_id, client_id)
    await eventually(lambda: profile.sessions_are("s1", "s2"), "both are active")
    await presence.close(keep_lease=True)
    await eventually(profile.sessions_are, "nobody plays")
    assert await profile.has_lease()


async def test_a_matchmaker_that_asks_is_told_everything_again(profile: Profile) -> None:
    """The lease at once, not at its next refresh, and every session."""
    commands: list[Command] = []
    presence = profile.presence()
    await presence.start(lease, commands.append)
    await profile.record("s1", 1)
    presence.joined("s1", 1)
    await eventually(lambda: profile.sessions_are("s1"), "it is active")
    await profile.kv.gameservers.purge("arena-1")
    await profile.kv.active_connections.forget("s1", 1 << 40)
    await profile.bus.publish(profile.bus.subjects.commands("arena-1"), encode(Report()))
    await eventually(profile.has_lease, "the lease", timeout=2)
    await eventually(lambda: profile.sessions_are("s1"), "it is active again", timeout=2)
    assert commands == []
    await presence.close(keep_lease=False)


async def test_what_cannot_be_withdrawn_is_logged_with_the_reason(
    profile: Profile, isolated_nats: IsolatedNats, caplog: pytest.LogCaptureFixture
) -> None:
    presence = profile.presence()
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    await isolated_nats.server.kill()
    presence.joined("s1", 1)
    async with asyncio.timeout(4):
        await presence.close(keep_lease=False)
    assert "has to expire by itself: NATS is away" in caplog.text


async def test_a_nats_that_is_back_is_told_everything_at_once(
    profile: Profile, isolated_nats: IsolatedNats
) -> None:
    """Not with the next refresh, which comes after 20 seconds: it may have lost anything."""
    presence = presence_for(dataclasses.replace(profile.context, lease_ttl=60), BOOT)
    await presence.start(lease, ignore)
    await profile.record("s1", 1)
    presence.joined("s1", 1)
    await eventually(lambda: profile.sessions_are("s1"), "it is active")
    await eventually(profile.has_lease, "the lease")
    await profile.kv.active_connections.forget("s1", 1 << 40)
    await profile.kv.gameservers.purge("arena-1")
    await isolated_nats.server.kill()
    await isolated_nats.server.start()
    await eventually(lambda: profile.sessions_are("s1"), "it is active again", 15)
    await eventually(profile.has_lease, "the lease is there again", 15)
    await presence.close(keep_lease=False)


@pytest.mark.slow  # a reconnect
async def test_the_truth_is_there_when_nats_is_back(
    profile: Profile, game: Recorder, isolated_nats: IsolatedNats
) -> None:
    """NATS is killed; one player leaves, one joins, one stays: afterwards KV says who plays."""
    async with GameServer(game, context=profile.context, tick_rate=50) as server:
        joins = await profile.seat(server, "joins", 3)
        async with by_udp(await profile.seat(server, "stays", 1)):
            async with by_udp(await profile.seat(server, "leaves", 2)):
                await eventually(lambda: profile.sessions_are("stays", "leaves"), "both are active")
                await isolated_nats.server.kill()
            await game.saw("leave", 1)
            async with by_websocket(server, joins):
                await isolated_nats.server.start()
                await eventually(lambda: profile.sessions_are("stays", "joins"), "the truth is in KV", 15)
