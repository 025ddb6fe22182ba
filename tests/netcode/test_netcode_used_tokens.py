"""A token is good for one connection (catalogue row 53), whatever transport it is presented on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.netcode import TokenClaim, UsedTokens

TAG = b"t" * 16


def test_first_holder_may_repeat_others_may_not() -> None:
    """A lost challenge is asked for again; a stolen request is not answered."""
    used = UsedTokens()
    assert used.claim(TAG, "a", 130.0, 100.0) is TokenClaim.NEW
    assert used.claim(TAG, "a", 130.0, 100.0) is TokenClaim.REPEATED
    assert used.claim(TAG, "b", 130.0, 100.0) is TokenClaim.TAKEN


def test_spent_token_is_nobody_s() -> None:
    """Not even its holder's."""
    used = UsedTokens()
    used.claim(TAG, "a", 130.0, 100.0)
    assert not used.spend(TAG, "b")
    assert used.spend(TAG, "a")
    assert not used.spend(TAG, "a")
    assert used.claim(TAG, "a", 130.0, 100.0) is TokenClaim.SPENT
    assert used.claim(TAG, "b", 130.0, 100.0, proven=True) is TokenClaim.SPENT


def test_proven_holder_takes_over_from_an_unproven_one() -> None:
    """A player whose UDP answers are blocked falls back to a stream; the UDP handshake cannot end any more."""
    used = UsedTokens()
    used.claim(TAG, "udp", 130.0, 100.0)
    assert used.claim(TAG, "stream", 130.0, 100.0, proven=True).granted
    assert not used.spend(TAG, "udp")
    assert used.spend(TAG, "stream")


def test_full_memory_refuses_new_tokens_and_keeps_the_old() -> None:
    """Forgetting an unexpired one would let it in twice."""
    used = UsedTokens(capacity=2)
    tags = [bytes([n]) * 16 for n in range(3)]
    assert [used.claim(tag, "a", 130.0, 100.0) for tag in tags] == [
        TokenClaim.NEW,
        TokenClaim.NEW,
        TokenClaim.FULL,
    ]
    assert used.claim(tags[0], "b", 130.0, 100.0) is TokenClaim.TAKEN


def test_expired_entries_make_room_after_the_grace_period() -> None:
    """The grace covers a wall clock that is set back."""
    used = UsedTokens(capacity=1, grace=10.0)
    used.claim(TAG, "a", 130.0, 100.0)
    assert used.claim(b"u" * 16, "a", 160.0, 139.0) is TokenClaim.FULL
    assert used.claim(b"u" * 16, "a", 160.0, 140.0) is TokenClaim.NEW
    assert len(used) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.booleans()), max_size=60))
def test_no_token_is_ever_spent_twice(steps: list[tuple[int, str, bool]]) -> None:
    """Whatever order holders claim and spend in."""
    used = UsedTokens(capacity=4)
    spent: set[int] = set()
    for number, holder, spend in steps:
        tag = bytes([number]) * 16
        if spend:
            if used.spend(tag, holder):
                assert number not in spent
                spent.add(number)
        else:
            assert not (used.claim(tag, holder, 130.0, 100.0).granted and number in spent)
