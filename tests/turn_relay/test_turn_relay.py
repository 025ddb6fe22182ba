"""Relays on buckets that fail: what is promised to players holds whatever happens to a write."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.polling import eventually
from tests.turn_relay.world import UnreliableBucket, games_bucket, list_bucket, relays
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.changes import Change
from tipoff_turn_relay import games as shared_games
from tipoff_turn_relay import pairing_list, store
from tipoff_turn_relay import relay as turn_relay
from tipoff_turn_relay.games import GAME_CODEC
from tipoff_turn_relay.keys import GameKey
from tipoff_turn_relay.messages import (
    Answer,
    Error,
    Exchange,
    Failed,
    GameQuit,
    GameUpdate,
    Gone,
    MapInit,
    MapReady,
    Register,
    Registered,
    RequestPair,
    Start,
    StillPairing,
    Unregister,
    Updates,
)
from tipoff_turn_relay.pairing_list import LIST_CODEC
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.store import ClientGone, MemoryBucket
from tipoff_turn_relay.text import encode_answer

T = TypeVar("T")


async def begin(one: TurnRelay, other: TurnRelay) -> tuple[str, str]:
    """A game: the keys of its player 0, at `one`, and of player 1, at `other`."""
    keys = []
    for relay, name, partner in ((one, "Ada", "Bob"), (other, "Bob", "Ada")):
        answer = await relay.pair(Register(name, partner))
        assert isinstance(answer, Registered)
        keys.append(answer.key)
    await other.pair(RequestPair(keys[1]))
    await one.pair(MapInit(keys[0]))
    await other.pair(MapInit(keys[1]))
    await other.pair(MapReady(keys[1]))
    starts = [await one.pair(MapReady(keys[0])), await other.pair(MapReady(keys[1]))]
    game = []
    for start in starts:
        assert isinstance(start, Start)
        game.append(str(GameKey(start.game_id, start.secrets[start.player])))
    return game[0], game[1]


async def insist(ask: Any) -> Answer:
    """As a client does: again, until there is an answer."""
    for _ in range(200):
        try:
            answer: Answer = await ask()
        except Unavailable:
            continue
        return answer
    raise AssertionError("no answer")


async def test_two_relays_serve_the_two_players_of_one_game() -> None:
    async with relays(list_bucket(), games_bucket()) as (one, other):
        ada, bob = await begin(one, other)
        assert encode_answer(await one.handle(GameUpdate(ada, 0, 0, "hello"))) == "0/10/*"
        assert encode_answer(await other.handle(GameUpdate(bob, 1, 0, "hi"))) == "0/9/hello"
        assert encode_answer(await other.handle(GameUpdate(ada, 0, 1, "moved"))) == "0/9/hi"
        assert encode_answer(await one.handle(GameUpdate(ada, 0, 2, "and back"))) == "0/10/*"
        assert encode_answer(await one.handle(GameUpdate(bob, 1, 1, None))) == "0/9/moved|and back"


async def test_a_relay_that_knows_an_old_state_answers_from_the_new_one() -> None:
    async with relays(list_bucket(), games_bucket()) as (one, other):
        ada, bob = await begin(one, other)
        await one.handle(GameUpdate(ada, 0, 0, "0"))
        for number in range(1, 5):
            await other.handle(GameUpdate(ada, 0, number, str(number)))
        assert await one.handle(GameUpdate(ada, 0, 0, "old")) == Failed(Error.BEHIND)
        assert await one.handle(GameUpdate(ada, 0, 6, "new")) == Failed(Error.AHEAD)
        assert encode_answer(await one.handle(GameUpdate(bob, 1, 0, None))) == "0/9/0|1|2|3|4"


async def test_the_key_of_one_player_does_not_serve_as_the_other() -> None:
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, bob = await begin(relay, relay)
        for key, player in ((ada, 1), (bob, 0)):
            assert await relay.handle(GameUpdate(key, player, 0, "x")) == Failed(Error.NOT_IN_GAME)
            assert await relay.handle(GameQuit(key, player)) == Failed(Error.NOT_IN_GAME)
        guessed = str(int(ada) ^ 1)
        assert await relay.handle(GameUpdate(guessed, 0, 0, "x")) == Failed(Error.NOT_IN_GAME)
        assert await relay.exchange(Exchange(guessed, after=0), wait=0) == Failed(Error.NOT_IN_GAME)
        unknown = str(int(ada) ^ 1 << 40)
        assert await relay.handle(GameUpdate(unknown, 0, 0, "x")) == Failed(Error.NO_GAME)


async def test_one_write_for_an_update_and_none_for_an_idle_poll() -> None:
    pairing, games = UnreliableBucket(LIST_CODEC, 0, 0.0), UnreliableBucket(GAME_CODEC, 0, 0.0)
    async with relays(pairing, games, 1) as (relay,):
        ada, bob = await begin(relay, relay)
        games.writes = 0
        for number in range(10):
            await relay.handle(GameUpdate(ada, 0, number, "x"))
        assert games.writes == 10
        await relay.handle(GameUpdate(bob, 1, 0, None))
        games.writes = 0
        for _ in range(10):
            await relay.handle(GameUpdate(bob, 1, 0, None))
            await relay.exchange(Exchange(ada, after=0), wait=0)
        assert games.writes == 0
        waiting = await relay.pair(Register("Eve", "nobody"))
        assert isinstance(waiting, Registered)
        pairing.writes = 0
        for _ in range(10):
            await relay.pair(RequestPair(waiting.key))
        assert pairing.writes == 0


async def test_requests_to_the_list_at_one_moment_share_one_write() -> None:
    pairing = UnreliableBucket(LIST_CODEC, 0, 0.0)
    async with relays(pairing, games_bucket(), 1) as (relay,):
        await asyncio.gather(*(relay.pair(Register(f"player {n}", "nobody")) for n in range(200)))
        assert pairing.writes <= 3


async def test_who_plays_leaves_the_list() -> None:
    pairing = list_bucket()
    async with relays(pairing, games_bucket(), 1) as (relay,):
        ada, bob = await begin(relay, relay)
        await relay.handle(GameUpdate(ada, 0, 0, None))
        assert len(relay.pairing) == 2
        await relay.handle(GameUpdate(bob, 1, 0, None))
        await relay.pair(Unregister("1"))
        assert len(relay.pairing) == 0


async def test_no_room_for_another_game_is_error_12_for_both() -> None:
    async with relays(list_bucket(), games_bucket(max_records=1), 1) as (relay,):
        await begin(relay, relay)
        keys = []
        for name in ("Eve", "Max"):
            answer = await relay.pair(Register(name))
            assert isinstance(answer, Registered)
            keys.append(answer.key)
        await relay.pair(RequestPair(keys[0]))
        for key in keys:
            await relay.pair(MapInit(key))
        await relay.pair(MapReady(keys[0]))
        assert await relay.pair(MapReady(keys[1])) == Failed(Error.GAMES_FULL)
        assert await relay.pair(MapReady(keys[0])) == Failed(Error.NOT_REGISTERED)


async def test_a_repetition_nobody_waits_for_gives_nothing_away() -> None:
    """Its client has closed the connection: what came meanwhile must go out with an answer that is read."""

    async def gone() -> bool:
        return True

    async def there() -> bool:
        return False

    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, bob = await begin(relay, relay)
        await relay.handle(GameUpdate(ada, 0, 0, None), abandoned=gone)
        await relay.handle(GameUpdate(bob, 1, 0, "news"))
        with pytest.raises(ClientGone):
            await relay.handle(GameUpdate(ada, 0, 0, None), abandoned=gone)
        assert encode_answer(await relay.handle(GameUpdate(ada, 0, 1, None), abandoned=there)) == "0/9/news"


async def test_a_long_poll_is_answered_by_an_update_at_another_relay() -> None:
    async with relays(list_bucket(), games_bucket()) as (one, other):
        ada, bob = await begin(one, other)
        poll = asyncio.ensure_future(one.exchange(Exchange(ada, after=0), wait=20))
        await eventually(lambda: one.waiting, "it waits")
        await other.handle(GameUpdate(bob, 1, 0, "news"))
        async with asyncio.timeout(2):
            assert await poll == Updates(("news",), -1, 1)


async def test_a_long_poll_for_a_partner_is_answered_when_it_comes() -> None:
    async with relays(list_bucket(), games_bucket()) as (one, other):
        polls = []
        for relay, name in ((one, "Ada"), (other, "Bob")):
            answer = await relay.pair(Register(name))
            assert isinstance(answer, Registered)
            polls.append(asyncio.ensure_future(relay.play(answer.key, loaded=True, wait=20)))
            await eventually(lambda: relay.waiting or polls[-1].done(), "it waits")  # noqa: B023  # awaited here
        async with asyncio.timeout(2):
            starts = await asyncio.gather(*polls)
        assert {type(start) for start in starts} == {Start}


async def test_an_update_that_finds_no_room_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tipoff_turn_relay import game

    monkeypatch.setattr(game, "MAX_CACHE", 10)
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, bob = await begin(relay, relay)
        await relay.exchange(Exchange(ada, 0, "12345678"), wait=0)
        assert await relay.exchange(Exchange(ada, 1, "12345678"), wait=0) == Failed(Error.CACHE_FULL)
        send = asyncio.ensure_future(relay.exchange(Exchange(ada, 1, "12345678"), wait=20))
        await eventually(lambda: relay.waiting, "it waits")
        await relay.exchange(Exchange(bob, 0, "", after=1), wait=0)
        async with asyncio.timeout(2):
            assert await send == Updates((), 1, 0)


async def test_draining_ends_long_polls() -> None:
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, _ = await begin(relay, relay)
        poll = asyncio.ensure_future(relay.exchange(Exchange(ada, after=0), wait=20))
        await eventually(lambda: relay.waiting, "it waits")
        relay.drain()
        async with asyncio.timeout(1):
            assert await poll == Updates((), -1, 0)


async def test_a_bucket_that_stays_away_is_an_error_after_the_patience() -> None:
    class Away(MemoryBucket[T]):
        async def latest(self, key: str) -> Change[T] | None:
            raise Unavailable("away")

        async def wait_reachable(self, timeout: float) -> bool:
            await asyncio.sleep(0)
            return False

    async with relays(Away(LIST_CODEC), Away(GAME_CODEC), 1) as (relay,):
        with pytest.raises(Unavailable):
            await relay.pair(Register("Ada"))
        with pytest.raises(Unavailable):
            await relay.handle(GameUpdate(str(1 << 40), 0, 0, "x"))


async def test_records_that_cannot_be_read_harm_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    pairing, games = list_bucket(), games_bucket()
    pairing.records[pairing_list.KEY] = (b"not a list", 1, math.inf)
    games.records["5"] = (b"not a game", 1, math.inf)
    async with relays(pairing, games, 1) as (relay,):
        assert await relay.handle(GameUpdate(str(GameKey(5, 1)), 0, 0, "x")) == Failed(Error.NO_GAME)
        await begin(relay, relay)
    assert "cannot be read" in caplog.text


async def test_games_are_forgotten_beyond_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_games, "MAX_KNOWN", 3)
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        games = [await begin(relay, relay) for _ in range(10)]
        for ada, _ in games:
            assert encode_answer(await relay.handle(GameUpdate(ada, 0, 0, "x"))) == "0/10/*"
        assert len(relay.games) <= 3
        assert encode_answer(await relay.handle(GameUpdate(games[0][1], 1, 0, None))) == "0/9/x"


async def registered(relay: TurnRelay, name: str, partner: str = "") -> str:
    answer = await relay.pair(Register(name, partner))
    assert isinstance(answer, Registered)
    return answer.key


async def loaded(one: TurnRelay, other: TurnRelay) -> tuple[str, str]:
    """Two players who have loaded: the pairing keys of the one at `one` and of the one at `other`."""
    keys = await registered(one, "Ada", "Bob"), await registered(other, "Bob", "Ada")
    await other.pair(RequestPair(keys[1]))
    await one.pair(MapInit(keys[0]))
    await other.pair(MapInit(keys[1]))
    return keys


def key_of(start: Answer) -> str:
    assert isinstance(start, Start)
    return str(GameKey(start.game_id, start.secrets[start.player]))


@pytest.mark.parametrize("same", [True, False])
async def test_a_partner_whose_start_was_lost_joins_a_game_that_has_begun(same: bool) -> None:
    """It asks again, when the other one plays already: what was handed over waits for it."""
    async with relays(list_bucket(), games_bucket()) as (one, another):
        other = one if same else another
        ada, bob = await loaded(one, other)
        await other.pair(MapReady(bob))
        start = await one.pair(MapReady(ada))
        for number in (0, 1):
            await one.handle(GameUpdate(key_of(start), 0, number, f"move {number}"))
        for relay in (one, other):  # the list has heard of all that happened before
            await registered(relay, "Eve", "nobody")
        joined = await other.pair(MapReady(bob))
        assert (
            encode_answer(await other.handle(GameUpdate(key_of(joined), 1, 0, "hi"))) == "0/9/move 0|move 1"
        )
        assert encode_answer(await one.handle(GameUpdate(key_of(start), 0, 2, None))) == "0/9/hi"


async def test_players_who_both_play_have_left_the_list() -> None:
    """A late request for the start finds nobody."""
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, bob = await loaded(relay, relay)
        await relay.pair(MapReady(bob))
        starts = await relay.pair(MapReady(ada)), await relay.pair(MapReady(bob))
        for player, start in enumerate(starts):
            await relay.handle(GameUpdate(key_of(start), player, 0, None))
        await registered(relay, "Eve", "nobody")  # the list has heard of all that happened before
        for key in (ada, bob):
            assert await relay.pair(MapReady(key)) == Failed(Error.NOT_REGISTERED)


class FailsOnce(MemoryBucket[T]):
    """The next write that `chosen` picks raises `Unavailable`, after it was carried out or instead."""

    def __init__(self, codec: Any, chosen: Callable[[T], bool], *, carried_out: bool) -> None:
        super().__init__(codec)
        self._chosen = chosen
        self._carried_out = carried_out
        self.failed = 0
        self.patient = True

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> int:
        if not self.failed and self._chosen(value):
            self.failed += 1
            if self._carried_out:
                await super().update(key, value, revision, ttl=ttl)
            raise Unavailable("the write failed, as ordered")
        return await super().update(key, value, revision, ttl=ttl)

    async def wait_reachable(self, timeout: float) -> bool:
        return self.patient


@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_game_whose_record_was_not_written_is_made_by_whoever_asks_next(carried_out: bool) -> None:
    """The list says that both play: the start must lead to a game."""
    games = FailsOnce(GAME_CODEC, lambda _: True, carried_out=carried_out)
    games.patient = False
    async with relays(list_bucket(), games) as (one, other):
        ada, bob = await loaded(one, other)
        await other.pair(MapReady(bob))
        with pytest.raises(Unavailable):
            await one.pair(MapReady(ada))
        assert games.failed == 1
        joined = await other.pair(MapReady(bob))
        assert encode_answer(await other.handle(GameUpdate(key_of(joined), 1, 0, "hi"))) == "0/10/*"
        start = await one.pair(MapReady(ada))
        assert encode_answer(await one.handle(GameUpdate(key_of(start), 0, 0, None))) == "0/9/hi"


@pytest.mark.parametrize("carried_out", [True, False])
async def test_an_unregistration_whose_write_failed_is_answered_as_one(carried_out: bool) -> None:
    """Carried out or not; one of somebody who is not in the list is still an error."""
    pairing = FailsOnce(LIST_CODEC, lambda players: len(players.players) == 0, carried_out=carried_out)
    async with relays(pairing, games_bucket(), 1) as (relay,):
        key = await registered(relay, "Ada")
        assert await relay.pair(Unregister(key)) == Gone()
        assert pairing.failed == 1
        assert await relay.pair(Unregister(key)) == Failed(Error.NOT_REGISTERED)


@pytest.mark.parametrize(("waiting", "served"), [(2, 2), (3, 2)])
async def test_so_many_requests_to_the_list_may_wait(
    monkeypatch: pytest.MonkeyPatch, waiting: int, served: int
) -> None:
    """Those beyond it are told when to come again, and the others are served: here one by one."""
    monkeypatch.setattr(pairing_list, "MAX_PENDING", 2)
    monkeypatch.setattr(pairing_list, "MAX_GROUP", 1)
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        answers = await asyncio.gather(
            *(relay.pair(Register(f"player {n}", "nobody")) for n in range(waiting)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, Unavailable)]
        assert (len(answers) - len(refused), len(refused)) == (served, waiting - served)
        assert all(each.retry_after == 1 for each in refused)
        assert len(relay.pairing) == served


async def test_after_its_end_a_list_takes_no_requests() -> None:
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        await registered(relay, "Ada")
    with pytest.raises(Unavailable):
        await relay.pair(Register("Bob"))


class Deaf(MemoryBucket[T]):
    """Hints of changes never come."""

    def __init__(self, codec: Any, listening: Callable[[], Any] = lambda: None) -> None:
        super().__init__(codec)
        self._listening = listening

    @asynccontextmanager
    async def listen(self, key: str, callback: Callable[[], None]) -> AsyncIterator[None]:
        if (begins := self._listening()) is not None:
            await begins
        yield


@pytest.mark.parametrize(("look_again", "at_most"), [(0.05, 0.4), (5.0, 0.8)])
async def test_a_long_poll_without_hints_asks_by_itself(
    monkeypatch: pytest.MonkeyPatch, look_again: float, at_most: float
) -> None:
    """From time to time, and once more before it ends."""
    monkeypatch.setattr(turn_relay, "LOOK_AGAIN", look_again)
    async with relays(Deaf(LIST_CODEC), Deaf(GAME_CODEC)) as (one, other):
        ada, bob = await begin(one, other)
        loop = asyncio.get_running_loop()
        began = loop.time()
        poll = asyncio.ensure_future(one.exchange(Exchange(ada, after=0), wait=0.5))
        await asyncio.sleep(0.01)  # the poll has begun
        await other.handle(GameUpdate(bob, 1, 0, "news"))
        assert await poll == Updates(("news",), -1, 1)
        assert loop.time() - began < at_most


@pytest.mark.parametrize("loaded_by_then", [True, False])
@pytest.mark.parametrize("wait", [0.0, 20.0])
async def test_who_plays_by_json_and_loses_its_partner_waits_for_another(
    loaded_by_then: bool, wait: float
) -> None:
    """The text protocol says so with an error; here it is a state like any other."""
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        eve, max_ = await registered(relay, "Eve"), await registered(relay, "Max")
        await relay.play(max_, loaded=False, wait=0)
        await relay.play(eve, loaded=loaded_by_then, wait=0)
        poll = asyncio.ensure_future(relay.play(eve, loaded=True, wait=wait))
        if wait:
            await asyncio.sleep(0.01)  # the poll has begun
        else:
            await poll
        await relay.pair(Unregister(max_))
        if wait:
            await asyncio.sleep(0.01)  # the poll has begun
            assert not poll.done()
        assert await relay.play(eve, loaded=loaded_by_then, wait=0) == StillPairing()
        ada = await registered(relay, "Ada")
        await relay.play(ada, loaded=True, wait=0)
        async with asyncio.timeout(2):
            start = await (poll if wait else relay.play(eve, loaded=True, wait=20))
        assert isinstance(start, Start)
        assert set(start.names) == {"Eve", "Ada"}


async def test_a_game_that_is_over_takes_no_memory() -> None:
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, bob = await begin(relay, relay)
        assert len(relay.games) == 1
        for key in (ada, bob):
            await relay.handle(GameQuit(key, None))
        assert len(relay.games) == 0


class Slow(MemoryBucket[T]):
    """Something happens after a record was read, and before the reader has it."""

    meanwhile: Any = None

    async def newer(self, key: str, revision: int) -> Change[T] | None:
        found = await super().newer(key, revision)
        if self.meanwhile is not None:
            begun, self.meanwhile = self.meanwhile, None
            await begun()
        return found


async def test_what_comes_while_a_long_poll_looks_is_not_missed() -> None:
    """Its hint is younger than the look."""
    games = Slow(GAME_CODEC)
    async with relays(list_bucket(), games) as (one, other):
        ada, bob = await begin(one, other)
        looks = 0

        async def look() -> None:
            nonlocal looks
            looks += 1
            if looks == 1:
                games.meanwhile = look
            else:
                await other.handle(GameUpdate(bob, 1, 0, "news"))

        await one.exchange(Exchange(ada, after=0), wait=0)
        games.meanwhile = look
        async with asyncio.timeout(2):
            assert await one.exchange(Exchange(ada, after=0), wait=20) == Updates(("news",), -1, 1)


async def test_what_comes_while_a_long_poll_begins_to_listen_is_not_missed() -> None:
    """Between the first look and the first hint."""
    news: list[Any] = []
    games = Deaf(GAME_CODEC, lambda: news.pop() if news else None)
    async with relays(list_bucket(), games) as (one, other):
        ada, bob = await begin(one, other)
        news.append(other.handle(GameUpdate(bob, 1, 0, "news")))
        async with asyncio.timeout(2):
            assert await one.exchange(Exchange(ada, after=0), wait=20) == Updates(("news",), -1, 1)


@pytest.mark.parametrize("wait", [0.0, 0.1])
async def test_a_long_poll_ends_after_its_time_with_what_there_is(wait: float) -> None:
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, _ = await begin(relay, relay)
        alone = await registered(relay, "Eve")
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await relay.exchange(Exchange(ada, after=0), wait=wait) == Updates((), -1, 0)
        assert await relay.play(alone, loaded=True, wait=wait) == StillPairing()
        assert 2 * wait <= loop.time() - began + 0.01 < 2 * wait + 0.5


async def test_a_long_poll_that_begins_while_the_relay_drains_ends_at_once() -> None:
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, _ = await begin(relay, relay)
        relay.drain()
        async with asyncio.timeout(1):
            assert await relay.exchange(Exchange(ada, after=0), wait=20) == Updates((), -1, 0)


async def test_of_two_long_polls_of_one_player_both_are_answered() -> None:
    """It reloaded its page, perhaps; and what one player waits for ends no other's poll."""
    async with relays(list_bucket(), games_bucket(), 1) as (relay,):
        ada, bob = await begin(relay, relay)
        polls = [asyncio.ensure_future(relay.exchange(Exchange(ada, after=0), wait=20)) for _ in range(2)]
        lonely = asyncio.ensure_future(relay.play(await registered(relay, "Eve"), loaded=True, wait=20))
        await asyncio.sleep(0.01)  # the poll has begun
        await relay.handle(GameUpdate(bob, 1, 0, "news"))
        async with asyncio.timeout(2):
            assert await asyncio.gather(*polls) == [Updates(("news",), -1, 1)] * 2
        assert not lonely.done()
        lonely.cancel()


