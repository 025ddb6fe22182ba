"""Listeners under unusual conditions: event loops without readers, two address families, TLS; the end at Edgegap."""

from __future__ import annotations

import asyncio
import http.server
import random
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.certificates import self_signed
from tests.gameserver.players import (
    TIMEOUT,
    Recorder,
    by_udp,
    by_websocket,
    deaf_udp,
    ready,
    token_for,
    token_of,
)
from tests.polling import eventually
from tipoff_gameserver import ConfigError, Context, GameServer, LeaveReason, Player
from tipoff_gameserver.edgegap import end_deployment
from tipoff_gameserver.transports.sockets import bind
from tipoff_gameserver.transports.udp import UdpListener
from tipoff_shared.netcode import Address
from tipoff_shared.primitives import server_certificate, throttled_log
from tipoff_shared.secret import Secret


@pytest.fixture
async def readers_refused(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    """Windows' default event loop has datagram transports but no `add_reader`. Yields the ports it was asked for."""
    refused: list[int] = []

    def add_reader(sock: socket.socket, *_: object) -> None:
        refused.append(sock.getsockname()[1])
        raise NotImplementedError

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
    yield refused
    monkeypatch.undo()


async def test_udp_works_on_an_event_loop_without_readers(readers_refused: list[int], game: Recorder) -> None:
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server:
        answer = await ready(server)
        tokens = token_of(answer)
        assert server.transports.udp is not None
        assert server.transports.udp.port in readers_refused
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(5)

        def play() -> bytes:
            """A client in a thread, because this event loop cannot read sockets for it."""
            import time

            from tipoff_shared.netcode import Client, Payload

            client = Client(tokens, now=time.monotonic())
            said = False
            while True:
                for data, address in client.datagrams_to_send():
                    sock.sendto(data, address)
                data, peer = sock.recvfrom(2048)
                client.receive_datagram(data, Address.from_socket(peer), time.monotonic())
                client.update(time.monotonic())
                said = said or client.send(b"hello", time.monotonic())
                for event in client.events():
                    if isinstance(event, Payload):
                        return event.data

        try:
            assert await asyncio.to_thread(play) == b"hello"
        finally:
            sock.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_both_address_families_share_one_port(deployment: Context, game: Recorder) -> None:
    """Separate sockets, each answering under its own address."""
    hosts = ("127.0.0.1", "::1")
    async with GameServer(game, context=replace(deployment, public_hosts=hosts, bind_hosts=hosts)) as server:
        assert server.transports.udp is not None
        port = server.transports.udp.port
        async with (
            by_udp(token_for(server, "four", address=Address("127.0.0.1", port))) as four,
            by_udp(token_for(server, "six", address=Address("::1", port)), local="::1") as six,
        ):
            for player in (four, six):
                player.send(b"hello")
                assert await player.receive() == b"hello"
            server.broadcast(b"all")
            assert await four.receive() == await six.receive() == b"all"


KINDS = pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])


@KINDS
@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("hosts", [["127.0.0.1", "::1"], ["0.0.0.0", "::"], ["::", "0.0.0.0"]])
def test_a_port_that_is_taken_for_one_family_is_not_chosen(kind: socket.SocketKind, hosts: list[str]) -> None:
    """And neither family's socket takes the other one's players."""
    sockets = bind(hosts, 0, kind, "players")
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert [":" in sock.getsockname()[0] for sock in sockets] == [":" in host for host in hosts]
    finally:
        for sock in sockets:
            sock.close()


@KINDS
def test_a_port_on_which_somebody_listens_is_not_shared(kind: socket.SocketKind) -> None:
    (first,) = bind(["127.0.0.1"], 0, kind, "players")
    with first:
        if kind == socket.SOCK_STREAM:
            first.listen()
        with pytest.raises(ConfigError, match="Is another server running there"):
            bind(["127.0.0.1"], first.getsockname()[1], kind, "players")


