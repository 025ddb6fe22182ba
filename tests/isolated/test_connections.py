"""Which connections of game servers a matchmaker lets in, and which it has closed, asked as nats-server asks."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.isolated.test_auth_callout import KEY, SERVER, USER, asked, claims
from tests.matchmaker.test_event_writer import Ages
from tests.polling import eventually
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.isolated import auth_callout as auth_callout_module
from tipoff_matchmaker.isolated import disconnector as disconnector_module
from tipoff_matchmaker.isolated.auth_callout import AuthCallout
from tipoff_matchmaker.isolated.credentials import ACCOUNT
from tipoff_matchmaker.isolated.disconnector import Disconnector
from tipoff_matchmaker.isolated.open_connections import OpenConnection
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState
from tipoff_shared.secret import Secret
from tipoff_shared.subjects import AUTH_CALLOUT, connections_of

READY, GONE = DeploymentState.READY, DeploymentState.GONE


class NatsServers:
    """Stands for the nodes of a cluster: it lists connections, page by page, and closes them."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.nodes: dict[str, dict[int, str]] = {SERVER: {}}
        """By node, the number of each connection and its user."""
        self.questions: list[dict[str, Any]] = []
        self.closed: list[tuple[str, int]] = []
        self.silent = False
        self.answers: list[bytes] = []
        """What else answers."""

    async def listen(self) -> None:
        await self.bus.nc.subscribe(connections_of(ACCOUNT), cb=self._list)
        await self.bus.nc.subscribe("$SYS.REQ.SERVER.*.KICK", cb=self._kick)
        await self.bus.flush()

    async def _list(self, msg: Msg) -> None:
        question = json.loads(msg.data)
        self.questions.append(question)
        if self.silent:
            return
        for answer in self.answers:
            await msg.respond(answer)
        for node, connections in self.nodes.items():
            wanted = [
                {"cid": cid, "authorized_user": user, "start": f"{cid:09}Z"}
                for cid, user in connections.items()
                if question.get("user", user) == user
            ]
            page = wanted[question["offset"] :][: question["limit"]]
            data = {
                "server_id": node,
                "num_connections": len(page),
                "total": len(wanted),
                "connections": page,
            }
            await msg.respond(json.dumps({"data": data}).encode())
        # As where nobody listens: no further one is waited for.
        await self.bus.nc.publish(msg.reply, headers={"Status": "503"})

    async def _kick(self, msg: Msg) -> None:
        node, cid = msg.subject.split(".")[3], json.loads(msg.data)["cid"]
        there = self.nodes[node].pop(cid, None)
        self.closed.append((node, cid))
        await msg.respond(b"{}" if there else b'{"error": {"code": 404}}')

    def open(self, server: str, *numbers: int, node: str = SERVER) -> None:
        self.nodes.setdefault(node, {}).update(dict.fromkeys(numbers, f"gs-{server}"))


class Place:
    """A matchmaker's deployments, and a stand-in for nats-server."""

    def __init__(self, bus: Bus, deployments: DeploymentStore, bucket: Any) -> None:
        self.bus = bus
        self.deployments = deployments
        self.bucket = bucket
        self.servers = NatsServers(bus)
        self.ages: Any = Ages()
        self.reconciles = True

    async def deployment(
        self, id: str = "one", state: DeploymentState = READY, *, known: bool = True
    ) -> None:
        record = DeploymentRecord(id, state, "arena", "1", "fake", capacity=4, created_at=1.0)
        if known:
            await self.deployments.create(record)
        else:
            await self.bucket.put(id, record)

    async def ends(self, id: str = "one") -> None:
        await self.deployments.change(id, lambda record: msgspec.structs.replace(record, state=GONE))

    def disconnector(self, interval: float = 3600) -> Disconnector:
        return Disconnector(self.bus, self.ages, self.deployments, lambda: self.reconciles, interval=interval)

    async def closed(self, *expected: tuple[str, int]) -> None:
        await eventually(lambda: sorted(self.servers.closed) == sorted(expected), f"{expected} closed", 20)


@pytest.fixture
async def place(nats: Bus) -> AsyncIterator[Place]:
    buckets = await create_buckets(nats)
    async with Tasks("test") as tasks:
        place = Place(nats, DeploymentStore(buckets.deployments, tasks), buckets.deployments)
        await place.servers.listen()
        yield place


@asynccontextmanager
async def running(disconnector: Disconnector) -> AsyncIterator[None]:
    failures: list[BaseException] = []
    async with Tasks("disconnector", failures.append) as tasks:
        tasks.start(disconnector.run(), "run")
        await asyncio.sleep(0)  # it begins
        yield
    assert failures == []


# What is open when it must not be.


