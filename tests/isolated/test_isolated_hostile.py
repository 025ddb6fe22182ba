"""A hostile game server in the isolated profile: it has its own credentials and key, and tries all the rest."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.faults.real_servers import active, echoes
from tests.isolated.world import IsolatedNats, IsolatedWorld
from tests.matchmaker.world import ARENA
from tipoff.nats_roles.isolated import isolated_permissions
from tipoff_matchmaker.service import Matchmaker
from tipoff_shared.errors import Unavailable
from tipoff_shared.event_stream import create_event_stream
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import SessionState
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import MAX_EVENT, EventKey, Players, ServerEvent, seal
from tipoff_shared.settings import ROLES

ONE_SEAT_EACH = msgspec.structs.replace(ARENA, seats=1, max_deployments=3, empty_ttl=60)


class Hostile:
    """A bare client with a game server's credentials. `refused`: what NATS said to it."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.refused: list[str] = []

    async def try_publish(self, subject: str, data: bytes = b"x", **more: object) -> None:
        await self.nc.publish(subject, data, **more)  # type: ignore[arg-type]  # reply, headers

    async def settled(self) -> None:
        """All that was sent has been handled by the server, and what it said is here."""
        await self.nc.flush()
        await self.nc.flush()


@pytest.fixture
async def hostile(isolated_nats: IsolatedNats) -> AsyncIterator[Hostile]:
    settings = isolated_nats.settings("gameserver")
    nc = Client()
    client = Hostile(nc)

    async def said(exc: Exception) -> None:
        client.refused.append(str(exc))

    await nc.connect(
        servers=list(settings.servers),
        user=settings.user,
        password=settings.password.reveal(),
        inbox_prefix=settings.inbox_prefix.encode(),
        error_cb=said,
    )
    yield client
    await nc.close()


