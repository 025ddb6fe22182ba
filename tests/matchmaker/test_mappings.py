"""bevygap's mappings are there for as long as a token may still lead to a connection, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from tests.matchmaker.world import ARENA, games_of
from tipoff_matchmaker.mappings import CLOCKS_APART, Mappings
from tipoff_matchmaker.tokens import Tokens
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games.toml import parse_games
from tipoff_shared.kv.buckets import MAPPING_TTL, Buckets, create_buckets
from tipoff_shared.nats.connection import Bus

BEVYGAP = """
[[game]]
name = "bevy"
version = "1"
bevygap = true
token_timeout = {}
process = {{ command = ["x"] }}
"""


@pytest.fixture
async def buckets(nats: Bus) -> Buckets:
    return await create_buckets(nats)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mappings(buckets: Buckets, clock: Clock) -> Mappings:
    return Mappings(buckets, clock=clock)


async def revision(buckets: Buckets) -> int:
    entry = await buckets.sessions_ly2eg.get("42")
    assert entry is not None
    assert entry.value == "session"
    return entry.revision


async def renewed(mappings: Mappings, buckets: Buckets, clock: Clock, now: float) -> bool:
    """Whether the mapping is written again when the clock says `now`."""
    before = await revision(buckets)
    clock.now = now
    await mappings.put_due()
    return await revision(buckets) > before


async def test_a_mapping_is_put_again_until_its_token_can_lead_nowhere(
    buckets: Buckets, mappings: Mappings, clock: Clock
) -> None:
    """For a token of 15 s and a handshake of 15 s: once more at half its life, then never."""
    await mappings.put("session", "42", needed_for=30)
    assert (await buckets.sessions_eg2ly.get("session")) is not None
    assert not await renewed(mappings, buckets, clock, 1000 + MAPPING_TTL / 2 - 1)
    assert await renewed(mappings, buckets, clock, 1000 + MAPPING_TTL / 2)
    assert not await renewed(mappings, buckets, clock, 1000 + 10 * MAPPING_TTL)


async def test_a_mapping_that_lives_long_enough_is_written_once(
    buckets: Buckets, mappings: Mappings, clock: Clock
) -> None:
    await mappings.put("session", "42", needed_for=10)
    assert not await renewed(mappings, buckets, clock, 1000 + MAPPING_TTL)


async def test_a_mapping_says_both_ways_who_is_who(buckets: Buckets, mappings: Mappings) -> None:
    """As soon as it is put."""
    await mappings.put("session", "42", needed_for=30)
    session, client = await buckets.sessions_ly2eg.get("42"), await buckets.sessions_eg2ly.get("session")
    assert session is not None
    assert client is not None
    assert (session.value, client.value) == ("session", "42")


@pytest.mark.parametrize(("longer", "again"), [(-0.1, False), (0.0, False), (0.1, True)])
async def test_the_clock_of_a_server_may_be_behind(
    buckets: Buckets, mappings: Mappings, clock: Clock, longer: float, again: bool
) -> None:
    """So a mapping lives that much longer than it is needed by ours."""
    await mappings.put("session", "42", needed_for=MAPPING_TTL - CLOCKS_APART + longer)
    assert await renewed(mappings, buckets, clock, 1000 + MAPPING_TTL / 2) is again


async def test_a_mapping_that_is_needed_for_long_is_put_again_and_again(
    buckets: Buckets, mappings: Mappings, clock: Clock
) -> None:
    await mappings.put("session", "42", needed_for=3 * MAPPING_TTL - CLOCKS_APART)
    times = [number * MAPPING_TTL / 2 for number in range(1, 20)]
    put = [at for at in times if await renewed(mappings, buckets, clock, 1000 + at)]
    assert put == [number * MAPPING_TTL / 2 for number in range(1, 5)], "the last one lives until the end"


async def put_many(buckets: Buckets, mappings: Mappings, clock: Clock, count: int) -> Callable[[], list[str]]:
    """Mappings that are due one after another; what returns the clients whose mappings are written from then on."""
    for number in range(count):
        clock.now = 1000.0 + number * 0.001
        await mappings.put(f"s{number}", f"{number}", needed_for=30)
    written: list[str] = []
    put = buckets.sessions_ly2eg.put

    async def noted(key: str, value: str, *, ttl: float | None = None) -> int:
        assert value == f"s{key}"
        written.append(key)
        return await put(key, value, ttl=ttl)

    buckets.sessions_ly2eg.put = noted  # type: ignore[method-assign,assignment] # it also notes

    def since() -> list[str]:
        seen, written[:] = written[:], []
        return seen

    return since


async def test_many_that_are_due_are_put_again_by_the_hundred(
    buckets: Buckets, mappings: Mappings, clock: Clock
) -> None:
    """Those that are due first, and none that is not due."""
    written = await put_many(buckets, mappings, clock, 130)
    clock.now = 1000.0 + MAPPING_TTL / 2 + 0.1195
    await mappings.put_due()
    assert written() == [str(number) for number in range(100)]
    await mappings.put_due()
    assert written() == [str(number) for number in range(100, 120)]
    await mappings.put_due()
    assert written() == []


async def test_whoever_leaves_puts_each_of_many_again(
    buckets: Buckets, mappings: Mappings, clock: Clock
) -> None:
    """Once: what it has put then is no longer its own."""
    written = await put_many(buckets, mappings, clock, 230)
    await mappings.put_all_again()
    assert sorted(written(), key=int) == [str(number) for number in range(230)]
    clock.now += 10 * MAPPING_TTL
    await mappings.put_due()
    assert written() == []


async def test_one_that_fails_holds_up_none_beside_it_and_is_given_up_in_the_end(
    buckets: Buckets, mappings: Mappings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = await put_many(buckets, mappings, clock, 3)
    put = buckets.sessions_ly2eg.put

    async def away(key: str, value: str, *, ttl: float | None = None) -> int:
        if key == "1":
            raise Unavailable("NATS is away")
        return await put(key, value, ttl=ttl)

    with monkeypatch.context() as patch:
        patch.setattr(buckets.sessions_ly2eg, "put", away)
        clock.now = 1000 + MAPPING_TTL / 2 + 1
        await mappings.put_due()
        assert written() == ["0", "2"]
        clock.now += 0.9
        await mappings.put_due()
        clock.now = 1000 + 10 * MAPPING_TTL
        await mappings.put_due()
    clock.now += 10
    await mappings.put_due()
    assert written() == [], "its token leads nowhere by then"


async def test_whoever_leaves_puts_all_again(buckets: Buckets, mappings: Mappings) -> None:
    """A matchmaker that stops cannot do it later."""
    await mappings.put("session", "42", needed_for=30)
    before = await revision(buckets)
    await mappings.put_all_again()
    assert await revision(buckets) > before


async def test_a_write_that_fails_is_tried_again(
    buckets: Buckets, mappings: Mappings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS is away for a second: nobody's server ends because of it."""
    await mappings.put("session", "42", needed_for=30)

    async def away(key: str, value: str, *, ttl: float | None = None) -> int:
        raise Unavailable("NATS is away")

    with monkeypatch.context() as patch:
        patch.setattr(buckets.sessions_ly2eg, "put", away)
        assert not await renewed(mappings, buckets, clock, 1016)
    assert await renewed(mappings, buckets, clock, 1018)


