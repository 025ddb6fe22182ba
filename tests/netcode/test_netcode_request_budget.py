"""Requests of strangers cost a bounded amount of work, and no address takes what belongs to all."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netcode.conftest import World
from tipoff_shared.netcode import Address, ClientState, DenyReason, Payload, PrivateKey, RequestBudget

pytestmark = pytest.mark.row(72)

RATE = 50_000
STRANGER = PrivateKey(bytes(range(1, 33)))
MILLISECOND = 0.001


def forged(world: World) -> bytes:
    """A request of the right form for this server, sealed with another key."""
    return world.token(99, key=STRANGER).request_packet()


def flood(world: World, sources: list[Address], seconds: float) -> Iterator[None]:
    """`RATE` forged requests a second, from each source in turn; yields after each millisecond."""
    request = forged(world)
    number = 0
    for _ in range(round(seconds / MILLISECOND)):
        for _ in range(round(RATE * MILLISECOND)):
            world.server.receive_datagram(request, sources[number % len(sources)], world.net.now)
            number += 1
        world.net.advance(MILLISECOND)
        yield


def attackers(count: int, *, ipv6: bool = False) -> list[Address]:
    """Addresses of a documentation network; the IPv6 ones are of one /64 each."""
    if ipv6:
        return [Address(f"2001:db8:0:{number:x}::1", 6000) for number in range(count)]
    return [Address(f"203.0.{number // 250}.{1 + number % 250}", 6000) for number in range(count)]


def test_what_is_decrypted_for_strangers_is_bounded(world: World) -> None:
    """Of 50,000 a second about 5,000 are decrypted, the others are dropped unread."""
    for _ in flood(world, attackers(1), 1.0):
        pass
    decrypted = world.server.ignored["WrongKey"]
    assert 4_900 <= decrypted <= 5_600
    assert decrypted + world.server.ignored["over_budget"] == RATE


@pytest.mark.parametrize("sources", [attackers(1), attackers(100), attackers(100, ipv6=True)])
def test_a_player_from_elsewhere_joins_at_once(world: World, sources: list[Address]) -> None:
    """Beside one address that floods, and beside a hundred."""
    for _ in flood(world, sources, 0.2):
        pass
    client = world.dial()
    for _ in flood(world, sources, 0.05):
        pass
    assert client.state is ClientState.CONNECTED


def test_a_flood_from_invented_addresses_delays_a_player_and_keeps_it_out_only_for_seconds(
    world: World,
) -> None:
    """Nothing tells its requests from the others then, but it repeats them."""
    client = world.dial()
    request = forged(world)
    for _ in range(10_000):
        for _ in range(20):
            world.server.receive_datagram(request, Address(_invented(), 6000), world.net.now)
        world.net.advance(MILLISECOND)
        if client.state is ClientState.CONNECTED:
            break
    assert client.state is ClientState.CONNECTED


def _invented() -> str:
    return ".".join(str(part % 223 + 1) for part in os.urandom(4))


def test_connected_players_are_never_counted(world: World) -> None:
    """Each of their packets arrives, however empty the budget is."""
    client = world.join()
    world.server.events()
    sent = []
    for number, _ in enumerate(flood(world, attackers(200), 0.5)):
        client.send(number.to_bytes(2, "big"), world.net.now)
        sent.append(number.to_bytes(2, "big"))
    world.net.advance(0.1)
    assert [event.data for event in world.server.events() if isinstance(event, Payload)][:256] == sent[:256]
    assert world.server.ignored["over_budget"] > 20_000


@pytest.mark.parametrize("fields", [{"protocol_id": 1}, {"now": 1000, "lifetime": 5}])
def test_what_costs_nothing_to_refuse_takes_nothing_of_the_budget(
    world: World, fields: dict[str, int]
) -> None:
    """Requests of another protocol, and expired ones, are told without decrypting."""
    request = world.token(99, **fields).request_packet()
    for _ in range(20_000):
        world.server.receive_datagram(request, attackers(1)[0], world.net.now)
    assert world.server.ignored["over_budget"] == 0
    client = world.dial()
    world.net.advance(0.1)
    assert client.state is ClientState.CONNECTED


# --- answers ----------------------------------------------------------------------------------------------------------


def answers(world: World, request: bytes, seconds: float) -> int:
    """Answers to a request that is sent 10,000 times a second from one address."""
    count = 0
    for _ in range(round(seconds / MILLISECOND)):
        for _ in range(10):
            world.server.receive_datagram(request, world.address(), world.net.now)
        count += len(world.server.datagrams_to_send())
        world.net.advance(MILLISECOND)
    return count


def test_a_request_repeated_without_end_is_answered_twenty_times_a_second(world: World) -> None:
    """It is valid, and each challenge would cost a decryption and two encryptions."""
    assert 18 <= answers(world, world.token().request_packet(), 1.0) <= 20
    assert world.server.ignored["answered_just_now"] > 9_000


def test_so_is_one_that_was_denied(world: World) -> None:
    world.start(manual_admission=True)
    token = world.token()
    world.raw_request(token)
    (request,) = world.server.events()
    world.server.deny(request.id, DenyReason.BANNED, world.net.now)  # type: ignore[union-attr]  # an AdmitRequest
    assert 18 <= answers(world, token.request_packet(), 1.0) <= 21


def test_so_is_one_to_a_full_server(world: World) -> None:
    """Which keeps no handshake of it."""
    world.start(max_clients=1)
    world.join(2)
    assert 18 <= answers(world, world.token().request_packet(), 1.0) <= 20


def test_two_tokens_by_turns_are_answered_no_more_often(world: World) -> None:
    tokens = [world.token().request_packet(), world.token().request_packet()]
    count = 0
    for turn in range(1000):
        world.server.receive_datagram(tokens[turn % 2], world.address(), world.net.now)
        count += len(world.server.datagrams_to_send())
        world.net.advance(MILLISECOND)
    assert count <= 20


# --- the budget itself ------------------------------------------------------------------------------------------------


def test_one_address_may_use_all_that_nobody_else_wants() -> None:
    """Many players behind one address of a carrier's NAT join at the full rate."""
    budget = RequestBudget(rate=5000, burst=500)
    taken = 0
    for millisecond in range(1000):
        for _ in range(10):
            if budget.open_for("203.0.113.1", millisecond / 1000):
                budget.take("203.0.113.1", millisecond / 1000)
                taken += 1
    assert 4_900 <= taken <= 5_500


def test_one_ipv6_network_is_one_address() -> None:
    """A household has 2^64 of them."""
    budget = RequestBudget(rate=1000, burst=100)
    taken = sum(
        1
        for number in range(1000)
        if budget.open_for(f"2001:db8::{number:x}", 0.0) and budget.take(f"2001:db8::{number:x}", 0.0) is None
    )
    assert taken == 50  # the other half is kept for others
    assert budget.open_for("2001:db8:1::1", 0.0)


def test_memory_is_bounded() -> None:
    """Invented addresses push each other out."""
    budget = RequestBudget(rate=1e9, burst=1e9)
    for number in range(20_000):
        budget.take(f"203.{number // 65536}.{number // 256 % 256}.{number % 256}", 0.0)
    assert len(budget) == 8192


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    budget = RequestBudget(rate=1000, burst=10)
    taken = 0
    while budget.open_for(f"203.0.113.{taken}", 5.0):
        budget.take(f"203.0.113.{taken}", 5.0)
        taken += 1
    assert taken == 10
    assert not budget.open_for("198.51.100.1", 5.0)
    assert not budget.open_for("198.51.100.1", 4.0)
    assert budget.open_for("198.51.100.1", 5.002)
