"""Runs `connect` in a thread, for games with a frame loop (pygame, cocos, arcade): `poll` never waits.

    with connect_threaded("http://localhost:3000", game="arena", version="1") as game:
        while running:                                  # sixty times a second
            for event in game.poll():
                match event:
                    case Message(data): ...
                    case Progress(): status = event.text
                    case Joined(): ...
                    case Ended(error=error): ...
            game.send(b"...")
            draw()

The thread owns an event loop and one `connect`. What the two threads share: the inbox (a deque), the list of events and
the outgoing queue (both under a lock that is held for an append only).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeAlias, Unpack

from tipoff_client_sdk.connect import ConnectOptions, connect
from tipoff_client_sdk.connection import Player
from tipoff_client_sdk.matchmaking import Progress, Stage
from tipoff_shared.errors import Internal, TipoffError
from tipoff_shared.framing import MAX_MESSAGE_BYTES, message_bytes

OUTGOING = 256
"""Messages that may wait to be sent; beyond that `send` returns False."""
LAST_WORDS = 0.25
"""Seconds that `close` waits for messages passed to `send` before it."""
_EVENTS = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """In the game: `transport` is udp or websocket, `server` its address."""

    session_id: str
    deployment_id: str
    client_id: str
    transport: str
    server: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the server."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """The connection is lost, and is being made anew to the same seat; `Resumed` or `Ended` follows. `reason` is for
    people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """Back in the game, in the same seat: `transport` is udp or websocket, `server` its address."""

    transport: str
    server: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event. `error` is None after `close` and when the match is over; else why it failed or broke. `code` is
    the server's close code (docs/wire.md): 4000 for a kick, 1001 when it ends, ...; None where it sent none."""

    reason: str
    error: TipoffError | None = None
    code: int | None = None


Event: TypeAlias = Progress | Joined | Message | Dropped | Resumed | Ended


def connect_threaded(
    url: str, *, game: str, version: str, **options: Unpack[ConnectOptions]
) -> ThreadedPlayer:
    """Start connecting in the background and return at once. Takes the options of `connect`.

    `poll` of the player returns these events, in this order:

    | event | fields | when |
    |---|---|---|
    | `Progress` | `stage`, `text`, `session_id` | while matchmaking: something to show the player |
    | `Joined` | `session_id`, `deployment_id`, `client_id`, `transport`, `server` | once, when in the game |
    | `Message` | `data` (bytes) | each message of the server |
    | `Dropped` | `reason` | the connection is lost; `Resumed` or `Ended` follows |
    | `Resumed` | `transport`, `server` | back in the same seat |
    | `Ended` | `reason`, `error`, `code` | once, at the end; `error` is None after `close` and when the match is over |

        with tipoff.connect_threaded("http://localhost:3000", game="arena", version="1") as player:
            while drawing:
                for event in player.poll():
                    match event:
                        case tipoff.Message(data):
                            world.update(data)
                        case tipoff.Ended(error=tipoff.ServerLost()):
                            reconnect()
                player.send(keys())

    `options["progress"]` is called in the other thread; most games read the `Progress` events of `poll` instead.
    Failures do not raise here: they come as the `Ended` event.
    """
    return ThreadedPlayer(url, game, version, options)


