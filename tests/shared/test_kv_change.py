"""`Bucket.change` on a real nats-server: the one compare-and-set loop, and its policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, ChangeResult, Entry, Full, LostRace, Removal
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus


@pytest.fixture
async def bucket(nats: Bus) -> Bucket[str]:
    """A bucket of plain texts that keeps tombstones."""
    return (await create_buckets(nats)).active_connections


class Seen:
    """A function for `change` that remembers what it was called with."""

    def __init__(self, function: Callable[[str | None], str | Removal | None]) -> None:
        self._function = function
        self.values: list[str | None] = []

    def __call__(self, value: str | None) -> str | Removal | None:
        self.values.append(value)
        return self._function(value)


def longer(value: str | None) -> str:
    return (value or "") + "x"


def nothing(value: str | None) -> None:
    return None


def same(value: str | None) -> str | None:
    return value


async def test_a_change_is_made_from_what_is_there(bucket: Bucket[str]) -> None:
    """Created where there is nothing; the result is the entry as it then is."""
    first = await bucket.change("a", longer)
    assert first.written
    assert first.entry == await bucket.get("a") == Entry("a", "x", first.entry.revision if first.entry else 0)
    second = await bucket.change("a", longer)
    assert second.entry == await bucket.get("a")
    assert second.entry is not None
    assert second.entry.value == "xx"


async def test_no_change_writes_nothing(bucket: Bucket[str]) -> None:
    """None or the same object; also where there is nothing, and nothing to remove."""
    assert await bucket.change("a", nothing) == ChangeResult(None, written=False)
    assert await bucket.change("a", lambda value: Removal.DELETE) == ChangeResult(None, written=False)
    assert await bucket.latest("a") is None
    revision = await bucket.create("a", "1")
    for function in (nothing, same):
        assert await bucket.change("a", function) == ChangeResult(Entry("a", "1", revision), written=False)


async def test_many_at_once_lose_no_change(bucket: Bucket[str]) -> None:
    """Whoever is not first applies the same change to what is there then."""
    await asyncio.gather(*(bucket.change("a", longer) for _ in range(20)))
    entry = await bucket.get("a")
    assert entry is not None
    assert entry.value == "x" * 20


async def test_a_known_entry_spares_the_reading(bucket: Bucket[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written upon as it is known."""
    known = Entry("a", "1", await bucket.create("a", "1"))

    async def reads(key: str) -> Any:
        raise AssertionError("it is known")

    monkeypatch.setattr(bucket, "latest", reads)
    result = await bucket.change("a", longer, known=known)
    assert result.entry is not None
    assert result.entry.value == "1x"
    created = await bucket.change("b", longer, known=None)
    assert created.entry is not None
    assert created.entry.value == "x"


async def test_an_outdated_known_entry_is_read_again(bucket: Bucket[str]) -> None:
    """The lost compare-and-set tells; so it is for what was known not to be there."""
    known = Entry("a", "1", await bucket.create("a", "1"))
    await bucket.update("a", "2", known.revision)
    function = Seen(longer)
    assert (await bucket.change("a", function, known=known)).written
    assert function.values == ["1", "2"]
    function = Seen(longer)
    assert (await bucket.change("a", function, known=None)).written
    assert function.values == [None, "2x"]


async def test_what_is_known_is_never_the_reason_for_doing_nothing(bucket: Bucket[str]) -> None:
    """Nothing to write, or a refusal, by what is known: it is read before that is believed."""
    known = Entry("a", "done", await bucket.create("a", "done"))
    await bucket.update("a", "open", known.revision)

    def finish(value: str | None) -> str | None:
        return None if value == "done" else "done"

    assert (await bucket.change("a", finish, known=known)).written
    outdated = Entry("a", "open", known.revision)

    def refuse(value: str | None) -> str:
        if value == "open":
            raise ValueError("refused")
        return "again"

    assert (await bucket.change("a", refuse, known=outdated)).written
    await bucket.put("a", "open")
    with pytest.raises(ValueError, match="refused"):
        await bucket.change("a", refuse)


async def test_a_function_may_delete(bucket: Bucket[str]) -> None:
    """By the revision it saw: what somebody else wrote meanwhile is judged anew."""
    known = Entry("a", "mine", await bucket.create("a", "mine"))

    def withdraw(value: str | None) -> Removal | None:
        return Removal.DELETE if value == "mine" else None

    await bucket.update("a", "another's", known.revision)
    kept = await bucket.change("a", withdraw, known=known)
    assert not kept.written
    assert kept.entry is not None
    assert kept.entry.value == "another's"
    await bucket.put("a", "mine")
    assert await bucket.change("a", withdraw) == ChangeResult(None, written=True)
    assert await bucket.get("a") is None
    tombstone = await bucket.latest("a")
    assert tombstone is not None
    assert tombstone.value is None


async def test_a_function_may_remove_without_a_trace(bucket: Bucket[str]) -> None:
    """No tombstone stays; what was written meanwhile is not removed."""
    known = Entry("a", "1", await bucket.create("a", "1"))
    assert await bucket.change("a", lambda value: Removal.FORGET) == ChangeResult(None, written=True)
    assert await bucket.latest("a") is None
    await bucket.create("a", "2")
    function = Seen(lambda value: Removal.FORGET if value == "1" else None)
    kept = await bucket.change("a", function, known=known)
    assert not kept.written
    assert function.values == ["1", "2"]


