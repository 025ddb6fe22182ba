"""Connects to a game server by netcode over UDP; the state machine is `tipoff_shared.netcode.Client`.

Each address of the token gets a connected socket, so the kernel reports ICMP "port unreachable": a closed port or a
killed server is noticed long before a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import cast

import msgspec

from tipoff_client_sdk.errors import Closed, ConnectionFailed, Refused, ServerLost
from tipoff_client_sdk.inbox import Ending, Inbox, Line
from tipoff_shared.errors import Malformed
from tipoff_shared.framing import MAX_MESSAGE_BYTES, CloseCode, MessageChannel
from tipoff_shared.netcode import (
    MAX_PAYLOAD_BYTES,
    Address,
    Client,
    ClientState,
    ConnectToken,
    Frame,
    Payload,
    StateChanged,
)
from tipoff_shared.primitives import udp_socket
from tipoff_shared.primitives.text import one_line

REFUSALS_WHILE_DIALLING = 3
"""ICMP "port unreachable" answers after which an address counts as closed; one might be a server about to start."""
REFUSED_FOR = 1.0
"""Seconds with only such answers after which a connected server counts as lost."""
FRAMES_PER_SECOND = 1000.0
"""Frames sent at most; a game server takes 2000 packets a second by default, and disconnects who sends more."""
LAST_WORDS = 1.0
"""Seconds that `close` waits for reliable messages on their way."""


async def dial_udp(
    token: ConnectToken,
    addresses: tuple[Address, ...],
    inbox: Inbox | Line,
    *,
    give_up: float | None,
    timeout: float,
) -> UdpChannel:
    """Connect by the first address that answers, tried in order, all within `timeout` seconds.

    An address that refuses the player (its server is full) is followed by the next one, as the standard asks. An
    address gets at most `give_up` seconds for its first answer when another follows, or the token's own timeout where
    `give_up` is None. Raises `Refused` when one refused and none let the player in, else `ConnectionFailed`. A token
    leads to one connection only: after a `ConnectionFailed` it is still good for another transport.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    sequence = 0
    failures: list[str] = []
    refusals: list[str] = []
    closed = True
    for number, address in enumerate(addresses):
        last = number == len(addresses) - 1
        patience = give_up if give_up is not None or last else 3.0
        remaining = deadline - loop.time()
        if remaining <= 0:
            break
        channel = UdpChannel(token, address, inbox, first_sequence=sequence)
        try:
            await channel.open(patience=patience, timeout=remaining)
        except (ConnectionFailed, Refused) as exc:
            (refusals if isinstance(exc, Refused) else failures).append(str(exc))
            closed = closed and isinstance(exc, ConnectionFailed) and exc.closed
            await channel.close()
            sequence = channel.next_sequence
        except BaseException:
            await channel.close()
            raise
        else:
            return channel
    if refusals:
        raise Refused("; ".join(refusals + failures))
    raise ConnectionFailed("; ".join(failures) or "no time was left", closed=closed and bool(failures))


