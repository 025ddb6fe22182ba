"""The client's rules, one by one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import pytest

from tipoff_shared.netcode import Address, Client, ClientState, InvalidPayload, Payload
from tipoff_shared.netcode.constants import DENIED, KEEP_ALIVE, PAYLOAD
from tipoff_shared.netcode.packet import TO_SERVER, PacketReader, PacketWriter, cipher

if TYPE_CHECKING:
    from conftest import World

S = ClientState


def seal(world: World, token_key: bytes, kind: int, sequence: int, body: bytes) -> bytes:
    """A packet as the server would make it."""
    return PacketWriter(world.protocol_id).write(cipher(token_key).encrypt, kind, sequence, body)


def test_connects_within_two_round_trips(make_world: type[World]) -> None:
    """The challenge is answered at once, nothing waits for a timer."""
    world = make_world(delay=0.05)
    world.start()
    client = world.dial()
    world.net.advance(0.2)
    assert world.states(client) == [S.SENDING_CONNECTION_REQUEST, S.SENDING_CONNECTION_RESPONSE, S.CONNECTED]
    assert (client.client_index, client.max_clients) == (0, 4)


def test_unreadable_token_is_a_state_not_an_exception() -> None:
    """-5, with the reason, and nothing is sent or timed."""
    client = Client(bytes(2048), now=0.0)
    assert client.state is S.INVALID_CONNECT_TOKEN
    assert "NETCODE 1.02" in str(client.failure)
    client.update(1.0)
    client.disconnect(1.0)
    client.receive_datagram(b"x" * 26, Address("127.0.0.1", 1), 1.0)
    assert client.rtt is None
    assert client.next_timeout() == math.inf
    assert client.datagrams_to_send() == []


def test_requests_ten_times_a_second(world: World) -> None:
    """Until the timeout, and not a spin more."""
    world.net.detach(world.home)
    client = world.dial(world.token(timeout=1))
    world.net.advance(5.0)
    assert client.state is S.CONNECTION_REQUEST_TIMED_OUT
    assert "192.0.2.1:40000" in str(client.failure)
    assert len(world.net.sent) in (10, 11)  # ten tenths do not add up to exactly one


def test_silence_after_the_challenge_is_another_failure(world: World) -> None:
    """-3: the server is there, but does not take the response."""
    token = world.token(timeout=1)
    client = world.dial(token)
    (challenge,) = world.raw_request(token)
    world.net.detach(world.home)
    client.receive_datagram(challenge[0], world.home, 0.0)
    world.net.advance(2.0)
    assert client.state is S.CONNECTION_RESPONSE_TIMED_OUT


def test_connected_client_times_out_without_dialling_on(world: World) -> None:
    """-4, even when the token names more servers."""
    token = world.token(timeout=1, public_addresses=[world.home, Address("192.0.2.9", 1)])
    client = world.join(token=token)
    world.net.detach(world.home)
    world.net.advance(2.0)
    assert client.state is S.CONNECTION_TIMED_OUT
    assert not any(datagram.target.host == "192.0.2.9" for datagram in world.net.sent)


def test_token_without_timeout_waits_for_ever(world: World) -> None:
    """A connected client with timeout -1 survives any silence; a connecting one ends with its lifetime."""
    client = world.join(token=world.token(timeout=-1))
    world.net.detach(world.home)
    world.net.advance(120.0)
    assert client.state is S.CONNECTED
    waiting = world.dial(world.token(timeout=-1, lifetime=30), number=2)
    world.net.advance(29.9)
    assert waiting.state is S.SENDING_CONNECTION_REQUEST
    world.net.advance(0.2)
    assert waiting.state is S.CONNECT_TOKEN_EXPIRED


def test_lifetime_covers_all_addresses_together(world: World) -> None:
    """The standard's rule; the reference starts anew at each address."""
    nobody = [Address("192.0.2.9", port) for port in range(1, 6)]
    client = world.dial(world.token(timeout=2, lifetime=5, public_addresses=nobody))
    world.net.advance(4.9)
    assert client.server_address == nobody[2]
    world.net.advance(0.2)
    assert client.state is S.CONNECT_TOKEN_EXPIRED


def test_lifetime_is_judged_before_a_denial(world: World) -> None:
    """A denial that comes too late is not the reason."""
    token = world.token(timeout=-1, lifetime=1, public_addresses=[world.home, Address("192.0.2.9", 1)])
    client = Client(token, now=0.0)
    client.receive_datagram(seal(world, token.server_to_client_key, DENIED, 2**63, b""), world.home, 1.0)
    assert client.state is S.CONNECT_TOKEN_EXPIRED


def test_second_address_is_dialled_when_the_first_is_silent_or_denies(world: World) -> None:
    """Sequence numbers go on, because the key stays the same."""
    token = world.token(timeout=1, public_addresses=[Address("192.0.2.9", 1), world.home])
    client = world.dial(token)
    world.net.advance(2.0)
    assert client.state is S.CONNECTED
    assert world.states(client).count(S.SENDING_CONNECTION_REQUEST) == 2
    reader, key = PacketReader(world.protocol_id, TO_SERVER), cipher(token.client_to_server_key)
    sent = [datagram.data for datagram in world.net.sent if datagram.source == world.address()]
    for number, data in enumerate(sent):
        packet = reader.read(data, key.decrypt, None)
        assert packet is None or packet[1] == number


