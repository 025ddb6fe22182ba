"""Measures netcode on one core, without sockets: tokens, packets and whole connections in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tipoff_shared.netcode import (
    Address,
    Client,
    ClientState,
    PrivateKey,
    RequestBudget,
    Server,
    issue_token,
    open_private,
)
from tipoff_shared.netcode.constants import PAYLOAD
from tipoff_shared.netcode.packet import TO_SERVER, PacketReader, PacketWriter, cipher
from tipoff_shared.netcode.replay import ReplayWindow

PROTOCOL_ID = 0x7469706F6666
SERVER = Address.parse("192.0.2.1:40000")
PLAYERS = 64
TICK_RATE = 60
PAYLOAD_BYTES = 100


def rate(work: Callable[[], int], seconds: float) -> float:
    """Repeat `work`, which returns its number of operations, for about `seconds`; returns operations per second."""
    done, started = 0, time.process_time()
    while (elapsed := time.process_time() - started) < seconds:
        done += work()
    return done / elapsed


def connected(players: int) -> tuple[Server, list[tuple[Address, Client]]]:
    """A server and its clients, all through the handshake."""
    key = PrivateKey.generate()
    server = Server(
        private_key=key,
        protocol_id=PROTOCOL_ID,
        addresses=[SERVER],
        max_clients=players,
        answer_keep_alives=True,
    )
    clients = []
    for number in range(players):
        token = issue_token(
            key, protocol_id=PROTOCOL_ID, client_id=number, public_addresses=[SERVER], now=time.time()
        )
        clients.append((Address("192.0.2.2", 1024 + number), Client(token, now=0.0)))
    for _ in range(3):
        exchange(server, clients, 0.0)
    assert all(client.state is ClientState.CONNECTED for _, client in clients)
    server.events()
    return server, clients


def exchange(server: Server, clients: list[tuple[Address, Client]], now: float) -> None:
    """Deliver the datagrams that both sides have to send."""
    by_address = dict(clients)
    for address, client in clients:
        for data, _ in client.datagrams_to_send():
            server.receive_datagram(data, address, now)
    for data, target in server.datagrams_to_send():
        by_address[target].receive_datagram(data, SERVER, now)


def token_figures(seconds: float) -> Iterator[dict[str, object]]:
    key = PrivateKey.generate()
    now = time.time()

    def issue() -> int:
        for number in range(100):
            issue_token(
                key, protocol_id=PROTOCOL_ID, client_id=number, public_addresses=[SERVER], now=now
            ).encode()
        return 100

    token = issue_token(
        key, protocol_id=PROTOCOL_ID, client_id=1, public_addresses=[SERVER], now=now
    ).encode()

    def open_them() -> int:
        for _ in range(100):
            open_private(token, key, protocol_id=PROTOCOL_ID, unix_now=now)
        return 100

    yield {"figure": "netcode tokens issued", "value": round(rate(issue, seconds)), "unit": "1/s of one core"}
    yield {
        "figure": "netcode tokens opened",
        "value": round(rate(open_them, seconds)),
        "unit": "1/s of one core",
    }

    stranger = PrivateKey.generate()
    forged = bytearray(
        issue_token(
            stranger, protocol_id=PROTOCOL_ID, client_id=1, public_addresses=[SERVER], now=now + 3600
        ).request_packet()
    )
    source = Address("192.0.2.66", 6666)

    for what, budget in (
        ("decrypted and dropped", RequestBudget(rate=1e12, burst=1e12)),
        ("dropped beyond the budget", RequestBudget(rate=1e-6, burst=1)),
    ):
        server = Server(
            private_key=key,
            protocol_id=PROTOCOL_ID,
            addresses=[SERVER],
            max_clients=1,
            request_budget=budget,
        )

        def forge(server: Server = server) -> int:
            for number in range(100):
                forged[-1] = number
                server.receive_datagram(bytes(forged), source, 0.0)
            return 100

        dropped = round(rate(forge, seconds))
        yield {"figure": f"netcode forged requests {what}", "value": dropped, "unit": "1/s of one core"}


def packet_figures(seconds: float) -> Iterator[dict[str, object]]:
    aead = cipher(bytes(range(32)))
    writer, reader = PacketWriter(PROTOCOL_ID), PacketReader(PROTOCOL_ID, TO_SERVER)
    body = bytes(PAYLOAD_BYTES)
    sequence = 0

    def write() -> int:
        nonlocal sequence
        for _ in range(1000):
            writer.write(aead.encrypt, PAYLOAD, sequence, body)
            sequence += 1
        return 1000

    packets = [writer.write(aead.encrypt, PAYLOAD, number, body) for number in range(1000)]

    def read() -> int:
        window = ReplayWindow()
        for packet in packets:
            reader.read(packet, aead.decrypt, window)
        return 1000

    forged = [packet[:-1] + bytes((packet[-1] ^ 1,)) for packet in packets]

    def drop() -> int:
        window = ReplayWindow()
        for packet in forged:
            reader.read(packet, aead.decrypt, window)
        return 1000

    unit = "1/s of one core"
    yield {
        "figure": f"netcode packets written ({PAYLOAD_BYTES} B)",
        "value": round(rate(write, seconds)),
        "unit": unit,
    }
    yield {
        "figure": f"netcode packets read ({PAYLOAD_BYTES} B)",
        "value": round(rate(read, seconds)),
        "unit": unit,
    }
    yield {"figure": "netcode forged packets dropped", "value": round(rate(drop, seconds)), "unit": unit}


def conversation_figures(seconds: float) -> Iterator[dict[str, object]]:
    server, clients = connected(1)
    address, client = clients[0]
    payload = bytes(PAYLOAD_BYTES)

    def echo() -> int:
        for _ in range(1000):
            client.send(payload, 0.0)
            for data, _ in client.datagrams_to_send():
                server.receive_datagram(data, address, 0.0)
            for event in server.events():
                server.send(event.index, event.data, 0.0)  # type: ignore[union-attr]  # nothing but payloads comes
            for data, _ in server.datagrams_to_send():
                client.receive_datagram(data, SERVER, 0.0)
            client.events()
        return 1000

    yield {
        "figure": f"netcode echoes client-server-client ({PAYLOAD_BYTES} B)",
        "value": round(rate(echo, seconds)),
        "unit": "1/s of one core",
    }

    server, clients = connected(PLAYERS)
    inputs, spent, ticks = 0, 0.0, 0
    ends = time.process_time() + 2 * seconds
    now = 0.0
    while time.process_time() < ends:
        now += 1 / TICK_RATE
        ticks += 1
        arriving = []
        for address, client in clients:
            client.update(now)
            client.send(payload, now)
            arriving += [(data, address) for data, _ in client.datagrams_to_send()]
        began = time.process_time()
        for data, address in arriving:
            server.receive_datagram(data, address, now)
        inputs += len(server.events())
        server.update(now)
        for index in range(PLAYERS):
            server.send(index, payload, now)
        outgoing = server.datagrams_to_send()
        spent += time.process_time() - began
        by_address = dict(clients)
        for data, target in outgoing:
            by_address[target].receive_datagram(data, SERVER, now)
        for _, client in clients:
            client.events()
    assert inputs == ticks * PLAYERS
    yield {
        "figure": f"netcode server, {PLAYERS} players at {TICK_RATE} Hz, without I/O",
        "value": round(100 * spent * TICK_RATE / ticks, 2),
        "unit": "% of one core",
    }


def run(seconds: float = 0.5) -> Iterator[dict[str, object]]:
    """Each figure as ``{"figure", "value", "unit"}``; each computes for `seconds`."""
    yield from token_figures(seconds)
    yield from packet_figures(seconds)
    yield from conversation_figures(seconds)


if __name__ == "__main__":
    for figure in run():
        print(figure)
