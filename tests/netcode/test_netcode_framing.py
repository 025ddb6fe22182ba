"""Frames are agreed on in the handshake, and nobody who did not agree ever sends or sees one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tipoff_shared.netcode import Client, ClientState, Connected, Dialect, Frame
from tipoff_shared.netcode.constants import FRAME, FRAMING_WIDTH, KEEP_ALIVE, RESPONSE
from tipoff_shared.netcode.packet import TO_CLIENT, TO_SERVER, PacketReader, PacketWriter, cipher
from tipoff_shared.netcode.replay import ReplayWindow

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.row(92)


def dialled(world: World, *, offers: bool, number: int = 1) -> tuple[Client, Connected]:
    client = world.dial(number=number, framing=offers)
    world.net.advance(0.5)
    assert client.state is ClientState.CONNECTED
    (connected,) = [event for event in world.server.events() if isinstance(event, Connected)]
    client.events()
    return client, connected


def frames(endpoint: Any) -> list[bytes]:
    return [event.data for event in endpoint.events() if isinstance(event, Frame)]


@pytest.mark.parametrize("offers", [True, False])
@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("dialect", Dialect)
def test_both_sides_must_want_frames(
    make_world: type[World], offers: bool, takes: bool, dialect: Dialect
) -> None:
    """And lightyear's dialect has none."""
    world = make_world(dialect)
    world.start(framing=takes)
    client, connected = dialled(world, offers=offers)
    agreed = offers and takes and dialect is Dialect.STANDARD
    assert client.framed == connected.framed == agreed
    assert client.send_frame(b"up", world.net.now) == agreed
    assert world.server.send_frame(connected.index, b"down", world.net.now) == agreed
    assert client.send(b"payload", world.net.now)
    world.net.advance(0.5)
    assert frames(world.server) == ([b"up"] if agreed else [])
    assert frames(client) == ([b"down"] if agreed else [])


@pytest.mark.parametrize("seed", range(8))
def test_they_agree_over_a_bad_path_too(make_world: type[World], seed: int) -> None:
    """Each repetition says it again: no lost packet leads to a connection of which the sides think differently."""
    world = make_world(loss=0.4, jitter=0.2, duplication=0.2, seed=seed)
    world.start(framing=True)
    client = world.dial(framing=True)
    for _ in range(100):
        world.net.advance(0.1)
        if client.state is ClientState.CONNECTED:
            break
    assert client.state is ClientState.CONNECTED, f"seed {seed}"
    assert client.framed
    assert [event.framed for event in world.server.events() if isinstance(event, Connected)] == [True]


def test_a_frame_right_after_the_connection_finds_the_client_ready(world: World) -> None:
    """A keep-alive goes before it until the client is known to be connected."""
    world.start(framing=True)
    client = world.dial(framing=True)
    for _ in range(50):
        world.net.advance(0.01)
        for event in world.server.events():
            if isinstance(event, Connected):
                assert world.server.send_frame(event.index, b"welcome", world.net.now)
    assert frames(client) == [b"welcome"]


@pytest.mark.parametrize("offers", [True, False])
def test_the_sequence_bytes_of_the_standard_mean_no_offer(world: World, offers: bool) -> None:
    """Seven bytes are written for responses and keep-alives only, and by those who know frames only."""
    world.start(framing=True)
    dialled(world, offers=offers)
    world.net.advance(2)
    for datagram in world.net.sent:
        kind, width = datagram.data[0] & 0x0F, datagram.data[0] >> 4
        from_server = datagram.source == world.home
        if offers and (kind == RESPONSE or (kind == KEEP_ALIVE and from_server)):
            assert width == FRAMING_WIDTH
        elif width < 8:  # the server's numbers of challenges are that large
            assert width < FRAMING_WIDTH


def test_implementations_of_the_standard_drop_frames_and_read_seven_bytes() -> None:
    key = random.Random(1).randbytes(32)
    writer = PacketWriter(1)
    for kinds in (TO_SERVER, TO_CLIENT):
        reader = PacketReader(1, kinds)
        frame = writer.write(cipher(key).encrypt, FRAME, 1, b"frame")
        assert reader.read(frame, cipher(key).decrypt, ReplayWindow()) is None
        wide = writer.write_wide(cipher(key).encrypt, KEEP_ALIVE, 1, bytes(8))
        assert reader.read(wide, cipher(key).decrypt, ReplayWindow()) == (KEEP_ALIVE, 1, bytes(8))


def test_who_did_not_agree_cannot_send_frames(world: World) -> None:
    """An authentic packet of the type meets silence."""
    world.start(framing=True)
    token = world.token(1)
    client = world.join(1, token)
    world.server.events()
    writer = PacketWriter(world.protocol_id)
    packet = writer.write(cipher(token.client_to_server_key).encrypt, FRAME, 1000, b"frame")
    world.server.receive_datagram(packet, world.address(1), world.net.now)
    assert world.server.events() == []
    assert world.server.datagrams_to_send() == []
    packet = writer.write(cipher(token.server_to_client_key).encrypt, FRAME, 1000, b"frame")
    client.events()
    client.receive_datagram(packet, world.home, world.net.now)
    assert client.events() == []


def test_frames_are_filtered_like_payloads(world: World) -> None:
    """A doubled frame is seen once."""
    world.start(framing=True)
    client, _ = dialled(world, offers=True)
    assert client.send_frame(b"once", world.net.now)
    ((data, _),) = client.datagrams_to_send()
    for _ in range(3):
        world.server.receive_datagram(data, world.address(1), world.net.now)
    assert frames(world.server) == [b"once"]
