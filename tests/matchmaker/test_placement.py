"""One play request, step by step: what is written down at which step, and what follows when a step meets another
matchmaker, a store that fails, or the end of its time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, KEY, World
from tests.polling import eventually
from tipoff_matchmaker.compose import Parts
from tipoff_matchmaker.errors import AnsweredElsewhere
from tipoff_matchmaker.mappings import Mappings
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.requests.pending import PendingRequest
from tipoff_matchmaker.tokens import Tokens
from tipoff_shared.errors import Conflict, NoServerInTime, Unavailable
from tipoff_shared.games import Game
from tipoff_shared.kv.bucket import DoesNotWrite, LostRace
from tipoff_shared.messages import SessionReady, Transports, UdpAddress
from tipoff_shared.netcode import Dialect, open_private
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentState, SessionRecord, SessionState
from tipoff_shared.user_data import TokenUserData, decode_user_data

ME, OTHER = "me", "other"
NOW = 1_700_000_000.0
HOLD = ARENA.claim_time
SLACK = 0.1
BEVY = msgspec.structs.replace(ARENA, name="bevy", bevygap=True, dialect="lightyear")
REQUESTED, READY, ACTIVE = SessionState.REQUESTED, SessionState.READY, SessionState.ACTIVE
LOOKS = "Another matchmaker is looking for a seat"
CANNOT_REACH = "One moment: the matchmaker cannot reach its store"


class Table:
    """Requests of players, on servers that a test puts there; nothing is started for them."""

    def __init__(self, world: World, parts: Parts, players: Tasks) -> None:
        self.world = world
        self.parts = parts
        self.fleet = Fleet(world, parts)
        self.told: list[str] = []
        self.on_told: Callable[[PendingRequest], None] = lambda request: None
        self._players = players
        parts.planner.want = lambda key: None  # type: ignore[method-assign]

    async def server(self, id: str = "one", *, game: str = "arena", **changes: object) -> None:
        """One that is trusted and has seats."""
        udp = Transports(udp=UdpAddress("127.0.0.1", 7777))
        changes = {"game": game, "boot_id": "boot", "transports": udp, **changes}
        await self.fleet.server(id=id, **changes)  # type: ignore[arg-type] # by test
        self.parts.trust.add(id)

    def request(
        self, *, game: Game = ARENA, repeated: bool = False, broadcast: bool = False
    ) -> PendingRequest:
        async def tell(text: str) -> None:
            self.told.append(text)
            self.on_told(request)

        request = PendingRequest(
            session_id="s",
            game=game,
            client_ip="203.0.113.7",
            timeout=50,
            tell=tell,
            repeated=repeated,
            broadcast=broadcast,
        )
        return request

    async def play(self, request: PendingRequest | None = None, **how: Any) -> SessionReady:
        async with asyncio.timeout(30):
            return await self.parts.pending.play(request or self.request(**how))

    def plays(self, request: PendingRequest | None = None, **how: Any) -> asyncio.Task[SessionReady]:
        return self._players.start_awaited(self.play(request, **how), "play")

    async def told_is(self, *texts: str) -> None:
        await eventually(lambda: self.told == list(texts), f"told: {texts}", 20)

    async def has(self, state: SessionState, owner: str = OTHER, **changes: object) -> SessionRecord:
        """The request has a record, that of another matchmaker."""
        changes = {"boot_id": "boot", "created_at": NOW, "deadline": NOW + 1, **changes}
        if state is REQUESTED:
            changes = {"deployment_id": "", **changes}
        return await self.fleet.session("s", state, owner=owner, **changes)

    async def record(self) -> SessionRecord:
        record = await self.world.session("s")
        assert record is not None
        return record

    async def seats(self, id: str = "one") -> list[str]:
        return sorted((await self.fleet.written(id)).seats)

    async def token(self) -> str:
        entry = await self.world.buckets.connect_tokens.get("s")
        assert entry is not None
        return entry.value


@asynccontextmanager
async def table_of(world: World, *games: Game) -> AsyncIterator[Table]:
    world.announce = False
    async with (
        world.parts(
            *games,
            clock=lambda: NOW,
            instance=ME,
            seat_hold=30,
            progress_interval=60,
            backoff=0.0001,
            claim_slack=SLACK,
        ) as parts,
        Tasks("players") as players,
    ):
        yield Table(world, parts, players)


@pytest.fixture
async def table(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Table]:
    monkeypatch.setattr(Peers, "is_alive", lambda _, instance: instance == OTHER)
    async with table_of(world, ARENA) as table:
        yield table


def _of_token(ready: SessionReady) -> TokenUserData:
    raw = base64.b64decode(ready.token)
    private = open_private(raw, KEY, protocol_id=ARENA.netcode_protocol_id, dialect=Dialect.STANDARD)
    decoded = decode_user_data(private.user_data)
    assert decoded is not None
    return decoded


async def test_a_free_seat_leads_to_a_record_and_a_token_at_once(table: Table) -> None:
    """The record begins as `ready`, with the time until which the token may be used."""
    await table.server()
    request = table.request()
    ready = await table.play(request)
    record = await table.record()
    assert record == SessionRecord(
        id="s",
        state=READY,
        game="arena",
        version="1",
        client_id=ready.client_id,
        owner=ME,
        created_at=NOW,
        deadline=NOW + HOLD + SLACK,
        client_ip="203.0.113.7",
        deployment_id="one",
        boot_id="boot",
        generation=1,
    )
    assert (ready.session_id, ready.deployment_id, ready.ip, ready.port) == ("s", "one", "127.0.0.1", 7777)
    assert _of_token(ready) == TokenUserData("s", "one", "boot", 1, resume_ttl=ARENA.resume_ttl)
    assert await table.token() == ready.token
    tokens = table.world.buckets.connect_tokens
    raw = await table.world.bus.js.get_last_msg(tokens.stream, f"$KV.{tokens.bucket}.s")
    assert (raw.headers or {})["Nats-TTL"] == str(ARENA.claim_time)
    assert await table.seats() == ["s"]
    assert (table.told, request.waits) == ([], False)


async def test_who_has_to_wait_is_written_down_first(table: Table) -> None:
    """As ours, until the request's time is over. A start that failed is an attempt; other progress is none."""
    request = table.request()
    task = table.plays(request)
    await eventually(lambda: len(table.told) == 1, "there is progress", 20)
    first = await table.record()
    assert (first.state, first.owner, first.created_at, first.deadline) == (REQUESTED, ME, NOW, NOW + 50)
    assert (first.attempt, first.generation, first.deployment_id) == (1, 0, "")
    assert request.waits
    line = table.parts.lines[ARENA.key]
    for number, (failed, attempt) in enumerate((("", 1), ("out of memory", 2), ("", 2)), start=2):
        line.announce(failed)
        await eventually(lambda number=number: len(table.told) == number, "there is more", 20)  # type: ignore[misc]
        record = await table.record()
        assert (record.attempt, record.reason) == (attempt, "out of memory" if attempt == 2 else "")
    await table.server()
    ready = await task
    record = await table.record()
    assert (record.state, record.deployment_id, record.boot_id) == (READY, "one", "boot")
    assert (record.client_id, record.generation, record.deadline) == (
        first.client_id,
        1,
        NOW + HOLD + SLACK,
    )
    assert ready.client_id == first.client_id
    assert _of_token(ready) == TokenUserData("s", "one", "boot", 1, resume_ttl=ARENA.resume_ttl)
    assert await table.token() == ready.token
    assert not request.waits


