"""Round trips are measured where an answering server makes it possible, and never invented."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tipoff_shared.netcode import ClientState

if TYPE_CHECKING:
    from conftest import World

    from tipoff_shared.netcode import Client

TICK = 1 / 60


def play(
    world: World, client: Client, seconds: float, *, inputs: bool = True, snapshots: bool = True
) -> None:
    """Both sides send at 60 Hz, as a game does, or only one of them."""
    ends = world.net.now + seconds
    while world.net.now < ends:
        if inputs:
            client.send(b"input", world.net.now)
        if snapshots:
            world.server.send(0, b"snapshot", world.net.now)
        world.net.advance(TICK)
        client.events()
        world.server.events()


def joined(
    make_world: type[World], one_way: float, *, answers: bool = True, **network: float
) -> tuple[World, Client]:
    world = make_world(delay=one_way, **network)
    world.start(answer_keep_alives=answers)
    client = world.dial()
    world.net.advance(4 * one_way + 0.01)
    assert client.state is ClientState.CONNECTED
    return world, client


@pytest.mark.parametrize("one_way", [0.005, 0.04, 0.15, 0.3])
def test_handshake_gives_the_first_measurement(make_world: type[World], one_way: float) -> None:
    """When a step was sent once; above 50 ms one way both are repeated, and prove nothing."""
    _, client = joined(make_world, one_way)
    if 2 * one_way < 0.1:
        assert client.rtt == pytest.approx(2 * one_way)
    else:
        assert client.rtt is None


@pytest.mark.parametrize("inputs", [True, False], ids=["player", "spectator"])
@pytest.mark.parametrize("one_way", [0.005, 0.04, 0.15, 0.3])
def test_connected_client_of_a_busy_server_knows_its_round_trip(
    make_world: type[World], one_way: float, inputs: bool
) -> None:
    """On short and on long ways, whether it plays or only looks on."""
    world, client = joined(make_world, one_way)
    play(world, client, 12.0, inputs=inputs)
    assert client.rtt == pytest.approx(2 * one_way, abs=0.002)


@pytest.mark.parametrize("inputs", [True, False], ids=["player", "spectator"])
@pytest.mark.parametrize("one_way", [0.005, 0.0335, 0.076, 0.15, 0.6, 1.5])
def test_client_of_a_quiet_server_knows_its_round_trip(
    make_world: type[World], one_way: float, inputs: bool
) -> None:
    """The server's own keep-alives, ten a second, are not taken for answers."""
    world, client = joined(make_world, one_way)
    play(world, client, 12.0, inputs=inputs, snapshots=False)
    assert client.rtt == pytest.approx(2 * one_way, abs=0.002)


def test_a_late_or_doubled_answer_is_one_sample_of_its_own_probe(make_world: type[World]) -> None:
    """Jitter far above the round trip: answers overtake each other."""
    world = make_world(seed=5, delay=0.02, jitter=0.2, duplication=0.5)
    world.start(answer_keep_alives=True)
    client = world.dial()
    world.net.advance(2.0)
    play(world, client, 60.0, snapshots=False)
    assert client.rtt is not None
    assert 0.04 <= client.rtt <= 0.44


@pytest.mark.parametrize("inputs", [True, False], ids=["player", "spectator"])
def test_measurement_follows_a_way_that_changes(make_world: type[World], inputs: bool) -> None:
    """Smoothed, one sample a second or more."""
    world, client = joined(make_world, 0.01)
    world.net.delay = 0.06
    play(world, client, 60.0, inputs=inputs)
    assert client.rtt == pytest.approx(0.12, abs=0.01)


@pytest.mark.parametrize("inputs", [True, False], ids=["player", "spectator"])
def test_loss_does_not_spoil_the_measurement(make_world: type[World], inputs: bool) -> None:
    """A lost answer gives no sample; the next probes do."""
    world, client = joined(make_world, 0.03)
    world.net.loss = 0.1
    play(world, client, 60.0, inputs=inputs)
    assert client.rtt == pytest.approx(0.06, abs=0.01)


def test_standard_server_s_own_keep_alives_are_no_answers(make_world: type[World]) -> None:
    """An idle server sends one every 0.1 s; taking it for an answer would give any figure below that."""
    world, client = joined(make_world, 0.005, answers=False)
    measured = client.rtt
    play(world, client, 10.0, snapshots=False)
    assert client.rtt == measured
    play(world, client, 10.0)
    assert client.rtt == measured


def test_client_probes_about_once_a_second(make_world: type[World]) -> None:
    """Even when it sends sixty payloads a second: nineteen to twenty-one in twenty seconds."""
    world, client = joined(make_world, 0.01)
    before = client.next_sequence
    play(world, client, 20.0)
    probes = client.next_sequence - before - 20 * 60
    assert 18 <= probes <= 22


def test_slow_keep_alives_never_endanger_the_connection(make_world: type[World]) -> None:
    """On a way of 600 ms with a timeout of 2 s and a fifth of all packets lost."""
    world = make_world(seed=3, delay=0.3, loss=0.2)
    world.start(answer_keep_alives=True)
    client = world.dial(world.token(timeout=2))
    world.net.advance(3.0)
    play(world, client, 60.0, inputs=False)
    assert client.state is ClientState.CONNECTED
    assert world.server.connected_count == 1