async def play_on_failing_buckets(seed: int, failures: float) -> None:
    """A game over two relays whose writes fail, late, early or half; every client insists."""
    chance = random.Random(seed)
    pairing = UnreliableBucket(LIST_CODEC, seed, failures)
    async with relays(pairing, UnreliableBucket(GAME_CODEC, seed + 1, failures)) as both:

        async def ask(request: Any) -> Answer:
            return await insist(lambda: chance.choice(both).handle(request))

        keys: list[str] = []
        for name, partner in (("Ada", "Bob"), ("Bob", "Ada")):
            registered = await ask(Register(name, partner))
            assert isinstance(registered, Registered)
            keys.append(registered.key)
        for key in keys:
            while encode_answer(await ask(RequestPair(key))) == "0/2/*" and key == keys[1]:
                pass
        for key in keys:
            assert encode_answer(await ask(MapInit(key))) in ("0/5/", "0/6/")
        starts: list[Answer] = []
        while len(starts) < 2:
            starts = [s for s in [await ask(MapReady(key)) for key in keys] if isinstance(s, Start)]
        got: list[list[str]] = [[], []]
        sent = 30

        async def play(start: Start) -> None:
            key, number = str(GameKey(start.game_id, start.secrets[start.player])), 0
            while number < sent or len(got[start.player]) < sent:
                data = str(number) if number < sent else None
                answer = await ask(GameUpdate(key, start.player, number, data))
                assert isinstance(answer, Updates), answer
                got[start.player] += answer.updates
                number += 1

        await asyncio.gather(*(play(start) for start in starts if isinstance(start, Start)))
    assert got == [[str(n) for n in range(sent)]] * 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4]))
def test_every_update_arrives_once_and_in_order_on_buckets_that_fail(seed: int, failures: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PAUSE", 0.0)
        uvloop.run(play_on_failing_buckets(seed, failures))