class UdpChannel(asyncio.DatagramProtocol):
    """One netcode connection to one address. `open` once, then `send` until `close`; a timer drives it."""

    transport = "udp"

    def __init__(
        self, token: ConnectToken, address: Address, inbox: Inbox | Line, *, first_sequence: int = 0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._inbox = inbox
        single = msgspec.structs.replace(token, addresses=(address,))
        self._client = Client(single, now=self._loop.time(), first_sequence=first_sequence, framing=True)
        self._channel: MessageChannel | None = None
        """None until connected, and then where the server knows no framing."""
        self._room = asyncio.Event()
        inbox.on_room(self._wake)
        self._socket: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._answered = asyncio.Event()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._refusals = 0
        self._refused_since: float | None = None
        self._was_connected = False
        self._full = False

    @property
    def server(self) -> str:
        """`host:port` of the game server."""
        return str(self._address)

    @property
    def rtt(self) -> float | None:
        """Round trip in seconds, None before the first measurement."""
        return self._client.rtt

    @property
    def client_index(self) -> int | None:
        """The server's slot for this client, None before it is connected."""
        return self._client.client_index

    @property
    def next_sequence(self) -> int:
        """The packet sequence with which another connection by the same token must continue."""
        return self._client.next_sequence

    async def open(self, *, patience: float | None, timeout: float) -> None:
        """Connect; raises `ConnectionFailed` or `Refused`. The caller closes in either case.

        `patience` is for the first answer: once the server has sent its challenge UDP works, and this waits for
        the rest (it may have let us in already, and the token would be of no use elsewhere).
        """
        try:
            opened, _ = await self._loop.create_datagram_endpoint(
                lambda: self, remote_addr=self._address, family=self._address.family
            )
        except OSError as exc:
            raise ConnectionFailed(f"udp {self._address}: {exc.strerror or exc}") from exc
        udp_socket.enlarge(opened.get_extra_info("socket"))
        self._pump()
        try:
            async with asyncio.timeout(timeout):
                if patience is not None:
                    await self._first_answer(patience)
                await self._settled
        except TimeoutError:
            raise ConnectionFailed(f"udp {self._address}: no connection within {timeout:.1f} s") from None

    async def _first_answer(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await self._answered.wait()
        except TimeoutError:
            raise ConnectionFailed(f"udp {self._address}: no answer within {patience:g} s") from None

    @property
    def max_message(self) -> int:
        """Bytes of the longest message that the server takes."""
        return MAX_PAYLOAD_BYTES if self._channel is None else MAX_MESSAGE_BYTES

    @property
    def reliable(self) -> bool:
        """Whether the server knows framing."""
        return self._channel is not None

    async def send(self, message: bytes, reliable: bool = False) -> None:
        """A reliable message waits for room, where the server knows framing; any other never waits. Raises `Closed` or
        `ServerLost` when the connection is over."""
        channel = self._channel
        if channel is None or not (reliable or len(message) > MAX_PAYLOAD_BYTES):
            if not self._client.send(message, self._loop.time()):
                raise Closed(self._client.failure or "the connection is closed")
        elif self._client.state is not ClientState.CONNECTED:
            raise Closed(self._client.failure or "the connection is closed")
        elif not reliable:
            channel.send_once(message, self._loop.time())
        else:
            while not channel.send(message):
                await self._wait_for_room()
        self._pump()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await self._room.wait()
        if (ending := self._inbox.ending) is not None:
            raise ending.error or Closed(ending.reason, close_code=ending.code, reason=ending.reason)

    async def _last_words(self) -> None:
        """Wait until the reliable messages have arrived, `LAST_WORDS` seconds at most."""
        channel, client = self._channel, self._client
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                while channel is not None and not (channel.idle or channel.closed is not None):
                    if client.state is not ClientState.CONNECTED:
                        break
                    self._room.clear()
                    await self._room.wait()

    async def close(self) -> None:
        """Wait a moment for reliable messages on their way, send ten disconnect packets and close the socket;
        idempotent."""
        await self._last_words()
        self._client.disconnect(self._loop.time())
        self._pump()
        await self.abandon()

    async def abandon(self) -> None:
        """Close the socket of a lost connection; idempotent."""
        self._cancel_timer()
        if self._settled.done() and not self._settled.cancelled():
            self._settled.exception()  # marked as seen: `open` may no longer wait for it
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._lost), 1)
            if not self._lost.done():
                socket.abort()

    # --- the driver: datagrams and time in, datagrams and the next deadline out ---------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is open."""
        self._socket = cast(asyncio.DatagramTransport, transport)  # not always a subclass (3.11, uvloop)

    def datagram_received(self, data: bytes, addr: object) -> None:
        """asyncio: a datagram came."""
        self._refusals = 0
        self._refused_since = None
        # The socket is connected: the kernel drops datagrams from other addresses.
        self._client.receive_datagram(data, self._address, self._loop.time())
        self._pump()

    def error_received(self, exc: Exception) -> None:
        """asyncio: the kernel reports an error, like ICMP "port unreachable"."""
        if not isinstance(exc, ConnectionRefusedError | ConnectionResetError):
            return  # a full buffer, or no route now: the state machine's timeouts decide
        now = self._loop.time()
        self._refusals += 1
        if self._refused_since is None:
            self._refused_since = now
        if self._refusals < REFUSALS_WHILE_DIALLING:
            return
        if not self._was_connected:
            self._fail(ConnectionFailed(f"udp {self._address}: nothing listens there", closed=True))
        elif now - self._refused_since >= REFUSED_FOR:
            self._end(
                Ending(
                    "the server is gone", ServerLost(f"the server at {self._address} is gone: port closed")
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is closed."""
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        """asyncio: 64 KiB are unsent. Further datagrams are dropped, as a network would."""
        self._full = True

    def resume_writing(self) -> None:
        """asyncio: there is room again."""
        self._full = False

    def _pump(self) -> None:
        """After every input: report what happened, send what is due, set the timer."""
        client = self._client
        for event in client.events():
            if isinstance(event, Payload):
                self._inbox.put(event.data)
            elif isinstance(event, Frame):
                self._framed(event.data)
            elif isinstance(event, StateChanged):
                self._state_changed(event.state)
        frames_due = math.inf
        if self._channel is not None and client.state is ClientState.CONNECTED:
            now = self._loop.time()
            for frame in self._channel.frames(now):
                client.send_frame(frame, now)
            frames_due = self._channel.next_timeout()
        if self._socket is not None and not self._socket.is_closing():
            for data, _ in client.datagrams_to_send():
                if not self._full:
                    self._socket.sendto(data)
        due = min(client.next_timeout(), frames_due)
        if self._timer_due > due or due == math.inf:
            self._cancel_timer()
        if self._timer is None and due != math.inf:
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._tick)

    def _framed(self, frame: bytes) -> None:
        """A frame came. A server's close ends the connection after the messages before it."""
        channel = self._channel
        if channel is None:
            return
        try:
            for message in channel.receive(frame, self._loop.time()):
                self._inbox.put(message)
            self._take_reliable()
        except Malformed as exc:
            text = f"the server sent what is no frame: {exc}"
            self._end(Ending(text, ServerLost(text, close_code=CloseCode.POLICY, reason=str(exc))))
        if channel.closed is not None:
            self._end(Ending.closed(channel.closed.code, one_line(channel.closed.reason)))
        self._room.set()

    def _take_reliable(self) -> None:
        """Pass reliable messages on while the game has room for them; the others stay, and the server waits."""
        while self._channel is not None and self._inbox.has_room:
            if (message := self._channel.next_message(self._loop.time())) is None:
                break
            self._inbox.keep(message)

    def _wake(self) -> None:
        """The game has taken messages."""
        if self._channel is not None and self._channel.has_message:
            with contextlib.suppress(Malformed):  # comes again with the next frame
                self._take_reliable()
            self._pump()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._client.update(now)
        if self._channel is not None and self._channel.stalled(now):
            text = "reliable messages do not arrive at the server"
            self._end(Ending(text, ServerLost(text)))
        self._pump()

    def _state_changed(self, state: ClientState) -> None:
        client = self._client
        if state is ClientState.SENDING_CONNECTION_RESPONSE:
            self._answered.set()
        elif state is ClientState.CONNECTED:
            self._was_connected = True
            if client.framed:
                self._channel = MessageChannel(frames_per_second=FRAMES_PER_SECOND)
            if not self._settled.done():
                self._settled.set_result(None)
        elif state is ClientState.CONNECTION_DENIED:
            self._fail(Refused(client.failure or f"the server {self._address} refused the connection"))
        elif state is ClientState.CONNECTION_TIMED_OUT:
            reason = f"the server does not respond: {client.failure or 'nothing came for too long'}"
            self._end(Ending(reason, ServerLost(reason)))
        elif state is ClientState.DISCONNECTED and self._was_connected:
            self._end(Ending(client.failure or "closed by this side"))
        elif state <= ClientState.DISCONNECTED:
            self._fail(ConnectionFailed(f"udp {self._address}: {client.failure or 'closed'}"))

    def _fail(self, error: Exception) -> None:
        if not self._settled.done():
            self._settled.set_exception(error)
        self._answered.set()

    def _end(self, ending: Ending) -> None:
        self._inbox.end(ending)
        self._room.set()
