"""The game server: one game, one list of players, one clock, and everything around it.

    class MyGame(Game):
        def on_message(self, player, data): ...
        def tick(self, server, dt): ...

    GameServer(MyGame(), tick_rate=30, capacity=16).main()

Started by a launcher (or by Edgegap) it takes the players that the matchmaker sends; started by hand it stands alone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import time
from collections.abc import Awaitable, Collection, Coroutine
from types import TracebackType
from typing import Any

from tipoff_gameserver import edgegap
from tipoff_gameserver.admission import Admission, Foreign
from tipoff_gameserver.clock import Clock
from tipoff_gameserver.complaints import Complaints
from tipoff_gameserver.context import Context
from tipoff_gameserver.dispatch import Dispatcher
from tipoff_gameserver.ending import Ending
from tipoff_gameserver.environment import find_context
from tipoff_gameserver.game import Callbacks
from tipoff_gameserver.lifecycle import GameFailed, ca_contents_argument, run_process, signals
from tipoff_gameserver.listeners import Listeners
from tipoff_gameserver.players import Player, Players
from tipoff_gameserver.presence import NoPresence, Presence
from tipoff_gameserver.table import Table
from tipoff_shared.health import HealthFile
from tipoff_shared.messages import Transports
from tipoff_shared.names import new_boot_id
from tipoff_shared.netcode import Dialect, PrivateKey
from tipoff_shared.records import Command, Drain, GameserverLease, Kick, LeaseState
from tipoff_shared.supervise import Tasks

log = logging.getLogger(__name__)

DEFAULT_TICK_RATE = 30.0
DEFAULT_CAPACITY = 16
_CALLBACK_TIMEOUT = 3.0
"""Seconds that the last callbacks may take in all."""
_SLOW_CALLBACK = 5.0


class GameServer:
    """A server for one game; `async with` it, `await run()` it, or call `main()`.

    * `game`: any object with some of the methods of `Game`.
    * `tick_rate`: ticks per second; else `game.tick_rate`, else 30.
    * `capacity`: players at once (16). A deployment's own `TIPOFF_CAPACITY` wins: the matchmaker counts by it.
    * `stand_alone`: True or False; None (the default) decides by the environment.
    * `listen`: `host:port` of a stand-alone server (`127.0.0.1:7777`); UDP and WebSocket share the number.
    * `private_key`, `protocol_id`, `dialect`: for a stand-alone server whose tokens somebody else makes.
    * `context`: everything about the deployment, instead of the environment (tests, other launchers).
    * `udp`, `websocket`: which listeners to open.
    * `message_limit`: messages per second one player may send; those beyond it are thrown away.
    * `max_tick_failures`: so many ticks in a row may raise before the server gives up.

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
        message_limit: int = 500,
        max_tick_failures: int = 30,
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
        self.game = game
        self.tick_rate = float(rate)
        self.dt = 1.0 / self.tick_rate
        """Seconds of game time per tick."""
        self.capacity = capacity or DEFAULT_CAPACITY
        self.boot_id = new_boot_id()
        """Names this start of this process: tokens of an earlier one are not taken."""
        self.players = Players()
        """Who plays; safe to loop over."""
        self.transports = Transports()
        """What players dial; known once the server has started."""
        self.url = ""
        """A stand-alone server's matchmaking URL (`ws://host:port/matchmaker/ws`), else ""."""
        self._callbacks = Callbacks(game)
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
        self._udp, self._websocket = udp, websocket
        self._message_limit = message_limit
        self._max_tick_failures = max_tick_failures
        self._complaints = Complaints()
        self._clock: Clock | None = None
        self._failure: GameFailed | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._health = HealthFile()
        self._stopped_while_starting = False
        self._starting: asyncio.Task[Any] | None = None

    # --- what games use ---------------------------------------------------------------------------------------

    def broadcast(self, data: bytes, *, exclude: Player | Collection[Player] = ()) -> None:
        """`send` to every player but `exclude`. Raises `ValueError` unless there are 1 to 1200 bytes."""
        left_out = (exclude,) if isinstance(exclude, Player) else exclude
        for player in self.players.all():
            if not left_out or player not in left_out:
                player.send(data)

    @property
    def ticks(self) -> int:
        """Ticks run so far."""
        return self._clock.schedule.ticks if self._clock else 0

    @property
    def time(self) -> float:
        """Seconds of game time: `ticks` times `dt`."""
        return self.ticks * self.dt

    @property
    def ticks_skipped(self) -> int:
        """Ticks given up because the machine was too slow."""
        return self._clock.schedule.skipped if self._clock else 0

    @property
    def tick_ms(self) -> float:
        """Mean milliseconds that one tick took lately."""
        return self._clock.schedule.tick_time * 1000 if self._clock else 0.0

    @property
    def context(self) -> Context:
        """The deployment: its id, game, version, location. Known once the server has started."""
        if self._context is None:
            raise RuntimeError("the server has not started yet")
        return self._context

    @property
    def state(self) -> LeaseState:
        """`ready`, `draining` (nobody new is let in) or `ended`."""
        return self._ending.state if self._clock else LeaseState.READY

    def background(self, work: Coroutine[Any, Any, None], name: str = "background") -> asyncio.Task[None]:
        """Run a coroutine beside the game, for slow things. The server owns it: an exception is logged, and it is
        cancelled when the server ends."""
        return self._tasks.start(work, name)

    def shutdown(self, reason: str = "the match is over") -> Awaitable[None]:
        """End the match and the deployment: nobody new comes in, everybody is sent away, `run` returns.

        May be awaited (the matchmaker then knows) or just called, from anywhere in the event loop. Idempotent.
        """
        return self._ending.shutdown(reason)

    def drain(self, reason: str = "", *, grace: float | None = None) -> None:
        """Let nobody in any more, and end when the last player has left, or after `grace` seconds. Idempotent."""
        self._ending.drain(reason, grace)

    # --- running ----------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Run until the end, as a whole process: reads the environment, sets up logging unless that is done, handles
        SIGTERM and SIGINT, and exits with 0, 1 (the game failed) or 2 (settings)."""
        run_process(self.run)

    async def run(self) -> None:
        """Run until `shutdown`, or a signal and the drain that follows it. Raises `GameFailed` or `ConfigError`."""
        self._starting = asyncio.current_task()
        with signals(self._on_signal):
            try:
                async with self:
                    self._starting = None
                    await self._ending.reached.wait()
            except asyncio.CancelledError:
                if self._starting is None or not self._stopped_while_starting:
                    raise
                self._starting.uncancel()  # it was our own doing, in `_on_signal`
                log.info("stopped while starting")
        if self._failure is not None:
            raise self._failure

    async def wait_ended(self) -> None:
        """Until the server is about to end; for those who use `async with`."""
        await self._ending.reached.wait()

    async def __aenter__(self) -> GameServer:
        if self._clock is not None:
            raise RuntimeError("a GameServer runs once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks("gameserver")
        context = self._context or self._find_context()
        if self._websocket:
            context = await edgegap.with_secure_url(context)
        self._context = context
        if context.capacity is not None:
            self.capacity = context.capacity
        self._listeners = Listeners(context)
        self._presence = self._make_presence(context)
        self._dispatcher = Dispatcher(self._tasks, self._callback_failed)
        self._clock = Clock(
            lambda: self._callbacks.tick(self, self.dt),
            self.tick_rate,
            self._dispatcher,
            self._complaints,
            max_failures=self._max_tick_failures,
            give_up=self._give_up,
        )
        admission = Admission(
            private_key=context.private_key,
            protocol_id=context.protocol_id,
            dialect=context.dialect,
            deployment_id=context.deployment_id,
            boot_id=self.boot_id,
            foreign=_foreign(context),
            addresses=self._listeners.token_addresses,
        )
        self._table = Table(
            self.players,
            self.capacity,
            admission=admission,
            presence=self._presence,
            dispatcher=self._dispatcher,
            callbacks=self._callbacks,
            tick_rate=self.tick_rate,
            message_limit=self._message_limit,
            when_empty=lambda: self._ending.nobody_left(),
        )
        self._ending = Ending(
            self._tasks,
            close_doors=self._table.close_doors,
            players=lambda: len(self._table.roster),
            announce=self._presence.announce,
        )
        try:
            await self._start(context, self._clock)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()
        if self._failure is not None and not isinstance(exc, asyncio.CancelledError):
            raise self._failure from exc

    async def _start(self, context: Context, clock: Clock) -> None:
        listeners = self._listeners
        await listeners.open(
            self._table,
            self._table.roster,
            self.boot_id,
            tasks=self._tasks,
            udp=self._udp,
            websocket=self._websocket,
        )
        self.transports = listeners.transports
        if context.stand_alone and listeners.websocket_url:
            self.url = f"{listeners.websocket_url}matchmaker/ws"
        self._dispatcher.post("on_start", self._callbacks.on_start, self)
        await self._dispatcher.idle()  # nobody comes in before the game is ready for it
        if self._failure is not None:
            raise self._failure
        clock.start()
        self._housekeeping()
        self._table.open = self._ending.state is LeaseState.READY
        await self._presence.start(self._describe, self._command)
        udp = listeners.udp.port if listeners.udp is not None else "off"
        if context.stand_alone:
            log.info("stand-alone: players come by %s, UDP port %s", self.url or "tokens of yours", udp)
        else:
            where = listeners.websocket_url or "off"
            log.info(
                "%s %s, %s: UDP %s, WebSocket %s",
                context.game,
                context.version,
                context.deployment_id,
                udp,
                where,
            )

    def _make_presence(self, context: Context) -> Presence:
        if context.nats is None:
            return NoPresence()
        # Here and not above: a server that stands alone needs no nats-py.
        if context.event_key is not None:
            from tipoff_gameserver.presence.events import EventPresence

            return EventPresence(
                context.nats,
                context.deployment_id,
                self.boot_id,
                context.event_key,
                announcement=context.announcement(self.boot_id),
                lease_ttl=context.lease_ttl,
            )
        from tipoff_gameserver.presence.nats import NatsPresence

        return NatsPresence(
            context.nats,
            context.deployment_id,
            announcement=context.announcement(self.boot_id),
            lease_ttl=context.lease_ttl,
        )

    def _give_up(self, failure: GameFailed) -> None:
        self._failure = failure
        self.shutdown(str(failure))
        if self._clock is not None:
            self._clock.stop()
        for player in self.players:  # nothing more will come, so nobody is left waiting for it
            player.kick("the game has failed")

    def _callback_failed(self, label: str, args: tuple[Any, ...], exc: BaseException) -> None:
        if label == "on_start":
            self._failure = GameFailed(f"the game's on_start failed with {type(exc).__name__}: {exc}")
            self._failure.__cause__ = exc
            return
        player = args[0] if args and isinstance(args[0], Player) else None
        about = f" for {player}" if player else ""
        self._complaints.traceback(label, f"the game's {label} failed{about}; the game goes on", exc)
        if label == "on_join" and player is not None:
            player.kick("the game could not let you in")

    def _housekeeping(self) -> None:
        """Once a second: budgets, clients that stall, callbacks that hang."""
        now = self._loop.time()
        self._health.touch()
        self._table.new_second()
        for transport in self._listeners.all():
            transport.housekeeping(now)
        waited = self._dispatcher.waited_for(time.perf_counter())
        if waited is not None and waited[1] > _SLOW_CALLBACK:
            self._complaints.say(
                "slow", "the game's %s has not returned for %.0f s; all wait for it", *waited
            )
        self._sweep = self._loop.call_later(1.0, self._housekeeping)

    # --- presence, signals, the end ---------------------------------------------------------------------------

    def _describe(self) -> GameserverLease:
        context = self.context
        return GameserverLease(
            deployment_id=context.deployment_id,
            boot_id=self.boot_id,
            game=context.game,
            version=context.version,
            state=self._ending.state,
            transports=self.transports,
            capacity=self.capacity,
            players=len(self._table.roster),
            internal=[str(address) for address in self._listeners.addresses],
            tick_rate=self.tick_rate,
            tick_ms=round(self.tick_ms, 3),
            pid=os.getpid(),
            websocket_port=self._listeners.websocket.port if self._listeners.websocket is not None else 0,
        )

    def _command(self, command: Command) -> None:
        if isinstance(command, Drain):
            self.drain(command.reason or "the matchmaker says so")
        elif isinstance(command, Kick):
            self._table.kick_session(command.session_id, command.reason or "the matchmaker says so")

    def _on_signal(self, name: str) -> None:
        """A server that is still starting just stops; later see `Ending.signalled`."""
        if self._starting is not None:
            self._stopped_while_starting = True
            self._starting.cancel()
        else:
            self._ending.signalled(name, self.context.drain_grace)

    async def _close(self) -> None:
        """The end, in this order, each step with a deadline of its own:

        1. nobody comes in, no tick begins; 2. players are sent away, the game hears of each (`on_leave`) and of the
        end (`on_stop`); 3. sockets; 4. presence: sessions are written off, the lease is withdrawn (an `ended` one
        stays, to be seen); 5. Edgegap is told, where we run there; 6. whatever still runs is cancelled.
        """
        self._table.open = False
        self._ending.over()
        ended = self._ending.state is LeaseState.ENDED
        if self._clock is not None:
            self._clock.stop()
        if self._sweep is not None:
            self._sweep.cancel()
        self._table.send_everybody_away("the server ends")
        self._dispatcher.post("on_stop", self._callbacks.on_stop, self)
        try:
            async with asyncio.timeout(_CALLBACK_TIMEOUT):
                await self._dispatcher.idle()
        except TimeoutError:
            log.warning("a callback of the game does not return; the server ends without it")
        await self._listeners.close()
        await self._presence.close(keep_lease=ended)
        if ended and self.context.delete_url:
            await edgegap.end_deployment(self.context.delete_url, self.context.delete_token)
        await self._tasks.close()


def _foreign(context: Context) -> Foreign:
    if context.stand_alone:
        return Foreign.ACCEPT
    return Foreign.LOOK_UP if context.bevygap else Foreign.REFUSE
