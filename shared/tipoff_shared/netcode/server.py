"""Runs the gameserver's side, from connection requests to payloads of many clients, without I/O.

The driver passes in every datagram and the time, sends what ``datagrams_to_send`` returns after each
call (or each batch of calls), takes ``events``, and calls ``update`` at ``next_timeout``. Times are seconds
of one monotonic clock, except the expiry of tokens, which is judged by `wall_clock`.

No datagram can raise, disconnect another client, or make the server send more bytes to an unproven address than
came from it.
"""

from __future__ import annotations

import heapq
import math
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, KeysView

from .addresses import Address
from .challenge import ChallengeTokens
from .connections import Pending, Slot
from .constants import (
    DISCONNECT,
    DISCONNECT_REPEATS,
    FRAME,
    FRAMING_WIDTH,
    GLOBAL_SEQUENCE_START,
    KEEP_ALIVE,
    KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    PAYLOAD,
    PAYLOAD_QUEUE,
    REQUEST,
    REQUEST_BYTES,
    RESPONSE,
    SEND_INTERVAL,
    Dialect,
)
from .errors import InvalidPayload, NetcodeError
from .events import (
    AdmitRequest,
    Connected,
    Decision,
    Denial,
    DenyReason,
    Disconnected,
    DisconnectReason,
    Frame,
    Payload,
    ServerEvent,
)
from .handshakes import Admission, Handshakes, Place
from .keys import PrivateKey
from .packet import FRAMED, TO_SERVER, PacketReader, PacketWriter
from .request_budget import RequestBudget
from .round_trip import is_nonce
from .token import PrivateToken
from .used_tokens import UsedTokens

_INDEX_AND_MAX = struct.Struct("<II")
_CLIENT_ID = struct.Struct("<Q")


