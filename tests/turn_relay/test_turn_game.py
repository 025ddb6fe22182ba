"""A game hands over every update exactly once and in order, whatever is lost, repeated or late."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_matchmaker_httpd.turn_relay import game as rules
from tipoff_matchmaker_httpd.turn_relay.game import Game
from tipoff_matchmaker_httpd.turn_relay.messages import (
    Error,
    Exchange,
    Failed,
    GameUpdate,
    Start,
    Updates,
)
from tipoff_matchmaker_httpd.turn_relay.text import encode_answer

START = Start(7, (11, 22), ("Ada", "Bob"), ("1", "2"), 0)


class Table:
    """One game, a clock that tests move, and what it was written."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard_since = 0.0
        self.game = rules.new_game(START, self.now)
        self.writes = 0

    def _keep(self, game: Game) -> None:
        self.writes += game is not self.game
        self.game = game

    def update(self, player: int, number: int, data: str | None = None) -> Updates | Failed:
        request = GameUpdate("", player, number, data)
        game, answer = rules.update(self.game, player, request, self.now, heard_since=self.heard_since)
        self._keep(game)
        return answer

    def say(self, player: int, number: int, data: str | None = None) -> str:
        return encode_answer(self.update(player, number, data))

    def exchange(
        self, player: int, number: int | None = None, data: str = "", after: int | None = None
    ) -> Updates | Failed:
        request = Exchange("", number, data, after)
        game, answer = rules.exchange(self.game, player, request, self.now, heard_since=self.heard_since)
        self._keep(game)
        return answer

    def leave(self, player: int) -> str:
        game, answer = rules.leave(self.game, player, self.now, heard_since=self.heard_since)
        self._keep(game)
        return encode_answer(answer)


@pytest.fixture
def table() -> Table:
    return Table()


# The text protocol.


def test_updates_reach_the_partner_with_its_next_number(table: Table) -> None:
    assert table.say(0, 0, "one") == "0/10/*"
    assert table.say(0, 1, "two") == "0/10/*"
    assert table.say(1, 0, "hello") == "0/9/one|two"
    assert table.say(1, 1) == "0/10/*"
    assert table.say(0, 2) == "0/9/hello"


def test_the_same_number_again_gets_the_old_answer_with_what_is_new(table: Table) -> None:
    table.say(1, 0, "one")
    assert table.say(0, 0, "x") == "0/9/one"
    assert table.say(0, 0, "x") == "0/9/one"
    table.say(1, 1, "two")
    assert table.say(0, 0, "x") == "0/9/one|two"
    assert table.say(0, 1) == "0/10/*"
    assert table.say(1, 2) == "0/10/*"  # x came once, with number 1


def test_an_answer_of_nothing_comes_again_with_what_is_new(table: Table) -> None:
    assert table.say(0, 0) == "0/10/*"
    table.say(1, 0, "one")
    assert table.say(0, 0) == "0/9/one"


def test_repeating_a_number_hands_nothing_over_again(table: Table) -> None:
    for _ in range(3):
        table.say(0, 0, "one")
    assert table.say(1, 0) == "0/9/one"


@pytest.mark.parametrize(("number", "answer"), [(0, "18/*/*"), (1, "18/*/*"), (4, "19/*/*"), (99, "19/*/*")])
def test_a_wrong_number_is_an_error_and_changes_nothing(table: Table, number: int, answer: str) -> None:
    for n in range(3):
        table.say(0, n, "x")
    before = table.game
    assert table.say(0, number, "y") == answer
    assert table.game is before


def test_the_first_number_is_zero(table: Table) -> None:
    assert table.say(0, 1, "x") == "19/*/*"


def test_an_idle_repetition_writes_nothing_but_a_sign_of_life(table: Table) -> None:
    table.say(0, 0, "x")
    table.say(1, 0)
    table.writes = 0
    for _ in range(50):
        table.now += 0.2
        table.say(0, 0)
        table.say(1, 0)
    assert table.writes <= 2 * (10 / rules.REFRESH)


def test_the_asterisk_hands_nothing_over(table: Table) -> None:
    table.say(0, 0, None)
    assert table.say(1, 0) == "0/10/*"


@pytest.mark.parametrize("silent", [(0,), (1,), (0, 1)])
def test_a_game_ends_when_a_player_was_silent_for_too_long(table: Table, silent: tuple[int, ...]) -> None:
    numbers = [0, 0]
    for _ in range(5):
        table.now += 5
        for player in {0, 1} - set(silent):
            table.say(player, numbers[player])
            numbers[player] += 1
    assert table.say(0, numbers[0]) == "13/*/*"
    assert table.say(1, numbers[1]) == "13/*/*"
    assert table.game.over


def test_silence_is_counted_only_while_the_relay_could_be_reached(table: Table) -> None:
    table.now += 300
    table.heard_since = table.now - 5
    assert table.say(0, 0, "x") == "0/10/*"


