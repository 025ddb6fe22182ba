"""One address that asks and never connects: others get seats, and it pays for what it does not claim."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from tests.matchmaker.world import ARENA, Answers, World, failed
from tipoff_matchmaker.service import Matchmaker
from tipoff_shared.admin import MatchmakerStatus, decode_reply
from tipoff_shared.messages import PlayRequest, ProgressReport, SessionReady, encode_request
from tipoff_shared.names import new_request_id
from tipoff_shared.records import SessionState

GREEDY, VICTIM = "203.0.113.1", "203.0.113.2"
WARM = msgspec.structs.replace(ARENA, min_ready=4, empty_ttl=60)
"""16 seats, so one address may hold 8 before it connects."""
ONE = msgspec.structs.replace(ARENA, seats=1, max_deployments=1, min_ready=1, empty_ttl=60)


class Clock:
    """The time of day, which a test may set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


async def asks(world: World, count: int, address: str = GREEDY) -> list[Answers]:
    return [await world.ask(client_ip=address) for _ in range(count)]


async def ready_ones(answers: list[Answers]) -> list[SessionReady]:
    """The seats among these answers, as soon as no more can come: all others have heard why they wait."""
    found = []
    for one in answers:
        while not isinstance(feedback := await one.next(), SessionReady):
            if isinstance(feedback, ProgressReport) and "at your address" in feedback.text:
                break
        else:
            found.append(feedback)
    return found


@pytest.mark.row(67)
async def test_one_address_never_takes_every_seat(world: World) -> None:
    """It gets its share and then 429 with the reason and when to ask again; others get seats at once meanwhile."""
    async with world.matchmaker(WARM, unclaimed_patience=1) as matchmaker:
        await world.servers_ready(4)
        answers = await asks(world, 12)
        assert len(await ready_ones(answers)) == 8
        began = time.monotonic()
        others = [await world.play() for _ in range(8)]
        assert time.monotonic() - began < 1
        assert len({ready.session_id for ready in others}) == 8
        refusals = [one for one in answers if not isinstance(await one.end(), SessionReady)]
        assert len(refusals) == 4
        for refused in refusals:
            refusal = failed(refused.seen[-1])
            assert refusal.code == 429
            assert "8 players at your address have seats and have not connected yet" in refusal.message
            assert 1 <= float(refused.headers["Retry-After"]) <= 10
        assert (await status(world)).claim_limit.refused == 4
        assert (await status(world)).claim_limit.limited >= 1
        assert _metric(matchmaker, "refused") == 4


@pytest.mark.row(67)
async def test_players_behind_one_address_get_in_as_those_before_them_connect(world: World) -> None:
    """A school behind one address: all 16 get seats, without an error, because each connects."""
    async with world.matchmaker(WARM):
        await world.servers_ready(4)

        async def player() -> SessionReady:
            ready = await world.play(client_ip=GREEDY)
            await world.server_of(ready).connect(ready)
            return ready

        async with asyncio.timeout(8):
            seats = await asyncio.gather(*(player() for _ in range(16)))
        assert len({ready.session_id for ready in seats}) == 16


@pytest.mark.row(67)
async def test_nobody_is_refused_for_what_another_matchmaker_knows_better(world: World) -> None:
    """Two matchmakers that list sessions seldom: who has connected may be known to either of them."""
    async with world.matchmaker(WARM, listing_interval=60), world.matchmaker(WARM, listing_interval=60):
        await world.servers_ready(4)

        async def player() -> None:
            ready = await world.play(client_ip=GREEDY)
            await world.server_of(ready).connect(ready)
            await world.server_of(ready).disconnect(ready)

        async with asyncio.timeout(20):
            for _ in range(4):
                await asyncio.gather(*(player() for _ in range(12)))


@pytest.mark.row(67)
@pytest.mark.parametrize(
    "addresses",
    [[f"2001:db8::{n:x}" for n in range(12)], [f"::ffff:{GREEDY}", GREEDY] * 6],
    ids=["an IPv6 /64", "IPv4 in IPv6"],
)
async def test_another_spelling_of_an_address_is_no_other_address(world: World, addresses: list[str]) -> None:
    """A household has one IPv6 network; a proxy may write IPv4 as IPv6."""
    async with world.matchmaker(WARM, unclaimed_patience=0.1):
        await world.servers_ready(4)
        answers = [await world.ask(client_ip=address) for address in addresses]
        assert len(await ready_ones(answers)) == 8


@pytest.mark.row(67)
@pytest.mark.parametrize("address", [None, "127.0.0.1", "::1", "nonsense"])
async def test_requests_without_an_address_are_not_taken_for_one(world: World, address: str | None) -> None:
    """Programs that ask over NATS by themselves, a proxy on the same machine, bevygap's httpd without an address."""
    async with world.matchmaker(WARM, unclaimed_patience=0.1):
        await world.servers_ready(4)
        payload = encode_request(PlayRequest("arena", "1", client_ip=address))
        answers = [await world.ask(payload=payload) for _ in range(16)]
        for one in answers:
            assert isinstance(await one.end(), SessionReady)


@pytest.mark.row(67)
async def test_gensession_counts_the_address_that_bevygaps_httpd_found(world: World) -> None:
    """It has one answer and no progress; the error is in its headers."""
    async with world.matchmaker(ONE, unclaimed_patience=0.1):
        await world.servers_ready(1)
        ask = b'{"client_ip": "203.0.113.1"}'
        assert not (await world.bus.request(world.bus.subjects.gensession, ask, timeout=5)).headers
        refused = await world.bus.request(world.bus.subjects.gensession, ask, timeout=5)
        assert refused.headers is not None
        assert refused.headers["Nats-Service-Error-Code"] == "429"
        assert float(refused.headers["Retry-After"]) >= 1


