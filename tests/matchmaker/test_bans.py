"""Bans as matchmakers carry them out: requests, waiting players, seats, players in a game, and game servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, Gameserver, World, failed
from tests.polling import eventually
from tipoff.operate.admin import ban, list_bans
from tipoff_shared.admin import Banned
from tipoff_shared.ban_list import BanList, ban_key, new_ban
from tipoff_shared.errors import Malformed, NotAllowed, Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import ProgressReport, SessionReady
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import (
    Ban,
    BanKind,
    Bans,
    Command,
    DeploymentState,
    Kick,
    SessionState,
    decode_command,
    encode,
)

MALLORY, OTHER = "203.0.113.1", "203.0.114.1"
NETWORK = "203.0.113.0/24"
LASTING = msgspec.structs.replace(ARENA, empty_ttl=60)


def for_a_minute(subject: str = NETWORK, reason: str = "spam", kind: str = "address") -> Ban:
    return new_ban(kind, subject, until=time.time() + 60, reason=reason)


async def command_of(server: Gameserver, kind: type[Command]) -> Command:
    """The next command of this kind."""
    while not isinstance(command := await server.commands.get(), kind):
        pass
    return command


@pytest.mark.row(68)
async def test_a_banned_address_gets_no_seat_until_the_ban_ends(world: World) -> None:
    """403 names the end and the reason; others play; a lifted ban is over at once."""
    async with world.matchmaker(LASTING) as matchmaker:
        done = await ban(world.bus, for_a_minute())
        assert (done.kind, done.subject, done.reason, done.existed) == ("address", NETWORK, "spam", False)
        follower = matchmaker.parts.ban_follower
        await world.eventually(lambda: _knows(follower.bans, 1), "the matchmaker knows of it")
        refusal = failed(await (await world.ask(client_ip=MALLORY)).end())
        assert refusal.code == 403
        assert refusal.message.startswith("you are banned until ")
        assert refusal.message.endswith(" UTC: spam")
        assert isinstance(await (await world.ask(client_ip=OTHER)).end(), SessionReady)
        assert (await ban(world.bus, for_a_minute())).existed
        assert [one.subject for one in await list_bans(world.bus, time.time())] == [NETWORK]
        assert (await ban(world.bus, for_a_minute(), lift=True)).existed
        assert await list_bans(world.bus, time.time()) == []
        assert not (await ban(world.bus, for_a_minute(), lift=True)).existed

        async def may_play() -> bool:
            return isinstance(await (await world.ask(client_ip=MALLORY)).end(), SessionReady)

        await world.eventually(may_play, "may play again")


@pytest.mark.row(68)
async def test_a_ban_ends_what_the_player_has(world: World) -> None:
    """A game in progress, a seat not claimed yet and a place in line, on whichever matchmaker."""
    one = msgspec.structs.replace(LASTING, seats=2, max_deployments=1)
    async with world.matchmaker(one), world.matchmaker(one):
        playing, unclaimed = await world.play(client_ip=MALLORY), await world.play(client_ip="203.0.113.2")
        server = world.server_of(playing)
        await server.connect(playing)
        await world.session_becomes(playing.session_id, SessionState.ACTIVE)
        waiting = await world.ask(client_ip="203.0.113.3")
        await waiting.until(ProgressReport)
        await ban(world.bus, for_a_minute())
        kick = await command_of(server, Kick)
        assert isinstance(kick, Kick)
        assert "you are banned until" in kick.reason
        refusal = failed(await waiting.end())
        assert refusal.code in (403, 409)
        assert "you are banned until" in refusal.message
        for ready in (playing, unclaimed):
            await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: world.seats_are([]), "the seats are free")


@pytest.mark.row(68)
async def test_gensession_refuses_a_banned_address(world: World) -> None:
    """bevygap's clients come by it; the code is in the headers."""
    async with world.matchmaker(LASTING) as matchmaker:
        await ban(world.bus, for_a_minute())
        await world.eventually(lambda: _knows(matchmaker.parts.ban_follower.bans, 1), "the matchmaker knows")
        msg = await world.bus.request(
            world.bus.subjects.gensession, b'{"client_ip": "203.0.113.9"}', timeout=5
        )
        assert msg.headers is not None
        assert msg.headers["Nats-Service-Error-Code"] == "403"
        assert "you are banned until" in msg.headers["Nats-Service-Error"]


