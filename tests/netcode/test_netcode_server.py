"""The server's rules: slots, keep-alives, timeouts, bounds; and catalogue rows 52 to 55."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import pytest

from tipoff_shared.netcode import (
    Address,
    ClientState,
    Connected,
    Disconnected,
    DisconnectReason,
    Frame,
    InvalidPayload,
    NetcodeError,
    Payload,
    PrivateKey,
    UsedTokens,
)
from tipoff_shared.netcode.constants import CHALLENGE, DENIED, DISCONNECT, KEEP_ALIVE, PAYLOAD, RESPONSE
from tipoff_shared.netcode.packet import TO_CLIENT, PacketReader, PacketWriter, cipher

if TYPE_CHECKING:
    from conftest import World

    from tipoff_shared.netcode import ConnectToken

S = ClientState


def kinds(world: World, token: ConnectToken, datagrams: list[tuple[bytes, Address]]) -> list[tuple[int, int]]:
    """Type and sequence number of what the server sent to this token's client."""
    reader = PacketReader(world.protocol_id, TO_CLIENT, world.dialect)
    decrypt = cipher(token.server_to_client_key).decrypt
    found = [reader.read(data, decrypt, None) for data, _ in datagrams]
    return [(packet[0], packet[1]) for packet in found if packet is not None]


def opened(world: World, token: ConnectToken, datagram: bytes) -> bytes:
    """The body of what the server sent to this token's client."""
    packet = PacketReader(world.protocol_id, TO_CLIENT, world.dialect).read(
        datagram, cipher(token.server_to_client_key).decrypt, None
    )
    assert packet is not None
    return packet[2]


def seal(world: World, token: ConnectToken, kind: int, sequence: int, body: bytes) -> bytes:
    """A packet as this token's client would make it."""
    encrypt = cipher(token.client_to_server_key).encrypt
    return PacketWriter(world.protocol_id).write(encrypt, kind, sequence, body)


def challenge_body(world: World, token: ConnectToken, number: int = 1) -> bytes:
    """What a client echoes in its response."""
    ((data, _),) = world.raw_request(token, number)
    packet = PacketReader(world.protocol_id, TO_CLIENT).read(
        data, cipher(token.server_to_client_key).decrypt, None
    )
    assert packet is not None
    assert packet[0] == CHALLENGE
    return packet[2]


# --- slots -----------------------------------------------------------------------------------------------------------


def test_clients_get_the_lowest_free_slots(world: World) -> None:
    """And a freed one is taken again at once."""
    clients = [world.join(number) for number in (1, 2, 3)]
    assert [client.client_index for client in clients] == [0, 1, 2]
    clients[1].disconnect(world.net.now)
    world.net.advance(0.1)
    assert world.join(4).client_index == 1
    assert [entry.client_id for entry in world.server.clients()] == [1, 4, 3]


def test_who_came_and_went_is_told(world: World) -> None:
    """With the token's user data, and why they left."""
    leaver = world.join(1, world.token(1, user_data=b"session one"))
    world.join(2, world.token(2, timeout=1))
    world.join(3)
    leaver.disconnect(world.net.now)
    world.net.detach(world.address(2))
    world.net.advance(2.0)
    world.server.disconnect(2, world.net.now)
    events = [event for event in world.server.events() if not isinstance(event, Payload)]
    assert isinstance(events[0], Connected)
    assert events[0].user_data == b"session one".ljust(256, b"\0")
    assert events[0].address == world.address(1)
    assert [
        (event.index, event.client_id, event.reason) for event in events if isinstance(event, Disconnected)
    ] == [
        (0, 1, DisconnectReason.BY_CLIENT),
        (1, 2, DisconnectReason.TIMED_OUT),
        (2, 3, DisconnectReason.BY_SERVER),
    ]
    assert world.server.connected_count == 0


def test_idle_client_hears_ten_keep_alives_a_second(world: World) -> None:
    """So that it does not time out."""
    token = world.token()
    world.join(token=token)
    world.net.sent.clear()
    world.net.advance(1.0)
    to_client = [(d.data, d.target) for d in world.net.sent if d.source == world.home]
    assert {kind for kind, _ in kinds(world, token, to_client)} == {KEEP_ALIVE}
    assert len(to_client) in (9, 10, 11)