class Server:
    """`max_clients` slots behind one private key and protocol id.

    `addresses` are those that clients dial (never 0.0.0.0): a token must name one of them unless
    `check_address` is off; None follows the dialect (lightyear servers do not compare). A client with a
    valid, unused token is admitted by `admission` if given (which may say ADMIT, PENDING, IGNORE or return a
    Denial), else by the application answering AdmitRequest events if `manual_admission`, else always.

    Several transports of one gameserver share `used_tokens`, and share which clients are connected:
    `is_client_connected` answers for the other transports, this server's ``is_connected`` for this one;
    `has_room` says whether the game as a whole takes one more player
    (both may disconnect a client to make room). A client id that is connected is not
    let in again, or, with `replace_connected` or where `comes_back` says so, throws out its former self once it proved
    its address; one that knows frames gets the frame `replaced` before. `comes_back` is asked with the client id and
    the token's user data, and where it says yes, no room is needed. With
    `answer_keep_alives` each client can measure its round trip (see `round_trip`). With `framing` a client that knows
    frames may send them and gets them (`send_frame`, `Frame`); all others see the standard only.
    `request_budget` bounds the work for strangers'
    requests; None is 5000 a second. A client that sends more authentic packets a second than `packet_limit` is
    disconnected.

    `challenge_key` and `global_sequence` are for tests: a server that is restarted with the same ones repeats
    nonces.
    """

    def __init__(
        self,
        *,
        private_key: PrivateKey,
        protocol_id: int,
        addresses: Iterable[Address],
        max_clients: int,
        dialect: Dialect = Dialect.STANDARD,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        used_tokens: UsedTokens | None = None,
        admission: Admission | None = None,
        manual_admission: bool = False,
        is_client_connected: Callable[[int], bool] | None = None,
        has_room: Callable[[], bool] | None = None,
        replace_connected: bool = False,
        comes_back: Callable[[int, bytes], bool] | None = None,
        replaced: bytes = b"",
        check_address: bool | None = None,
        answer_keep_alives: bool = False,
        framing: bool = False,
        max_pending: int = 1024,
        request_budget: RequestBudget | None = None,
        packet_limit: float = math.inf,
        challenge_key: bytes | None = None,
        global_sequence: int | None = None,
    ) -> None:
        if max_clients < 1:
            raise NetcodeError(f"a server needs at least one slot, not {max_clients}")
        own = frozenset(addresses)
        if check_address is None:
            check_address = dialect is Dialect.STANDARD
        if check_address and not own:
            raise NetcodeError("a server that compares tokens with its addresses must be told them")
        if global_sequence is None:
            # A token outlives a restart. A random start keeps the new server's nonces off those of the old
            # one.
            global_sequence = GLOBAL_SEQUENCE_START + (int.from_bytes(random(8), "little") >> 2)
        if admission is None:
            decision = Decision.PENDING if manual_admission else Decision.ADMIT
            admission = lambda _request: decision  # noqa: E731  # a def would need a second name
        self.max_clients = max_clients
        self.payloads_dropped = 0
        self._dialect = dialect
        self._is_client_connected = is_client_connected
        self._has_room = has_room
        self._replace_connected = replace_connected
        self._comes_back = comes_back
        self._replaced = replaced
        self._answer_keep_alives = answer_keep_alives
        self._packet_limit = packet_limit
        self._writer = PacketWriter(protocol_id)
        self._reader = PacketReader(protocol_id, TO_SERVER, dialect)
        self._framed_reader = PacketReader(protocol_id, FRAMED, dialect)
        self._framing = framing and dialect is Dialect.STANDARD
        self._handshakes = Handshakes(
            private_key=private_key,
            protocol_id=protocol_id,
            dialect=dialect,
            addresses=own if check_address else None,
            used_tokens=UsedTokens() if used_tokens is None else used_tokens,
            challenges=ChallengeTokens(random(KEY_BYTES) if challenge_key is None else challenge_key),
            global_sequence=global_sequence,
            writer=self._writer,
            wall_clock=wall_clock,
            admission=admission,
            place_for=self._place_for,
            max_pending=max_pending,
            budget=RequestBudget() if request_budget is None else request_budget,
        )
        self._free = list(range(max_clients))  # a heap: the lowest free index is taken
        self._slots: dict[int, Slot] = {}
        self._by_address: dict[Address, Slot] = {}
        self._by_client_id: dict[int, Slot] = {}
        self._next_due = math.inf  # not later than the first deadline of any slot or pending handshake
        self._events: list[ServerEvent] = []
        self._batch = 1  # counts calls of events()
        self._out: list[tuple[bytes, Address]] = []

    # --- what the driver calls
    # ---------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take in one datagram. An invalid one is ignored."""
        slot = self._by_address.get(address)
        if slot is not None:
            packet = slot.reader.read(data, slot.decrypt, slot.window)
            if packet is None:
                return
            slot.allowance -= 1.0
            if slot.allowance >= 0.0 or slot.may_send(now, self._packet_limit):
                self._process(slot, packet, now)
            else:
                self._throw_out(slot, DisconnectReason.FLOODED, now)
        elif len(data) == REQUEST_BYTES and data[0] == REQUEST:
            self._process_request(data, address, now)
        else:
            pending = self._handshakes.pending.get(address)
            if pending is not None:
                packet = self._reader.read(data, pending.decrypt, None)
                if packet is not None and packet[0] == RESPONSE:
                    framed = self._framing and data[0] >> 4 == FRAMING_WIDTH
                    self._process_response(pending, packet[2], framed, now)

    @property
    def connected_addresses(self) -> KeysView[tuple[str, int]]:
        """The addresses of the connected clients, kept up to date. A driver that reads several datagrams at once passes
        in those from here first: strangers may wait."""
        return self._by_address.keys()

    def update(self, now: float) -> None:
        """Do what is due by now: time out, keep alive, forget. Cheap when nothing is due."""
        if now < self._next_due:
            return
        due = self._handshakes.expire(now)
        for slot in list(self._slots.values()):
            silent_until = slot.last_receive + slot.timeout
            if silent_until <= now:
                self._free_slot(slot, DisconnectReason.TIMED_OUT)
                continue
            if slot.last_send + SEND_INTERVAL <= now:
                self._send(slot, KEEP_ALIVE, slot.keep_alive, now)
            due = min(due, silent_until, slot.last_send + SEND_INTERVAL)
        self._next_due = due

    def next_timeout(self) -> float:
        """When ``update`` must be called next; infinity when no client is connected or connecting."""
        return self._next_due

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        """Datagrams and their targets; each is returned once."""
        out = self._out
        self._out = []
        return out

    def events(self) -> list[ServerEvent]:
        """What happened since the last call.

        A client has at most 256 payloads in one batch, newer ones are dropped.
        """
        events = self._events
        self._events = []
        self._batch += 1
        return events

    # --- what the application calls
    # ----------------------------------------------------------------------------------

    def send(self, index: int, payload: bytes, now: float) -> bool:
        """Send 1..1200 bytes to the client in slot `index`. Returns False for an empty slot.

        Raises InvalidPayload.
        """
        if not 1 <= len(payload) <= MAX_PAYLOAD_BYTES:
            raise InvalidPayload(f"a payload has 1 to {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
        slot = self._slots.get(index)
        if slot is None:
            return False
        if not slot.confirmed:  # the first keep-alive may be lost, and a client takes no payload before one
            self._send(slot, KEEP_ALIVE, slot.keep_alive, now)
        self._send(slot, PAYLOAD, payload, now)
        return True

    def send_frame(self, index: int, frame: bytes, now: float) -> bool:
        """Send a frame of 1..1200 bytes to the client in slot `index`. False where none is connected that knows
        frames."""
        slot = self._slots.get(index)
        if slot is None or not slot.framed:
            return False
        if not slot.confirmed:
            self._send(slot, KEEP_ALIVE, slot.keep_alive, now)
        self._send(slot, FRAME, frame, now)
        return True

    def disconnect(self, index: int, now: float) -> bool:
        """Disconnect the client in slot `index`. Returns False for an empty slot."""
        slot = self._slots.get(index)
        if slot is None:
            return False
        self._throw_out(slot, DisconnectReason.BY_SERVER, now)
        return True

    def stop(self, now: float) -> None:
        """Disconnect all clients and drop all pending handshakes.

        The caller must still fetch the datagrams and events.
        """
        for slot in list(self._slots.values()):
            self._throw_out(slot, DisconnectReason.BY_SERVER, now)
        self._handshakes.clear()
        self._next_due = math.inf

    def admit(self, request_id: int, now: float) -> bool:
        """Answer an AdmitRequest with yes: the challenge goes out.

        False when the client is no longer waiting.
        """
        return self._decide(request_id, None, now)

    def deny(self, request_id: int, reason: Denial | DenyReason | str, now: float) -> bool:
        """Answer an AdmitRequest with no. A standard client only learns that it was denied, not why."""
        if isinstance(reason, str):
            reason = Denial(DenyReason.CUSTOM, reason)
        return self._decide(request_id, reason if isinstance(reason, Denial) else Denial(reason), now)

    def is_connected(self, client_id: int) -> bool:
        """Whether the client id has a slot here."""
        return client_id in self._by_client_id

    def client_id_of(self, index: int) -> int | None:
        """The client id in slot `index`; None for an empty slot."""
        slot = self._slots.get(index)
        return None if slot is None else slot.client_id

    def silent_for(self, index: int, now: float) -> float:
        """Seconds since the client in slot `index` was heard; 0 for an empty slot."""
        slot = self._slots.get(index)
        return 0.0 if slot is None else now - slot.last_receive

    def clients(self) -> list[Connected]:
        """The connected clients, by slot."""
        return [self._slots[index].connected() for index in sorted(self._slots)]

    @property
    def connected_count(self) -> int:
        """How many clients are connected."""
        return len(self._slots)

    @property
    def ignored(self) -> Counter[str]:
        """Number of ignored requests and responses, by reason; their senders get no answer."""
        return self._handshakes.ignored

    # --- the way in
    # --------------------------------------------------------------------------------------------------

    def _process_request(self, data: bytes, address: Address, now: float) -> None:
        answer = self._handshakes.request(data, address, now)
        if isinstance(answer, AdmitRequest):
            self._events.append(answer)
        elif answer is not None:
            self._out.append((answer, address))
        pending = self._handshakes.pending.get(address)
        if pending is not None:
            self._next_due = min(self._next_due, pending.expires)

    def _decide(self, request_id: int, denial: Denial | None, now: float) -> bool:
        answer = self._handshakes.decide(request_id, denial, now)
        if answer is not None:
            self._out.append(answer)
        return answer is not None

    def _process_response(self, pending: Pending, body: bytes, framed: bool, now: float) -> None:
        answer = self._handshakes.response(pending, body, now)
        if isinstance(answer, bytes):
            self._out.append((answer, pending.address))
        elif answer is not None:
            former = self._by_client_id.get(answer.client_id)
            if former is not None:
                for _ in range(DISCONNECT_REPEATS if self._replaced else 0):
                    self.send_frame(former.index, self._replaced, now)
                self._throw_out(former, DisconnectReason.REPLACED, now)
            self._connect(pending, framed, now)

    def _connect(self, pending: Pending, framed: bool, now: float) -> None:
        index = heapq.heappop(self._free)
        if self._dialect is Dialect.LIGHTYEAR:
            keep_alive = _CLIENT_ID.pack(pending.private.client_id)
        else:
            keep_alive = _INDEX_AND_MAX.pack(index, self.max_clients)
        slot = Slot(index, pending, keep_alive, self._framed_reader if framed else self._reader, framed, now)
        slot.allowance = self._packet_limit
        self._slots[index] = self._by_address[slot.address] = self._by_client_id[slot.client_id] = slot
        self._next_due = min(self._next_due, now + SEND_INTERVAL, now + slot.timeout)
        self._send(slot, KEEP_ALIVE, keep_alive, now)
        self._events.append(slot.connected())

    def _place_for(self, private: PrivateToken) -> Place:
        client_id = private.client_id
        if self._comes_back is not None and self._comes_back(client_id, private.user_data):
            return Place.FREE if self._free or client_id in self._by_client_id else Place.FULL
        if self._is_client_connected is not None and self._is_client_connected(client_id):
            return Place.CONNECTED
        if client_id in self._by_client_id:
            return Place.FREE if self._replace_connected else Place.CONNECTED
        if self._has_room is not None and not self._has_room():
            return Place.FULL
        return Place.FREE if self._free else Place.FULL  # looked at last: `has_room` may have freed one

    # --- a connected client
    # ------------------------------------------------------------------------------------------

    def _process(self, slot: Slot, packet: tuple[int, int, bytes], now: float) -> None:
        kind, sequence, body = packet
        if kind == PAYLOAD or kind == FRAME:  # noqa: SIM109  # payloads are many, and a tuple is slower
            slot.last_receive = now
            slot.confirmed = True
            if slot.batch != self._batch:
                slot.batch = self._batch
                slot.queued = 0
            if slot.queued < PAYLOAD_QUEUE:
                slot.queued += 1
                self._events.append((Payload if kind == PAYLOAD else Frame)(slot.index, sequence, body))
            else:
                self.payloads_dropped += 1
        elif kind == KEEP_ALIVE:
            slot.last_receive = now
            slot.confirmed = True
            if self._answer_keep_alives:
                self._send(slot, KEEP_ALIVE, body if is_nonce(body) else slot.keep_alive, now)
        elif kind == DISCONNECT:
            self._free_slot(slot, DisconnectReason.BY_CLIENT)
        # Else a response again: our keep-alive was lost. The client learns its index from the next one.

    def _throw_out(self, slot: Slot, reason: DisconnectReason, now: float) -> None:
        for _ in range(DISCONNECT_REPEATS):
            self._send(slot, DISCONNECT, b"", now)
        self._free_slot(slot, reason)

    def _free_slot(self, slot: Slot, reason: DisconnectReason) -> None:
        del self._slots[slot.index]
        del self._by_address[slot.address]
        del self._by_client_id[slot.client_id]
        heapq.heappush(self._free, slot.index)
        self._events.append(Disconnected(slot.index, slot.client_id, reason))

    def _send(self, slot: Slot, kind: int, body: bytes, now: float) -> None:
        write = self._writer.write_wide if kind == KEEP_ALIVE and slot.framed else self._writer.write
        self._out.append((write(slot.encrypt, kind, slot.sequence, body), slot.address))
        slot.sequence += 1
        slot.last_send = now
