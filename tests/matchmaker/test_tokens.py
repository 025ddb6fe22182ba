"""Tokens: how long a seat is held for one, and which addresses it names."""

from __future__ import annotations

import msgspec
import pytest

from tests.matchmaker.world import ARENA, games_of
from tipoff_matchmaker.tokens import Endpoint, Tokens
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress, WebTransportAddress
from tipoff_shared.netcode import Address, ConnectToken, Dialect
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord, SessionState

UDP = UdpAddress("203.0.113.5", 7777)
WEBSOCKET = WebSocketAddress("ws://203.0.113.5:7778/")
WEBTRANSPORT = WebTransportAddress("https://203.0.113.5:7779/", "ab:cd")
SESSION = SessionRecord("s1", SessionState.READY, "arena", "1", "7", "me", 0.0, deployment_id="d1")


def deployment(**transports: object) -> DeploymentRecord:
    return DeploymentRecord(
        "d1", DeploymentState.READY, "arena", "1", "fake", 4, 0.0, transports=Transports(**transports)
    )


ADDRESSES = (Address("203.0.113.5", 7777),)
ENDPOINT = Endpoint("203.0.113.5", 7777, ADDRESSES, ADDRESSES)


@pytest.mark.row(91)
def test_a_seat_waits_as_long_as_its_token_is_good_and_the_clocks_slack() -> None:
    """One number, 15 s by default, whatever else a game has for time-outs."""
    game = msgspec.structs.replace(ARENA, token_timeout=20)
    assert game.claim_time == 15
    issued = Tokens(games_of(game)).issue(game, SESSION, ENDPOINT, now=1000.9, slack=0.5)
    token = ConnectToken.from_base64(issued.text)
    assert (token.expire_timestamp, token.timeout_seconds) == (1015, 20)
    assert issued.claim_deadline == 1015.5


@pytest.mark.row(91)
def test_a_seat_at_a_bevygap_server_waits_for_a_handshake_that_may_end_after_the_token() -> None:
    """Such a server takes no kick: a player who comes in late would be one too many."""
    game = msgspec.structs.replace(ARENA, bevygap=True, dialect="lightyear", claim_time=60, token_timeout=10)
    issued = Tokens(games_of(game)).issue(game, SESSION, ENDPOINT, now=1000.0, slack=0.5)
    token = ConnectToken.from_base64(issued.text, Dialect.LIGHTYEAR)
    assert token.expire_timestamp == 1015
    assert issued.claim_deadline == 1015 + 10 + 0.5


@pytest.mark.parametrize(("factor", "lifetime"), [(1.0, 15), (0.5, 8), (1 / 3, 5), (0.01, 1)])
def test_a_shorter_hold_is_a_shorter_token(factor: float, lifetime: int) -> None:
    """The same number is shortened for an address that does not claim."""
    issued = Tokens(games_of(ARENA)).issue(
        ARENA, SESSION, ENDPOINT, now=1000.0, slack=0.5, hold_factor=factor
    )
    assert ConnectToken.from_base64(issued.text).expire_timestamp == 1000 + lifetime
    assert issued.claim_deadline == 1000 + lifetime + 0.5


@pytest.mark.parametrize(
    ("game", "transports", "ports"),
    [
        ({}, {"udp": UDP, "websocket": WEBSOCKET}, [7777]),
        ({"primary": "websocket"}, {"udp": UDP, "websocket": WEBSOCKET}, [7777, 7778]),
        ({"primary": "websocket"}, {"websocket": WEBSOCKET}, [7778]),
        ({"primary": "webtransport"}, {"udp": UDP, "webtransport": WEBTRANSPORT}, [7777, 7779]),
        ({"primary": "webtransport", "bevygap": True}, {"udp": UDP, "webtransport": WEBTRANSPORT}, [7779]),
        ({"primary": "webtransport"}, {"websocket": WEBSOCKET}, [7778]),  # the primary one is not open
    ],
)
async def test_a_token_names_udp_first_and_the_primary_transport(
    game: dict[str, object], transports: dict[str, object], ports: list[int]
) -> None:
    """Any client of the standard dials the list by UDP; a bevygap game's client knows the primary one only."""
    changed: Game = msgspec.structs.replace(ARENA, **game)
    found = await Tokens(games_of(changed)).endpoint(changed, deployment(**transports))
    assert [address.port for address in found.public] == ports
    assert found.port == (ports[-1] if len(ports) > 1 else ports[0])
