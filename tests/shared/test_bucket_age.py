"""Whether NATS has lost a bucket, or has an older state of it, as two readings tell."""

from __future__ import annotations

import pytest

from tipoff_shared.kv.bucket import BucketAge

BEFORE = BucketAge(created=100.0, revision=50, read_at=200.0)


@pytest.mark.row(85)
@pytest.mark.parametrize(
    ("now", "made_anew", "gone_back"),
    [
        (BucketAge(100.0, 50), False, False),
        (BucketAge(100.0, 51), False, False),
        (BucketAge(100.0, 49), False, True),
        (BucketAge(100.6, 50), False, False),  # another node of a cluster answers
        (BucketAge(99.4, 70), False, False),
        (BucketAge(201.0, 0), True, False),
        (BucketAge(201.0, 50), True, False),  # written to since
        (BucketAge(201.0, 90), True, False),
        (BucketAge(201.0, 90, replicated=True), False, False),  # a node that was replaced answers
        (BucketAge(201.0, 49, replicated=True), True, False),
        (
            BucketAge(100.6, 49),
            True,
            False,
        ),  # made anew before the reading of a slow clock, or older on another node
    ],
)
def test_what_a_second_reading_tells(now: BucketAge, made_anew: bool, gone_back: bool) -> None:
    """Another time of creation alone proves nothing; a revision that went back always does."""
    assert (now.is_made_anew(BEFORE), now.has_gone_back(BEFORE)) == (made_anew, gone_back)