# Another matchmaker has written a record.


@pytest.mark.parametrize("where", ["one", "two"])
async def test_the_loser_of_a_race_gives_its_seat_back_and_answers_for_the_winner(
    table: Table, where: str
) -> None:
    """Where both have the same seat, it is the winner's and stays."""
    await table.server("one", capacity=2 if where == "one" else 1, seats={"s": 9e9} if where == "one" else {})
    await table.server("two", capacity=4, seats={"s": 9e9} if where == "two" else {})
    await table.has(READY, client_id="77", deployment_id=where)
    ready = await table.play()
    assert (ready.client_id, ready.deployment_id) == ("77", where)
    assert (await table.seats("one"), await table.seats("two")) == (
        (["s"], []) if where == "one" else ([], ["s"])
    )


@pytest.mark.parametrize("state", [READY, ACTIVE])
async def test_a_repetition_gets_a_fresh_token_for_the_same_seat(table: Table, state: SessionState) -> None:
    """Who has not connected yet may do so until the fresh one's time is over."""
    await table.server(seats={"s": 9e9})
    before = await table.has(state)
    ready = await table.play(repeated=True)
    deadline = NOW + HOLD + SLACK if state is READY else before.deadline
    assert await table.record() == msgspec.structs.replace(before, deadline=deadline)
    assert (ready.client_id, ready.session_id, ready.port) == (before.client_id, "s", 7777)
    assert await table.token() == ready.token
    assert await table.seats() == ["s"]