def test_payload_to_an_unconfirmed_client_follows_a_keep_alive(world: World) -> None:
    """Every time until the client has said something: the first keep-alive may have been lost."""
    token = world.token()
    body = challenge_body(world, token)
    world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(), 0.0)
    for _ in range(2):
        world.server.send(0, b"hello", 0.0)
    expected = [KEEP_ALIVE, KEEP_ALIVE, PAYLOAD, KEEP_ALIVE, PAYLOAD]
    assert [kind for kind, _ in kinds(world, token, world.server.datagrams_to_send())] == expected
    world.server.receive_datagram(seal(world, token, PAYLOAD, 2, b"hi"), world.address(), 0.0)
    world.server.send(0, b"hello", 0.0)
    assert kinds(world, token, world.server.datagrams_to_send()) == [(PAYLOAD, 5)]


def test_repeated_response_of_a_connected_client_is_ignored(world: World) -> None:
    """It learns its index from the next keep-alive."""
    token = world.token()
    body = challenge_body(world, token)
    for sequence in (1, 2, 3):
        world.server.receive_datagram(seal(world, token, RESPONSE, sequence, body), world.address(), 0.0)
    assert kinds(world, token, world.server.datagrams_to_send()) == [(KEEP_ALIVE, 0)]
    assert len(world.server.events()) == 1


def test_kick_and_stop_say_so_ten_times(world: World) -> None:
    """Each packet may be lost; then everything is forgotten."""
    tokens = [world.token(1), world.token(2)]
    for number, token in enumerate(tokens, start=1):
        world.join(number, token)
    world.raw_request(world.token(3), 3)
    world.server.disconnect(0, world.net.now)
    out = world.server.datagrams_to_send()
    sequences = [sequence for kind, sequence in kinds(world, tokens[0], out) if kind == DISCONNECT]
    assert sequences == list(range(sequences[0], sequences[0] + 10))
    world.server.stop(world.net.now)
    out = world.server.datagrams_to_send()
    assert [kind for kind, _ in kinds(world, tokens[1], out)] == [DISCONNECT] * 10
    assert world.server.next_timeout() == math.inf
    assert not world.server.disconnect(0, world.net.now)


def test_send_says_whether_it_sent(world: World) -> None:
    """Nobody there: False, also for an index that never was. No payload or too much: a mistake of the program."""
    world.join()
    assert world.server.send(0, bytes(1200), world.net.now)
    assert not world.server.send(1, b"x", world.net.now)
    assert not world.server.send(-1, b"x", world.net.now)
    for bad in (b"", bytes(1201)):
        with pytest.raises(InvalidPayload):
            world.server.send(0, bad, world.net.now)


def test_payload_queue_is_bounded_for_each_client(world: World) -> None:
    """256 between two looks; who floods loses his own packets, not his neighbours'."""
    flooder, neighbour = world.join(1), world.join(2)
    world.server.events()
    for _ in range(300):
        flooder.send(b"flood", world.net.now)
    neighbour.send(b"hello", world.net.now)
    world.net.advance(0.0)
    received = world.payloads(world.server)
    assert (received.count(b"flood"), received.count(b"hello")) == (256, 1)
    assert world.server.payloads_dropped == 44
    flooder.send(b"again", world.net.now)
    world.net.advance(0.0)
    assert world.payloads(world.server) == [b"again"]


def test_keep_alives_are_answered_only_if_asked_for(world: World) -> None:
    """At once, one for one, and only authentic new ones."""
    for answers in (False, True):
        world.start(answer_keep_alives=answers)
        token = world.token()
        body = challenge_body(world, token)
        world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(), 0.0)
        world.server.datagrams_to_send()
        probe = seal(world, token, KEEP_ALIVE, 2, bytes(8))
        world.server.receive_datagram(probe[:-1] + b"\0", world.address(), 0.0)
        for _ in range(3):
            world.server.receive_datagram(probe, world.address(), 0.0)
        assert len(kinds(world, token, world.server.datagrams_to_send())) == int(answers)


@pytest.mark.parametrize(
    ("body", "repeated"),
    [
        (bytes(8), False),
        (b"\1\0\0\0\4\0\0\0", False),
        (b"\xff" * 7 + b"\x7f", False),
        (b"\0" * 7 + b"\x80", True),
    ],
    ids=["zeros of the reference", "index and maximum", "the highest that is no nonce", "a nonce"],
)
def test_only_a_nonce_is_repeated_in_the_answer(world: World, body: bytes, repeated: bool) -> None:
    world.start(answer_keep_alives=True)
    token = world.token()
    response = seal(world, token, RESPONSE, 1, challenge_body(world, token))
    world.server.receive_datagram(response, world.address(), 0.0)
    world.server.datagrams_to_send()
    world.server.receive_datagram(seal(world, token, KEEP_ALIVE, 2, body), world.address(), 0.0)
    ((answer, _),) = world.server.datagrams_to_send()
    assert (opened(world, token, answer) == body) is repeated