@pytest.mark.row(68)
async def test_game_servers_hear_of_bans_when_they_start_and_when_one_comes(world: World) -> None:
    """Users and clients too, which only they can see."""
    async with world.matchmaker(LASTING):
        await ban(world.bus, for_a_minute("mallory", kind="user"))
        ready = await world.play(client_ip=OTHER)
        server = world.server_of(ready)
        first = await command_of(server, Bans)
        assert isinstance(first, Bans)
        assert first.first
        assert [one.subject for one in first.bans] == ["mallory"]
        await ban(world.bus, for_a_minute("42", kind="client"))
        while True:
            more = await command_of(server, Bans)
            assert isinstance(more, Bans)
            if not more.first:
                break
        assert [one.subject for one in more.bans] == ["42"]


@pytest.mark.row(68)
async def test_a_matchmaker_that_starts_later_knows_the_bans(world: World) -> None:
    """They are written down, and expire there by themselves."""
    async with world.matchmaker(LASTING):
        await ban(world.bus, for_a_minute())
    async with world.matchmaker(LASTING) as late:
        await world.eventually(lambda: _knows(late.parts.ban_follower.bans, 1), "the next one knows")
        assert failed(await (await world.ask(client_ip=MALLORY)).end()).code == 403
    key = next(iter(await world.buckets.bans.list()))
    entry = await world.buckets.bans.get(key)
    assert entry is not None
    assert entry.value.until > time.time()


async def test_a_ban_that_makes_no_sense_is_refused(world: World) -> None:
    """What an operator's program sends is checked by the matchmaker, whatever the command line has checked."""
    async with world.matchmaker(LASTING):
        with pytest.raises(Malformed, match="at once"):
            await ban(world.bus, new_ban("user", "m", until=time.time() - 1))
        for wrong in (
            msgspec.structs.replace(for_a_minute(), subject="nowhere"),
            msgspec.structs.replace(for_a_minute(), reason="two\nlines"),
        ):
            with pytest.raises(Malformed):
                await ban(world.bus, wrong)
        assert await world.buckets.bans.list() == {}


async def _knows(bans: BanList, count: int) -> bool:
    return len(bans) == count


# One enforcer, whose loops a test runs itself. Its clock stands still.

NOW = 1000.0


class Enforced(Fleet):
    """The bans of one matchmaker that does nothing else."""

    heard: asyncio.Queue[tuple[str, Command]]

    @property
    def known(self) -> BanList:
        return self.parts.ban_follower.bans

    def knows(self, *bans: Ban) -> None:
        """The matchmaker knows of these, and nothing follows from it."""
        for one in bans:
            self.known.put(ban_key(one), one)

    async def listens(self) -> None:
        """Hear what servers are told."""
        self.heard = asyncio.Queue()

        async def command(msg: Msg) -> None:
            self.heard.put_nowait((msg.subject.split(".")[-2], decode_command(msg.data)))

        await self.world.bus.nc.subscribe(self.world.bus.subjects.commands("*"), cb=command)

    async def told(self) -> list[tuple[str, Command]]:
        """All that servers were told since the last call, in order."""
        await self.settled()
        end = Kick("end", "of the test")
        await self.world.bus.publish(self.world.bus.subjects.commands("nobody"), encode(end))
        told: list[tuple[str, Command]] = []
        async with asyncio.timeout(20):
            while (one := await self.heard.get()) != ("nobody", end):
                told.append(one)
        return told

    @contextlib.asynccontextmanager
    async def following(self, count: int) -> AsyncIterator[None]:
        """The matchmaker lists the bans, of which there are so many, and follows them."""
        async with Tasks("follower") as tasks:
            listed = asyncio.Event()
            self.parts.ban_follower.subscribe(lambda _: None, on_listed=listed.set)
            tasks.start(self.parts.ban_follower.run(), "bans")
            async with asyncio.timeout(20):
                await listed.wait()
            assert len(self.known) == count
            yield

    async def learns(self, *bans: Ban) -> None:
        """An operator's bans come while the matchmaker follows them."""
        for one in bans:
            await self.world.buckets.bans.put(ban_key(one), one)

        def all_are_known() -> bool:
            return all(self.known.all().get(ban_key(one)) == one for one in bans)

        await eventually(all_are_known, "they are known")
        await self.settled()

    async def loses_the_bucket(self) -> None:
        bus = self.world.bus
        await bus.js.delete_stream(f"KV_{bus.subjects.bucket('bans')}")
        await create_buckets(bus)

    async def httpd_says(self, payload: bytes) -> None:
        await self.world.bus.publish(self.world.bus.subjects.known_bans, payload)

    async def stored(self) -> dict[str, Ban]:
        """The bans in NATS, by subject."""
        return {e.value.subject: e.value for e in (await self.world.buckets.bans.list()).values()}

    async def becomes_written(self, *bans: Ban) -> None:
        expected = {one.subject: one for one in bans}

        async def so() -> bool:
            return await self.stored() == expected

        await eventually(so, f"written: {list(expected)}")


