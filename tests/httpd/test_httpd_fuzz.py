"""Row 8: whatever a player sends, out comes a request or a typed error, and the next player is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tipoff_matchmaker_httpd.routes.play_ws import parse_request
from tipoff_shared.errors import Malformed
from tipoff_shared.messages import PlayRequest, encode_request
from tipoff_shared.names import NAME

NAMES = ["game", "version", "client_ip", "request_id", "auth", "ticket", "session", "x", "g\u0061me", ""]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**63, max_value=2**300),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["arena", "1", "*", ">", "a.b", "127.0.0.1", "abcdefghijklmnopqrstuv"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=20,
)
LIKELY = st.fixed_dictionaries(
    {"game": st.one_of(st.just("arena"), SCALARS), "version": st.one_of(st.just("1"), SCALARS)},
    optional=dict.fromkeys(NAMES[2:8], JSON),
)


@st.composite
def damaged(draw: Callable[[Any], Any]) -> str:
    """Almost a request: cut, doubled, or with a character changed."""
    text = json.dumps(draw(LIKELY))
    at = draw(st.integers(0, len(text)))
    return str(
        draw(
            st.sampled_from([text[:at], text[:at] + text, text[:at] + draw(st.characters()) + text[at + 1 :]])
        )
    )


def check(text: str) -> None:
    """The promise of `parse_request`, and that what it lets through can be passed on."""
    try:
        request = parse_request(text)
    except Malformed:
        return
    assert NAME.fullmatch(request.game)
    assert NAME.fullmatch(request.version)
    with contextlib.suppress(RecursionError, OverflowError, ValueError, TypeError):
        encode_request(request)  # `MatchmakerClient.request` makes a typed error of these


@pytest.mark.row(8)
@settings(max_examples=400, deadline=None)
@given(st.one_of(LIKELY.map(json.dumps), JSON.map(json.dumps), damaged(), st.text(max_size=300)))
def test_hostile_text_is_a_request_or_malformed(text: str) -> None:
    """A few hundred cases; the slow test has ten thousand."""
    check(text)


@pytest.mark.row(8)
@pytest.mark.slow
@pytest.mark.timeout(240)  # ten thousand cases; a busy machine takes over a minute
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(LIKELY.map(json.dumps), JSON.map(json.dumps), damaged(), st.text(max_size=300)))
def test_hostile_text_is_a_request_or_malformed_in_many_cases(text: str) -> None:
    """Ten thousand cases."""
    check(text)


@pytest.mark.row(8)
@pytest.mark.parametrize("depth", [1, 100, 700, 1000, 2000])
def test_depth_is_no_weapon(depth: int) -> None:
    """Brackets in a member that is passed on, and in one that is not."""
    for member in ("auth", "x"):
        for value in ('{"a":' * (depth // 2) + "{}" + "}" * (depth // 2), "[" * depth + "]" * depth):
            check(f'{{"game":"arena","version":"1","{member}":{value}}}')


@pytest.mark.row(8)
def test_a_key_that_stands_twice_is_refused() -> None:
    """Readers of JSON disagree which one counts."""
    for text in (
        '{"game":"arena","version":"1","game":"arena"}',
        '{"game":"arena","version":"1","g\\u0061me":"arena"}',
        '{"game":"arena","version":"1","auth":{"user":"a","user":"b"}}',
    ):
        with pytest.raises(Malformed):
            parse_request(text)


def hostile_frames(chance: random.Random) -> list[str | bytes]:
    """What one player sends: mostly one message, now and then several."""
    pool: list[str | bytes] = [
        msgspec.json.encode(PlayRequest("arena", "1")).decode(),
        f'{{"game":"arena","version":"1","auth":{{"n":{2 ** chance.choice([1, 63, 64, 200, 3000])}}}}}',
        '{"game":"arena","version":"1","auth":' + '{"a":' * 500 + "{}" + "}" * 500 + "}",
        '{"game":"' + chance.choice('*>. \\"/') * chance.randrange(40) + '","version":"1"}',
        '{"game":"arena","version":"1","auth":{"t":"\\ud800"}}',
        "[" * chance.randrange(4000),
        "{" * chance.randrange(4000),
        '"' + "x" * chance.randrange(4094),
        "1e" + "9" * chance.randrange(100),
        chance.randbytes(chance.randrange(4000)),
        "".join(chr(chance.randrange(32, 0xD000)) for _ in range(chance.randrange(300))),
    ]
    return [chance.choice(pool) for _ in range(chance.choice([1, 1, 1, 2, 40]))]


async def storm(httpd: Any, ask: Any, seed: int, count: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    limit = asyncio.Semaphore(20)

    async def one() -> None:
        async with limit:
            frames = hostile_frames(chance)
            got = await ask(httpd, *frames)
            assert got.code in (1000, 1008, 1009), (frames, got.messages, got.code)
            if got.code == 1000 or len(frames) == 1:
                assert got.messages, frames
                last = got.messages[-1]
                assert isinstance(last, dict), (frames, got.messages)
                assert last.keys() <= {"SessionReady", "Error"}, (frames, got.messages)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())


@pytest.mark.row(8)
async def test_hostile_players_get_typed_errors(
    start: Any, ask: Any, matchmaker: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the real server; nothing is left of them, nothing is logged as an error."""
    # The clients run in this loop, too, and may be late to say something.
    httpd = await start()
    await storm(httpd, ask, int(os.environ.get("FUZZ_SEED", random.randrange(2**32))), 300)
    await eventually(lambda: httpd.state.limits.inside == 0 and not httpd.state.client.pending)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert (await ask(httpd)).code == 1000


@pytest.mark.row(8)
@pytest.mark.slow
@pytest.mark.timeout(240)  # ten thousand cases; a busy machine takes over a minute
@pytest.mark.timeout(300)
async def test_ten_thousand_hostile_players(start: Any, ask: Any, matchmaker: Any, eventually: Any) -> None:
    """The same, at the size of the catalogue."""
    httpd = await start()
    await storm(httpd, ask, random.randrange(2**32), 10_000)
    await eventually(lambda: httpd.state.limits.inside == 0 and not httpd.state.client.pending)
    assert (await ask(httpd)).code == 1000