def test_server_without_timeout_keeps_the_silent(world: World) -> None:
    """A token's timeout of -1 means what it says."""
    world.join(token=world.token(timeout=-1))
    world.net.detach(world.address())
    world.net.advance(300.0)
    assert world.server.connected_count == 1


def test_half_way_handshakes_are_forgotten(world: World) -> None:
    """After the token's timeout, or 15 s where it has none."""
    world.raw_request(world.token(1, timeout=3), 1)
    body_token = world.token(2, timeout=-1)
    body = challenge_body(world, body_token, 2)
    world.net.advance(14.9)
    assert world.server.next_timeout() < math.inf
    world.net.advance(0.2)
    assert world.server.next_timeout() == math.inf
    world.server.receive_datagram(seal(world, body_token, RESPONSE, 1, body), world.address(2), world.net.now)
    assert world.server.events() == []


def test_pending_handshakes_are_bounded(world: World) -> None:
    """Further requests wait until there is room."""
    world.start(max_pending=2)
    for number in (1, 2):
        assert world.raw_request(world.token(number), number)
    late = world.token(3)
    assert not world.raw_request(late, 3)
    assert world.server.ignored["too_many_pending"] == 1
    world.net.advance(16.0)
    assert world.raw_request(late, 3)


def test_server_needs_a_slot_and_its_address(world: World) -> None:
    """Misconfiguration is found at start."""
    with pytest.raises(NetcodeError):
        world.start(max_clients=0)
    with pytest.raises(NetcodeError):
        world.start(addresses=[])


# --- 52: tokens that are not for us: silence -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"now": 1_720_000_000 - 30}, "TokenExpired"),
        ({"key": PrivateKey(bytes(range(1, 33)))}, "WrongKey"),
        ({"protocol_id": 5}, "WrongProtocol"),
        ({"internal_addresses": [Address("192.0.2.1", 40001)]}, "WrongServer"),
        ({"internal_addresses": [Address("::ffff:192.0.2.1", 40000)]}, "WrongServer"),
    ],
    ids=["expired", "other key", "other protocol", "other port", "mapped address"],
)
@pytest.mark.row(52)
def test_token_that_is_not_for_this_server_meets_silence(
    world: World, change: dict[str, object], reason: str
) -> None:
    """Its bearer learns nothing; the operator sees the reason counted."""
    assert world.raw_request(world.token(**change)) == []
    assert world.server.events() == []
    assert dict(world.server.ignored) == {reason: 1}


def test_address_is_not_compared_when_told_so(world: World) -> None:
    """Behind a mapping that nobody can know."""
    world.start(check_address=False, addresses=[])
    assert world.raw_request(world.token(internal_addresses=[Address("10.9.9.9", 9)]))


# --- 53: used again --------------------------------------------------------------------------------------------------


@pytest.mark.row(53)
def test_token_from_another_address_is_refused(world: World) -> None:
    """While its owner connects, while he is connected, and after he left."""
    token = world.token()
    assert world.raw_request(token, 1)
    assert not world.raw_request(token, 2)
    world.net.advance(0.1)
    client = world.join(1, token)
    assert not world.raw_request(token, 2)
    client.disconnect(world.net.now)
    world.net.advance(0.1)
    assert not world.raw_request(token, 2)
    assert world.server.ignored == {"token_taken": 1, "token_spent": 2}


@pytest.mark.row(53)
def test_token_that_led_to_a_connection_is_spent_for_its_owner_too(world: World) -> None:
    """A second connection with it would repeat nonces of the first."""
    token = world.token()
    client = world.join(1, token)
    client.disconnect(world.net.now)
    world.net.advance(0.1)
    assert not world.raw_request(token, 1)


@pytest.mark.row(53)
def test_full_history_ignores_new_tokens_and_forgets_none(world: World) -> None:
    """The overflow does not let an old token in again."""
    world.start(max_clients=8, used_tokens=UsedTokens(capacity=2))
    first = world.token(1)
    world.join(1, first).disconnect(world.net.now)
    world.net.advance(0.1)
    assert world.raw_request(world.token(2), 2)
    assert not world.raw_request(world.token(3), 3)
    assert not world.raw_request(first, 4)
    assert world.server.ignored == {"token_full": 1, "token_spent": 1}


