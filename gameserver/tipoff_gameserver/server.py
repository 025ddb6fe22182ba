"""Runs a game as a server: `Game` is what you write, `GameServer` what runs it.

    class MyGame(Game):
        def on_message(self, player, data): ...
        def tick(self, server, dt): ...

    GameServer(MyGame(), tick_rate=30, capacity=16).main()

Started by a launcher (or by Edgegap) it admits the players that the matchmaker sends; started by hand it is a
stand-alone server.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Collection, Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any

from tipoff_gameserver import edgegap
from tipoff_gameserver.context import Context, ServerOptions, ca_contents_argument, find_context
from tipoff_gameserver.failures import GameFailed
from tipoff_gameserver.players.dispatch import Callbacks
from tipoff_gameserver.players.expected import ExpectedPlayer
from tipoff_gameserver.players.player import MAX_PLAIN_BYTES, LeaveReason, Player, Players
from tipoff_gameserver.running import Running
from tipoff_shared.errors import MessageTooLarge
from tipoff_shared.framing import message_bytes
from tipoff_shared.messages import Transports
from tipoff_shared.names import new_boot_id
from tipoff_shared.netcode import Dialect, PrivateKey
from tipoff_shared.records import LeaseState
from tipoff_shared.service import DONE, FAILED, exit_code_of, signals

log = logging.getLogger(__name__)

DEFAULT_TICK_RATE = 30.0
DEFAULT_CAPACITY = 16


class Game:
    """A game that does nothing yet: any object with some of these methods is one, and subclassing is optional.

    Every method may be a plain function or `async def`. They are called one at a time, so a game needs no locks. An
    async one is awaited before the next is called: do slow things (a database, a web service) in
    `server.background(...)`.
    """

    tick_rate: float = 30.0
    """Ticks per second, unless `GameServer(..., tick_rate=)` says otherwise."""

    def on_start(self, server: GameServer) -> Any:
        """Get ready: nobody comes in before this returns. If it raises, the server does not start."""

    def on_join(self, player: Player) -> Any:
        """A player is in: `player.send` works. If this raises, the player is kicked."""

    def on_message(self, player: Player, data: bytes) -> Any:
        """1 to 65536 bytes from a player, as soon as they arrive. They are whatever the player chose to send: check
        them before you believe them."""

    def on_drop(self, player: Player) -> Any:
        """The player's connection is lost, and its seat is held (`resume_ttl` in games.toml, 30 s): `on_resume` or
        `on_leave` follows. The player stays in `server.players`; what you send to it goes nowhere."""

    def on_resume(self, player: Player) -> Any:
        """The player is back, the same object as before: send it all that it must know now. Always after `on_drop`."""

    def on_leave(self, player: Player, reason: LeaveReason) -> Any:
        """The player has left, for whatever reason; called once for each `on_join`."""

    def tick(self, server: GameServer, dt: float) -> Any:
        """Advance the world by `dt` seconds (always 1 / tick_rate) and tell the players about it."""

    def on_stop(self, server: GameServer) -> Any:
        """The last call: every player has left."""


class GameServer:
    """A server for one game; `async with` it, `await run()` it, or call `main()`.

    * `game`: any object with some of the methods of `Game`.
    * `tick_rate`: ticks per second; else `game.tick_rate`, else 30.
    * `capacity`: players at once (16). A deployment's own `TIPOFF_CAPACITY` wins: the matchmaker counts by it.
    * `stand_alone`: True or False; None (the default) decides by the environment.
    * `listen`: `host:port` of a stand-alone server (`127.0.0.1:7777`); UDP and WebSocket share the number.
    * `private_key`, `protocol_id`, `dialect`: for a stand-alone server whose tokens another program issues.
    * `context`: everything about the deployment, instead of the environment (tests, other launchers).
    * `udp`, `websocket`: which listeners to open.
    * `resume_ttl`: seconds for which a stand-alone server holds the seat of a player whose connection was lost (0: not
      at all, the default). A deployment's stands in games.toml.
    * `framing`: False keeps reliable messages, messages over 1200 bytes and close reasons off the wire (docs/wire.md).
      Clients that know netcode only never see them in any case.
    * `message_limit`: messages per second one player may send, a long one counting once for every 1200 bytes. Those
      beyond it are dropped, or wait for the next second: reliable ones, and all of a WebSocket client that takes long
      messages.
    * `flood_limit`: packets or WebSocket frames per second, beyond which a player is disconnected (by WebSocket with
      close code 1008). By default four times `message_limit`, at least 2000.
    * `max_tick_failures`: the server gives up when this many ticks in a row have raised.
    * `callback_timeout`: the server gives up when an async callback has not returned for so many seconds; None: never.
      After the lease's TTL (10 s) it lets nobody in. Neither happens in a debugger or with `python -X dev`.

    Raises `TypeError` or `ValueError` at once for a game or numbers that cannot work, `ConfigError` at the start for
    settings that cannot be used.
    """

    def __init__(
        self,
        game: object,
        *,
        tick_rate: float | None = None,
        capacity: int | None = None,
        stand_alone: bool | None = None,
        listen: str | None = None,
        private_key: PrivateKey | None = None,
        protocol_id: int | None = None,
        dialect: Dialect = Dialect.STANDARD,
        context: Context | None = None,
        udp: bool = True,
        websocket: bool = True,
        framing: bool = True,
        resume_ttl: int = 0,
        message_limit: int = 500,
        flood_limit: int | None = None,
        max_tick_failures: int = 30,
        callback_timeout: float | None = 60.0,
    ) -> None:
        rate = tick_rate if tick_rate is not None else getattr(game, "tick_rate", DEFAULT_TICK_RATE)
        if not (isinstance(rate, int | float) and 0 < rate <= 1000):
            raise ValueError(
                f"tick_rate={rate!r}: more than 0 and at most 1000 ticks per second are possible"
            )
        if capacity is not None and not 1 <= capacity <= 1000:
            raise ValueError(f"capacity={capacity}: 1 to 1000 players are possible")
        if not (udp or websocket):
            raise ValueError("a server without UDP and without WebSocket cannot be reached")
        if flood_limit is None:
            flood_limit = max(2000, 4 * message_limit)
        if message_limit < 1 or flood_limit < message_limit:
            raise ValueError(
                f"message_limit={message_limit}, flood_limit={flood_limit}: at least 1, and flood_limit not below "
                "message_limit, is expected"
            )
        if not (isinstance(resume_ttl, int) and 0 <= resume_ttl <= 3600):
            raise ValueError(f"resume_ttl={resume_ttl}: whole seconds from 0 to 3600 are possible")
        if callback_timeout is not None and callback_timeout <= 0:
            raise ValueError(f"callback_timeout={callback_timeout}: seconds above 0, or None, are expected")
        self.game = game
        self.tick_rate = float(rate)
        self.dt = 1.0 / self.tick_rate
        """Seconds of game time per tick."""
        self.capacity = capacity or DEFAULT_CAPACITY
        self.message_limit = message_limit
        """Messages per second one player may send."""
        self.flood_limit = flood_limit
        """Packets or WebSocket frames per second beyond which a player is disconnected."""
        self.boot_id = new_boot_id()
        """Names this start of this process: tokens of an earlier one are refused."""
        self.players = Players()
        """Who plays; safe to loop over."""
        self.transports = Transports()
        """What players dial; known once the server has started."""
        self.url = ""
        """A stand-alone server's matchmaking URL (`ws://host:port/matchmaker/ws`), else ""."""
        self._callbacks = Callbacks(game, base=Game)
        self._find_context = functools.partial(
            find_context,
            os.environ,
            stand_alone=stand_alone,
            listen=listen,
            private_key=private_key,
            protocol_id=protocol_id,
            dialect=dialect,
            ca_contents=ca_contents_argument(sys.argv),
        )
        self._context = context
        self._options = ServerOptions(
            self.tick_rate,
            self.capacity,
            message_limit,
            flood_limit,
            max_tick_failures,
            callback_timeout,
            udp=udp,
            websocket=websocket,
            framing=framing,
            resume_ttl=resume_ttl,
        )
        self._running: Running | None = (
            None  # its parts need an event loop, and a game may be made without one
        )
        self._stopped_while_starting = False
        self._starting: asyncio.Task[Any] | None = None

    # --- what games use ---------------------------------------------------------------------------------------

    def broadcast(
        self, data: bytes, *, exclude: Player | Collection[Player] = (), reliable: bool = False
    ) -> None:
        """`send` to every player but `exclude`. Raises what `send` raises, when all others have been sent to: a player
        whose client takes only short messages (`Player.max_message`) holds up nobody."""
        if type(data) is not bytes or not 0 < len(data) <= MAX_PLAIN_BYTES:
            data = message_bytes(data)
        left_out = (exclude,) if isinstance(exclude, Player) else exclude
        too_large: MessageTooLarge | None = None
        for player in self.players.all():
            if not left_out or player not in left_out:
                try:
                    player.send(data, reliable=reliable)
                except MessageTooLarge as exc:
                    too_large = exc
        if too_large is not None:
            raise too_large

    @property
    def ticks(self) -> int:
        """Ticks run so far."""
        return self._running.schedule.ticks if self._running else 0

    @property
    def time(self) -> float:
        """Seconds of game time: `ticks` times `dt`."""
        return self.ticks * self.dt

    @property
    def ticks_skipped(self) -> int:
        """Ticks given up because the machine was too slow."""
        return self._running.schedule.skipped if self._running else 0

    @property
    def tick_ms(self) -> float:
        """Mean milliseconds that one tick took lately."""
        return self._running.schedule.tick_time * 1000 if self._running else 0.0

    @property
    def context(self) -> Context:
        """The deployment: its id, game, version, location. Raises `RuntimeError` before the server has started."""
        if self._context is None:
            raise RuntimeError("the server has not started yet")
        return self._context

    @property
    def state(self) -> LeaseState:
        """`ready`, `draining` (nobody is let in) or `ended`."""
        return self._running.shutdown.state if self._running else LeaseState.READY

    def background(self, work: Coroutine[Any, Any, None], name: str = "background") -> asyncio.Task[None]:
        """Run a coroutine beside the game, for slow things. The server owns it: an exception is logged, and it is
        cancelled when the server ends."""
        return self._started.tasks.start(work, name)

    def shutdown(self, reason: str = "the match is over") -> Awaitable[None]:
        """End the match and the deployment: nobody comes in, all players are sent away, `run` returns.

        May be awaited (the matchmaker then knows) or just called, from anywhere in the event loop. Idempotent.
        """
        return self._started.shutdown.begin(reason)

    def lock(self) -> Awaitable[None]:
        """Close the server to new players, for a match that has begun: the matchmaker gives out no more seats here, and
        starts another server where one is needed. Everything else goes on. A seat that was promised before the
        matchmaker knew stays good, so its player may still come within the claim time (15 s).

        May be awaited, until the lease says so (2 s at most; while NATS is away, the matchmaker is told later), or just
        called, from anywhere in the event loop. Idempotent. A locked server on which nobody has a seat is stopped after
        the game's `empty_ttl`, whatever `min_ready` says.
        """
        return self._started.lock.set(True)

    def unlock(self) -> Awaitable[None]:
        """Open the server to new players again; like `lock`."""
        return self._started.lock.set(False)

    @property
    def locked(self) -> bool:
        """Whether `lock` has closed the server to new players."""
        return self._running is not None and self._running.lock.locked

    @property
    def expected(self) -> tuple[ExpectedPlayer, ...]:
        """Who is on the way: players with a promised seat who have not connected yet. Each is dropped when it connects,
        or when its claim time ends (15 s) and the seat is free for others; so a match may begin without them, and an
        empty tuple means that nobody else is coming. `len(server.expected)` is their number.

        It is what the matchmaker has said so far, by one message for each seat. While NATS is away, and from a
        matchmaker of an earlier release, nothing is heard, and players come unexpected.
        """
        return self._running.expected if self._running is not None else ()

    def drain(self, reason: str = "", *, grace: float | None = None) -> None:
        """Let nobody in, and end when the last player has left, or after `grace` seconds. Idempotent."""
        self._started.shutdown.drain(reason, grace)

    # --- running ----------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Run until the end, as a process: read the environment, set up logging unless that is done, handle SIGTERM and
        SIGINT, and exit with 0, 1 (the game failed) or 2 (settings)."""
        _configure_logging()
        if code := exit_code_of(self._run_process, prefix="error: "):
            sys.exit(code)

    async def _run_process(self) -> int:
        try:
            await self.run()
        except GameFailed as exc:
            if exc.__cause__ is not None:
                traceback.print_exception(exc.__cause__)
            print(f"error: {exc}", file=sys.stderr)
            return FAILED
        return DONE

    async def run(self) -> None:
        """Run until `shutdown`, or a signal and the drain that follows it. Raises `GameFailed` or `ConfigError`."""
        self._starting = asyncio.current_task()
        with signals(self._on_signal):
            try:
                async with self:
                    self._starting = None
                    await self._started.shutdown.due.wait()
            except asyncio.CancelledError:
                if self._starting is None or not self._stopped_while_starting:
                    raise
                self._starting.uncancel()  # `_on_signal` cancelled it
                log.info("stopped while starting")
        if self._running is not None and self._running.failure is not None:
            raise self._running.failure

    async def wait_ended(self) -> None:
        """Wait until the server is about to end; for use in `async with`."""
        await self._started.shutdown.due.wait()

    async def __aenter__(self) -> GameServer:
        if self._running is not None:
            raise RuntimeError("a GameServer runs once; make a new one")
        context = self._context or self._find_context()
        if self._options.websocket:
            context = await edgegap.with_secure_url(context)
        self._context = context
        if context.capacity is not None:
            self.capacity = context.capacity
        running = self._running = Running(
            self,
            self._callbacks,
            self.players,
            context,
            replace(self._options, capacity=self.capacity),
            self.boot_id,
        )
        try:
            await running.open()
            self.transports = running.endpoints.transports
            self.url = running.matchmaker_url
            await running.start()
        except BaseException:
            await running.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._started.close()
        if self._started.failure is not None and not isinstance(exc, asyncio.CancelledError):
            raise self._started.failure from exc

    @property
    def _started(self) -> Running:
        if self._running is None:
            raise RuntimeError("the server has not started yet")
        return self._running

    def _on_signal(self, name: str) -> None:
        """Stop a server that is still starting; after that see `Shutdown.signalled`."""
        if self._starting is not None:
            self._stopped_while_starting = True
            self._starting.cancel()
        else:
            self._started.shutdown.signalled(name, self.context.drain_grace)


def _configure_logging() -> None:
    """Write one line per event to standard error, unless the game has set up logging itself."""
    if logging.getLogger().handlers:
        return
    try:
        from tipoff_shared.log import configure

        configure("gameserver")
    except ImportError:  # structlog comes with the services' extras only
        level = os.environ.get("TIPOFF_LOG_LEVEL", "INFO").upper()
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
