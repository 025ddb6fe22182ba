"""Defines `Player`, the connected player that `connect` yields, and `Channel`, the connection below it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tipoff_client_sdk.errors import Closed, ConnectionOver
from tipoff_client_sdk.inbox import Ending, Inbox
from tipoff_shared.framing import MAX_MESSAGE_BYTES, message_bytes

MAX_MESSAGE = MAX_MESSAGE_BYTES
"""Bytes of the longest message, either way. `Player.max_message` says what a connection takes: a server that knows no
framing takes 1200."""


class Channel(Protocol):
    """One connection to a game server: `UdpChannel` or `WebSocketChannel`. It fills the inbox and ends it."""

    @property
    def transport(self) -> str:
        """`udp` or `websocket`."""
        ...

    @property
    def server(self) -> str:
        """Where the server is: `host:port`, or the URL."""
        ...

    @property
    def rtt(self) -> float | None:
        """Round trip in seconds, None before the first measurement."""
        ...

    @property
    def client_index(self) -> int | None:
        """The server's number for this connection; seats are numbered from 0."""
        ...

    @property
    def max_message(self) -> int:
        """Bytes of the longest message that the server takes."""
        ...

    @property
    def reliable(self) -> bool:
        """Whether reliable messages surely arrive."""
        ...

    async def send(self, message: bytes, reliable: bool = False) -> None:
        """Hand over one message; a reliable one waits for room."""
        ...

    async def close(self) -> None:
        """Tell the server, then close the socket and end the tasks; idempotent."""
        ...

    async def abandon(self) -> None:
        """The same without a goodbye, which would give up the seat: the connection is lost."""
        ...