def test_restarted_server_keeps_the_history_it_is_given(world: World) -> None:
    """And never repeats a nonce of its former life for a token that is still valid."""
    used = UsedTokens()
    world.start(used_tokens=used)
    spent, fresh = world.token(1), world.token(2)
    world.join(1, spent)
    before = kinds(world, fresh, world.raw_request(fresh, 2))
    world.start(used_tokens=used)
    assert not world.raw_request(spent, 1)
    after = kinds(world, fresh, world.raw_request(fresh, 2))
    assert before[0][0] == after[0][0] == CHALLENGE
    assert before[0][1] != after[0][1]


def test_another_transport_that_takes_the_token_first_wins(world: World) -> None:
    """Between challenge and response the player came in over a stream."""
    used = UsedTokens()
    world.start(used_tokens=used)
    token = world.token()
    body = challenge_body(world, token)
    assert used.claim(token.tag, "stream", token.expire_timestamp, world.clock, proven=True).granted
    assert used.spend(token.tag, "stream")
    world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(), 0.0)
    assert world.server.events() == []
    assert world.server.ignored == {"token_spent": 1}


@pytest.mark.row(91)
def test_a_handshake_ends_with_its_token(world: World) -> None:
    """Whoever has the seat afterwards is not joined by one more: the response comes a moment too late."""
    token = world.token(lifetime=5, timeout=15)
    body = challenge_body(world, token)
    world.clock += 4
    world.raw_request(token)
    world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(), 5.0)
    assert world.server.connected_count == 0
    assert world.server.ignored["TokenExpired"] == 1
    in_time = world.token(2, lifetime=5, timeout=15)
    body = challenge_body(world, in_time, 2)
    world.server.receive_datagram(seal(world, in_time, RESPONSE, 1, body), world.address(2), 4.9)
    assert world.server.connected_count == 1


# --- 54: full, and the same client twice -----------------------------------------------------------------------------


@pytest.mark.row(54)
def test_full_server_denies(world: World) -> None:
    """At the request already, and at the response when the last slot went meanwhile."""
    world.start(max_clients=1)
    token = world.token(2)
    body = challenge_body(world, token, 2)
    world.join(1)
    assert [kind for kind, _ in kinds(world, token, world.raw_request(token, 2))] == [DENIED]
    world.net.advance(0.1)
    world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(2), world.net.now)
    assert [kind for kind, _ in kinds(world, token, world.server.datagrams_to_send())] == [DENIED]
    assert world.server.connected_count == 1


def test_game_that_is_full_over_other_transports_denies(world: World) -> None:
    """The slots here are free, but the game is not."""
    world.start(has_room=lambda: False)
    token = world.token()
    assert [kind for kind, _ in kinds(world, token, world.raw_request(token))] == [DENIED]


@pytest.mark.row(54)
def test_client_id_is_connected_once(world: World) -> None:
    """A second token for it is ignored, also when both handshakes ran side by side."""
    first, second, third = world.token(7), world.token(7), world.token(7)
    body = challenge_body(world, second, 2)
    world.join(1, first)
    world.server.events()
    assert not world.raw_request(third, 3)
    world.server.receive_datagram(seal(world, second, RESPONSE, 1, body), world.address(2), world.net.now)
    assert world.server.datagrams_to_send() == []
    assert world.server.events() == []
    assert world.server.ignored == {"client_id_connected": 2}


def test_client_id_connected_over_another_transport_is_ignored(world: World) -> None:
    """The hook is asked at the request and again at the response."""
    elsewhere: set[int] = set()
    world.start(is_client_connected=elsewhere.__contains__)
    token = world.token(7)
    body = challenge_body(world, token)
    elsewhere.add(7)
    assert not world.raw_request(world.token(7), 2)
    world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(), 0.0)
    assert world.server.events() == []
    assert not world.server.is_connected(7)


def test_returning_client_may_take_its_slot_over(world: World) -> None:
    """If the game wants that: a crashed player need not wait for his own timeout, even when all slots are taken."""
    world.start(max_clients=1, replace_connected=True)
    crashed = world.join(1, world.token(7))
    world.server.events()
    world.net.detach(world.address(1))
    returned = world.join(2, world.token(7))
    assert returned.client_index == 0
    events = world.server.events()
    assert [type(event) for event in events if not isinstance(event, Payload)] == [Disconnected, Connected]
    assert isinstance(events[0], Disconnected)
    assert events[0].reason is DisconnectReason.REPLACED
    assert crashed.state is S.CONNECTED


