"""What a game server of the isolated profile has still to tell, whatever happens while it tells."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from tipoff_gameserver.presence.events import EventPresence
from tipoff_shared.errors import Unavailable
from tipoff_shared.event_stream import create_event_stream
from tipoff_shared.messages import Transports
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import Command, GameserverLease, LeaseState
from tipoff_shared.server_events import MAX_CHANGES, EventKey, Goodbye, Lease, Players, unseal
from tipoff_shared.settings import NatsSettings

KEY = EventKey(bytes(32))


def presence(settings: NatsSettings | None = None) -> EventPresence:
    return EventPresence(settings or NatsSettings(), "d1", "b1", KEY, announcement={})


def lease() -> GameserverLease:
    return GameserverLease("d1", "b1", "arena", "1", LeaseState.READY, Transports(), 4)


def ignore(command: Command) -> None:
    pass


sessions = st.sampled_from(["s1", "s2", "s3"])
steps = st.one_of(
    st.tuples(st.just("joined"), sessions),
    st.tuples(st.just("left"), sessions),
    st.tuples(st.sampled_from(["send", "arrive", "arrive, but no answer", "back"]), st.none()),
)


@example(steps=[("left", "s1"), ("send", None), ("joined", "s1"), ("left", "s1")])
@given(st.lists(steps, max_size=40))
def test_whoever_hears_all_events_knows_who_is_there(steps: list[tuple[str, str | None]]) -> None:
    """Joins, leaves, events that arrive once, twice or late: in the end the hearer's picture is the truth, and
    whoever has ever been there was heard of."""
    told = presence()
    heard: set[str] = set()
    heard_of: set[str] = set()
    been_here: set[str] = set()
    here: set[str] = set()
    sent: Players | None = None

    def arrives(players: Players) -> None:
        heard.update(players.joined)
        heard.difference_update(players.left)
        heard_of.update(players.joined)

    for step, session in (*steps, ("arrive", None), ("send", None), ("arrive", None)):
        if step == "joined" and session is not None:
            told.joined(session, 7)
            here.add(session)
            been_here.add(session)
        elif step == "left" and session is not None:
            told.left(session)
            here.discard(session)
        elif step == "back":
            told._nats_is_back()
        elif step == "send" and sent is None and told._unsure:
            sent = told._players()
        elif step.startswith("arrive") and sent is not None:
            arrives(sent)
            if step == "arrive":
                told._told(sent)
                sent = None
    assert heard == here
    assert heard_of >= been_here
    assert told._settled.is_set()
    assert not told._visitors


def test_one_event_tells_of_so_many_and_the_next_of_the_rest() -> None:
    told = presence()
    for number in range(MAX_CHANGES + 10):
        told.joined(f"s{number}", number)
    seen: dict[str, str] = {}
    while told._unsure:
        players = told._players()
        assert len(players.joined) + len(players.left) <= MAX_CHANGES
        seen |= players.joined
        told._told(players)
    assert len(seen) == MAX_CHANGES + 10


@pytest.fixture
async def stream(nats: Bus) -> Bus:
    await create_event_stream(nats)
    return nats


async def test_an_event_is_sent_again_until_the_stream_has_it_and_is_there_once(
    settings: NatsSettings, nats: Bus
) -> None:
    """No stream yet: it waits. An answer that is lost: the second one is the same event, and not kept twice."""
    told = presence(settings)
    await told.start(lease, ignore)
    assert not await told.announce(0.3)
    await create_event_stream(nats)
    told._back.set()
    assert await told.announce(5)
    lost = 0
    real = told._send

    async def send(*args: object) -> str:
        nonlocal lost
        answer = await real(*args)  # type: ignore[arg-type]  # as it was called
        if lost < 2:
            lost += 1
            asyncio.get_running_loop().call_soon(told._back.set)  # it need not wait before it tries again
            return "the answer got lost"
        return answer

    told._send = send  # type: ignore[method-assign]  # between it and the stream
    told.joined("s1", 1)
    await told.close(keep_lease=False)
    events = [unseal(KEY, "d1", msg.data, msg.headers) for msg in await _all_events(nats)]
    assert lost == 2
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert isinstance(events[-1].what, Goodbye)
    assert isinstance(events[0].what, Lease)
    assert sum(isinstance(event.what, Players) for event in events) <= 2


async def test_it_closes_at_once_whenever_that_is(settings: NatsSettings, stream: Bus) -> None:
    """Also in the middle of connecting or of the first events."""
    for delay in (0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01):
        told = presence(settings)
        await told.start(lease, ignore)
        told.joined("s1", 1)
        await asyncio.sleep(delay)
        async with asyncio.timeout(1.5):
            await told.close(keep_lease=False)


async def _all_events(bus: Bus) -> list[Msg]:
    sub = await bus.js.pull_subscribe("", durable="all", stream=bus.subjects.events_stream)
    try:
        return await sub.fetch(100, timeout=0.2)
    except TimeoutError as exc:
        raise Unavailable("no events") from exc