class Player:
    """A connected player.

        async for message in player:            # bytes, until the match is over
            await player.send(b"...")

    Iteration ends when the player was closed or the server ended the connection in an orderly way (`end_reason` says
    why) and raises `ServerLost` when the server vanished. A connection that is lost is made anew while the server holds
    the seat (`reconnecting`), and iteration waits. Messages over UDP may be lost or reordered unless they were sent
    reliably; over WebSocket they are not. At most `receive_queue` messages wait: then the server is made to wait,
    but for the others over UDP, of which the oldest is dropped (`dropped` counts).
    """

    def __init__(
        self, channel: Channel, inbox: Inbox, *, session_id: str, client_id: str, deployment_id: str
    ) -> None:
        self._channel = channel
        self._inbox = inbox
        self._back = asyncio.Event()
        """Set while there is a connection."""
        self._back.set()
        self.session_id = session_id
        """Public name of this session, as operators see it; "" if the matchmaker does not say."""
        self.client_id = client_id
        """netcode's client id, decimal text; "" if the matchmaker does not say."""
        self.deployment_id = deployment_id
        """Which deployment this player has a seat on; "" if the matchmaker does not say."""

    async def send(self, message: bytes, *, reliable: bool = False) -> None:
        """Send 1 to 65536 bytes (`max_message`).

        A reliable message arrives, in order with all reliable ones. Over UDP it waits while 1 MiB or 1024 of them have
        not arrived; another message never waits, and may get lost, the more likely the longer it is (over 1200 bytes
        it travels in pieces). Over WebSocket every message is reliable, and waits while 32 KiB are on their way.

        While the connection is lost (`reconnecting`) a reliable message waits, and any other is dropped. Of what was
        sent just before the loss, nobody knows what arrived.

        Raises `MessageTooLarge`, `EmptyMessage` (both a `ValueError`), `TypeError` (not bytes), `Closed`, `ServerLost`.
        Cancelled, the message may or may not go.
        """
        message = message_bytes(message, self._channel.max_message)
        while True:
            self._raise_if_over()
            if self._back.is_set():
                try:
                    await self._channel.send(message, reliable)
                    return
                except ConnectionOver:
                    if not self.reconnecting:
                        raise
            if not reliable:
                return
            await self._back_or_over()

    async def _back_or_over(self) -> None:
        ended = asyncio.ensure_future(self._inbox.ended())
        back = asyncio.ensure_future(self._back.wait())
        try:
            await asyncio.wait((ended, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            back.cancel()

    async def receive(self) -> bytes:
        """The next message. Raises `Closed` after an orderly end and `ServerLost` when the server vanished.

        Safe to cancel, as in `asyncio.timeout`: no message is lost.
        """
        message = await self._inbox.get()
        if message is None:
            raise self._closed()
        return message

    def __aiter__(self) -> Player:
        return self

    async def __anext__(self) -> bytes:
        message = await self._inbox.get()
        if message is None:
            raise StopAsyncIteration
        return message

    def take_all(self) -> list[bytes]:
        """Take all waiting messages, oldest first; never waits. For loops that draw frames, from any thread."""
        return self._inbox.take_all()

    async def ended(self) -> Ending:
        """Wait until the connection is over, for whatever reason."""
        return await self._inbox.ended()

    async def close(self) -> None:
        """Leave the game; the server hears of it at once. Idempotent. Messages that already arrived stay readable."""
        self._inbox.end(Ending("closed by this side"))
        await self._channel.close()

    # --- for `connect` only: it replaces a connection that was lost ---------------------------------------------------

    def lost(self) -> None:
        """The connection is lost, and another one is looked for."""
        self._back.clear()

    def resumed(self, channel: Channel) -> None:
        """`channel` takes the place of the lost connection."""
        self._channel = channel
        self._back.set()

    async def abandon(self) -> None:
        """Close what is left of the lost connection."""
        await self._channel.abandon()

    def _raise_if_over(self) -> None:
        ending = self._inbox.ending
        if ending is None:
            return
        if ending.error is not None:
            raise ending.error
        raise self._closed()

    def _closed(self) -> Closed:
        return Closed(self.end_reason, close_code=self.end_code, reason=self.end_reason)

    @property
    def connected(self) -> bool:
        """Whether the connection is up."""
        return self._inbox.ending is None and self._back.is_set()

    @property
    def reconnecting(self) -> bool:
        """Whether the connection is lost, and this player is on the way back to its seat."""
        return self._inbox.ending is None and not self._back.is_set()

    @property
    def end_reason(self) -> str:
        """Why the connection is over, for people; "" while it is not."""
        return self._inbox.ending.reason if self._inbox.ending is not None else ""

    @property
    def end_code(self) -> int | None:
        """The server's close code (docs/wire.md): 4000 for a kick, 1001 when it ends, ...; None where it sent none."""
        return self._inbox.ending.code if self._inbox.ending is not None else None

    @property
    def max_message(self) -> int:
        """Bytes of the longest message on this connection: 65536, or 1200 when the server takes no longer ones."""
        return self._channel.max_message

    @property
    def reliable(self) -> bool:
        """Whether `send(..., reliable=True)` holds what it says; False by UDP with a server without tipoff's framing,
        where such a message goes as an ordinary one."""
        return self._channel.reliable

    @property
    def transport(self) -> str:
        """`udp` or `websocket`."""
        return self._channel.transport

    @property
    def server(self) -> str:
        """Where the game server is: `host:port` or a URL."""
        return self._channel.server

    @property
    def client_index(self) -> int | None:
        """The game server's number for this connection, from 0."""
        return self._channel.client_index

    @property
    def rtt(self) -> float | None:
        """Round trip in seconds, smoothed; None before the first measurement."""
        return self._channel.rtt

    @property
    def received(self) -> int:
        """Messages that arrived so far."""
        return self._inbox.received

    @property
    def dropped(self) -> int:
        """Messages that were dropped because the game did not read them in time."""
        return self._inbox.dropped

    async def __aenter__(self) -> Player:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Shielded: a cancelled game must leave too, or its seat would stay taken until a timeout.
        await asyncio.shield(self.close())