async def test_a_deleted_key_is_created_again_unless_that_is_unwanted(bucket: Bucket[str]) -> None:
    """`recreate=False`: its end stays its end."""
    await bucket.create("a", "1")
    await bucket.delete("a")
    function = Seen(longer)
    for known in (False, True):
        given = {"known": None} if known else {}
        assert await bucket.change("a", function, recreate=False, **given) == ChangeResult(
            None, written=False
        )
    assert function.values == [None]  # by what was known only
    assert (await bucket.change("a", longer, known=None)).written
    await bucket.delete("a")
    assert (await bucket.change("a", longer)).written
    assert (await bucket.change("b", longer, recreate=False)).written


async def test_the_time_to_live_may_depend_on_the_value(
    bucket: Bucket[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds, or a function of what is written."""
    lives: list[float | None] = []
    update = bucket.update

    async def watched(key: str, value: str, revision: int, *, ttl: float | None = None) -> int:
        lives.append(ttl)
        return await update(key, value, revision)

    def life_of(value: str) -> float | None:
        return 60.0 if value == "gone" else None

    monkeypatch.setattr(bucket, "update", watched)
    await bucket.change("a", lambda value: "open", ttl=life_of)
    await bucket.change("a", lambda value: "gone", ttl=life_of)
    await bucket.change("b", longer, ttl=30.0)
    assert lives == [None, 60.0, 30.0]


async def test_a_full_bucket_takes_what_is_shorter(bucket: Bucket[str], nats: Bus) -> None:
    """`when_full` says what to write instead, or removes; without it, and where it has nothing, it is full."""
    await bucket.create("a", "1" * 1000)
    info = await nats.js.stream_info(bucket.stream)
    info.config.max_bytes = info.state.bytes + 50
    await nats.js.update_stream(info.config)

    def grow(value: str | None) -> str:
        return (value or "") + "2" * 1000

    with pytest.raises(Full):
        await bucket.change("a", grow)
    for useless in (nothing, lambda value: "3" * 1500):
        with pytest.raises(Full):
            await bucket.change("a", grow, when_full=useless)
    shorter = await bucket.change("a", grow, when_full=lambda value: "4")
    assert shorter.entry is not None
    assert shorter.entry.value == "4"
    assert await bucket.change("a", lambda value: "5" * 3000, when_full=lambda value: Removal.FORGET) == (
        ChangeResult(None, written=True)
    )
    assert await bucket.latest("a") is None


class Unreliable:
    """Makes the bucket's next writes fail after they were carried out, or before."""

    def __init__(self, bucket: Bucket[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.carried_out: list[bool] = []
        self._update = bucket.update
        monkeypatch.setattr(bucket, "update", self._write)

    async def _write(self, key: str, value: str, revision: int, *, ttl: float | None = None) -> int:
        if not self.carried_out:
            return await self._update(key, value, revision, ttl=ttl)
        if self.carried_out.pop(0):
            await self._update(key, value, revision, ttl=ttl)
        raise Unavailable("no answer")


async def test_an_unknown_outcome_is_the_callers_unless_it_says_how_long_to_go_on(
    bucket: Bucket[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is read again; the function finds its own earlier write."""
    unreliable = Unreliable(bucket, monkeypatch)
    heard: list[str] = []

    async def go_on(exc: Unavailable) -> None:
        heard.append(str(exc))

    function = Seen(lambda value: value if value == "mine" else "mine")
    unreliable.carried_out = [False]
    with pytest.raises(Unavailable, match="no answer"):
        await bucket.change("a", function)
    unreliable.carried_out = [False, True]
    result = await bucket.change("a", function, on_unavailable=go_on)
    assert result.entry == await bucket.get("a")
    assert not result.written  # this call's, but it cannot know
    assert function.values == [None, None, None, "mine"]
    assert heard == ["no answer", "no answer"]

    async def give_up(exc: Unavailable) -> None:
        raise TimeoutError from exc

    unreliable.carried_out = [True]
    with pytest.raises(TimeoutError):
        await bucket.change("a", longer, on_unavailable=give_up)


async def test_a_reading_that_fails_is_made_again(
    bucket: Bucket[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same rule as a write."""
    latest, failures = bucket.latest, 2

    async def reads(key: str) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("away")
        return await latest(key)

    async def go_on(exc: Unavailable) -> None:
        pass

    monkeypatch.setattr(bucket, "latest", reads)
    with pytest.raises(Unavailable, match="away"):
        await bucket.change("a", longer)
    assert (await bucket.change("a", longer, on_unavailable=go_on)).written


async def test_a_change_gives_up_after_its_tries(
    bucket: Bucket[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what changes too quickly."""
    writes = 0

    async def loses(key: str, value: str, revision: int, *, ttl: float | None = None) -> int:
        nonlocal writes
        writes += 1
        raise LostRace("somebody else")

    monkeypatch.setattr(bucket, "update", loses)
    with pytest.raises(Unavailable, match="the fleet of arena 1 changes too quickly to be written"):
        await bucket.change("a", longer, tries=7, what="the fleet of arena 1")
    assert writes == 7
    with pytest.raises(Unavailable, match="active_connections/a changes"):
        await bucket.change("a", longer, tries=1)
