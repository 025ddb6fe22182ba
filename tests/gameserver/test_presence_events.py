"""Presence in the isolated profile: every change is reported, whatever happens while reporting."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from tests.polling import eventually
from tipoff_gameserver import Context, PrivateKey
from tipoff_gameserver.presence import events, reporter
from tipoff_gameserver.presence.events import EventPresence, PlayerReports
from tipoff_gameserver.presence.reporter import REMEMBERED
from tipoff_shared.errors import Unavailable
from tipoff_shared.event_stream import create_event_stream
from tipoff_shared.messages import Transports
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import Command, GameserverLease, LeaseState
from tipoff_shared.server_events import MAX_CHANGES, EventKey, Goodbye, Lease, Players, unseal
from tipoff_shared.settings import NatsSettings

KEY = EventKey(bytes(32))


def context(nats: NatsSettings) -> Context:
    return Context("d1", "arena", "1", PrivateKey.generate(), 1, nats=nats, event_key=KEY)


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
@example(steps=[("joined", "s1"), ("send", None), ("joined", "s1")])
@example(
    steps=[
        *[("joined", "s1"), ("left", "s1"), ("send", None)],
        *[("joined", "s1"), ("arrive", None), ("left", "s1")],
    ]
)
@example(steps=[("joined", "s1"), ("left", "s1"), ("send", None), ("joined", "s1"), ("left", "s1")])
@given(st.lists(steps, max_size=40))
def test_whoever_hears_all_events_knows_who_is_there(steps: list[tuple[str, str | None]]) -> None:
    """Joins (by one of three client ids), leaves, events that arrive once, twice or late: in the end the hearer's
    picture is the truth, and whoever came while the hearer did not have it was named among those who joined."""
    reports = PlayerReports()
    heard: dict[str, str] = {}
    told: set[str] = set()
    """Who is there by all that was sent, arrived or not."""
    untold: set[str] = set()
    here: dict[str, str] = {}
    sent: Players | None = None

    def arrives(players: Players) -> None:
        heard.update(players.joined)
        for session in players.left:
            heard.pop(session, None)

    for number, (step, session) in enumerate((*steps, ("arrive", None), ("send", None), ("arrive", None))):
        if step == "joined" and session is not None:
            reports.joined(session, number % 3)
            here[session] = str(number % 3)
            if session not in told:
                untold.add(session)
        elif step == "left" and session is not None:
            reports.left(session)
            here.pop(session, None)
        elif step == "back":
            reports.repeat_all()
        elif step == "send" and sent is None and reports.pending:
            sent = reports.next()
            untold.difference_update(sent.joined)
            told = (told | sent.joined.keys()) - set(sent.left)
        elif step.startswith("arrive") and sent is not None:
            arrives(sent)
            if step == "arrive":
                reports.delivered(sent)
                sent = None
    assert heard == here
    assert not untold
    assert not reports.pending
    assert not reports.unreported


def test_one_event_tells_of_so_many_and_the_next_of_the_rest() -> None:
    reports = PlayerReports()
    for number in range(MAX_CHANGES + 10):
        reports.joined(f"s{number}", number)
    seen: dict[str, str] = {}
    while reports.pending:
        players = reports.next()
        assert len(players.joined) + len(players.left) <= MAX_CHANGES
        seen |= players.joined
        reports.delivered(players)
    assert len(seen) == MAX_CHANGES + 10


def test_so_many_who_left_are_told_of_again_and_no_more() -> None:
    """The latest; who is here counts besides."""
    reports = PlayerReports()
    reports.joined("here", 1)
    for number in range(REMEMBERED + 10):
        reports.left(f"s{number}")
    while reports.pending:
        reports.delivered(reports.next())
    reports.repeat_all()
    assert list(reports.pending) == ["here", *(f"s{number}" for number in range(10, REMEMBERED + 10))]


async def test_an_event_is_sent_again_until_the_stream_has_it_and_is_there_once(
    settings: NatsSettings, nats: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody hears it and answers nothing, or there is no stream yet: it waits. An answer that is lost: the second
    one is the same event, and not kept twice. Trouble is logged once."""
    caplog.set_level("INFO")
    monkeypatch.setattr(reporter, "RETRY", 0.01)
    monkeypatch.setattr(events, "WRITE_TIMEOUT", 0.05)
    heard = asyncio.Event()

    async def silent(msg: Msg) -> None:
        heard.set()

    listening = await nats.subscribe(nats.subjects.events("d1"), silent)
    await nats.flush()
    presence = EventPresence(context(settings), "b1")
    await presence.start(lease, ignore)
    await heard.wait()
    await listening.unsubscribe()
    assert not await presence.announce(0.2)
    monkeypatch.setattr(events, "WRITE_TIMEOUT", 20)
    await create_event_stream(nats)
    for _ in range(2):
        assert await presence.announce(20)
    assert caplog.text.count("an event is not stored") == caplog.text.count("events are stored again") == 1
    lost, real = 0, events.refusal

    def refusal(data: bytes) -> str:
        nonlocal lost
        said = real(data)
        if lost < 2 and not said:
            lost += 1
            return "the answer got lost"
        return said

    monkeypatch.setattr(events, "refusal", refusal)
    presence.joined("s1", 1)
    await presence.close(keep_lease=False)
    sent = [unseal(KEY, "d1", msg.data, msg.headers) for msg in await _all_events(nats)]
    assert lost == 2
    assert [event.seq for event in sent] == sorted({event.seq for event in sent})
    assert [event for event in sent if isinstance(event.what, Goodbye)] == sent[-1:]
    assert isinstance(sent[0].what, Lease)
    assert sum(isinstance(event.what, Players) for event in sent) <= 2


async def test_what_is_to_be_repeated_is_repeated_before_the_end(settings: NatsSettings, nats: Bus) -> None:
    """NATS is back, may have lost who left, and the server ends in the same moment."""
    await create_event_stream(nats)
    presence = EventPresence(context(settings), "b1")
    await presence.start(lease, ignore)
    presence.joined("s1", 1)
    presence.left("s1")
    leaves = 0

    async def told_of_leaves(count: int) -> bool:
        nonlocal leaves
        for msg in await _all_events(nats):
            what = unseal(KEY, "d1", msg.data, msg.headers).what
            leaves += isinstance(what, Players) and what.left == ["s1"]
        return leaves == count

    await eventually(lambda: told_of_leaves(1), "it is told that s1 left", unready=(Unavailable,))
    presence.resync()
    await presence.close(keep_lease=True)
    assert await told_of_leaves(2)


async def _all_events(bus: Bus) -> list[Msg]:
    sub = await bus.js.pull_subscribe("", durable="all", stream=bus.subjects.events_stream)
    try:
        return await sub.fetch(100, timeout=0.2)
    except TimeoutError as exc:
        raise Unavailable("no events") from exc
