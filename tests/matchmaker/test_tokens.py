"""Tokens: how long a seat is held for one, and which addresses it names."""

from __future__ import annotations

import msgspec
import pytest

from tests.matchmaker.world import ARENA, KEY, games_of
from tipoff_matchmaker.tokens import Endpoint, Tokens, host_and_port, transports_told
from tipoff_shared.errors import OrchestratorFailed
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress, WebTransportAddress
from tipoff_shared.netcode import Address, ConnectToken, Dialect, open_private
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord, SessionState
from tipoff_shared.user_data import decode_user_data

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


WEB = "wss://play.example:7778/x"


@pytest.mark.parametrize(
    ("name", "transports", "expected"),
    [
        ("udp", Transports(udp=UDP, tcp=UdpAddress("198.51.100.1", 1)), ("203.0.113.5", 7777)),
        ("tcp", Transports(udp=UDP, tcp=UdpAddress("198.51.100.1", 1)), ("198.51.100.1", 1)),
        ("udp", Transports(tcp=UDP), None),
        ("tcp", Transports(udp=UDP), None),
        (
            "websocket",
            Transports(websocket=WebSocketAddress(WEB), webtransport=WEBTRANSPORT),
            ("play.example", 7778),
        ),
        (
            "webtransport",
            Transports(websocket=WebSocketAddress(WEB), webtransport=WEBTRANSPORT),
            ("203.0.113.5", 7779),
        ),
        ("websocket", Transports(udp=UDP, webtransport=WEBTRANSPORT), None),
        ("webtransport", Transports(udp=UDP, websocket=WEBSOCKET), None),
    ],
)
def test_each_transport_has_its_own_address_or_none(
    name: str, transports: Transports, expected: tuple[str, int] | None
) -> None:
    assert host_and_port(transports, name) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://play.example/", ("play.example", 80)),
        ("wss://play.example/", ("play.example", 443)),
        ("http://play.example", ("play.example", 80)),
        ("https://play.example", ("play.example", 443)),
        ("wss://play.example:99/", ("play.example", 99)),
        ("wss://[2001:db8::1]:99/", ("2001:db8::1", 99)),
        ("ftp://play.example/", None),
        ("wss://", None),
        ("wss://:99/", None),
        ("", None),
        ("wss://play.example:port/", None),
        ("wss://play.example:70000/", None),
        ("wss://[2001:db8::1/", None),
    ],
)
def test_a_url_without_a_port_means_that_of_its_scheme(url: str, expected: tuple[str, int] | None) -> None:
    """A server may announce any text as its URL; one that leads nowhere is as good as none."""
    assert host_and_port(Transports(websocket=WebSocketAddress(url)), "websocket") == expected


@pytest.mark.parametrize(
    ("proxy", "where", "websocket", "told"),
    [
        ("wss://play.example/gs/", "10.0.0.1:1", WEBSOCKET, "wss://play.example/gs/d1"),
        ("", "10.0.0.1:1", WEBSOCKET, WEBSOCKET.url),
        ("wss://play.example/gs/", "", WEBSOCKET, WEBSOCKET.url),
        ("wss://play.example/gs/", "10.0.0.1:1", None, None),
    ],
)
def test_a_player_is_sent_to_the_proxy_that_reaches_its_server(
    proxy: str, where: str, websocket: WebSocketAddress | None, told: str | None
) -> None:
    record = msgspec.structs.replace(deployment(udp=UDP, websocket=websocket), proxy=where)
    found = transports_told(proxy, record)
    assert found.udp == UDP
    assert (found.websocket and found.websocket.url) == told


def test_a_token_says_whose_seat_it_is() -> None:
    session = msgspec.structs.replace(SESSION, boot_id="b1", generation=7, user_id="ann@example", name="Ann")
    issued = Tokens(games_of(ARENA)).issue(ARENA, session, ENDPOINT, now=1000.0, slack=0.5)
    private = open_private(ConnectToken.from_base64(issued.text), KEY, protocol_id=ARENA.netcode_protocol_id)
    said = decode_user_data(private.user_data)
    assert said is not None
    named = (said.session_id, said.deployment_id, said.boot_id, said.generation, said.user_id, said.name)
    assert named == ("s1", "d1", "b1", 7, "ann@example", "Ann")
    assert private.client_id == 7


@pytest.mark.parametrize(
    ("game", "transports", "port"),
    [
        ({"primary": "udp"}, {"webtransport": WEBTRANSPORT}, 7779),
        ({"primary": "udp"}, {"tcp": UdpAddress("203.0.113.5", 7780), "webtransport": WEBTRANSPORT}, 7779),
        ({"primary": "websocket"}, {"tcp": UdpAddress("203.0.113.5", 7780)}, 7780),
        ({"primary": "webtransport"}, {"tcp": UdpAddress("203.0.113.5", 7780), "websocket": WEBSOCKET}, 7778),
    ],
)
async def test_players_are_sent_to_what_is_open(
    game: dict[str, object], transports: dict[str, object], port: int
) -> None:
    """Where the game's own transport is not."""
    changed: Game = msgspec.structs.replace(ARENA, **game)
    found = await Tokens(games_of(changed)).endpoint(changed, deployment(**transports))
    assert (found.ip, found.port) == ("203.0.113.5", port)
    assert found.public == found.internal == (Address("203.0.113.5", port),)


async def test_a_server_that_announces_nothing_is_an_error() -> None:
    with pytest.raises(OrchestratorFailed, match="d1 announces no address"):
        await Tokens(games_of(ARENA)).endpoint(ARENA, deployment())


@pytest.mark.parametrize("count", [1, 32, 40])
async def test_a_server_knows_a_token_by_its_own_addresses(count: int) -> None:
    """As many as a token holds."""
    own = [f"10.0.0.{number}:7777" for number in range(count)]
    record = msgspec.structs.replace(deployment(udp=UDP), internal=own)
    found = await Tokens(games_of(ARENA)).endpoint(ARENA, record)
    assert [str(address) for address in found.internal] == own[:32]
    assert found.public == ADDRESSES


async def test_an_unusable_internal_address_is_an_error() -> None:
    record = msgspec.structs.replace(deployment(udp=UDP), internal=["nowhere"])
    with pytest.raises(OrchestratorFailed, match="d1 announces an unusable address"):
        await Tokens(games_of(ARENA)).endpoint(ARENA, record)


async def test_an_endpoint_is_remembered_until_its_server_says_something_else() -> None:
    """Names are not resolved for each player."""
    tokens = Tokens(games_of(ARENA))
    record = deployment(udp=UDP)
    first = await tokens.endpoint(ARENA, record)
    assert await tokens.endpoint(ARENA, record) is first
    moved = msgspec.structs.replace(record, transports=Transports(udp=UdpAddress("203.0.113.6", 7777)))
    second = await tokens.endpoint(ARENA, moved)
    assert second.ip == "203.0.113.6"
    booted = msgspec.structs.replace(moved, boot_id="b2")
    assert await tokens.endpoint(ARENA, booted) is not second
    tokens.forget("d1")
    tokens.forget("d1")
    assert await tokens.endpoint(ARENA, record) is not first