def test_what_was_handed_over_before_leaving_still_arrives(table: Table) -> None:
    table.say(0, 0, "last words")
    assert table.leave(0) == "0/1/*"
    assert table.leave(0) == "0/1/*"
    assert table.say(0, 1) == "14/*/*"
    table.now += 15
    assert table.say(1, 0, "x") == "0/9/last words"
    assert table.say(1, 0, "x") == "0/9/last words"
    table.now += 15
    assert table.say(1, 1) == "15/*/*"
    assert table.leave(1) == "0/1/*"
    assert table.game.over


def test_a_player_s_cache_is_bounded_and_its_sender_told(table: Table) -> None:
    big = "x" * 16_000
    number = 0
    while table.say(0, number, big) == "0/10/*":
        number += 1
    assert number == rules.MAX_CACHE // 16_001
    assert table.say(0, number, big) == "21/*/*"
    assert table.say(0, number) == "0/10/*"  # handing nothing over always works
    assert table.say(1, 0) == "0/9/" + "|".join([big] * number)
    assert table.say(0, number + 1, big) == "0/10/*"


def test_an_answer_that_grew_too_long_stays_as_it_was(table: Table) -> None:
    """Nothing is lost: what did not fit comes with the next number."""
    big = "x" * 16_000
    for number in range(6):
        table.say(0, number, big)
    assert table.say(1, 0) == "0/9/" + "|".join([big] * 6)
    for number in range(6, 12):
        table.say(0, number, "y" * 16_000)
    assert table.say(1, 0) == "21/*/" + "|".join([big] * 6)
    assert table.say(1, 1) == "0/9/" + "|".join(["y" * 16_000] * 6)


def test_empty_updates_take_room_too(table: Table) -> None:
    table.game = msgspec.structs.replace(
        table.game, sides=(rules.Side(1000.0), rules.Side(1000.0, queue=("",) * rules.MAX_CACHE))
    )
    assert table.say(0, 0, "") == "21/*/*"


def test_the_largest_record_fits_into_a_message() -> None:
    """The default limit of NATS is 1 MiB."""
    full = ("",) * rules.MAX_CACHE
    half = ("x" * 100,) * (rules.MAX_CACHE // 101)
    for queue in (full, half, ("\0" * (rules.MAX_CACHE - 1),)):
        side = rules.Side(1e9, 10**17, queue + queue, len(queue), 10**17)
        game = Game((1 << 31, 1 << 31), ("x" * 64, "y" * 64), ("9" * 19, "9" * 19), (side, side))
        assert len(msgspec.msgpack.encode(game)) < 600_000


# The JSON API.


def test_positions_confirm_and_numbers_are_accepted_once(table: Table) -> None:
    assert table.exchange(0, 0, "one") == Updates((), 0, 0)
    assert table.exchange(0, 0, "one") == Updates((), 0, 0)
    assert table.exchange(0, 1, "two") == Updates((), 1, 0)
    assert table.exchange(1, after=0) == Updates(("one", "two"), -1, 2)
    assert table.exchange(1, after=0) == Updates(("one", "two"), -1, 2)
    assert table.exchange(1, after=1) == Updates(("two",), -1, 2)
    assert table.exchange(1, 0, "x", after=2) == Updates((), 0, 2)
    assert table.exchange(1, after=1) == Failed(Error.BEHIND)
    assert table.exchange(1, after=3) == Failed(Error.AHEAD)
    assert table.exchange(1, 2, "y") == Failed(Error.AHEAD)


def test_fetching_writes_nothing(table: Table) -> None:
    table.exchange(0, 0, "one")
    table.writes = 0
    for _ in range(10):
        table.exchange(1, after=0)
        table.exchange(1, after=1)
    assert table.writes == 0


def test_both_ways_in_can_play_with_each_other(table: Table) -> None:
    table.say(0, 0, "by text")
    assert table.exchange(1, 0, "by JSON", after=0) == Updates(("by text",), 0, 1)
    assert table.say(0, 1) == "0/9/by JSON"


def test_who_repeats_its_last_update_is_not_told_that_the_partner_is_gone(table: Table) -> None:
    table.exchange(0, 0, "bye")
    table.leave(1)
    assert table.exchange(0, 0, "bye") == Updates((), 0, 0)
    assert table.exchange(0, after=0) == Failed(Error.PARTNER_GONE)


# Random clients.


@dataclass
class TextClient:
    """Counts up with each answer; repeats a number until it gets one. `accepted` is what the relay took from it."""

    player: int
    number: int = 0
    accepted: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)

    def ask(self, table: Table, data: str | None, fate: str) -> None:
        """Repetitions carry other data than the first time, so that any that is taken twice would show."""
        if fate == "request lost":
            return
        before = table.game.sides[self.player].number
        answer = table.update(self.player, self.number, data)
        if table.game.sides[self.player].number != before and data is not None:
            self.accepted.append(data)
        if fate == "answer lost":
            return
        match answer:
            case Updates(updates=updates):
                self.got += updates
            case Failed(error=Error.CACHE_FULL, data="*"):
                if before != self.number:  # its update was refused: the same number later
                    return
            case Failed(error=Error.CACHE_FULL, data=old):
                self.got += old.split("|")
            case _:
                raise AssertionError(answer)
        self.number += 1