def test_a_server_that_starts_again_gets_its_port_at_once() -> None:
    """Though the system remembers for a minute that it hung up on a player there."""
    (listening,) = bind(["127.0.0.1"], 0, socket.SOCK_STREAM, "players")
    address = listening.getsockname()
    with listening:
        listening.listen()
        with socket.create_connection(address) as player:
            listening.setblocking(True)
            connection, _ = listening.accept()
            connection.close()
            assert player.recv(1) == b""
    (again,) = bind(["127.0.0.1"], address[1], socket.SOCK_STREAM, "players")
    again.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself."""
    return self_signed(tmp_path)


async def test_the_websocket_listener_speaks_tls(
    deployment: Context, game: Recorder, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    context = replace(deployment, tls_cert=str(cert), tls_key=str(key))
    async with GameServer(game, context=context) as server:
        assert server.transports.websocket is not None
        url = server.transports.websocket.url
        assert url.startswith("wss://127.0.0.1:")
        trust = ssl.create_default_context(cafile=str(cert))
        async with connect(url, ssl=trust) as ws:
            await ws.send(token_for(server))
            assert "Admitted" in str(await ws.recv())
            await ws.send(b"secret")
            assert await ws.recv() == b"secret"


@pytest.mark.row(71)
async def test_a_renewed_certificate_is_served_without_dropping_anyone(
    deployment: Context, game: Recorder, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A player who is in plays on; the next one gets the new certificate."""
    monkeypatch.setattr(server_certificate, "INTERVAL", 0.05)
    cert, key = certificate
    context = replace(deployment, tls_cert=str(cert), tls_key=str(key))
    async with GameServer(game, context=context) as server:
        assert server.transports.websocket is not None
        url = server.transports.websocket.url
        async with connect(url, ssl=ssl.create_default_context(cafile=str(cert))) as ws:
            await ws.send(token_for(server))
            assert "Admitted" in str(await ws.recv())
            self_signed(cert.parent)
            trust = ssl.create_default_context(cafile=str(cert))

            async def served() -> bool:
                async with connect(url, ssl=trust):
                    return True

            await eventually(served, unready=(ssl.SSLError,))
            await ws.send(b"still here")
            assert await ws.recv() == b"still here"


async def test_a_certificate_that_cannot_be_read_is_told(deployment: Context, game: Recorder) -> None:
    with pytest.raises(ConfigError, match=r"TIPOFF_TLS_CERT=/does/not/exist"):
        async with GameServer(game, context=replace(deployment, tls_cert="/does/not/exist")):
            pass


async def test_silence_times_a_udp_player_out(deployment: Context, game: Recorder) -> None:
    async with GameServer(game, context=deployment) as server, by_udp(token_for(server, timeout=1)) as player:
        player.silent = True
        (leave,) = await game.saw("leave")
    assert leave[2] == LeaveReason.TIMED_OUT


async def test_noise_on_the_udp_port_is_not_answered(deployment: Context, game: Recorder) -> None:
    """Random, truncated and bit-flipped packets: no reply, no harm; the seed is printed."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    async with GameServer(game, context=deployment) as server:
        assert server.transports.udp is not None
        target = ("127.0.0.1", server.transports.udp.port)
        request = bytearray(1078)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            noise.setblocking(False)
            for _ in range(2000):
                data = bytearray(rng.randbytes(rng.choice([0, 1, 17, 18, 100, 333, 1078, 1300, 1500])))
                if rng.random() < 0.3:
                    data = request.copy()
                    data[1:14] = b"NETCODE 1.02\x00"
                    data[rng.randrange(1078)] ^= 1 << rng.randrange(8)
                noise.sendto(data, target)
            async with by_udp(token_for(server)) as player:
                player.send(b"fine")
                assert await player.receive() == b"fine"
            with pytest.raises(BlockingIOError):
                noise.recvfrom(2048)


async def test_handshakes_that_are_ignored_are_told_to_the_operator(
    deployment: Context, game: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once: those of a time in which nothing may be logged are told afterwards."""
    listeners: set[UdpListener] = set()
    look_after = UdpListener.housekeeping

    def housekeeping(listener: UdpListener, now: float) -> None:
        listeners.add(listener)
        look_after(listener, now)

    def told() -> list[str]:
        return re.findall(r"handshakes not answered lately: \D+ (\d+)", caplog.text)

    monkeypatch.setattr(UdpListener, "housekeeping", housekeeping)
    monkeypatch.setattr(throttled_log, "INTERVAL", 1e6)
    async with GameServer(game, context=deployment) as server:
        wrong = token_for(server, context=replace(deployment, protocol_id=1234))
        async with deaf_udp(wrong):
            await eventually(lambda: told() == ["1"], "the log says so")
        (listener,) = listeners
        async with deaf_udp(wrong), deaf_udp(wrong), by_udp(token_for(server)):  # a handshake later
            listener.housekeeping(0)
            assert told() == ["1"]
            monkeypatch.setattr(throttled_log, "INTERVAL", 0.0)
            for _ in range(2):
                listener.housekeeping(0)
                assert told() == ["1", "2"]