def test_denied_by_the_last_address_is_final(world: World) -> None:
    """-1, and nothing is sent any more."""
    world.start(max_clients=1)
    world.join(1)
    late = world.dial(number=2)
    world.net.advance(1.0)
    assert late.state is S.CONNECTION_DENIED
    assert sum(datagram.source == world.address(2) for datagram in world.net.sent) == 1


def test_only_the_dialled_server_is_heard(world: World) -> None:
    """An authentic packet from another address is nothing."""
    client = world.join()
    client.events()
    world.server.send(0, b"hello", world.net.now)
    packets = [data for data, _ in world.server.datagrams_to_send()]
    for data in packets:
        client.receive_datagram(data, Address("192.0.2.1", 40001), world.net.now)
        client.receive_datagram(data, Address("192.0.2.2", 40000), world.net.now)
    assert client.events() == []
    for data in packets:
        client.receive_datagram(data, world.home, world.net.now)
    assert world.payloads(client) == [b"hello"]


def test_server_named_by_a_mapped_address_is_heard_through_a_dual_stack_socket(world: World) -> None:
    """from_socket shows it as IPv4."""
    mapped = Address("::ffff:192.0.2.1", 40000)
    token = world.token(public_addresses=[mapped], internal_addresses=[world.home])
    client = Client(token, now=0.0)
    assert client.datagrams_to_send() == [(token.request_packet(), mapped)]
    (challenge,) = world.raw_request(token)
    client.receive_datagram(challenge[0], Address.from_socket(("::ffff:192.0.2.1", 40000, 0, 0)), 0.0)
    assert client.state is S.SENDING_CONNECTION_RESPONSE


def test_payload_before_connected_is_discarded(world: World) -> None:
    """Only the keep-alive says that we are in."""
    token = world.token()
    client = Client(token, now=0.0)
    early = seal(world, token.server_to_client_key, PAYLOAD, 1, b"early")
    client.receive_datagram(early, world.home, 0.0)
    assert client.state is S.SENDING_CONNECTION_REQUEST
    assert world.payloads(client) == []


def test_keep_alive_before_the_challenge_is_ignored(world: World) -> None:
    """A client that has not answered a challenge cannot be connected."""
    token = world.token()
    client = Client(token, now=0.0)
    packet = seal(world, token.server_to_client_key, KEEP_ALIVE, 0, bytes(8))
    client.receive_datagram(packet, world.home, 0.0)
    assert client.state is S.SENDING_CONNECTION_REQUEST


def test_payloads_are_taken_once(world: World) -> None:
    """The network may repeat what it likes."""
    client = world.join()
    client.events()
    world.server.send(0, b"once", world.net.now)
    for data, _ in world.server.datagrams_to_send() * 3:
        client.receive_datagram(data, world.home, world.net.now)
    (event,) = client.events()
    assert isinstance(event, Payload)
    assert (event.index, event.data) == (client.client_index, b"once")


def test_payload_queue_is_bounded(world: World) -> None:
    """256 between two looks, newer ones are dropped and counted."""
    client = world.join()
    client.events()
    for number in range(300):
        world.server.send(0, bytes([number % 256]), world.net.now)
    for data, _ in world.server.datagrams_to_send():
        client.receive_datagram(data, world.home, world.net.now)
    assert world.payloads(client) == [bytes([number]) for number in range(256)]
    assert client.payloads_dropped == 44


def test_disconnect_says_so_ten_times(world: World) -> None:
    """Each with its own number; the state is final and nothing is sent after it."""
    client = world.join()
    client.disconnect(world.net.now)
    assert len(set(client.datagrams_to_send())) == 10
    assert client.state is S.DISCONNECTED
    assert client.failure is None
    assert not client.send(b"x", world.net.now)
    client.disconnect(world.net.now)
    assert client.datagrams_to_send() == []


def test_server_s_disconnect_ends_it(world: World) -> None:
    """State 0 with a reason, and no next address."""
    client = world.join(token=world.token(public_addresses=[world.home, Address("192.0.2.9", 1)]))
    world.server.disconnect(0, world.net.now)
    world.net.advance(0.1)
    assert client.state is S.DISCONNECTED
    assert "closed the connection" in str(client.failure)


def test_send_says_whether_it_sent(world: World) -> None:
    """Not connected: False. No payload, or too much of it: a mistake of the program."""
    client = world.dial()
    assert not client.send(b"x", 0.0)
    world.net.advance(0.1)
    assert client.send(bytes(1200), world.net.now)
    for bad in (b"", bytes(1201)):
        with pytest.raises(InvalidPayload):
            client.send(bad, world.net.now)


def test_second_try_with_one_token_goes_on_counting(world: World) -> None:
    """Otherwise both tries would encrypt with the same nonces."""
    token = world.token()
    first = Client(token, now=0.0)
    first.disconnect(0.0)
    second = Client(token, now=1.0, first_sequence=first.next_sequence)
    assert first.next_sequence == 11
    second.disconnect(1.0)
    assert set(first.datagrams_to_send()[1:]).isdisjoint(second.datagrams_to_send()[1:])


def test_public_token_s_timeout_counts_for_the_client(world: World) -> None:
    """It cannot read the private one."""
    token = msgspec.structs.replace(world.token(timeout=15), timeout_seconds=1)
    world.net.detach(world.home)
    client = world.dial(token.encode())
    world.net.advance(1.1)
    assert client.state is S.CONNECTION_REQUEST_TIMED_OUT