@pytest.mark.parametrize(("age", "refused"), [(-0.5, False), (0.5, True)])
@pytest.mark.parametrize("state", [READY, ACTIVE])
async def test_a_seat_cannot_be_held_by_repeating_the_request(
    table: Table, state: SessionState, age: float, refused: bool
) -> None:
    """For twice the usual time. A player who is there may ask as often as he likes."""
    await table.server(seats={"s": 9e9})
    await table.has(state, created_at=NOW - HOLD - ARENA.request_timeout - age)
    if refused and state is READY:
        with pytest.raises(Conflict, match="not connected with this request's token"):
            await table.play(repeated=True)
    else:
        assert isinstance(await table.play(repeated=True), SessionReady)


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        ({}, False),
        ({"boot_id": "another"}, True),
        ({"state": DeploymentState.STOPPING}, True),
        ({"state": DeploymentState.DRAINING}, False),
    ],
)
async def test_a_repetition_hears_whether_its_server_has_ended(
    table: Table, change: dict[str, object], ended: bool
) -> None:
    """By what is written down, not by what this matchmaker knew before."""
    await table.server(seats={"s": 9e9})
    known = table.parts.deployments.entries["one"]
    record = msgspec.structs.replace(known.value, **change)
    await table.world.buckets.deployments.put("one", record)
    if change and ended:
        table.parts.deployments.observe(
            msgspec.structs.replace(known, value=record, revision=known.revision + 1)
        )
    await table.has(READY)
    if ended:
        with pytest.raises(Conflict, match="the server of this request has ended"):
            await table.play(repeated=True)
    else:
        assert (await table.play(repeated=True)).deployment_id == "one"


async def test_a_server_that_this_matchmaker_does_not_know_is_looked_up(table: Table) -> None:
    """There, or not; and one whose record names no boot is good for any."""
    await table.has(READY, deployment_id="unknown")
    with pytest.raises(Conflict, match="the server of this request has ended"):
        await table.play(repeated=True)
    await table.server(seats={"s": 9e9})
    table.parts.deployments.entries.clear()
    await table.has(READY, boot_id="")
    assert (await table.play(repeated=True)).deployment_id == "one"


@pytest.mark.parametrize("state", [SessionState.CLOSING, SessionState.GONE])
async def test_a_request_that_has_ended_is_not_answered_again(table: Table, state: SessionState) -> None:
    await table.server()
    await table.has(state)
    with pytest.raises(Conflict, match="this request has ended; ask with a new request id"):
        await table.play(repeated=True)