async def test_a_slot_used_again_does_not_get_its_former_players_messages(
    deployment: Context, game: Recorder
) -> None:
    """A game that holds on to a player who left cannot reach the one who has the slot now."""
    async with GameServer(game, context=replace(deployment, capacity=1)) as server:
        async with by_udp(token_for(server, "s1")):
            ((_, former),) = await game.saw("join")
        await game.saw("leave")
        async with by_udp(token_for(server, "s2")) as now:
            await game.saw("join", 2)
            assert isinstance(former, Player)
            former.send(b"for somebody else")
            former.kick()
            now.send(b"mine")
            assert await now.receive() == b"mine"
            assert len(server.players) == 1


async def test_many_join_and_leave_in_a_storm(deployment: Context, game: Recorder) -> None:
    """Thirty players on four seats by both transports: each join has its leave, nobody is left over."""
    async with GameServer(game, context=deployment) as server:

        async def one(number: int) -> None:
            token = token_for(server, f"s{number}")
            if number % 2:
                async with by_websocket(server, token) as player:
                    await asyncio.sleep(0.001 * (number % 7))  # each goes at another moment
                    player.ws.transport.abort() if number % 3 else None
            else:
                async with by_udp(token, wait=False):
                    await asyncio.sleep(0.02)  # whether it is in by then or not

        await asyncio.gather(*(one(number) for number in range(30)))
        server.drain()
        async with asyncio.timeout(TIMEOUT):
            await server.wait_ended()  # no seat is taken
        joins = {event[1] for event in game.happened if event[0] == "join"}
        leaves = [event[1] for event in game.happened if event[0] == "leave"]
        assert set(leaves) == joins
        assert len(leaves) == len(joins)
        assert len(server.players) == 0


class _Api(http.server.BaseHTTPRequestHandler):
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012  # set anew by the fixture

    def do_DELETE(self) -> None:
        self.asked.append((self.path, self.headers.get("authorization")))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def edgegap_api() -> Iterator[http.server.HTTPServer]:
    _Api.asked = []
    server = http.server.HTTPServer(("127.0.0.1", 0), _Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def test_edgegap_is_told_when_the_match_is_over(
    deployment: Context, game: Recorder, edgegap_api: http.server.HTTPServer
) -> None:
    url = f"http://127.0.0.1:{edgegap_api.server_port}/stop/me"
    context = replace(deployment, delete_url=url, delete_token=Secret("the-token"))
    async with GameServer(game, context=context):
        pass
    assert _Api.asked == []  # drained, not ended: whoever drained it stops it
    async with GameServer(game, context=context) as server:
        await server.shutdown()
    assert _Api.asked == [("/stop/me", "the-token")]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:1/nobody"])
async def test_an_edgegap_that_cannot_be_told_is_only_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await end_deployment(url, Secret("token"))
    assert caplog.records
    assert "token" not in caplog.text.replace("delete_token", "")
