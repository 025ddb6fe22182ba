"""Tokens: how long a seat is held for one, and which addresses it names."""

from __future__ import annotations

import msgspec
import pytest

from tests.matchmaker.world import ARENA, games_of
from tipoff_matchmaker.tokens import Endpoint, Tokens
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress, WebTransportAddress
from tipoff_shared.netcode import Address, ConnectToken
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord, SessionState

UDP = UdpAddress("203.0.113.5", 7777)
WEBSOCKET = WebSocketAddress("ws://203.0.113.5:7778/")
WEBTRANSPORT = WebTransportAddress("https://203.0.113.5:7779/", "ab:cd")
SESSION = SessionRecord("s1", SessionState.READY, "arena", "1", "7", "me", 0.0, deployment_id="d1")


def deployment(**transports: object) -> DeploymentRecord:
    return DeploymentRecord(
        "d1", DeploymentState.READY, "arena", "1", "fake", 4, 0.0, transports=Transports(**transports)
    )


def test_a_seat_is_held_until_a_client_that_dials_at_the_last_moment_has_had_its_time() -> None:
    """The token's lifetime, a handshake of `token_timeout`, the time until it is noticed, and the clocks' slack."""
    game = msgspec.structs.replace(ARENA, token_lifetime=30, token_timeout=15, claim_timeout=5)
    addresses = (Address("203.0.113.5", 7777),)
    endpoint = Endpoint("203.0.113.5", 7777, addresses, addresses)
    issued = Tokens(games_of(game)).issue(game, SESSION, endpoint, now=1000.0, slack=0.5)
    assert issued.claim_deadline == 1000 + 30 + 15 + 5 + 0.5
    token = ConnectToken.from_base64(issued.text)
    assert (token.expire_timestamp, token.timeout_seconds) == (1030, 15)


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
