"""A server, its clients and the network between them, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from tipoff_shared.netcode import (
    Address,
    Client,
    ClientState,
    ConnectToken,
    Dialect,
    Payload,
    PrivateKey,
    Server,
    StateChanged,
    issue_token,
)
from tipoff_shared.netcode.virtual_network import VirtualNetwork

PROTOCOL_ID = 0x1122334455667788
UNIX_NOW = 1_720_000_000


class World:
    """One server at `home`, reachable over `net`; `clock` is the server's wall clock."""

    def __init__(self, dialect: Dialect = Dialect.STANDARD, **network: Any) -> None:
        self.key = PrivateKey(bytes(range(32)))
        self.protocol_id = PROTOCOL_ID
        self.dialect = dialect
        self.home = Address("192.0.2.1", 40000)
        self.net = VirtualNetwork(**network)
        self.clock = float(UNIX_NOW)
        self.server: Server

    def start(self, max_clients: int = 4, **options: Any) -> Server:
        """(Re)start the server at `home`."""
        settings: dict[str, Any] = {
            "private_key": self.key,
            "protocol_id": self.protocol_id,
            "addresses": [self.home],
            "max_clients": max_clients,
            "dialect": self.dialect,
            "wall_clock": lambda: self.clock,
        }
        self.server = Server(**(settings | options))
        self.net.attach(self.home, self.server)
        return self.server

    def token(self, client_id: int = 1, **fields: Any) -> ConnectToken:
        settings: dict[str, Any] = {
            "protocol_id": self.protocol_id,
            "client_id": client_id,
            "public_addresses": [self.home],
            "now": self.clock,
            "dialect": self.dialect,
        }
        settings |= fields
        return issue_token(settings.pop("key", self.key), **settings)

    def address(self, number: int = 1) -> Address:
        return Address("198.51.100.7", 50000 + number)

    def dial(self, token: ConnectToken | bytes | None = None, number: int = 1, **options: Any) -> Client:
        """A client at ``address(number)``, with a fresh token for client id `number` unless given one."""
        client = Client(
            self.token(number) if token is None else token, now=self.net.now, dialect=self.dialect, **options
        )
        self.net.attach(self.address(number), client)
        return client

    def join(self, number: int = 1, token: ConnectToken | None = None, **options: Any) -> Client:
        """A client that is connected, and confirmed at the server."""
        client = self.dial(token, number, **options)
        self.net.advance(0.5)
        assert client.state is ClientState.CONNECTED, client.failure
        return client

    def raw_request(self, token: ConnectToken, number: int = 1) -> list[tuple[bytes, Address]]:
        """What the server answers, at once, to this token's request from ``address(number)``."""
        self.server.receive_datagram(token.request_packet(), self.address(number), self.net.now)
        return self.server.datagrams_to_send()

    @staticmethod
    def states(client: Client) -> list[ClientState]:
        return [event.state for event in client.events() if isinstance(event, StateChanged)]

    @staticmethod
    def payloads(endpoint: Client | Server) -> list[bytes]:
        return [event.data for event in endpoint.events() if isinstance(event, Payload)]


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    """The class itself, for tests that need several worlds or other ones than ``world``."""
    return World


@pytest.fixture
def world() -> World:
    """A standard world without loss and without delay; the server is started with defaults."""
    world = World()
    world.start()
    return world
