"""The eight recorded sessions of the reference's client and server, replayed against ours.

The recording's loop updates both sides every 0.05 s, client first. A datagram of an update is read in the same turn
when it goes to the server and in the next turn when it goes to the client; what the application sends (payloads,
disconnects) leaves after both updates, so it is always read in the next turn. A turn's time is its number times 0.05,
as there, because the reference's decisions hang on the last bits of that.

**Our server, given the datagrams the reference's clients sent, answers with the reference's very bytes**, every one.

Our client differs by design, so its packets are compared by meaning:

* it answers a challenge at once, where the reference waits for the next turn at which 0.1 s have passed: fewer requests
  or keep-alives come before a given packet, and sequence numbers differ by as much;
* it sends its first keep-alive when it learns that it is connected; later it sends one a second, to measure the round
  trip, where the reference sends ten;
* it moves on to the next address when the timeout has passed, not one turn later.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tipoff_shared.netcode import (
    Address,
    Client,
    Connected,
    ConnectToken,
    Disconnected,
    Payload,
    PrivateKey,
    Server,
    StateChanged,
)
from tipoff_shared.netcode.challenge import ChallengeTokens
from tipoff_shared.netcode.constants import DISCONNECT, KEEP_ALIVE, PACKET_NAMES, PAYLOAD, RESPONSE
from tipoff_shared.netcode.packet import TO_CLIENT, TO_SERVER, PacketReader, PacketWriter, cipher
from tipoff_shared.netcode.round_trip import is_nonce

SCENARIOS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "transcripts.json").read_text(encoding="utf-8")
)["scenarios"]
STEP = 0.05
SERVER = Address.parse("127.0.0.1:40000")

scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario['scenario']}")


def turns(scenario: dict[str, Any]) -> list[tuple[float, list[dict[str, Any]]]]:
    """The events by turn, with the time as the recording's loop computed it."""
    last = max(event["t"] for event in scenario["events"])
    return [
        (turn * STEP, [event for event in scenario["events"] if round(event["t"] / STEP) == turn])
        for turn in range(round(last / STEP) + 2)
    ]


def token_of(scenario: dict[str, Any], packet: dict[str, Any]) -> ConnectToken:
    """Whose keys a packet uses: in scenario 8 bob uses alice's token."""
    client = packet["packet_from"]
    if client == "server":
        client = {"127.0.0.1:50001": "alice", "127.0.0.1:50002": "bob"}[packet["to_addr"]]
    return ConnectToken.decode(bytes.fromhex(scenario["tokens"][client]))


def packets(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in scenario["events"] if "packet_from" in event]


@scenarios
def test_every_recorded_datagram_opens_and_seals_to_the_same_bytes(scenario: dict[str, Any]) -> None:
    """Both directions, with the keys of the scenario's tokens; requests are made from the token."""
    challenges = ChallengeTokens(bytes.fromhex(scenario["challenge_key"]))
    for packet in packets(scenario):
        token = token_of(scenario, packet)
        data = bytes.fromhex(packet["hex"])
        if packet["type"] == "request":
            both = {
                ConnectToken.decode(bytes.fromhex(text)).request_packet()
                for text in scenario["tokens"].values()
            }
            assert data in both
            continue
        to_server = packet["direction"] == "client_to_server"
        key = token.client_to_server_key if to_server else token.server_to_client_key
        reader = PacketReader(scenario["protocol_id"], TO_SERVER if to_server else TO_CLIENT)
        found = reader.read(data, cipher(key).decrypt, None)
        assert found is not None
        kind, sequence, body = found
        assert (PACKET_NAMES[kind], sequence, body.hex()) == (
            packet["type"],
            packet["sequence"],
            packet["body"],
        )
        assert PacketWriter(scenario["protocol_id"]).write(cipher(key).encrypt, kind, sequence, body) == data
        if "challenge_client_id" in packet:
            opened = challenges.open(body)
            assert opened is not None
            assert opened[0] == packet["challenge_client_id"]


def replay_server(scenario: dict[str, Any]) -> tuple[list[tuple[int, str, str]], list[tuple[int, str, int]]]:
    """Feed the recorded clients' datagrams to our server: what it sent and reported, each with its turn."""
    server = Server(
        private_key=PrivateKey(bytes.fromhex(scenario["private_key"])),
        protocol_id=scenario["protocol_id"],
        addresses=[SERVER],
        max_clients=scenario["max_clients"],
        challenge_key=bytes.fromhex(scenario["challenge_key"]),
        global_sequence=2**63,
        wall_clock=lambda: float(scenario["server_time"]),
    )
    sent: list[tuple[int, str, str]] = []
    reported: list[tuple[int, str, int]] = []
    delayed: list[tuple[bytes, Address]] = []
    for turn, (now, events) in enumerate(turns(scenario)):
        arriving, delayed = delayed, []
        for event in events:
            if event.get("direction") == "client_to_server" and event["delivered"]:
                datagram = (bytes.fromhex(event["hex"]), Address.parse(event["from_addr"]))
                (delayed if event["type"] in ("payload", "disconnect") else arriving).append(datagram)
        for data, source in arriving:
            server.receive_datagram(data, source, now)
        server.update(now)
        for event in server.events():
            if isinstance(event, Connected):
                reported.append((turn, "client_connected", event.index))
            elif isinstance(event, Disconnected):
                reported.append((turn, "client_disconnected", event.index))
            elif isinstance(event, Payload):  # the recording's application echoes
                server.send(event.index, event.data, now)
        for event in events:
            note = event.get("note", "")
            if note.startswith("server sends payload"):
                server.send(0, b"early", now)
            elif note.startswith("server disconnects"):
                server.disconnect(0, now)
                reported += [
                    (turn, "client_disconnected", e.index)
                    for e in server.events()
                    if isinstance(e, Disconnected)
                ]
        sent += [(turn, data.hex(), str(target)) for data, target in server.datagrams_to_send()]
    return sent, reported