async def test_the_connections_of_an_ended_server_are_closed_on_every_node_at_once(place: Place) -> None:
    """By the one that reconciles, and of that server only."""
    other = "N" + "C" * 55
    for id in ("one", "two"):
        await place.deployment(id)
        place.servers.open(id, 1 if id == "one" else 2)
        place.servers.open(id, 3 if id == "one" else 4, node=other)
    async with running(place.disconnector()):
        await place.ends()
        await place.closed((SERVER, 1), (other, 3))
        assert [question["user"] for question in place.servers.questions] == ["gs-one"]
        place.reconciles = False
        await place.ends("two")
        place.reconciles = True
        await place.deployment("three")
        place.servers.open("three", 5)
        await place.ends("three")
        await place.closed((SERVER, 1), (other, 3), (SERVER, 5))


async def test_a_matchmaker_that_no_longer_reconciles_closes_nothing(place: Place) -> None:
    """Between the end that it heard of and its look."""
    await place.deployment()
    place.servers.open("one", 1)
    looks = 0

    def reconciles() -> bool:
        nonlocal looks
        looks += 1
        return looks == 1

    disconnector = Disconnector(place.bus, place.ages, place.deployments, reconciles, interval=3600)
    async with running(disconnector):
        await place.ends()
        await eventually(lambda: looks == 2, "it was about to look", 20)
        await place.bus.flush()
    assert place.servers.questions == []


@pytest.mark.parametrize("record", ["live", "forgotten", "removed"])
async def test_what_ended_by_hearsay_only_is_left_open(place: Place, record: str) -> None:
    """Its record decides: it is read before anything is closed."""
    await place.deployment()
    place.servers.open("one", 1)
    ended = msgspec.structs.replace(place.deployments.entries["one"].value, state=GONE)
    if record == "removed":
        await place.bucket.forget("one", 1000)
    async with running(place.disconnector()):
        if record == "live":
            known = place.deployments.entries["one"]
            place.deployments.observe(
                msgspec.structs.replace(known, value=ended, revision=known.revision + 1)
            )
        else:
            place.deployments.vanished("one")
        await eventually(lambda: len(place.servers.questions) == 1, "it is looked at", 20)
        await place.deployment("two")
        place.servers.open("two", 2)
        await place.ends("two")
        await place.closed((SERVER, 2))


