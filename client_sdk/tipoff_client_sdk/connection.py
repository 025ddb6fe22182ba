"""Defines `Player`, the connected player that `connect` yields, and `Channel`, the connection below it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tipoff_client_sdk.errors import Closed
from tipoff_client_sdk.inbox import Ending, Inbox
from tipoff_shared.errors import Malformed, TooLarge

MAX_MESSAGE = 1200
"""Bytes of the longest message, either way, on every transport (netcode 1.02)."""


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

    async def send(self, message: bytes) -> None:
        """Hand over one message of 1 to 1200 bytes."""
        ...

    async def close(self) -> None:
        """Tell the server, then close the socket and end the tasks; idempotent."""
        ...


class Player:
    """A connected player.

        async for message in player:            # bytes, until the match is over
            await player.send(b"...")

    Iteration ends when the player was closed or the server ended the connection in an orderly way (`end_reason` says
    why) and raises `ServerLost` when the server vanished. Messages over UDP may be lost or reordered; over WebSocket
    they are not. At most `receive_queue` messages wait: over UDP the oldest is dropped then (`dropped` counts), over
    WebSocket the server is made to wait.
    """

    def __init__(
        self, channel: Channel, inbox: Inbox, *, session_id: str, client_id: str, deployment_id: str
    ) -> None:
        self._channel = channel
        self._inbox = inbox
        self.session_id = session_id
        """Public name of this session, as operators see it; "" if the matchmaker does not say."""
        self.client_id = client_id
        """netcode's client id, decimal text; "" if the matchmaker does not say."""
        self.deployment_id = deployment_id
        """Which deployment this player has a seat on; "" if the matchmaker does not say."""

    async def send(self, message: bytes) -> None:
        """Send 1 to 1200 bytes.

        Over UDP this never waits; over WebSocket it waits while 32 KiB are on their way, until the server reads or is
        lost. Raises `TooLarge`, `Malformed` (empty), `Closed`, `ServerLost`. Cancelled, the message may or may not go.
        """
        if len(message) > MAX_MESSAGE:
            raise TooLarge(f"a message has at most {MAX_MESSAGE} bytes, not {len(message)}; send it in parts")
        if not message:
            raise Malformed("a message has at least one byte")
        self._raise_if_over()
        await self._channel.send(message)

    async def receive(self) -> bytes:
        """The next message. Raises `Closed` after an orderly end and `ServerLost` when the server vanished.

        Safe to cancel, as in `asyncio.timeout`: no message is lost.
        """
        message = await self._inbox.get()
        if message is None:
            raise Closed(self.end_reason)
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

    def _raise_if_over(self) -> None:
        ending = self._inbox.ending
        if ending is None:
            return
        if ending.error is not None:
            raise ending.error
        raise Closed(ending.reason)

    @property
    def connected(self) -> bool:
        """Whether the connection is up."""
        return self._inbox.ending is None

    @property
    def end_reason(self) -> str:
        """Why the connection is over, for people; "" while it is not."""
        return self._inbox.ending.reason if self._inbox.ending is not None else ""

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