class Witness:
    """Everything that is published in the matchmaker's account, and every stream's last sequence."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.heard: list[str] = []

    async def start(self) -> None:
        await create_buckets(self._bus)
        await create_event_stream(self._bus)
        self._before = await self._sequences()

        async def hear(msg: Msg) -> None:
            if not msg.subject.startswith(("_INBOX", "$JS.API", "_R_", "$JS.EVENT")):
                self.heard.append(msg.subject)

        await self._bus.nc.subscribe(">", cb=hear)
        await self._bus.flush()

    async def _sequences(self) -> dict[str, tuple[int, int]]:
        infos = await self._bus.js.streams_info()
        return {
            info.config.name or "": (info.state.last_seq, info.state.messages)
            for info in infos
            if info.config.name != self._bus.subjects.events_stream
        }

    async def nothing_was_written(self) -> bool:
        return await self._sequences() == self._before

    async def events(self) -> int:
        info = await self._bus.js.stream_info(self._bus.subjects.events_stream)
        return info.state.messages


@pytest.fixture
async def witness(eyes: Bus) -> Witness:
    witness = Witness(eyes)
    await witness.start()
    return witness


def concrete(subjects: Iterable[str]) -> list[str]:
    """One subject for each pattern."""
    return [subject.replace("*", "victim").replace(">", "victim") for subject in subjects]


@pytest.mark.row(56)
async def test_every_foreign_subject_is_denied(hostile: Hostile, witness: Witness, eyes: Bus) -> None:
    """Whatever any other role may publish or hear, a game server may not: not one of those reaches anybody."""
    own = isolated_permissions("gameserver", eyes.subjects)
    publish: set[str] = set()
    subscribe: set[str] = set()
    for role in ROLES:
        if role != "gameserver":
            allowed = isolated_permissions(role, eyes.subjects)
            publish |= {*concrete(allowed.publish), *concrete(allowed.subscribe)}
            subscribe |= {*allowed.subscribe, *allowed.publish}
    publish -= {*concrete(own.publish)}
    subscribe -= set(own.subscribe)
    publish |= {"$SYS.REQ.SERVER.PING", "$JS.API.STREAM.DELETE.KV_iso_sessions", "$JS.API.INFO", "anything"}
    for subject in publish:
        await hostile.try_publish(subject)
    await hostile.settled()
    assert len([text for text in hostile.refused if "publish" in text]) == len(publish)
    hostile.refused.clear()
    for subject in subscribe | {">", "*", "$SYS.>", "gs.*.ev", eyes.subjects.events("*"), "_INBOX.>"}:
        await hostile.nc.subscribe(subject)
    await hostile.settled()
    assert len(hostile.refused) >= len(subscribe)
    assert await witness.nothing_was_written()
    assert (witness.heard, await witness.events()) == ([], 0)


@pytest.mark.row(57)
async def test_a_rollup_header_wipes_nothing(hostile: Hostile, witness: Witness, eyes: Bus) -> None:
    """Neither in a bucket, which it does not reach, nor in the stream, which refuses it."""
    events = eyes.subjects.events("arena-1")
    await hostile.nc.request(events, b"kept", timeout=2)
    for rollup in ("all", "sub"):
        for bucket in ("gameservers", "active_connections", "sessions"):
            key = f"$KV.{eyes.subjects.bucket(bucket)}.arena-1"
            await hostile.try_publish(key, headers={"Nats-Rollup": rollup})
        answer = json.loads((await hostile.nc.request(events, b"", headers={"Nats-Rollup": rollup})).data)
        assert answer["error"]["description"] == "rollup not permitted"
    await hostile.settled()
    assert len(hostile.refused) == 6
    assert await witness.nothing_was_written()
    assert await witness.events() == 1


@pytest.mark.row(57)
async def test_headers_that_make_a_stream_do_more_than_keep_are_refused(
    hostile: Hostile, witness: Witness, eyes: Bus
) -> None:
    """Schedules (which publish elsewhere, later), counters, batches, expectations."""
    victim = f"$KV.{eyes.subjects.bucket('sessions')}.victim"
    for headers in (
        {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": victim},
        {"Nats-Incr": "+1"},
        {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
        {"Nats-Expected-Last-Sequence": "1000"},
        {"Nats-Expected-Stream": "KV_iso_sessions"},
    ):
        answer = await hostile.nc.request(eyes.subjects.events("arena-1"), b"x", headers=headers)
        assert "error" in json.loads(answer.data), headers
    assert await witness.nothing_was_written()
    assert await witness.events() == 0


@pytest.mark.row(57)
async def test_a_reply_redirect_reaches_nobody_in_the_matchmakers_account(
    hostile: Hostile, witness: Witness, eyes: Bus
) -> None:
    """The stream's answer, and a direct get's, asked to go to a victim's key, a command, an operator's subject: the
    answer to an event is delivered in the account that asked, and the get is denied."""
    subjects = eyes.subjects
    events = subjects.events("arena-1")
    victims = [
        f"$KV.{subjects.bucket('sessions')}.victim",
        f"$KV.{subjects.bucket('active_connections')}.victim",
        subjects.commands("arena-2"),
        subjects.admin("kick"),
        subjects.launcher("local", "stop"),
        subjects.contexts,
        subjects.all_requests.replace(">", "arena.1"),
        subjects.events("arena-2"),
    ]
    for victim in victims:
        await hostile.try_publish(events, b"x", reply=victim)
        bucket = f"KV_{subjects.bucket('gameservers')}"
        for api in (f"DIRECT.GET.{bucket}.$KV.x", f"STREAM.MSG.GET.{bucket}", f"STREAM.INFO.{bucket}"):
            await hostile.try_publish(f"$JS.API.{api}", b"{}", reply=victim)
    await hostile.settled()
    await eyes.flush()
    assert len(hostile.refused) == 3 * len(victims)
    assert await witness.nothing_was_written()
    assert set(witness.heard) <= {events}
    assert await witness.events() == len(victims)


@pytest.mark.row(56)
async def test_nobody_comes_in_without_credentials(isolated: IsolatedWorld) -> None:
    """Who is not in its file, nats-server asks a matchmaker about."""
    settings = isolated.nats.settings("gameserver")
    seed = isolated.nats.auth_seed_file
    async with isolated.world.matchmaker(profile="isolated", server_auth_seed_file=seed):
        for user, password in (
            ("", ""),
            ("gameserver", "guess"),
            ("matchmaker", settings.password.reveal()),
            ("gs-arena-1", "guess"),
        ):
            with pytest.raises(Unavailable, match="refuses"):
                async with connect(
                    dataclasses.replace(settings, user=user, password=Secret(password)), name="hostile"
                ):
                    pass


@pytest.mark.row(56)
async def test_nobody_comes_in_while_no_matchmaker_answers(isolated_nats: IsolatedNats) -> None:
    unknown = dataclasses.replace(isolated_nats.settings("gameserver"), user="", password=Secret(""))
    with pytest.raises(Unavailable):
        async with connect(unknown, name="hostile", timeout=1):
            pass


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """Two servers: one player on each. The hostile one has the first server's key and boot id."""

    matchmaker: Matchmaker
    own: str
    boot_id: str
    key: EventKey
    victim: str
    victim_boot: str
    victim_session: str
    victim_client: str


