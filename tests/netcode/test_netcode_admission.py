"""Admission: the application's say about a valid token, before its bearer hears anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tipoff_shared.netcode import (
    AdmitRequest,
    ClientState,
    Connected,
    Decision,
    Denial,
    DenyReason,
    Disconnected,
    Payload,
    UsedTokens,
)

if TYPE_CHECKING:
    from conftest import World

S = ClientState


@pytest.fixture
def manual(make_world: type[World]) -> World:
    """The application answers by hand."""
    world = make_world()
    world.start(manual_admission=True)
    return world


def asked(world: World) -> list[AdmitRequest]:
    return [event for event in world.server.events() if isinstance(event, AdmitRequest)]


def test_nothing_is_sent_before_the_application_answers(manual: World) -> None:
    """It is asked once, however often the client repeats its request."""
    token = manual.token(5, user_data=b"session")
    client = manual.dial(token)
    manual.net.advance(1.0)
    (request,) = asked(manual)
    assert (request.client_id, request.address, request.token_tag) == (5, manual.address(), token.tag)
    assert request.user_data == b"session".ljust(256, b"\0")
    assert client.state is S.SENDING_CONNECTION_REQUEST
    assert {datagram.source for datagram in manual.net.sent} == {manual.address()}


def test_admitted_client_gets_its_challenge_at_once(manual: World) -> None:
    """Not only at its next request."""
    client = manual.dial()
    manual.net.advance(0.05)
    (request,) = asked(manual)
    assert manual.server.admit(request.id, manual.net.now)
    manual.net.advance(0.0)
    assert client.state is S.CONNECTED
    assert not manual.server.admit(request.id, manual.net.now)


def test_lost_challenge_is_repeated_without_asking_again(manual: World) -> None:
    """The decision stands for the whole handshake."""
    token = manual.token()
    manual.raw_request(token)
    (request,) = asked(manual)
    manual.server.admit(request.id, 0.0)
    assert len(manual.server.datagrams_to_send()) == 1
    manual.net.advance(0.1)
    assert len(manual.raw_request(token)) == 1
    assert asked(manual) == []


@pytest.mark.parametrize("reason", [DenyReason.BANNED, Denial(DenyReason.FULL), "not tonight"])
def test_denied_client_is_told_at_once(manual: World, reason: Denial | DenyReason | str) -> None:
    """And again for every repetition, in case the denial was lost; the application is not asked again."""
    token = manual.token()
    client = manual.dial(token)
    manual.net.advance(0.05)
    (request,) = asked(manual)
    assert manual.server.deny(request.id, reason, manual.net.now)
    manual.net.advance(0.0)
    assert client.state is S.CONNECTION_DENIED
    manual.net.advance(0.1)
    assert len(manual.raw_request(token)) == 1
    assert asked(manual) == []


def test_answer_that_comes_too_late_is_reported(manual: World) -> None:
    """The client gave up; nothing is sent to nobody."""
    manual.raw_request(manual.token(timeout=2))
    (request,) = asked(manual)
    manual.net.advance(2.1)
    assert not manual.server.admit(request.id, manual.net.now)
    assert not manual.server.deny(request.id, "late", manual.net.now)
    assert manual.server.datagrams_to_send() == []


def test_newer_token_of_the_same_address_asks_anew(manual: World) -> None:
    """The older question is void."""
    manual.raw_request(manual.token(1))
    manual.net.advance(0.1)
    manual.raw_request(manual.token(2))
    first, second = asked(manual)
    assert not manual.server.admit(first.id, 0.0)
    assert manual.server.admit(second.id, 0.0)


def test_response_without_admission_is_nothing(manual: World) -> None:
    """A client that knows a challenge from elsewhere cannot skip the question."""
    token = manual.token()
    manual.raw_request(token)
    client = manual.dial(token)
    manual.net.advance(0.5)
    assert client.state is S.SENDING_CONNECTION_REQUEST
    assert manual.server.connected_count == 0


def test_stop_forgets_open_questions(manual: World) -> None:
    """An answer after it has no effect."""
    manual.raw_request(manual.token())
    (request,) = asked(manual)
    manual.server.stop(0.0)
    assert not manual.server.admit(request.id, 0.0)


@pytest.mark.parametrize(
    ("decision", "state"),
    [
        (Decision.ADMIT, S.CONNECTED),
        (Decision.PENDING, S.SENDING_CONNECTION_REQUEST),
        (Decision.IGNORE, S.SENDING_CONNECTION_REQUEST),
        (Denial(DenyReason.BANNED), S.CONNECTION_DENIED),
    ],
    ids=["admit", "pending", "ignore", "deny"],
)
def test_callable_decides_at_once(
    make_world: type[World], decision: Decision | Denial, state: ClientState
) -> None:
    """Most gameservers need no more: the token itself says everything."""
    world = make_world()
    world.start(admission=lambda _request: decision)
    client = world.dial()
    world.net.advance(0.5)
    assert client.state is state
    assert bool(asked(world)) == (decision is Decision.PENDING)


def test_ignored_client_leaves_nothing_pending(world: World) -> None:
    """Only its token is remembered."""
    used = UsedTokens()
    world.start(admission=lambda _request: Decision.IGNORE, used_tokens=used)
    for number in range(5):
        assert not world.raw_request(world.token(number), number)
    assert world.server.ignored == {"not_admitted": 5}
    assert world.server.next_timeout() == float("inf")
    assert len(used) == 5


def test_events_of_a_session_come_in_order(manual: World) -> None:
    """Asked, connected, payload, gone."""
    client = manual.dial()
    manual.net.advance(0.0)
    events = manual.server.events()
    assert isinstance(events[0], AdmitRequest)
    manual.server.admit(events[0].id, 0.0)
    manual.net.advance(0.0)
    client.send(b"x", 0.0)
    client.disconnect(0.0)
    manual.net.advance(0.0)
    assert [type(event) for event in manual.server.events()] == [Connected, Payload, Disconnected]