@pytest.mark.row(67)
async def test_who_never_claims_holds_for_a_shorter_time_and_others_for_the_usual_one(world: World) -> None:
    """The session's deadline and the token's expiry come down together."""
    clock = Clock()
    async with world.matchmaker(WARM, clock=clock, free_misses=1, lease_ttl=0.2):
        await world.servers_ready(4)
        holds = []
        for _ in range(4):
            ready = await world.play(client_ip=GREEDY)
            record = await world.session(ready.session_id)
            assert record is not None
            holds.append(record.deadline - record.created_at)
            clock.ahead += 70

            async def over(session_id: str = ready.session_id) -> bool:
                after = await world.session(session_id)
                return after is not None and after.state is SessionState.GONE

            await world.eventually(over, "the seat has expired")
        usual = WARM.claim_time
        assert holds == pytest.approx(
            [usual, usual, round(usual / 2), 5], abs=1.05
        )  # tokens count whole seconds
        victim = await world.play(client_ip=VICTIM)
        record = await world.session(victim.session_id)
        assert record is not None
        assert record.deadline - record.created_at == pytest.approx(usual, abs=1.05)
        assert (await status(world)).claim_limit.shortened == 2


@pytest.mark.row(67)
async def test_repeating_a_request_does_not_hold_its_seat_for_ever(world: World) -> None:
    """Each repetition extends the hold, to at most twice the usual time."""
    clock = Clock()
    async with world.matchmaker(ONE, clock=clock, lease_ttl=0.2):
        await world.servers_ready(1)
        request_id = new_request_id()
        began = clock()
        await world.play(client_ip=GREEDY, request_id=request_id)
        while True:
            clock.ahead += 8
            answer = await (await world.ask(client_ip=GREEDY, request_id=request_id, again=True)).end()
            if not isinstance(answer, SessionReady):
                break
            assert clock() - began < 60
        assert failed(answer).code == 409
        clock.ahead += 60
        await world.eventually(lambda: world.seats_are([]), "the seat is free")


@pytest.mark.row(67)
async def test_one_address_does_not_delay_others_by_more_than_a_turn(world: World) -> None:
    """It stands in line twenty times; another one that comes last is the next but one to be served."""
    async with world.matchmaker(ONE):
        holder = await world.play(client_ip="203.0.113.9")
        await world.server_of(holder).connect(holder)
        greedy = await asks(world, 20)
        for one in greedy:
            await one.until(ProgressReport)
        victim = await world.ask(client_ip=VICTIM)
        await victim.until(ProgressReport)
        await world.server_of(holder).disconnect(holder)
        first = await greedy[0].end()
        assert isinstance(first, SessionReady)
        await world.server_of(first).connect(first)
        await world.server_of(first).disconnect(first)
        assert isinstance(await victim.end(), SessionReady)


@pytest.mark.row(67)
async def test_one_address_makes_no_more_servers_start_than_its_share_fills(world: World) -> None:
    """Sixteen requests from one address need two servers of four: eight seats are its share."""
    world.announce = False
    async with world.matchmaker(ARENA) as matchmaker:
        answers = await asks(world, 16)
        for one in answers:
            await one.until(ProgressReport)
        line = matchmaker.parts.lines[ARENA.key]
        assert len(line) == 16
        await world.eventually(lambda: world.ran(2), "two servers run")
        matchmaker.parts.planner.want_all()
        other = await world.ask(client_ip=VICTIM)
        await other.until(ProgressReport)
        await world.eventually(lambda: world.ran(3), "one more for the other address")


@pytest.mark.row(67)
@pytest.mark.slow
async def test_the_victims_wait_is_bounded_while_one_address_floods(world: World) -> None:
    """In one run: players come one after another, without the attacker and with it. It asks at twenty places at once,
    again after each answer, and never connects."""
    async with world.matchmaker(WARM):
        await world.servers_ready(4)
        before = [await _victim(world) for _ in range(20)]
        attack = [asyncio.create_task(_flood(world)) for _ in range(20)]

        async def taken() -> bool:
            return len(await world.seats()) >= 8

        try:
            await world.eventually(taken, "the attacker has its share")
            during = [await _victim(world) for _ in range(20)]
        finally:
            for one in attack:
                one.cancel()
            await asyncio.wait(attack)
        print(f"longest wait: {max(before):.3f} s alone, {max(during):.3f} s beside the attacker")
        assert max(during) < max(1.0, 5 * max(before))


async def _victim(world: World) -> float:
    """Seconds until a player from its own address has a seat; it plays for a moment and leaves."""
    began = time.monotonic()
    ready = await world.play()
    took = time.monotonic() - began
    await world.server_of(ready).connect(ready)
    await world.server_of(ready).disconnect(ready)
    return took


async def _flood(world: World) -> None:
    while True:
        await (await world.ask(client_ip=GREEDY)).end(30)


async def status(world: World) -> MatchmakerStatus:
    msg = await world.bus.request(world.bus.subjects.admin("status"), b"{}", timeout=2)
    return decode_reply(msg.data, MatchmakerStatus)


def _metric(matchmaker: Matchmaker, action: str) -> float | None:
    return matchmaker.parts.metrics.registry.get_sample_value(
        "tipoff_matchmaker_claim_limit_total", {"action": action}
    )