@pytest.mark.parametrize("meanwhile", ["it ends", "it is removed"])
async def test_a_session_that_ends_while_it_is_answered_again_is_read_again(
    table: Table, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Nobody gets a token for it."""
    await table.server(seats={"s": 9e9})
    before = await table.has(READY)
    endpoint, sessions = Tokens.endpoint, table.world.buckets.sessions

    async def meets_the_end(self: Tokens, *args: Any) -> Any:
        monkeypatch.setattr(Tokens, "endpoint", endpoint)
        if meanwhile == "it ends":
            await table.has(SessionState.CLOSING)
        else:
            await sessions.delete("s")
        return await endpoint(self, *args)

    monkeypatch.setattr(Tokens, "endpoint", meets_the_end)
    if meanwhile == "it ends":
        with pytest.raises(Conflict, match="this request has ended"):
            await table.play(repeated=True)
        assert await table.world.buckets.connect_tokens.get("s") is None
    else:
        assert (await table.play(repeated=True)).client_id != before.client_id


@pytest.mark.parametrize("owner", [ME, "dead", ""])
async def test_a_request_that_nobody_looks_after_is_taken_over(table: Table, owner: str) -> None:
    """With its client id, until this request's time is over; then it is ours to end."""
    await table.has(REQUESTED, owner, client_id="77", generation=1)
    request = table.request(repeated=True)
    task = table.plays(request)
    await eventually(lambda: len(table.told) == 1, "there is progress", 20)
    record = await table.record()
    assert (record.state, record.owner, record.deadline) == (REQUESTED, ME, NOW + 50)
    assert request.waits
    await table.server()
    assert (await task).client_id == "77"
    assert not request.waits
    assert (await table.record()).generation == 2


async def test_a_request_that_another_matchmaker_looks_after_is_followed(table: Table) -> None:
    """Its player is told so once, and answered as soon as there is a seat."""
    await table.server(seats={"s": 9e9})
    before = await table.has(REQUESTED)
    request = table.request(repeated=True)
    task = table.plays(request)
    await table.told_is(LOOKS)
    changes = {"state": READY, "deployment_id": "one", "boot_id": "boot"}
    await table.world.buckets.sessions.put("s", msgspec.structs.replace(before, **changes))
    assert (await task).client_id == before.client_id
    assert table.told == [LOOKS]
    assert not request.waits


async def test_a_request_that_is_taken_by_another_one_first_is_not_ours(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw that its owner is dead."""
    before = await table.has(REQUESTED, "dead")
    read, sessions = type(table.parts.sessions).read, table.world.buckets.sessions

    async def meets_another(self: Any, session_id: str) -> Any:
        found = await read(self, session_id)
        monkeypatch.setattr(type(table.parts.sessions), "read", read)
        await sessions.put("s", msgspec.structs.replace(before, owner=OTHER))
        return found

    monkeypatch.setattr(type(table.parts.sessions), "read", meets_another)
    request = table.request(repeated=True)
    table.plays(request)
    await table.told_is(LOOKS, LOOKS)
    assert not request.waits
    assert (await table.record()).owner == OTHER


# A request that all matchmakers got.


async def test_of_all_matchmakers_the_one_that_writes_first_looks_for_the_seat(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record comes before the seat; who comes second watches over the first."""
    await table.server()
    request = table.request(broadcast=True)
    ready = await table.play(request)
    record = await table.record()
    assert (record.state, record.owner, record.generation) == (READY, ME, 1)
    assert (_of_token(ready).generation, request.waits) == (1, False)
    looks: list[str] = []

    async def falls_silent(self: Peers, instance: str) -> bool:
        looks.append(instance)
        return False

    monkeypatch.setattr(Peers, "falls_silent", falls_silent)
    create, sessions = table.world.buckets.sessions.create, table.world.buckets.sessions
    await sessions.forget("s", 1000)

    async def second(*args: Any, **options: Any) -> int:
        monkeypatch.setattr(sessions, "create", create)
        await table.has(READY)
        return await create(*args, **options)

    monkeypatch.setattr(sessions, "create", second)
    with pytest.raises(AnsweredElsewhere, match=OTHER):
        await table.play(broadcast=True)
    assert looks == [OTHER]


@pytest.mark.parametrize(("owner", "silent"), [(OTHER, True), (OTHER, False), (ME, False), ("dead", False)])
@pytest.mark.parametrize("state", [READY, REQUESTED])
async def test_whose_request_it_is_answers_all_if_it_lives(
    table: Table, monkeypatch: pytest.MonkeyPatch, state: SessionState, owner: str, silent: bool
) -> None:
    """The others wait until that is known, and answer in its place if it does not. While it looks, they look on."""
    await table.server(seats={"s": 9e9})
    await table.has(state, owner, client_id="77")
    looks = 0

    async def falls_silent(self: Peers, instance: str) -> bool:
        nonlocal looks
        looks += 1
        if silent or (state is REQUESTED and looks == 3):
            monkeypatch.setattr(Peers, "is_alive", lambda _, instance: False)
        return silent

    monkeypatch.setattr(Peers, "falls_silent", falls_silent)
    if owner == OTHER and state is READY and not silent:
        with pytest.raises(AnsweredElsewhere, match=f"matchmaker {OTHER} answers"):
            await table.play(broadcast=True)
    else:
        assert (await table.play(broadcast=True)).client_id == "77"
    assert looks == (0 if owner != OTHER else 3 if state is REQUESTED and not silent else 1)
    assert table.told == []


# A store that fails.


@pytest.mark.parametrize(("failures", "answered"), [(5, True), (6, False)])
async def test_a_store_that_fails_is_tried_again_until_that_is_too_often(
    table: Table, monkeypatch: pytest.MonkeyPatch, failures: int, answered: bool
) -> None:
    """The player is told each time. What was written although nothing said so is found."""
    await table.server()
    sessions = table.world.buckets.sessions
    create, get = sessions.create, sessions.get
    left = failures
    clients: list[str] = []

    async def created(key: str, value: SessionRecord, **options: Any) -> int:
        nonlocal left
        revision = await create(key, value, **options)
        clients.append(value.client_id)
        left -= 1
        raise Unavailable(f"no answer to {revision}")

    async def read(*args: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise Unavailable("no answer")
        return await get(*args)

    monkeypatch.setattr(sessions, "create", created)
    monkeypatch.setattr(sessions, "get", read)
    if answered:
        assert [(await table.play()).client_id] == clients
    else:
        with pytest.raises(Unavailable, match="no answer"):
            await table.play()
    assert table.told == [CANNOT_REACH] * 5
    assert left == 0


async def test_a_token_that_could_not_be_written_is_written_again(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No player gets one that nothing knows of."""
    await table.server()
    tokens, failures = table.world.buckets.connect_tokens, 1
    put = tokens.put

    async def fails(*args: Any, **options: Any) -> int:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("no answer")
        return await put(*args, **options)

    monkeypatch.setattr(tokens, "put", fails)
    ready = await table.play()
    assert await table.token() == ready.token
    assert table.told == [CANNOT_REACH]


async def test_who_loses_the_race_for_the_record_writes_no_token(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are written at once: the one on its way is given up."""
    await table.server()
    given_up: list[str] = []
    tokens, sessions = table.world.buckets.connect_tokens, table.world.buckets.sessions
    put = tokens.put

    async def slow(key: str, value: str, **options: Any) -> int:
        monkeypatch.setattr(tokens, "put", put)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            given_up.append(value)
            raise
        raise AssertionError

    async def lost(*_: object, **__: object) -> int:
        await asyncio.sleep(0)  # the token is on its way
        monkeypatch.undo()
        monkeypatch.setattr(Peers, "is_alive", lambda _, instance: False)
        await table.has(REQUESTED, client_id="77")
        raise LostRace("s")

    monkeypatch.setattr(tokens, "put", slow)
    monkeypatch.setattr(sessions, "create", lost)
    ready = await table.play()
    assert ready.client_id == "77"
    assert await table.token() == ready.token
    assert len(given_up) == 1
    assert ready.token not in given_up


@pytest.mark.parametrize("bucket", ["sessions", "deployments", "connect_tokens"])
@pytest.mark.parametrize("waits", [False, True])
async def test_where_nothing_can_be_written_players_are_told_at_once(
    table: Table, monkeypatch: pytest.MonkeyPatch, bucket: str, waits: bool
) -> None:
    """Also those who wait, with their next progress. No seat is taken."""

    def refuse() -> None:
        raise DoesNotWrite("the disk is full")

    def from_now_on(*_: object) -> None:
        monkeypatch.setattr(getattr(table.world.buckets, bucket), "require_writable", refuse)
        table.parts.lines[ARENA.key].announce()

    if waits:
        table.on_told = from_now_on
    else:
        await table.server()
        from_now_on()
    with pytest.raises(DoesNotWrite):
        await table.play()
    assert len(table.told) == waits
    if not waits:
        assert await table.seats() == []


# Time.


@pytest.mark.parametrize("at", ["the start", "progress", "a failure"])
async def test_a_request_whose_time_is_over_ends_at_its_next_step(
    table: Table, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Also where the cancellation was lost on the way."""

    def over(request: PendingRequest) -> None:
        request.deadline = 0
        table.parts.lines[ARENA.key].announce()

    async def fails(*_: object, **__: object) -> Any:
        raise Unavailable("no answer")

    request = table.request()
    if at == "a failure":
        await table.server()
        monkeypatch.setattr(table.world.buckets.sessions, "create", fails)
    table.on_told = over
    monkeypatch.setattr(PendingRequest, "within", lambda _: asyncio.timeout(None))
    if at == "the start":
        request.deadline = 0
    with pytest.raises(NoServerInTime):
        await table.play(request)
    assert len(table.told) == (0 if at == "the start" else 1)


# bevygap.


async def test_bevygaps_mappings_are_the_winners_and_last_as_long_as_its_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written after the record, so that the loser of a race writes none."""
    puts: list[tuple[str, str, float]] = []
    put = Mappings.put

    async def noted(self: Mappings, session_id: str, client_id: str, *, needed_for: float) -> None:
        record = await world.session("s")
        assert record is not None, "the record comes first"
        puts.append((session_id, client_id, needed_for))
        await put(self, session_id, client_id, needed_for=needed_for)

    monkeypatch.setattr(Mappings, "put", noted)
    async with table_of(world, BEVY) as table:
        await table.server(game="bevy")
        await table.has(READY, game="bevy", client_id="77")
        ready = await table.play(game=BEVY)
        assert ready.client_id == "77"
        lifetime = Tokens.lifetime(Tokens(None), BEVY)  # type: ignore[arg-type] # of no account here
        assert puts == [("s", "77", lifetime + BEVY.token_timeout)]
        unclaimed = await world.buckets.unclaimed_sessions.get("s")
        assert unclaimed is not None
        assert unclaimed.value == "s"
        assert await table.token() == ready.token