@scenarios
def test_our_server_sends_the_reference_s_bytes(scenario: dict[str, Any]) -> None:
    """Same datagrams, same order, same turns; and the same reports of who came and went."""
    sent, reported = replay_server(scenario)
    recorded = [
        (round(packet["t"] / STEP), packet["hex"], packet["to_addr"])
        for packet in packets(scenario)
        if packet["packet_from"] == "server"
    ]
    last = recorded[-1][0]
    assert [entry for entry in sent if entry[0] <= last] == recorded
    assert reported == [
        (round(event["t"] / STEP), event["server_event"], event["client_index"])
        for event in scenario["events"]
        if "server_event" in event
    ]


class Replay:
    """One of our clients in the place of a recorded one."""

    def __init__(self, scenario: dict[str, Any], name: str, address: str) -> None:
        self.states: list[tuple[int, int]] = []
        self.got: list[str] = []
        self.sent: list[tuple[int, int, bytes]] = []  # type, sequence number, body
        client: Client | None = None
        token = b""
        delayed: list[bytes] = []
        for turn, (now, events) in enumerate(turns(scenario)):
            notes = [event["note"] for event in events if "note" in event]
            if any(note.startswith(f"{name} goes silent") for note in notes):
                break
            for note in notes:
                if note.startswith((f"{name} calls connect", f"{name} connects with alice's token")):
                    owner = "alice" if "alice's" in note else name
                    token = bytes.fromhex(scenario["tokens"][owner])
                    client = Client(token, now=now)
            if client is None:
                continue
            arriving, delayed = delayed, []
            delayed = [
                bytes.fromhex(event["hex"])
                for event in events
                if event.get("to_addr") == address and event["delivered"]
            ]
            for data in arriving:
                client.receive_datagram(data, SERVER, now)
            client.update(now)
            for note in notes:
                if note == f"{name} sends payload":
                    payload = next(
                        e for e in events if e.get("packet_from") == name and e["type"] == "payload"
                    )
                    client.send(bytes.fromhex(payload["body"]), now)
                elif note == f"{name} calls disconnect":
                    client.disconnect(now)
            for event in client.events():
                if isinstance(event, StateChanged):
                    self.states.append((turn, int(event.state)))
                elif isinstance(event, Payload):
                    self.got.append(event.data.hex())
            self._open(scenario, ConnectToken.decode(token), client)

    def _open(self, scenario: dict[str, Any], token: ConnectToken, client: Client) -> None:
        reader = PacketReader(scenario["protocol_id"], TO_SERVER)
        for data, _ in client.datagrams_to_send():
            if data[0] == 0:
                assert data == token.request_packet()
                self.sent.append((0, -1, b""))
            else:
                packet = reader.read(data, cipher(token.client_to_server_key).decrypt, None)
                assert packet is not None
                self.sent.append(packet)


def clients(scenario: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted(
        {
            (packet["packet_from"], packet["from_addr"])
            for packet in packets(scenario)
            if packet["packet_from"] != "server"
        }
    )


@scenarios
def test_our_client_goes_through_the_reference_s_states(scenario: dict[str, Any]) -> None:
    """Same states in the same order, at most one turn earlier, and the same payloads come out."""
    for name, address in clients(scenario):
        ours = Replay(scenario, name, address)
        theirs = [
            (round(event["t"] / STEP), event["code"])
            for event in scenario["events"]
            if event.get("client") == name and "code" in event
        ]
        assert [code for _, code in ours.states] == [code for _, code in theirs]
        for (our_turn, _), (their_turn, _) in zip(ours.states, theirs, strict=True):
            assert their_turn - 1 <= our_turn <= their_turn
        assert ours.got == [e["got"] for e in scenario["events"] if e.get("client") == name and "got" in e]


@scenarios
def test_our_client_s_packets_mean_what_the_reference_s_do(scenario: dict[str, Any]) -> None:
    """Same kinds in the same order, same bodies, every sequence number once and one after the other."""
    for name, address in clients(scenario):
        ours = Replay(scenario, name, address).sent
        recorded = [packet for packet in packets(scenario) if packet["packet_from"] == name]

        assert ours[0][0] == 0
        for number, (kind, sequence, _) in enumerate(ours):  # requests take numbers without showing them
            assert kind == 0 or sequence == number

        def essence(kinds: list[str]) -> list[str]:
            """Repetitions count once, and keep-alives not at all: both depend on the sender's timing."""
            return [kind for kind, _ in groupby(kind for kind in kinds if kind != "keep_alive")]

        assert essence([PACKET_NAMES[kind] for kind, _, _ in ours]) == essence([p["type"] for p in recorded])
        for wanted in (RESPONSE, PAYLOAD, DISCONNECT):
            bodies = [body.hex() for kind, _, body in ours if kind == wanted]
            if wanted == RESPONSE:  # repeated until the server's first keep-alive arrives
                bodies = list(dict.fromkeys(bodies))
            assert bodies == [p["body"] for p in recorded if p["type"] == PACKET_NAMES[wanted]]
        # The reference sends zeros there and reads nothing; ours sends nonces.
        assert all(is_nonce(body) for kind, _, body in ours if kind == KEEP_ALIVE)