DATA = st.one_of(st.none(), st.text("abc", min_size=1, max_size=30))
FATES = st.sampled_from(["fine", "fine", "request lost", "answer lost"])
TEXT_STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 1), DATA, FATES),
    st.tuples(st.sampled_from(["stale", "ahead", "wait"]), st.integers(0, 1), st.integers(1, 3), st.just("")),
)


@settings(max_examples=400)
@given(st.lists(TEXT_STEPS, max_size=80), st.booleans())
def test_random_text_clients_get_every_update_once_and_in_order(
    steps: list[tuple[str, int, Any, str]], small: bool
) -> None:
    """Lost requests, lost answers, late copies of old requests, wrong numbers; caches that are always full."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(rules, "MAX_CACHE", 64)
        table, clients = Table(), (TextClient(0), TextClient(1))
        for what, player, value, fate in steps:
            client = clients[player]
            if what == "ask":
                client.ask(table, value, fate)
            elif what == "wait":
                table.now += value
                for other in (0, 1):  # nobody is silent for too long: another test's subject
                    clients[other].ask(table, None, "fine")
            else:
                number = table.game.sides[player].number + (1 + value if what == "ahead" else -value)
                before = table.game
                expected = Error.AHEAD if what == "ahead" else Error.BEHIND
                assert table.update(player, number, "never") == Failed(expected)
                assert table.game is before
        for _ in range(20):
            for client in clients:
                client.ask(table, None, "fine")
    assert clients[0].got == clients[1].accepted
    assert clients[1].got == clients[0].accepted


@dataclass
class JsonClient:
    """Sends and fetches with any number of requests on their way at once, which arrive in any order, or twice."""

    player: int
    sent: list[str] = field(default_factory=list)
    acknowledged: int = 0
    got: list[str] = field(default_factory=list)

    def send(self) -> tuple[int | None, str, int | None]:
        if self.acknowledged == len(self.sent):
            self.sent.append(f"{self.player}:{len(self.sent)}")
        return self.acknowledged, self.sent[self.acknowledged], None

    def fetch(self) -> tuple[int | None, str, int | None]:
        return None, "", len(self.got)

    def both(self) -> tuple[int | None, str, int | None]:
        number, data, _ = self.send()
        return number, data, len(self.got)

    def answered(self, request: tuple[int | None, str, int | None], answer: Updates | Failed) -> None:
        number, _, after = request
        if isinstance(answer, Failed):
            assert answer.error in (Error.BEHIND, Error.CACHE_FULL)  # old copies; later again
            return
        if number is not None:
            assert answer.number >= number
            self.acknowledged = max(self.acknowledged, number + 1)
        if after == len(self.got):
            self.got += answer.updates


JSON_STEPS = st.tuples(
    st.sampled_from(
        ["send", "fetch", "both", "deliver", "deliver", "deliver again", "lose", "answer", "answer"]
    ),
    st.integers(0, 1),
    st.integers(0, 50),
)


@settings(max_examples=400)
@given(st.lists(JSON_STEPS, max_size=120), st.booleans())
def test_random_json_clients_get_every_update_once_and_in_order(
    steps: list[tuple[str, int, int]], small: bool
) -> None:
    """Requests and answers overtake each other, arrive twice or never."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(rules, "MAX_CACHE", 40)
        table, clients = Table(), (JsonClient(0), JsonClient(1))
        requests: list[tuple[int, Any]] = []
        answers: list[tuple[int, Any, Updates | Failed]] = []

        def deliver(player: int, request: Any) -> Updates | Failed:
            number, data, after = request
            return table.exchange(player, number, data, after)

        for what, player, which in steps:
            if what in ("send", "fetch", "both"):
                requests.append((player, getattr(clients[player], what)()))
            elif what == "answer":
                if answers:
                    to, request, answer = answers.pop(which % len(answers))
                    clients[to].answered(request, answer)
            elif requests:
                at = which % len(requests)
                to, request = requests[at] if what == "deliver again" else requests.pop(at)
                if what != "lose":
                    answers.append((to, request, deliver(to, request)))
        for _ in range(20 + len(steps)):
            for client in clients:
                for request in (client.fetch(), client.both()):
                    client.answered(request, deliver(client.player, request))
        for client in clients:
            request = client.fetch()
            client.answered(request, deliver(client.player, request))
    for client, partner in (clients, clients[::-1]):
        arrived = client.got
        assert arrived == partner.sent[: len(arrived)]
        assert len(arrived) >= partner.acknowledged
