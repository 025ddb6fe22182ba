"""Hostile datagrams (catalogue rows 50 and 51): no answer, no crash, nobody disturbed, nothing amplified."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_shared.netcode import Client, Decision, Denial, DenyReason, Dialect
from tipoff_shared.netcode.constants import (
    CHALLENGE,
    DENIED,
    DISCONNECT,
    FRAME,
    KEEP_ALIVE,
    PAYLOAD,
    RESPONSE,
)
from tipoff_shared.netcode.packet import PacketWriter, cipher

if TYPE_CHECKING:
    from conftest import World

    from tipoff_shared.netcode import Address

SEED = 20_261_120


class Target:
    """A server with a connected client and a half-connected one, and clients in every state, all known to be quiet."""

    def __init__(self, make_world: type[World], dialect: Dialect) -> None:
        self.world = world = make_world(dialect)
        world.start(answer_keep_alives=True, framing=True)
        tokens = {number: world.token(number) for number in (1, 2, 3, 4, 5)}
        now = world.net.now
        connected = world.join(1, tokens[1], framing=True)
        world.raw_request(tokens[2], 2)
        requesting = Client(tokens[3], now=now)
        responding = Client(tokens[4], now=now)
        responding.receive_datagram(world.raw_request(tokens[4], 4)[0][0], world.home, now)
        self.clients = [connected, requesting, responding]
        assert [int(client.state) for client in self.clients] == [3, 1, 2]
        # Datagrams that would be good: recorded ones, a request, and every kind of packet under every key.
        self.corpus = [datagram.data for datagram in world.net.sent] + [tokens[5].request_packet()]
        writer = PacketWriter(world.protocol_id)
        bodies = {1: b"", 2: bytes(308), 3: bytes(308), 4: bytes(8), 5: b"payload", 6: b"", 7: b"frame"}
        for token in tokens.values():
            for key in (token.client_to_server_key, token.server_to_client_key):
                encrypt = cipher(key).encrypt
                self.corpus += [
                    writer.write(encrypt, kind, 1000 + kind, body) for kind, body in bodies.items()
                ]
        self.quiet()

    def quiet(self) -> bool:
        """Nothing was sent and nothing happened since the last look."""
        seen = self.world.server.datagrams_to_send() + self.world.server.events()  # type: ignore[operator]
        for client in self.clients:
            seen += client.datagrams_to_send() + client.events()
        return not seen

    def hit(self, data: bytes, source: Address) -> None:
        now = self.world.net.now
        self.world.server.receive_datagram(data, source, now)
        for client in self.clients:
            client.receive_datagram(data, self.world.home, now)


def hostile(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Random bytes; or a good datagram with flipped bits, cut off, or with something behind it."""
    way = rng.randrange(5)
    if way == 0:
        return rng.randbytes(rng.choice([0, 1, 17, 18, 26, 333, 1078, 1225, 1301, rng.randrange(1400)]))
    data = bytearray(rng.choice(corpus))
    if way == 1:
        return bytes(data[: rng.randrange(len(data))])
    if way == 2:
        return bytes(data) + rng.randbytes(rng.randrange(1, 40))
    for _ in range(1 if way == 3 else rng.randrange(1, 9)):
        position = rng.randrange(len(data) * 8)
        data[position // 8] ^= 1 << position % 8
    return bytes(data)


def bombard(make_world: type[World], dialect: Dialect, count: int) -> None:
    target = Target(make_world, dialect)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    good = set(target.corpus)
    sources = [target.world.address(number) for number in (1, 2, 4, 77)]
    for _ in range(count):
        data = hostile(rng, target.corpus)
        if data not in good:  # two flips may cancel each other
            target.hit(data, rng.choice(sources))
    assert target.quiet()
    assert target.world.server.is_connected(1)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.row(50)
def test_twenty_thousand_hostile_datagrams_meet_silence(make_world: type[World], dialect: Dialect) -> None:
    """To a server with connected and connecting clients, and to clients in every state."""
    bombard(make_world, dialect, 10_000)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.row(50)
def test_a_million_hostile_datagrams_meet_silence(make_world: type[World], dialect: Dialect) -> None:
    """The same, half a million for each dialect."""
    bombard(make_world, dialect, 500_000)


@given(st.lists(st.binary(max_size=1400), max_size=8), st.sampled_from(Dialect))
@settings(max_examples=60)
def test_any_bytes_meet_silence(make_world: type[World], datagrams: list[bytes], dialect: Dialect) -> None:
    """Hypothesis looks for what the generator above does not think of."""
    target = Target(make_world, dialect)
    for data in datagrams:
        for number in (1, 2, 77):
            target.hit(data, target.world.address(number))
    assert target.quiet()


BODIES = {DENIED: 40, CHALLENGE: 308, RESPONSE: 308, KEEP_ALIVE: 8, PAYLOAD: 60, DISCONNECT: 0, FRAME: 60}
authentic = st.lists(
    st.tuples(st.sampled_from(sorted(BODIES)), st.integers(0, 2**64 - 1) | st.integers(0, 5), st.randoms()),
    max_size=30,
)


@given(authentic, st.sampled_from(Dialect), st.booleans(), st.booleans())
@settings(max_examples=80)
def test_authentic_nonsense_harms_nobody_but_its_sender(
    make_world: type[World],
    packets: list[tuple[int, int, random.Random]],
    dialect: Dialect,
    to_server: bool,
    framing: bool,
) -> None:
    """A peer that holds the keys and sends any packet at any time: no crash, and the neighbour plays on."""
    world = make_world(dialect)
    world.start(answer_keep_alives=True, framing=True)
    token = world.token(1)
    client, neighbour = world.join(1, token, framing=framing), world.join(2)
    victim = Client(world.token(3), now=world.net.now)
    writer = PacketWriter(world.protocol_id)
    key = token.client_to_server_key if to_server else token.server_to_client_key
    for kind, sequence, rng in packets:
        body = rng.randbytes(
            rng.randrange(BODIES[kind] + 1) if kind in (DENIED, PAYLOAD, FRAME) else BODIES[kind]
        )
        data = writer.write(cipher(key).encrypt, kind, sequence, body)
        if to_server:
            world.server.receive_datagram(data, world.address(1), world.net.now)
        else:
            client.receive_datagram(data, world.home, world.net.now)
            victim.receive_datagram(data, world.home, world.net.now)
    world.net.advance(1.0)
    client.send(b"x", world.net.now)
    neighbour.send(b"still here", world.net.now)
    world.net.advance(0.1)
    assert b"still here" in world.payloads(world.server)
    assert world.server.is_connected(2)
    assert int(victim.state) == 1


ANSWERS = [Decision.ADMIT, Decision.PENDING, Decision.IGNORE, Denial(DenyReason.CUSTOM, "x" * 300)]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40),
    st.sampled_from(ANSWERS),
    st.sampled_from(Dialect),
    st.integers(1, 3),
)
@settings(max_examples=80)
@pytest.mark.row(51)
def test_unproven_address_never_gets_as_many_bytes_as_it_sent(
    make_world: type[World],
    steps: list[tuple[int, int, int]],
    answer: Decision | Denial,
    dialect: Dialect,
    max_clients: int,
) -> None:
    """Row 51, for valid tokens from spoofed addresses, repeated at will, whatever the application decides."""
    world = make_world(dialect)
    world.start(max_clients=max_clients, admission=lambda _request: answer)
    tokens = [world.token(number, user_data=b"u" * 256) for number in range(6)]
    bytes_in: dict[Address, int] = {}
    bytes_out: dict[Address, int] = {}
    for which, source, how in steps:
        data = tokens[which].request_packet()
        if how == 1:
            data = data[:-1] + b"\x00"
        elif how == 2:
            encrypt = cipher(tokens[which].client_to_server_key).encrypt
            data = PacketWriter(world.protocol_id).write(encrypt, RESPONSE, 1, bytes(308))
        address = world.address(source)
        bytes_in[address] = bytes_in.get(address, 0) + len(data)
        world.server.receive_datagram(data, address, world.net.now)
        for event in world.server.events():
            world.server.deny(event.id, "no " * 100, world.net.now)  # type: ignore[union-attr]  # only AdmitRequests
        for reply, target in world.server.datagrams_to_send():
            bytes_out[target] = bytes_out.get(target, 0) + len(reply)
    world.server.update(world.net.now + 10)
    assert world.server.datagrams_to_send() == []
    for address, sent in bytes_out.items():
        assert 3 * sent < bytes_in[address]