class ThreadedPlayer:
    """A player for one thread that draws. `poll` and `send` never block; make one object per game played."""

    def __init__(self, url: str, game: str, version: str, options: ConnectOptions) -> None:
        self._arguments: dict[str, Any] = {"game": game, "version": version, **options}
        self._url = url
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._outgoing: deque[tuple[bytes, bool]] = deque()
        """Messages, and whether they are reliable."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The thread's, None until it runs."""
        self._close_wanted = asyncio.Event()
        self._send_wanted = asyncio.Event()
        self._sent = asyncio.Event()
        self._player: Player | None = None
        """None until connected."""
        self._closing = False
        self._ended: Ended | None = None
        self._end_reported = False
        # A daemon: it must not keep a game alive that ends while it connects.
        self._thread = threading.Thread(target=self._run, name="tipoff", daemon=True)
        self._thread.start()

    # --- the frame loop's side ----------------------------------------------------------------------------------------

    def poll(self) -> list[Event]:
        """Everything that happened since the last call, in order; `Ended` comes once, after the last message."""
        with self._lock:
            ended = self._ended  # read before the messages: those before the end are all there then
            events: list[Event] = list(self._events)
            self._events.clear()
        if (player := self._player) is not None:
            events += [Message(data) for data in player.take_all()]
        if ended is not None and not self._end_reported:
            self._end_reported = True
            events.append(ended)
        return events

    def send(self, message: bytes, *, reliable: bool = False) -> bool:
        """Send 1 to 65536 bytes soon, as `Player.send` does. False, and nothing is sent, when not connected or when 256
        messages wait.

        Raises `MessageTooLarge` or `EmptyMessage` for a message of another size, `TypeError` for anything but bytes.
        """
        player = self._player
        message = message_bytes(message, MAX_MESSAGE_BYTES if player is None else player.max_message)
        with self._lock:
            if not self.connected or len(self._outgoing) >= OUTGOING:
                return False
            self._outgoing.append((message, reliable))
        self._notify(self._send_wanted)
        return True

    def close(self, timeout: float = 3.0) -> None:
        """Leave the game and end the thread; idempotent. Waits at most `timeout` seconds until the server was told
        (usually milliseconds); 0 does not wait."""
        self._closing = True
        if self._loop is not None:
            self._notify(self._close_wanted)
        if timeout > 0 and self._thread is not threading.current_thread():
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning("the connection's thread did not end within %g s", timeout)

    @property
    def connected(self) -> bool:
        """Whether the player is in the game and `close` was not called."""
        player = self._player
        return player is not None and player.connected and not self._closing

    @property
    def ended(self) -> Ended | None:
        """How it ended, None while it has not."""
        return self._ended

    @property
    def rtt(self) -> float | None:
        """Round trip in seconds, None before the first measurement."""
        return self._player.rtt if self._player is not None else None

    @property
    def session_id(self) -> str:
        """Public name of the session; "" before the player is connected."""
        return self._player.session_id if self._player is not None else ""

    @property
    def dropped(self) -> int:
        """Messages dropped because `poll` was not called in time."""
        return self._player.dropped if self._player is not None else 0

    def __enter__(self) -> ThreadedPlayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _notify(self, event: asyncio.Event) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread has ended
                self._loop.call_soon_threadsafe(event.set)

    # --- the network thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            ended = asyncio.run(self._play())
        except TipoffError as exc:
            ended = Ended(str(exc), exc)
        except (
            Exception
        ) as exc:  # a fault here or in a callback must reach the game, not vanish with the thread
            log.exception("the connection's thread failed")
            ended = Ended(f"internal: {exc}", Internal(f"the client failed: {exc}"))
        with self._lock:
            self._ended = ended

    async def _play(self) -> Ended:
        """Connect and stay until the end or `close`, which also cancels connecting."""
        self._loop = asyncio.get_running_loop()  # last: from now on the other thread notifies
        if self._closing:  # it was closed before it could notify
            return Ended("closed by this side")
        playing = asyncio.create_task(self._connected(), name="tipoff/threaded player")
        closing = asyncio.create_task(self._close_wanted.wait(), name="tipoff/threaded close")
        try:
            await asyncio.wait({playing, closing}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                return await playing
            if self._player is not None and self._outgoing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORDS):
                        await self._sent.wait()
            return Ended("closed by this side")
        finally:
            for task in (playing, closing):
                task.cancel()
            await asyncio.gather(playing, closing, return_exceptions=True)

    async def _send_all(self, player: Player) -> None:
        """Send what the frame loop passed to `send`, in order; ends with the connection."""
        while True:
            self._send_wanted.clear()
            with self._lock:
                waiting = self._outgoing.popleft() if self._outgoing else None
            if waiting is None:
                self._sent.set()
                await self._send_wanted.wait()
                continue
            self._sent.clear()
            try:
                message, reliable = waiting
                await player.send(message, reliable=reliable)
            except TipoffError:
                return  # the connection is over: `poll` returns why

    async def _connected(self) -> Ended:
        callback = self._arguments.pop("progress", None)

        def report(progress: Progress) -> None:
            event: Event = progress
            if progress.stage is Stage.DROPPED:
                event = Dropped(progress.text)
            elif progress.stage is Stage.RESUMED and self._player is not None:
                event = Resumed(self._player.transport, self._player.server)
            with self._lock:
                self._events.append(event)
            if callback is not None:
                callback(progress)

        async with connect(self._url, progress=report, **self._arguments) as player:
            with self._lock:
                self._player = player
                self._events.append(
                    Joined(
                        player.session_id,
                        player.deployment_id,
                        player.client_id,
                        player.transport,
                        player.server,
                    )
                )
            sender = asyncio.create_task(self._send_all(player), name="tipoff/threaded sender")
            try:
                ending = await player.ended()
                return Ended(ending.reason, ending.error, ending.code)
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
