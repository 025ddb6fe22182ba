"""Who is on the way, as a game server remembers it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_gameserver.players.expected import ExpectedPlayer, ExpectedPlayers

pytestmark = pytest.mark.row(91)


def test_a_player_is_expected_until_its_time_ends() -> None:
    expected = ExpectedPlayers()
    expected.expect("a", 15, 100.0)
    expected.expect("b", 5, 101.0)
    assert expected.current(103.0) == (ExpectedPlayer("a", 12.0), ExpectedPlayer("b", 3.0))
    assert [player.session_id for player in expected.current(106.0)] == ["a"]
    assert expected.current(115.0) == ()


def test_a_repeated_request_is_expected_for_its_new_time() -> None:
    expected = ExpectedPlayers()
    expected.expect("a", 15, 100.0)
    expected.expect("a", 15, 110.0)
    assert expected.current(120.0) == (ExpectedPlayer("a", 5.0),)


def test_a_player_who_was_faster_than_the_message_is_not_expected() -> None:
    """Also when it has left by then."""
    expected = ExpectedPlayers()
    expected.arrived("a")
    expected.expect("a", 15, 100.0)
    assert expected.current(100.0) == ()


@given(
    st.lists(st.tuples(st.sampled_from(["expect", "arrived", "drop"]), st.integers(0, 3000)), max_size=3000)
)
def test_what_is_remembered_is_bounded(story: list[tuple[str, int]]) -> None:
    expected = ExpectedPlayers()
    for what, number in story:
        if what == "expect":
            expected.expect(str(number), 15, 0.0)
        elif what == "arrived":
            expected.arrived(str(number))
        else:
            expected.drop(str(number))
    assert len(expected.current(0.0)) <= 1000
