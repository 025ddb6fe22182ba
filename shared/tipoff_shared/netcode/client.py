"""Runs the player's side of a connection, from a token to payloads, without I/O.

The driver passes in every datagram and the time, sends what ``datagrams_to_send`` returns after each
call, and calls ``update`` at ``next_timeout``. All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
import struct

from .addresses import Address
from .constants import (
    CHALLENGE,
    DENIED,
    DISCONNECT,
    DISCONNECT_REPEATS,
    FRAME,
    FRAMING_WIDTH,
    KEEP_ALIVE,
    MAX_PAYLOAD_BYTES,
    PAYLOAD,
    PAYLOAD_QUEUE,
    RESPONSE,
    SEND_INTERVAL,
    Dialect,
)
from .denial import decode_denial
from .errors import InvalidPayload, InvalidToken
from .events import ClientEvent, ClientState, Denial, Frame, Payload, StateChanged
from .packet import FRAMED, TO_CLIENT, PacketReader, PacketWriter, cipher
from .replay import ReplayWindow
from .round_trip import RoundTripMeter
from .token import ConnectToken

_REQUESTING = ClientState.SENDING_CONNECTION_REQUEST
_RESPONDING = ClientState.SENDING_CONNECTION_RESPONSE
_CONNECTED = ClientState.CONNECTED
_ZERO_KEEP_ALIVE = bytes(8)
_INDEX_AND_MAX = struct.Struct("<II")
_CLIENT_ID = struct.Struct("<Q")


class Client:
    """One use of one connect token. It starts connecting when it is made.

    `token` is 2048 bytes or a ConnectToken; one that cannot be read leaves the client in
    INVALID_CONNECT_TOKEN and raises nothing. `dialect` is the token's own unless given. `first_sequence` is
    for a second try with the same token: pass the first client's ``next_sequence``, or packets of both would
    be encrypted with one nonce. `framing` offers frames to the server; once connected, `framed` says whether it knows
    them.
    """

    def __init__(
        self,
        token: bytes | ConnectToken,
        *,
        now: float,
        dialect: Dialect | None = None,
        first_sequence: int = 0,
        framing: bool = False,
    ) -> None:
        self.client_index: int | None = None
        self.max_clients: int | None = None
        self.client_id: int | None = None
        """Only a lightyear server says which client id it let in."""
        self.denial: Denial | None = None
        """The reason of CONNECTION_DENIED, where the server's dialect has one."""
        self.failure: str | None = None
        """Why it ended or never came about, for people; None while it lives and after ``disconnect``."""
        self.payloads_dropped = 0
        self.framed = False
        """Whether the server knows frames."""
        self.next_sequence = first_sequence
        self.state = ClientState.DISCONNECTED
        self.server_address: Address | None = None
        self._events: list[ClientEvent] = []
        self._payloads_queued = 0
        self._out: list[tuple[bytes, Address]] = []
        try:
            if not isinstance(token, ConnectToken):
                token = ConnectToken.decode(token, dialect or Dialect.STANDARD)
        except InvalidToken as exc:
            self._finish(ClientState.INVALID_CONNECT_TOKEN, str(exc))
            return
        self._dialect = dialect or token.dialect
        self._addresses = token.addresses
        self._address_index = 0
        self._request = token.request_packet()
        self._encrypt = cipher(token.client_to_server_key).encrypt
        self._decrypt = cipher(token.server_to_client_key).decrypt
        self._writer = PacketWriter(token.protocol_id)
        self._reader = PacketReader(token.protocol_id, TO_CLIENT, self._dialect)
        self._protocol_id = token.protocol_id
        self._framing = framing and self._dialect is Dialect.STANDARD
        self._timeout = float(token.timeout_seconds) if token.timeout_seconds > 0 else math.inf
        self._lifetime = token.expire_timestamp - token.create_timestamp
        self._lifetime_ends = now + self._lifetime
        self._dial(now)

    # --- what the driver calls
    # ---------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take in one datagram. An invalid one is ignored."""
        state = self.state
        if state < _REQUESTING or (address != self._peer and address != self.server_address):
            return
        packet = self._reader.read(data, self._decrypt, self._window)
        if packet is None:
            return
        kind, sequence, body = packet
        if state is _CONNECTED:
            if kind in (PAYLOAD, FRAME):
                self._last_receive = now
                if self._payloads_queued < PAYLOAD_QUEUE:
                    self._payloads_queued += 1
                    event = Payload if kind == PAYLOAD else Frame
                    self._events.append(event(self.client_index or 0, sequence, body))
                else:
                    self.payloads_dropped += 1
            elif kind == KEEP_ALIVE:
                self._last_receive = now
                self._meter.keep_alive_heard(body, now)
            elif kind == DISCONNECT:
                self._finish(
                    ClientState.DISCONNECTED, f"the server {self.server_address} closed the connection"
                )
        elif kind == DENIED:
            self._denied(body, now)
        elif kind == CHALLENGE and state is _REQUESTING:
            self._challenged(body, now)
        elif kind == KEEP_ALIVE and state is _RESPONDING:
            self._accepted(body, self._framing and data[0] >> 4 == FRAMING_WIDTH, now)

    def update(self, now: float) -> None:
        """Do what is due by now: judge timeouts, then send. Call it at ``next_timeout``, or on every tick."""
        if self.state < _REQUESTING:
            return
        if self.state is not _CONNECTED and now >= self._lifetime_ends:
            self._expire()
            return
        if now >= self._last_receive + self._timeout:
            self._timed_out(now)
            return
        if now >= self._send_due():
            self._send_regular(now)

    def next_timeout(self) -> float:
        """When ``update`` must be called next; infinity once the client is finished."""
        if self.state < _REQUESTING:
            return math.inf
        due = min(self._send_due(), self._last_receive + self._timeout)
        return due if self.state is _CONNECTED else min(due, self._lifetime_ends)

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        """Datagrams and their targets; each is returned once."""
        out = self._out
        self._out = []
        return out

    def events(self) -> list[ClientEvent]:
        """What happened since the last call."""
        events = self._events
        self._events = []
        self._payloads_queued = 0
        return events

    # --- what the application calls
    # ----------------------------------------------------------------------------------

    def send(self, payload: bytes, now: float) -> bool:
        """Send 1..1200 bytes. Returns False and sends nothing when not connected. Raises InvalidPayload."""
        if not 1 <= len(payload) <= MAX_PAYLOAD_BYTES:
            raise InvalidPayload(f"a payload has 1 to {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
        if self.state is not _CONNECTED:
            return False
        self._send(PAYLOAD, payload, now)
        return True

    def send_frame(self, frame: bytes, now: float) -> bool:
        """Send a frame of 1..1200 bytes. False, and nothing is sent, unless connected to a server that knows frames."""
        if self.state is not _CONNECTED or not self.framed:
            return False
        self._send(FRAME, frame, now)
        return True

    def disconnect(self, now: float) -> None:
        """Leave.

        Sends several disconnect packets, since each may be lost; the server would otherwise wait for its timeout.
        """
        if self.state < _REQUESTING:
            return
        self._leave(now)
        self._finish(ClientState.DISCONNECTED, None)

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds, None before the first measurement."""
        return self._meter.rtt if self.server_address is not None else None

    # --- the handshake
    # -----------------------------------------------------------------------------------------------

    def _dial(self, now: float) -> None:
        """Begin with the current address of the token. Our sequence numbers go on: the key stays the same."""
        self.server_address = self._addresses[self._address_index]
        self._peer = self.server_address.unmapped()  # how a dual-stack socket shows it
        self._window = ReplayWindow()
        self._meter = RoundTripMeter()
        self._challenge = b""
        self._requests = self._responses = 0
        self._last_receive = now
        self._change(_REQUESTING)
        self._send_regular(now)

    def _challenged(self, body: bytes, now: float) -> None:
        if self._requests == 1:  # of several, nobody knows which one was answered
            self._meter.handshake(now - self._last_send)
        self._challenge = body
        self._last_receive = now
        self._change(_RESPONDING)
        self._send_regular(now)

    def _accepted(self, body: bytes, framed: bool, now: float) -> None:
        if self._responses == 1:
            self._meter.handshake(now - self._last_send)
        if self._dialect is Dialect.LIGHTYEAR:
            (self.client_id,) = _CLIENT_ID.unpack(body)
        else:
            index, of = _INDEX_AND_MAX.unpack(body)
            if index >= of:  # a client id in the place of slot and maximum
                self._leave(now)
                self._finish(
                    ClientState.CONNECTION_DENIED,
                    f"the server {self.server_address} speaks another dialect: it says slot {index} of {of}. Is it a"
                    " lightyear (Bevy) server? Then the dialect is `lightyear`",
                )
                return
            self.client_index, self.max_clients = index, of
        if framed:
            self.framed = True
            self._reader = PacketReader(self._protocol_id, FRAMED, self._dialect)
        self._last_receive = now
        self._meter.connected(now)
        self._change(_CONNECTED)
        self._send_regular(now)  # until it hears this, the server sends its keep-alive with every payload

    def _denied(self, body: bytes, now: float) -> None:
        if now >= self._lifetime_ends:
            self._expire()
            return
        denial = decode_denial(body)
        if self._next_address(now):
            return
        self.denial = denial
        why = (
            denial
            or "it is full, about to end, or keeps this player out (netcode's denial does not say which)"
        )
        self._finish(
            ClientState.CONNECTION_DENIED, f"the server {self.server_address} refused the connection: {why}"
        )

    def _timed_out(self, now: float) -> None:
        silence = f"for {self._timeout:g} s"
        if self.state is _CONNECTED:
            reason = f"nothing came from {self.server_address} {silence}"
            self._finish(ClientState.CONNECTION_TIMED_OUT, reason)
        elif self._next_address(now):
            return
        elif self.state is _RESPONDING:
            reason = f"{self.server_address} sent a challenge, but did not react to the response {silence}"
            self._finish(ClientState.CONNECTION_RESPONSE_TIMED_OUT, reason)
        else:
            self._finish(ClientState.CONNECTION_REQUEST_TIMED_OUT, self._no_answer(silence))

    def _expire(self) -> None:
        reason = f"no server let us in within the token's lifetime of {self._lifetime} s"
        if self.state is _REQUESTING:
            reason = self._no_answer(f"within the token's lifetime of {self._lifetime} s")
        self._finish(ClientState.CONNECT_TOKEN_EXPIRED, reason)

    def _no_answer(self, for_how_long: str) -> str:
        dialled = ", ".join(map(str, self._addresses[: self._address_index + 1]))
        return (
            f"no answer from {dialled} {for_how_long}: nobody is there, a firewall is between, or the server"
            " ignores this token (expired by its clock, used before, made with another key or address)"
        )

    def _next_address(self, now: float) -> bool:
        if self._address_index + 1 >= len(self._addresses):
            return False
        self._address_index += 1
        self._dial(now)
        return True

    # --- sending
    # -----------------------------------------------------------------------------------------------------

    def _send_due(self) -> float:
        if self.state is not _CONNECTED:
            return self._last_send + SEND_INTERVAL
        return self._meter.keep_alive_due(self._last_send, self._timeout)

    def _send_regular(self, now: float) -> None:
        """The packet that the current state repeats."""
        if self.state is _CONNECTED:
            nonce = self._meter.keep_alive(now)
            # A server of the lightyear dialect reads a client id there.
            body = nonce if self._dialect is Dialect.STANDARD else _ZERO_KEEP_ALIVE
            self._send(KEEP_ALIVE, body, now)
        elif self.state is _RESPONDING:
            self._responses += 1
            self._send(RESPONSE, self._challenge, now)
        else:
            assert self.server_address is not None
            self._requests += 1
            self.next_sequence += 1  # a request takes a number too, though it does not carry it
            self._out.append((self._request, self.server_address))
            self._last_send = now

    def _send(self, kind: int, body: bytes, now: float) -> None:
        assert self.server_address is not None
        write = self._writer.write_wide if kind == RESPONSE and self._framing else self._writer.write
        packet = write(self._encrypt, kind, self.next_sequence, body)
        self.next_sequence += 1
        self._out.append((packet, self.server_address))
        self._last_send = now

    def _leave(self, now: float) -> None:
        for _ in range(DISCONNECT_REPEATS):
            self._send(DISCONNECT, b"", now)

    # --- state
    # -------------------------------------------------------------------------------------------------------

    def _change(self, state: ClientState) -> None:
        self.state = state
        self._events.append(StateChanged(state))

    def _finish(self, state: ClientState, failure: str | None) -> None:
        """Enter a final state: later calls do nothing, and the keys are dropped."""
        self.failure = failure
        if self.server_address is not None:
            del self._encrypt, self._decrypt, self._request
        self._change(state)
