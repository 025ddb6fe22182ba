"""Connections without a token keep nobody out, and nobody speaks for other addresses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TypeAlias, cast

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidMessage
from websockets.http11 import Request

from tests.gameserver.players import Recorder, by_websocket, token_for
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer
from tipoff_gameserver.context import Port, stand_alone_context
from tipoff_gameserver.transports.websocket import Strangers
from tipoff_shared.errors import ConfigError
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import Admitted

Listening: TypeAlias = Callable[[], Awaitable[int]]

pytestmark = pytest.mark.row(75)


@pytest.fixture
def small(deployment: Context) -> Context:
    """Room for eight strangers, four of one address."""
    return replace(deployment, max_strangers=8, max_strangers_per_address=4)


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Closed at the end."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


@pytest.fixture
def listening(kv: Buckets) -> Listening:
    """The port on which the running server listens for WebSockets, of which its lease tells a proxy."""

    async def port() -> int:
        entry = await eventually(lambda: kv.gameservers.get("arena-1"), "it has a lease")
        assert entry is not None
        return entry.value.websocket_port

    return port


def open_silent(port: int, sockets: list[socket.socket], source: str, count: int) -> None:
    """TCP connections that say nothing."""
    target = ("127.0.0.1", port)
    sockets.extend(socket.create_connection(target, source_address=(source, 0)) for _ in range(count))


def close_all(sockets: list[socket.socket]) -> None:
    """Before the server ends: it gives each some seconds."""
    for sock in sockets:
        sock.close()


def is_open(sock: socket.socket) -> bool:
    """Whether the server has not closed a connection on which it says nothing."""
    try:
        return bool(sock.recv(1, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def test_silent_sockets_of_one_address_keep_nobody_out(
    small: Context, game: Recorder, sockets: list[socket.socket], listening: Listening
) -> None:
    """They have not even said what they want: the oldest of the greediest address goes for each who comes."""
    async with GameServer(game, context=small) as server:
        await asyncio.to_thread(open_silent, await listening(), sockets, "127.0.0.66", 40)
        for number in range(4):
            async with by_websocket(server, token_for(server, f"s{number}")) as player:
                assert isinstance(player.answer, Admitted)
        # Well before the time in which each must have said something.
        await eventually(lambda: sum(map(is_open, sockets)) <= 8, "no more are held than allowed", timeout=3)
        close_all(sockets)


async def test_sockets_without_a_token_of_one_address_keep_nobody_out(
    small: Context, game: Recorder, listening: Listening
) -> None:
    """Handshakes are done, tokens do not come. The evicted are told with 1013."""
    async with GameServer(game, context=small) as server:
        url = f"ws://127.0.0.1:{await listening()}/"
        greedy = [await connect(url, local_addr=("127.0.0.66", 0)) for _ in range(12)]
        async with by_websocket(server, token_for(server)) as player:
            assert isinstance(player.answer, Admitted)
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(greedy[0].recv(), 5)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
        for ws in greedy:
            await ws.close()


async def test_players_are_never_closed_for_strangers(
    small: Context, game: Recorder, sockets: list[socket.socket], listening: Listening
) -> None:
    """Of the same address, too: whose token was good is no stranger any more."""
    async with (
        GameServer(game, context=small) as server,
        by_websocket(server, token_for(server, "s1")) as one,
        by_websocket(server, token_for(server, "s2")) as two,
    ):
        await asyncio.to_thread(open_silent, await listening(), sockets, "127.0.0.1", 40)
        for player in (one, two):
            await player.send(b"still here")
            assert await player.receive() == b"still here"
        close_all(sockets)


@pytest.fixture
def proxied(small: Context) -> Context:
    """Behind a proxy at 127.0.0.9."""
    return replace(
        small,
        websocket_url="wss://play.example.org/gs/arena-1",
        trusted_proxies=(ip_network("127.0.0.9"),),
    )


async def through(port: int, proxy: str, client: str) -> ClientConnection:
    """A connection that the proxy makes for a client."""
    return await connect(
        f"ws://127.0.0.1:{port}/gs/arena-1",
        local_addr=(proxy, 0),
        additional_headers={"X-Forwarded-For": client},
    )


async def test_behind_a_proxy_shares_go_by_the_forwarded_address(
    proxied: Context, game: Recorder, listening: Listening
) -> None:
    """The fifth of an address closes its own first, and nobody else's."""
    async with GameServer(game, context=proxied) as server:
        port = await listening()
        other = await through(port, "127.0.0.9", "203.0.113.2")
        greedy = [await through(port, "127.0.0.9", "203.0.113.1") for _ in range(5)]
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(greedy[0].recv(), 5)
        await other.send(token_for(server))
        assert "Admitted" in str(await asyncio.wait_for(other.recv(), 5))
        for ws in (*greedy, other):
            await ws.close()


