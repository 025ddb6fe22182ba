"""What strangers send to the UDP port costs the players nothing, and a burst fits into the socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.gameserver.players import Recorder, by_udp, token_for
from tests.polling import eventually
from tipoff.interop.echo_commands import serve_echo
from tipoff_gameserver import Context, GameServer
from tipoff_gameserver.transports.sockets import bind
from tipoff_shared.netcode import Address, Client, ClientState, PrivateKey, Server, issue_token
from tipoff_shared.primitives import udp_socket

pytestmark = pytest.mark.row(72)


async def test_in_one_batch_players_come_before_strangers(
    deployment: Context, game: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred requests that arrived before a player's message are looked at after it."""
    async with GameServer(game, context=deployment) as server, by_udp(token_for(server)) as player:
        player.send(b"hello")
        assert await player.receive() == b"hello"  # nothing of the handshake is left to read
        assert server.transports.udp is not None
        home = Address("127.0.0.1", server.transports.udp.port)
        wrong = issue_token(
            PrivateKey.generate(),
            protocol_id=deployment.protocol_id,
            client_id=1,
            public_addresses=[home],
            now=2e9,
        )
        seen: list[int] = []
        receive = Server.receive_datagram

        def seeing(netcode: Server, data: bytes, address: Address, now: float) -> None:
            seen.append(len(data))
            receive(netcode, data, address, now)

        monkeypatch.setattr(Server, "receive_datagram", seeing)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            for _ in range(200):  # all of this happens in one turn of the event loop
                stranger.sendto(wrong.request_packet(), home)
        player.send(b"first")
        await game.saw("message", 2)
        await eventually(lambda: seen.count(1078) == 200, "the strangers' requests are read too")
        assert seen[0] < 1078


def test_a_socket_holds_a_burst(caplog: pytest.LogCaptureFixture) -> None:
    """As much as the kernel gives; the operator is told of less than what was asked for."""
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    (sock,) = bind(["127.0.0.1"], 0, socket.SOCK_DGRAM, "UDP")
    with sock:
        assert udp_socket.granted(sock) == min(limit, udp_socket.RECEIVE_BYTES)
    assert ("net.core.rmem_max" in caplog.text) == (limit < udp_socket.RECEIVE_BYTES)


def test_a_kernel_that_gives_less_is_told_with_the_remedy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_socket, "granted", lambda _: 212_992)
    for sock in bind(["127.0.0.1"], 0, socket.SOCK_DGRAM, "UDP"):
        sock.close()
    assert "a receive buffer of 208 KiB, not 4096 KiB" in caplog.text
    assert "sysctl -w net.core.rmem_max=4194304" in caplog.text


async def test_the_echo_server_notices_each_of_64_clients_that_leave_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """640 packets within a millisecond or two, while it does something else."""
    key, stop, loop = PrivateKey.generate(), asyncio.Event(), asyncio.get_running_loop()
    made: list[Server] = []

    def server_at(bound: Address) -> Server:
        made.append(Server(private_key=key, protocol_id=7, addresses=[bound], max_clients=64))
        return made[0]

    serving = asyncio.create_task(serve_echo(server_at, Address("127.0.0.1", 0), stop))
    await eventually(lambda: made, "it listens")
    home = Address.parse(capsys.readouterr().out.split()[-1])
    clients = []
    for number in range(64):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        token = issue_token(key, protocol_id=7, client_id=number, public_addresses=[home], now=2e9)
        clients.append((sock, Client(token, now=loop.time())))

    def turn() -> bool:
        for sock, client in clients:
            for data, address in client.datagrams_to_send():
                sock.sendto(data, address)
            for data, sender in udp_socket.drain(sock, 100):
                client.receive_datagram(data, Address.from_socket(sender), loop.time())
            client.update(loop.time())
        return made[0].connected_count == 64 and all(c.state is ClientState.CONNECTED for _, c in clients)

    await eventually(turn, "all are connected")
    for _, client in clients:
        client.disconnect(loop.time())
    turn()
    for sock, _ in clients:
        sock.close()
    await eventually(lambda: made[0].connected_count == 0, "nobody is left")
    stop.set()
    await serving
    assert capsys.readouterr().err.count("gone: client") == 64