async def test_it_is_put_again_without_being_asked(buckets: Buckets) -> None:
    """`run` wakes when one is due, also one that is put while it waits."""
    clock = Clock()
    mappings = Mappings(buckets, clock=clock, renew_after=0.05)
    task = asyncio.create_task(mappings.run())
    try:
        await mappings.put("session", "42", needed_for=30)
        before = await revision(buckets)
        clock.now += 0.05
        async with asyncio.timeout(5), buckets.sessions_ly2eg.watch("42") as changes:
            while True:
                for change, ack in await changes.fetch(timeout=5):
                    await ack()
                    if change.revision > before:
                        return
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(("timeout", "lifetime"), [(15, 15), (5, 15), (20, 10), (25, 5)])
def test_tokens_end_early_enough_for_one_write(timeout: int, lifetime: int) -> None:
    """Expiry and handshake together within a mapping's life: enough even if its matchmaker dies."""
    game = msgspec.structs.replace(ARENA, bevygap=True, token_timeout=timeout)
    assert Tokens(games_of(ARENA)).lifetime(game) == lifetime
    assert lifetime + timeout <= MAPPING_TTL


def test_a_handshake_that_would_outlive_the_mapping_is_not_configured() -> None:
    assert parse_games(BEVYGAP.format(25))[0].bevygap
    with pytest.raises(ConfigError, match=r"token_timeout = 26.*mapping"):
        parse_games(BEVYGAP.format(26))