async def test_every_so_often_all_connections_are_looked_at(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after a listing that nobody answered as it should."""
    await place.deployment()
    await place.deployment("two", GONE, known=False)
    place.servers.open("one", 1, 2, 3, 4, 5, 6)
    place.servers.open("two", 7)
    place.servers.nodes[SERVER][8] = "gameserver"
    place.servers.answers = [b"nonsense", b'{"error": "no"}']
    async with running(place.disconnector(interval=0.02)):
        await place.closed((SERVER, 5), (SERVER, 6), (SERVER, 7))
        await eventually(lambda: len(place.servers.questions) >= 3, "it looks again", 20)
    assert "closed 2 connection(s) to NATS of server one" in caplog.text
    assert "closed 1 connection(s) to NATS of server two" in caplog.text
    await place.closed((SERVER, 5), (SERVER, 6), (SERVER, 7))


async def test_a_server_without_a_record_has_ended_when_two_listings_in_a_row_find_none(place: Place) -> None:
    """One may be old. While records are lost, a missing one means nothing."""
    place.servers.open("one", 1)
    place.servers.open("two", 2)
    await place.deployment("two")
    disconnector = place.disconnector()
    place.ages.lost["deployments"] = 1.0
    for _ in range(3):
        await disconnector.look_at_all()
    place.ages.lost.clear()
    await disconnector.look_at_all()
    await place.deployment("one", known=False)
    await disconnector.look_at_all()
    await place.bucket.forget("one", 1000)
    place.deployments.entries.pop("one")
    await disconnector.look_at_all()
    assert place.servers.closed == []
    await disconnector.look_at_all()
    assert place.servers.closed == [(SERVER, 1)]


async def test_long_lists_come_in_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until each node has told all that it has."""
    other = "N" + "C" * 55
    numbers = iter(range(1, 100_000))
    for id, node, count in (("one", SERVER, 2005), ("two", other, 1000)):
        await place.deployment(id, GONE, known=False)
        place.servers.open(id, *(next(numbers) for _ in range(count)), node=node)
    found: list[OpenConnection] = []

    def closes_nothing(connections: list[OpenConnection], _: object) -> dict[str, list[OpenConnection]]:
        found.extend(connections)
        return {}

    monkeypatch.setattr(disconnector_module, "to_close", closes_nothing)
    await place.disconnector().look_at_all()
    assert Counter(one.deployment_id for one in found) == {"one": 2005, "two": 1000}
    assert len({one.number for one in found}) == 3005
    assert [(question["offset"], question["limit"]) for question in place.servers.questions] == [
        (0, 1000),
        (1000, 1000),
        (2000, 1000),
    ]


# What is let in.


class Door:
    """Answers as a matchmaker does whose clock the test sets."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.now = 100.0
        monkeypatch.setattr(auth_callout_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.callout = AuthCallout(
            place.bus, KEY, place.ages, place.deployments, lambda id: Secret(f"password of {id}")
        )

    async def enters(
        self, server: str = "one", *, password: str | None = None, user: str | None = None
    ) -> str:
        """Why it is not let in; "" if it is."""
        shown = f"password of {server}" if password is None else password
        question = asked(connect_opts={"user": f"gs-{server}" if user is None else user, "pass": shown})
        answer = await self.place.bus.request(AUTH_CALLOUT, question, timeout=20)
        found: Any = claims(answer.data.decode())
        assert (found["sub"], found["aud"]) == (USER, SERVER)
        if "error" in found["nats"]:
            return str(found["nats"]["error"])
        granted: Any = claims(found["nats"]["jwt"])
        assert granted["nats"]["pub"]["allow"] == [self.place.bus.subjects.events(server)]
        return ""


@pytest.fixture
async def door(place: Place, monkeypatch: pytest.MonkeyPatch) -> Door:
    door = Door(place, monkeypatch)
    await door.callout.open()
    return door


async def test_a_living_deployments_server_is_let_in_by_its_password(door: Door) -> None:
    """Whether this matchmaker has heard of the deployment or not."""
    await door.place.deployment()
    await door.place.deployment("two", known=False)
    assert await door.enters() == ""
    assert await door.enters("two") == ""
    for wrong in (
        {"password": ""},
        {"password": "password of two"},
        {"user": "matchmaker"},
        {"user": "gs-two"},
    ):
        assert await door.enters(**wrong) == "unknown user or wrong password"
    await door.place.deployment("three", DeploymentState.GONE, known=False)
    for ended in ("three", "never"):
        assert await door.enters(ended) == "its deployment has ended"
    door.place.ages.lost["deployments"] = 1.0
    assert await door.enters("never") == "", "its record may be lost"
    assert await door.enters("three") == "its deployment has ended"


async def test_a_server_has_four_connections_and_no_fifth(door: Door) -> None:
    """Those that nats-server lists, or those let in a moment ago that it may not list yet."""
    for id in ("one", "two", "three"):
        await door.place.deployment(id)
    door.place.servers.open("one", 1, 2, 3, 4)
    assert await door.enters() == "it has 4 connections"
    door.place.servers.open("two", 5, 6, 7)
    assert await door.enters("two") == ""
    assert [await door.enters("three") for _ in range(5)] == ["", "", "", "", "it has 4 connections"]
    door.now += 0.9
    assert await door.enters("three") == "it has 4 connections"
    door.now += 0.2
    assert await door.enters("three") == "", "they would be listed by now"
    assert {question["user"] for question in door.place.servers.questions} == {"gs-one", "gs-two", "gs-three"}


async def test_a_server_that_connects_too_often_is_refused_unseen(door: Door) -> None:
    """Eight at once, then five in a second. Another one is not."""
    for id, first in (("one", 1), ("two", 5)):
        await door.place.deployment(id)
        door.place.servers.open(id, *range(first, first + 4))
    for _ in range(8):
        assert await door.enters() == "it has 4 connections"
    asked_before = len(door.place.servers.questions)
    assert await door.enters() == "it connects too often"
    assert len(door.place.servers.questions) == asked_before
    assert await door.enters("two") == "it has 4 connections"
    door.now += 0.21
    assert [await door.enters() for _ in range(2)] == ["it has 4 connections", "it connects too often"]


async def test_what_cannot_be_looked_up_has_to_try_again(door: Door) -> None:
    """Where nats-server's list cannot be read."""
    await door.place.deployment()
    door.place.servers.answers = [b"nonsense"]
    assert await door.enters() == "it cannot be checked now"
    door.place.servers.answers = []
    assert await door.enters() == ""


async def test_what_is_no_question_gets_no_answer(door: Door) -> None:
    """And the next one does."""
    inbox, heard = door.place.bus.nc.new_inbox(), []

    async def answered(msg: Msg) -> None:
        heard.append(msg.data)

    await door.place.bus.nc.subscribe(inbox, cb=answered)
    await door.place.bus.nc.publish(AUTH_CALLOUT, b"nonsense", reply=inbox)
    assert await door.enters("never") == "its deployment has ended"
    await door.place.bus.flush()
    assert heard == []


async def test_refusals_are_one_line_for_many(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Which says how many."""
    for _ in range(3):
        await door.enters(password="x")
    door.now += 9.9
    await door.enters(password="x")
    door.now += 0.2
    await door.enters(password="x")
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert [line.split(";")[0] for line in lines] == [
        "1 connection(s) to NATS refused",
        "4 connection(s) to NATS refused",
    ]
    assert "user 'gs-one' from 127.0.0.1: unknown user or wrong password" in lines[0]


async def test_beyond_what_is_looked_into_at_once_all_are_told_to_try_again(door: Door) -> None:
    """256 connections of different servers."""
    await door.place.deployment()
    door.place.ages.lost["deployments"] = 1.0
    door.place.servers.silent = True
    waiting = [asyncio.create_task(door.enters(f"s{number}")) for number in range(256)]
    await eventually(lambda: len(door.place.servers.questions) == 256, "all are looked into", 20)
    assert await door.enters() == "too many connections at once"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
