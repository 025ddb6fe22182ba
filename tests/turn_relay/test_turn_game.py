"""A game hands over every update exactly once and in order, whatever is lost, repeated or late."""

from __future__ import annotations

import msgspec
import pytest

from tests.turn_relay.world import GameWorld
from tipoff_turn_relay import game as rules
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.messages import (
    Error,
    Failed,
    Updates,
)


@pytest.fixture
def table() -> GameWorld:
    return GameWorld()


# The text protocol.


def test_updates_reach_the_partner_with_its_next_number(table: GameWorld) -> None:
    assert table.say(0, 0, "one") == "0/10/*"
    assert table.say(0, 1, "two") == "0/10/*"
    assert table.say(1, 0, "hello") == "0/9/one|two"
    assert table.say(1, 1) == "0/10/*"
    assert table.say(0, 2) == "0/9/hello"


def test_the_same_number_again_gets_the_old_answer_with_what_is_new(table: GameWorld) -> None:
    table.say(1, 0, "one")
    assert table.say(0, 0, "x") == "0/9/one"
    assert table.say(0, 0, "x") == "0/9/one"
    table.say(1, 1, "two")
    assert table.say(0, 0, "x") == "0/9/one|two"
    assert table.say(0, 1) == "0/10/*"
    assert table.say(1, 2) == "0/10/*"  # x came once, with number 1


def test_an_answer_of_nothing_comes_again_with_what_is_new(table: GameWorld) -> None:
    assert table.say(0, 0) == "0/10/*"
    table.say(1, 0, "one")
    assert table.say(0, 0) == "0/9/one"


def test_repeating_a_number_hands_nothing_over_again(table: GameWorld) -> None:
    for _ in range(3):
        table.say(0, 0, "one")
    assert table.say(1, 0) == "0/9/one"


@pytest.mark.parametrize(("number", "answer"), [(0, "18/*/*"), (1, "18/*/*"), (4, "19/*/*"), (99, "19/*/*")])
def test_a_wrong_number_is_an_error_and_changes_nothing(table: GameWorld, number: int, answer: str) -> None:
    for n in range(3):
        table.say(0, n, "x")
    before = table.game
    assert table.say(0, number, "y") == answer
    assert table.game is before


def test_the_first_number_is_zero(table: GameWorld) -> None:
    assert table.say(0, 1, "x") == "19/*/*"


def test_an_idle_repetition_writes_nothing_but_a_sign_of_life(table: GameWorld) -> None:
    table.say(0, 0, "x")
    table.say(1, 0)
    table.writes = 0
    for _ in range(50):
        table.now += 0.2
        table.say(0, 0)
        table.say(1, 0)
    assert table.writes <= 2 * (10 / rules.REFRESH)


def test_the_asterisk_hands_nothing_over(table: GameWorld) -> None:
    table.say(0, 0, None)
    assert table.say(1, 0) == "0/10/*"


@pytest.mark.parametrize("silent", [(0,), (1,), (0, 1)])
def test_a_game_ends_when_a_player_was_silent_for_too_long(table: GameWorld, silent: tuple[int, ...]) -> None:
    numbers = [0, 0]
    for _ in range(5):
        table.now += 5
        for player in {0, 1} - set(silent):
            table.say(player, numbers[player])
            numbers[player] += 1
    assert table.say(0, numbers[0]) == "13/*/*"
    assert table.say(1, numbers[1]) == "13/*/*"
    assert table.game.over


def test_silence_is_counted_only_while_the_relay_could_be_reached(table: GameWorld) -> None:
    table.now += 300
    table.heard_since = table.now - 5
    assert table.say(0, 0, "x") == "0/10/*"


def test_what_was_handed_over_before_leaving_still_arrives(table: GameWorld) -> None:
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


def test_a_player_s_cache_is_bounded_and_its_sender_told(table: GameWorld) -> None:
    big = "x" * 16_000
    number = 0
    while table.say(0, number, big) == "0/10/*":
        number += 1
    assert number == rules.MAX_CACHE // 16_001
    assert table.say(0, number, big) == "21/*/*"
    assert table.say(0, number) == "0/10/*"  # handing nothing over always works
    assert table.say(1, 0) == "0/9/" + "|".join([big] * number)
    assert table.say(0, number + 1, big) == "0/10/*"


def test_an_answer_that_grew_too_long_stays_as_it_was(table: GameWorld) -> None:
    """Nothing is lost: what did not fit comes with the next number."""
    big = "x" * 16_000
    for number in range(6):
        table.say(0, number, big)
    assert table.say(1, 0) == "0/9/" + "|".join([big] * 6)
    for number in range(6, 12):
        table.say(0, number, "y" * 16_000)
    assert table.say(1, 0) == "21/*/" + "|".join([big] * 6)
    assert table.say(1, 1) == "0/9/" + "|".join(["y" * 16_000] * 6)


def test_empty_updates_take_room_too(table: GameWorld) -> None:
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


def test_positions_confirm_and_numbers_are_accepted_once(table: GameWorld) -> None:
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


def test_fetching_writes_nothing(table: GameWorld) -> None:
    table.exchange(0, 0, "one")
    table.writes = 0
    for _ in range(10):
        table.exchange(1, after=0)
        table.exchange(1, after=1)
    assert table.writes == 0


def test_both_ways_in_can_play_with_each_other(table: GameWorld) -> None:
    table.say(0, 0, "by text")
    assert table.exchange(1, 0, "by JSON", after=0) == Updates(("by text",), 0, 1)
    assert table.say(0, 1) == "0/9/by JSON"


def test_who_repeats_its_last_update_is_not_told_that_the_partner_is_gone(table: GameWorld) -> None:
    table.exchange(0, 0, "bye")
    table.leave(1)
    assert table.exchange(0, 0, "bye") == Updates((), 0, 0)
    assert table.exchange(0, after=0) == Failed(Error.PARTNER_GONE)