@contextlib.asynccontextmanager
async def scene(isolated: IsolatedWorld) -> AsyncIterator[Scene]:
    world = isolated.world
    async with (
        world.matchmaker(ONE_SEAT_EACH, profile="isolated") as matchmaker,
        active(world) as (mine, _),
        active(world) as (theirs, player),
    ):
        assert mine.deployment_id != theirs.deployment_id
        assert matchmaker.parts.event_secret is not None
        yield Scene(
            matchmaker,
            mine.deployment_id,
            isolated.servers.of(mine).boot_id,
            matchmaker.parts.event_secret.key_of(mine.deployment_id),
            theirs.deployment_id,
            isolated.servers.of(theirs).boot_id,
            theirs.session_id,
            theirs.client_id,
        )
        assert await echoes(player), "the victim plays on"
        session = await world.session(theirs.session_id)
        assert session is not None
        assert session.state is SessionState.ACTIVE


def refusals(matchmaker: Matchmaker) -> float:
    metric = matchmaker.parts.metrics.registry.get_sample_value
    return sum(
        metric("tipoff_gameserver_events_refused_total", {"code": code}) or 0 for code in ("400", "403")
    )


@pytest.mark.row(56)
async def test_an_event_in_another_servers_name_is_refused(isolated: IsolatedWorld, hostile: Hostile) -> None:
    """Without a seal, with the own key's, with a seal for the own subject: nobody is written off for it."""
    async with scene(isolated) as here:
        left = ServerEvent(here.victim_boot, time.time(), 1 << 40, Players(left=[here.victim_session]))
        body, own_seal = seal(here.key, here.own, left)
        _, wrong_key = seal(here.key, here.victim, left)
        _, guessed = seal(EventKey(secrets.token_bytes(32)), here.victim, left)
        subject = isolated.world.bus.subjects.events(here.victim)
        for headers in (None, own_seal, wrong_key, guessed, {"Tipoff-Mac": "é"}, {"Tipoff-Mac": ""}):
            await hostile.nc.request(subject, body, headers={**(headers or {}), "X": "y"}, timeout=2)

        async def all_refused() -> bool:
            return refusals(here.matchmaker) >= 6

        await isolated.world.eventually(all_refused, "all are refused")
        assert await isolated.world.buckets.active_connections.get(here.victim_session) is not None


@pytest.mark.row(56)
async def test_a_server_speaks_of_its_own_sessions_alone(isolated: IsolatedWorld, hostile: Hostile) -> None:
    """Properly sealed: it says that another server's player left, or is with it, or that nobody's session is."""
    world = isolated.world
    async with scene(isolated) as here:
        for seq, what in enumerate(
            (
                Players(left=[here.victim_session]),
                Players(joined={here.victim_session: here.victim_client}),
                Players(joined={here.victim_session: "1"}, left=[here.victim_session]),
                Players(joined={"nobody": "1"}, left=["nobody-either"]),
            ),
            start=1 << 40,
        ):
            body, headers = seal(here.key, here.own, ServerEvent(here.boot_id, time.time(), seq, what))
            await hostile.nc.request(world.bus.subjects.events(here.own), body, headers=headers, timeout=2)
        await world.eventually(lambda: _no_events(isolated), "all are handled")
        connections = await world.buckets.active_connections.list()
        assert here.victim_session in connections
        assert "nobody" not in connections
        assert connections[here.victim_session].value == here.victim_client


@pytest.mark.row(57)
@pytest.mark.slow
async def test_a_flood_of_large_events_stops_nobody_else(isolated: IsolatedWorld, hostile: Hostile) -> None:
    """Too large ones are not kept at all; of the others the stream keeps so many of one server, and they are thrown
    away unread: while they come, a server starts, a player comes and leaves as ever."""
    world = isolated.world
    async with scene(isolated) as here:
        answer = await hostile.nc.request(world.bus.subjects.events(here.own), b"x" * (MAX_EVENT + 5000))
        assert json.loads(answer.data)["error"]["err_code"] == 10054
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                for _ in range(50):
                    await hostile.nc.publish(world.bus.subjects.events(here.own), b"x" * MAX_EVENT)
                await hostile.nc.flush()

        flooding = asyncio.create_task(flood())
        try:
            began = time.monotonic()
            async with active(world) as (ready, _):
                assert ready.deployment_id not in (here.own, here.victim)
            await world.session_becomes(ready.session_id, SessionState.GONE)
            took = time.monotonic() - began
        finally:
            stop.set()
            await flooding
        print(
            f"came and left during the flood within {took * 1000:.0f} ms; {refusals(here.matchmaker):.0f} refused"
        )
        assert took < 10


async def _no_events(isolated: IsolatedWorld) -> bool:
    bus = isolated.world.bus
    return (await bus.js.stream_info(bus.subjects.events_stream)).state.messages == 0