@pytest.fixture
async def enforced(world: World) -> AsyncIterator[Enforced]:
    world.announce = False
    async with world.parts(clock=lambda: NOW) as parts:
        enforced = Enforced(world, parts)
        await enforced.listens()
        yield enforced
        await enforced.settled()


def one_ban(subject: str, kind: str = "user", *, lasts: float = 0.0, made: float = 900.0) -> Ban:
    """For `lasts` seconds from now on; 0: for good."""
    return new_ban(kind, subject, until=NOW + lasts if lasts else 0.0, reason=f"for {subject}", now=made)


OVER = new_ban("user", "over", until=NOW, reason="once", now=900.0)
ADDRESS, USER, CLIENT = one_ban(NETWORK, "address"), one_ban("mallory"), one_ban("42", "client")


def recorded(monkeypatch: pytest.MonkeyPatch, bucket: Bucket[Any], operation: str) -> list[Any]:
    """The `ttl` of each call, which is made as well."""
    ttls: list[Any] = []
    call = getattr(bucket, operation)

    async def noted(*args: Any, ttl: object = "none", **others: Any) -> Any:
        ttls.append(ttl)
        return await (call(*args, **others) if ttl == "none" else call(*args, ttl=ttl, **others))

    monkeypatch.setattr(bucket, operation, noted)
    return ttls


def is_away(monkeypatch: pytest.MonkeyPatch, of: object, operation: str) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("NATS is away")

    monkeypatch.setattr(of, operation, away)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(("lasts", "ttl"), [(0.0, None), (1.0, 1.0), (60.0, 60.0)])
async def test_a_ban_is_written_until_its_end(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, lasts: float, ttl: float | None
) -> None:
    """The shortest one lasts a second."""
    ttls = recorded(monkeypatch, enforced.world.buckets.bans, "put")
    one = one_ban("mallory", lasts=lasts)
    done = await enforced.parts.bans.add(one)
    assert done == Banned(BanKind.USER, "mallory", one.until, "for mallory", existed=False)
    assert ttls == [ttl]
    if lasts != 1.0:
        assert await enforced.stored() == {"mallory": one}
        assert (await enforced.parts.bans.add(one)).existed


@pytest.mark.parametrize("lasts", [0.99, -5.0])
async def test_a_ban_that_would_end_at_once_is_refused(enforced: Enforced, lasts: float) -> None:
    with pytest.raises(Malformed, match="at once"):
        await enforced.parts.bans.add(one_ban("mallory", lasts=lasts))
    assert await enforced.stored() == {}


async def test_a_ban_that_was_over_begins_anew(enforced: Enforced) -> None:
    await enforced.world.buckets.bans.put(ban_key(OVER), OVER)
    again = one_ban("over", lasts=60)
    assert not (await enforced.parts.bans.add(again)).existed
    assert await enforced.stored() == {"over": again}