async def test_a_proxys_own_connections_are_not_closed_for_newer_ones(
    proxied: Context, game: Recorder, sockets: list[socket.socket], listening: Listening
) -> None:
    """Before they name a client: it would be the one that has waited longest. What does not fit goes."""
    async with GameServer(game, context=proxied):
        await asyncio.to_thread(open_silent, await listening(), sockets, "127.0.0.9", 12)
        await eventually(lambda: sum(map(is_open, sockets)) == 8, "as many stay as are allowed", timeout=4)
        assert all(map(is_open, sockets[:8]))
        close_all(sockets)


@pytest.mark.parametrize(
    ("peer", "address"),
    [("127.0.0.9", "203.0.113.7"), ("127.0.0.8", "127.0.0.8:"), ("127.0.0.1", "127.0.0.1:")],
)
async def test_only_a_trusted_proxy_speaks_for_others(
    proxied: Context, game: Recorder, listening: Listening, peer: str, address: str
) -> None:
    """Another private address is no proxy, though one is announced."""
    async with GameServer(game, context=proxied) as server:
        ws = await through(await listening(), peer, "203.0.113.7")
        await ws.send(token_for(server))
        ((_, player),) = await game.saw("join")
        assert player.address.startswith(address)
        await ws.close()


def test_trusted_proxies_are_this_machine_where_a_proxy_is_announced() -> None:
    """And what the operator says, else nobody."""
    assert stand_alone_context({}).trusted_proxies == ()
    announced = {"TIPOFF_WEBSOCKET_URL": "wss://play.example.org/"}
    assert stand_alone_context(announced).trusted_proxies == (ip_network("127.0.0.0/8"), ip_network("::1"))
    named = announced | {"TIPOFF_TRUSTED_PROXIES": "10.1.2.3, 192.168.0.0/16"}
    assert stand_alone_context(named).trusted_proxies == (
        ip_network("10.1.2.3"),
        ip_network("192.168.0.0/16"),
    )
    with pytest.raises(ConfigError, match="TIPOFF_TRUSTED_PROXIES"):
        stand_alone_context({"TIPOFF_TRUSTED_PROXIES": "caddy"})


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has loopback addresses only")
        return str(probe.getsockname()[0])


async def comes_in(own: str, port: int) -> bool:
    """Whether a connection from there gets an answer to its handshake."""
    try:
        async with connect(f"ws://{own}:{port}/", local_addr=(own, 0)):
            return True
    except (OSError, EOFError, InvalidMessage):
        return False


def listens_on(context: Context, port: int) -> Context:
    return replace(context, ports={**context.ports, "websocket": Port(port, port)})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def one_address_connects_again_and_again(context: Context) -> None:
    own, port = own_address(), free_port()
    busy = replace(
        listens_on(context, port),
        bind_hosts=("0.0.0.0",),  # of this machine only
        connections_per_second=1,
        max_strangers_per_address=2,
    )
    async with GameServer(Recorder(), context=busy) as server:
        assert sum([await comes_in(own, port) for _ in range(30)]) in range(4, 8)
        async with by_websocket(server, token_for(server)) as player:
            assert isinstance(player.answer, Admitted)


class Gone:
    """A connection whose client had hung up before it was accepted: the system knows no peer of it."""

    def __init__(self) -> None:
        self.transport = self

    def get_extra_info(self, name: str) -> None:
        return None


def test_a_client_that_is_gone_already_has_no_address(proxied: Context) -> None:
    """And what it says of proxies counts for nothing."""
    request = Request("/", Headers({"X-Forwarded-For": "203.0.113.7"}))
    found = Strangers(proxied).address(cast(ServerConnection, Gone()), request)
    assert found == ip_address("0.0.0.0")


@pytest.mark.row(89)
def test_after_a_pause_an_address_may_open_twice_its_share_at_once(
    small: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each address for itself; loopback as it likes."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    strangers = Strangers(replace(small, connections_per_second=1))
    for address in ("192.0.2.1", "192.0.2.2"):
        admitted = [strangers.admits(address) for _ in range(30)]
        assert sum(admitted) == 2 * small.max_strangers_per_address
    assert all(strangers.admits("127.0.0.1") for _ in range(30))


@pytest.mark.row(89)
async def test_an_address_that_connects_too_often_is_turned_away_and_players_come_in(
    deployment: Context,
) -> None:
    """Nothing of it reaches the library."""
    await one_address_connects_again_and_again(deployment)


@pytest.mark.row(89)
async def test_it_is_turned_away_on_uvloop_too(deployment: Context) -> None:
    """There the connection is made first."""
    uvloop = pytest.importorskip("uvloop")
    await asyncio.to_thread(uvloop.run, one_address_connects_again_and_again(deployment))


@pytest.mark.row(89)
async def test_a_trusted_proxy_connects_as_often_as_it_likes(deployment: Context) -> None:
    own, port = own_address(), free_port()
    context = replace(
        listens_on(deployment, port),
        bind_hosts=("0.0.0.0",),  # of this machine only
        connections_per_second=1,
        max_strangers_per_address=2,
        trusted_proxies=(ip_network(own),),
    )
    async with GameServer(Recorder(), context=context):
        assert all([await comes_in(own, port) for _ in range(30)])