def test_a_client_that_comes_back_takes_its_slot_over_and_hears_why(world: World) -> None:
    """By a token that may, also on a full server; by another one it is ignored as long as it plays."""
    newer = b"newer".ljust(256, b"\0")
    farewell = b"\x04\xa2\x0f\x00"
    world.start(
        max_clients=1,
        comes_back=lambda client_id, data: (client_id, data) == (7, newer),
        replaced=farewell,
        framing=True,
    )
    former = world.join(1, world.token(7), framing=True)
    world.server.events()
    assert not world.raw_request(world.token(7), 2)
    assert world.server.ignored == {"client_id_connected": 1}
    returned = world.join(3, world.token(7, user_data=newer))
    assert returned.client_index == 0
    events = [event for event in world.server.events() if not isinstance(event, Payload)]
    assert [type(event) for event in events] == [Disconnected, Connected]
    assert isinstance(events[0], Disconnected)
    assert events[0].reason is DisconnectReason.REPLACED
    assert farewell in [event.data for event in former.events() if isinstance(event, Frame)]
    assert former.state is S.DISCONNECTED


def test_an_older_token_answers_its_challenge_too_late(world: World) -> None:
    """It might come back when it asked; meanwhile a newer one did. That one plays on."""
    stays = False
    world.start(comes_back=lambda client_id, data: not stays)
    older = world.token(7)
    body = challenge_body(world, older, 2)
    newer = world.join(1, world.token(7))
    world.server.events()
    stays = True
    world.server.receive_datagram(seal(world, older, RESPONSE, 1, body), world.address(2), world.net.now)
    assert not [event for event in world.server.events() if isinstance(event, Disconnected)]
    assert newer.state is S.CONNECTED


def test_challenge_of_another_client_is_no_proof(world: World) -> None:
    """Each challenge belongs to the token it was made for."""
    mine, other = world.token(1), world.token(2)
    challenge_body(world, mine, 1)
    stolen = challenge_body(world, other, 2)
    world.server.receive_datagram(seal(world, mine, RESPONSE, 1, stolen), world.address(1), 0.0)
    assert world.server.events() == []
    assert world.server.ignored == {"wrong_challenge": 1}


def test_connected_address_hears_nothing_for_another_token(world: World) -> None:
    """One connection for each address."""
    world.join(1)
    assert not world.raw_request(world.token(2), 1)


# --- 55: replay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 255, 256, 2**32, 2**63, 2**64 - 2, 2**64 - 1])
@pytest.mark.row(55)
def test_packet_counts_once_whatever_its_number(world: World, number: int) -> None:
    """Near 2^64 too, where the reference takes the very last one again and again."""
    token = world.token()
    body = challenge_body(world, token)
    world.server.receive_datagram(seal(world, token, RESPONSE, 1, body), world.address(), 0.0)
    packet = seal(world, token, PAYLOAD, number, b"once")
    for _ in range(3):
        world.server.receive_datagram(packet, world.address(), 0.0)
    assert world.payloads(world.server) == [b"once"]


@pytest.mark.row(55)
def test_forged_number_does_not_lock_the_owner_out(world: World) -> None:
    """The window moves only for authentic packets."""
    client = world.join()
    world.server.events()
    for number in (2**64 - 1, 2**63, 1000):
        frame = PacketWriter(world.protocol_id).write(cipher(bytes(32)).encrypt, PAYLOAD, number, b"forged")
        world.server.receive_datagram(frame, world.address(), world.net.now)
    client.send(b"still here", world.net.now)
    world.net.advance(0.0)
    assert world.payloads(world.server) == [b"still here"]


def test_request_recorded_and_sent_again_later_is_refused(world: World) -> None:
    """By its owner's address, too, once it led to a connection; and after its expiry by the clock."""
    token = world.token()
    client = world.join(1, token)
    client.disconnect(world.net.now)
    world.net.advance(0.1)
    world.clock += 100
    assert not world.raw_request(token, 1)
    assert world.server.ignored == {"token_spent": 1}


def test_user_data_comes_from_this_token(world: World) -> None:
    """A challenge made for an older token of the same client and address proves nothing about the newer."""
    old = world.token(1, user_data=b"old")
    new = world.token(1, user_data=b"new")
    body = challenge_body(world, old)
    world.net.advance(0.1)
    challenge_body(world, new)
    world.server.receive_datagram(seal(world, new, RESPONSE, 1, body), world.address(), 0.0)
    assert world.server.events() == []
    assert msgspec.to_builtins(dict(world.server.ignored)) == {"wrong_challenge": 1}