async def test_the_number_of_bans_has_a_limit_and_one_of_them_can_be_changed(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tipoff_matchmaker.bans.MAX_BANS", 2)
    add = enforced.parts.bans.add
    for one in (USER, CLIENT):  # also the last one that the limit allows
        await add(one)
        enforced.knows(one)
    with pytest.raises(Malformed, match="there are 2 bans already"):
        await add(ADDRESS)
    longer = one_ban("mallory", lasts=90)
    assert (await add(longer)).existed
    assert await enforced.stored() == {"42": CLIENT, "mallory": longer}


async def test_a_lifted_ban_stays_written_for_a_while(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all who follow hear of it. One that is over, or unknown, is not written."""
    await enforced.parts.bans.add(one := one_ban("mallory", lasts=60))
    await enforced.world.buckets.bans.put(ban_key(OVER), OVER)
    ttls = recorded(monkeypatch, enforced.world.buckets.bans, "put")
    lift = enforced.parts.bans.lift
    assert await lift(USER) == Banned(BanKind.USER, "mallory", one.until, "for mallory", existed=True)
    assert ttls == [120.0]
    for absent in (USER, OVER, CLIENT):
        assert await lift(absent) == Banned(absent.kind, absent.subject)
    assert ttls == [120.0]
    assert await enforced.stored() == {"mallory": msgspec.structs.replace(one, until=NOW), "over": OVER}


async def test_addresses_and_users_are_refused(enforced: Enforced) -> None:
    check = enforced.parts.bans.check
    check(MALLORY, "mallory")
    enforced.knows(ADDRESS, USER)
    for address, user in ((MALLORY, "ann"), (OTHER, "mallory")):
        with pytest.raises(NotAllowed, match="you are banned: for"):
            check(address, user)
    check(OTHER, "ann")


# Bans that NATS has lost.


async def test_bans_that_nats_has_lost_are_written_back_with_their_ends(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that this matchmaker knows. One that ends within a second is left out."""
    lasting, shortest = one_ban("long", lasts=60), one_ban("shortest", lasts=1)
    ending = one_ban("ending", lasts=0.99)
    for one in (ending, USER, lasting):
        await enforced.world.buckets.bans.put(ban_key(one), one)
    async with enforced.following(3):
        pass
    enforced.knows(shortest)
    await enforced.loses_the_bucket()
    ttls = recorded(monkeypatch, enforced.world.buckets.bans, "create")
    async with enforced.following(4):
        await enforced.settled()
    assert sorted(ttls, key=str) == [1.0, 60.0, None]
    written = await enforced.stored()
    assert written.pop("shortest", shortest) == shortest  # it may be over in NATS by now
    assert written == {"mallory": USER, "long": lasting}
    assert "3 lost ban(s) are written back" in caplog.text


async def test_bans_that_httpd_knows_are_written_back(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that NATS has lost; what was written meanwhile stays, and there are never too many."""
    monkeypatch.setattr("tipoff_matchmaker.bans.MAX_BANS", 3)
    await enforced.parts.reader.read(True)
    await enforced.parts.bans.open()
    await enforced.loses_the_bucket()
    newer = one_ban("mallory", lasts=90, made=950.0)
    await enforced.world.buckets.bans.put(ban_key(newer), newer)
    lasting = one_ban("long", lasts=60)
    await enforced.httpd_says(encode(Bans([USER, ADDRESS, lasting, CLIENT])))
    await enforced.becomes_written(newer, ADDRESS, lasting)
    await eventually(lambda: "2 lost ban(s) are written back" in caplog.text, "it is said")
    assert errors(caplog) == []


async def test_what_httpd_knows_is_not_written_where_nothing_was_lost(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A ban that is missing was lifted then. Nonsense, and a NATS that is away, are said and do no damage."""
    await enforced.parts.reader.read(True)
    await enforced.parts.bans.open()
    reads = recorded(monkeypatch, enforced.world.buckets.bans, "age")
    await enforced.httpd_says(encode(Bans([USER])))
    await eventually(lambda: len(reads) == 1, "it is looked at")
    with monkeypatch.context() as meanwhile:
        is_away(meanwhile, enforced.world.buckets.bans, "age")
        with caplog.at_level(logging.INFO):
            await enforced.httpd_says(encode(Bans([CLIENT])))
            await eventually(lambda: "an httpd says its bans again" in caplog.text, "it is said")
    assert await enforced.stored() == {}
    await enforced.loses_the_bucket()
    for nonsense in (b"nonsense", encode(Bans([Ban(BanKind.ADDRESS, "nowhere")])), encode(Kick("s", "r"))):
        await enforced.httpd_says(nonsense)
    await enforced.httpd_says(encode(Bans([ADDRESS])))
    await enforced.becomes_written(ADDRESS)
    await eventually(lambda: caplog.text.count("bans cannot be read") == 2, "it is said")
    assert errors(caplog) == []


async def test_lost_bans_wait_while_nats_is_away(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await enforced.world.buckets.bans.put(ban_key(USER), USER)
    async with enforced.following(1):
        pass
    await enforced.loses_the_bucket()
    with monkeypatch.context() as meanwhile:
        is_away(meanwhile, enforced.world.buckets.bans, "create")
        async with enforced.following(1):
            await enforced.settled()
    assert "written back with the next listing: NATS is away" in caplog.text
    assert "lost ban(s) are written back" not in caplog.text
    async with enforced.following(1):
        await enforced.settled()
    assert await enforced.stored() == {"mallory": USER}


# Sessions.


async def test_open_sessions_of_banned_players_end_when_the_ban_comes(enforced: Enforced) -> None:
    """By address or user; not those of others, nor one that has ended or is about to."""
    await enforced.server(seats=dict.fromkeys(("address", "user", "other"), 9e9))
    await enforced.session("address", SessionState.ACTIVE, client_ip=MALLORY)
    await enforced.session("user", SessionState.READY, client_ip=OTHER, user_id="mallory")
    await enforced.session("other", SessionState.ACTIVE, client_ip=OTHER, user_id="ann")
    await enforced.session("ended", SessionState.GONE, client_ip=MALLORY, reason="left")
    await enforced.session("closing", SessionState.CLOSING, client_ip=MALLORY, reason="left")
    async with enforced.following(0):
        await enforced.learns(ADDRESS)
        assert await reasons(enforced) == {
            "address": f"you are banned: for {NETWORK}",
            "user": "",
            "other": "",
            "ended": "left",
            "closing": "left",
        }
        await enforced.learns(USER)
    assert (await reasons(enforced))["user"] == "you are banned: for mallory"
    assert (await reasons(enforced))["other"] == ""
    kicks = {c.session_id: c.reason for _, c in await enforced.told() if isinstance(c, Kick)}
    assert kicks["address"] == f"you are banned: for {NETWORK}"
    assert not kicks.keys() & {"other", "ended", "closing"}


async def reasons(enforced: Enforced) -> dict[str, str]:
    return {id: entry.value.reason for id, entry in (await enforced.world.buckets.sessions.list()).items()}


async def test_only_a_ban_in_force_that_sessions_know_of_makes_us_look_for_sessions(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client id stands in no record, and a ban that was lifted ends nothing."""
    lists = recorded(monkeypatch, enforced.world.buckets.sessions, "list")
    async with enforced.following(0):
        await enforced.learns(CLIENT)
        await enforced.learns(OVER)
        assert lists == []
        await enforced.learns(USER)
        assert len(lists) == 1


async def test_a_session_that_is_seen_under_a_ban_ends(enforced: Enforced) -> None:
    """Whoever wrote its record. Before there is a ban, and once it has ended, nobody is banned."""
    await enforced.server(seats={"s": 9e9})
    await enforced.session("s", SessionState.ACTIVE, client_ip=MALLORY, user_id="over")

    async def seen() -> str:
        enforced.parts.sessions.listed(await enforced.world.buckets.sessions.list())
        enforced.parts.sessions.listed(await enforced.world.buckets.sessions.list())
        await enforced.settled()
        return (await reasons(enforced))["s"]

    assert await seen() == ""
    enforced.knows(OVER)
    assert await seen() == ""
    enforced.knows(ADDRESS)
    assert await seen() == f"you are banned: for {NETWORK}"


async def test_sessions_that_cannot_be_read_or_ended_are_left_to_the_next_listing(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await enforced.server(seats={"s": 9e9})
    await enforced.session("s", SessionState.ACTIVE, client_ip=MALLORY)
    async with enforced.following(0):
        with monkeypatch.context() as meanwhile:
            is_away(meanwhile, enforced.world.buckets.sessions, "list")
            await enforced.learns(ADDRESS)
        assert "left to the next listing: NATS is away" in caplog.text
        with monkeypatch.context() as meanwhile:
            is_away(meanwhile, enforced.parts.sessions, "apply")
            await enforced.learns(USER)
        assert "session s is left to the next listing: NATS is away" in caplog.text
    assert await reasons(enforced) == {"s": ""}
    assert errors(caplog) == []


# Game servers.


async def test_a_server_hears_all_bans_when_it_becomes_ready(enforced: Enforced) -> None:
    """While there are none it hears nothing, and neither does one that is not ready."""
    await enforced.server(id="before")
    assert await enforced.told() == []
    enforced.knows(ADDRESS, USER, CLIENT)
    await enforced.server(DeploymentState.STARTING, id="starting")
    assert await enforced.told() == []
    await enforced.server(id="one")
    assert await enforced.told() == [("one", Bans([ADDRESS, USER, CLIENT], first=True))]


async def test_each_change_is_told_and_after_a_listing_all(enforced: Enforced) -> None:
    """Also that there are none any more. Only to servers that are ready."""
    await enforced.server(id="one")
    await enforced.server(DeploymentState.STARTING, id="starting")
    async with enforced.following(0):
        assert await enforced.told() == []
        await enforced.learns(USER)
        await enforced.learns(ADDRESS)
        assert await enforced.told() == [("one", Bans([USER])), ("one", Bans([ADDRESS]))]
    async with enforced.following(2):
        ((server, command),) = await enforced.told()
        assert isinstance(command, Bans)
        assert (server, command.first) == ("one", True)
        assert {one.subject for one in command.bans} == {NETWORK, "mallory"}
    for one in (USER, ADDRESS):
        await enforced.world.buckets.bans.delete(ban_key(one))
    async with enforced.following(0):
        assert await enforced.told() == [("one", Bans([], first=True))]


async def test_servers_hear_the_bans_of_the_first_listing(enforced: Enforced) -> None:
    await enforced.server(id="one")
    await enforced.world.buckets.bans.put(ban_key(USER), USER)
    async with enforced.following(1):
        assert await enforced.told() == [("one", Bans([USER])), ("one", Bans([USER], first=True))]


async def test_a_matchmaker_without_servers_tells_nobody(enforced: Enforced) -> None:
    """A server that comes after the last ban has nothing to hear."""
    async with enforced.following(0):
        await enforced.learns(USER)
    async with enforced.following(1):
        assert await enforced.told() == []
    await enforced.world.buckets.bans.delete(ban_key(USER))
    async with enforced.following(0):
        pass
    await enforced.server(id="one")
    async with enforced.following(0):
        assert await enforced.told() == []


async def test_many_bans_are_told_in_several_commands(enforced: Enforced) -> None:
    """The first one replaces what the server knew, the others add to it."""
    bans = [one_ban(str(number), "client") for number in range(501)]
    enforced.knows(*bans)
    await enforced.server(id="one")
    assert await enforced.told() == [("one", Bans(bans[:500], first=True)), ("one", Bans(bans[500:]))]


async def test_servers_of_the_isolated_profile_hear_of_no_address(world: World) -> None:
    world.announce = False
    async with world.parts(clock=lambda: NOW, profile="isolated") as parts:
        enforced = Enforced(world, parts)
        await enforced.listens()
        enforced.knows(ADDRESS)
        await enforced.server(id="one")
        assert await enforced.told() == [("one", Bans([], first=True))]
        enforced.knows(USER, CLIENT)
        await enforced.server(id="two")
        assert await enforced.told() == [("two", Bans([USER, CLIENT], first=True))]
        other = one_ban(OTHER, "address")
        async with enforced.following(0):
            await enforced.told()
            await enforced.learns(other)
            assert await enforced.told() == []
            await enforced.learns(USER)
            assert sorted(await enforced.told(), key=str) == [("one", Bans([USER])), ("two", Bans([USER]))]


async def test_servers_hear_of_bans_later_where_nats_is_away(
    enforced: Enforced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    enforced.knows(USER)
    with monkeypatch.context() as meanwhile:
        is_away(meanwhile, enforced.world.bus, "publish")
        await enforced.server(id="one")
        await enforced.settled()
    assert "game servers hear of bans later: NATS is away" in caplog.text
    assert errors(caplog) == []
