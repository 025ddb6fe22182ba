"""A server while it runs: its parts, how they are put together, and in which order they begin and end."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from tipoff_gameserver import edgegap
from tipoff_gameserver.clock import Clock
from tipoff_gameserver.context import Context
from tipoff_gameserver.game import Callbacks
from tipoff_gameserver.lifecycle import GameFailed
from tipoff_gameserver.listeners import Listeners
from tipoff_gameserver.players.admission import Admission, Foreign
from tipoff_gameserver.players.dispatch import Dispatcher
from tipoff_gameserver.players.roster import Player
from tipoff_gameserver.players.table import Table
from tipoff_gameserver.presence import presence_of
from tipoff_gameserver.shutdown import Ending
from tipoff_gameserver.throttled_log import Complaints
from tipoff_shared.health import HealthFile
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import Command, Drain, GameserverLease, Kick, LeaseState

if TYPE_CHECKING:
    from tipoff_gameserver.server import GameServer

log = logging.getLogger(__name__)

_CALLBACK_TIMEOUT = 3.0
"""Seconds that the last callbacks may take in all."""
_SLOW_CALLBACK = 5.0


class Running:
    """Made in the event loop that it runs in; `open`, then `start`, and `close` in any case. `server` is what the
    game sees of it."""

    def __init__(
        self,
        server: GameServer,
        context: Context,
        callbacks: Callbacks,
        *,
        message_limit: int,
        max_tick_failures: int,
    ) -> None:
        self._server = server
        self._context = context
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self._complaints = Complaints()
        self._health = HealthFile()
        self._sweep: asyncio.TimerHandle | None = None
        self.failure: GameFailed | None = None
        """Why the game cannot go on."""
        self.tasks = Tasks("gameserver")
        self.listeners = Listeners(context)
        self.presence = presence_of(context, server.boot_id)
        self._dispatcher = Dispatcher(self.tasks, self._callback_failed)
        self.clock = Clock(
            lambda: callbacks.tick(server, server.dt),
            server.tick_rate,
            self._dispatcher,
            self._complaints,
            max_failures=max_tick_failures,
            give_up=self._give_up,
        )
        admission = Admission(
            private_key=context.private_key,
            protocol_id=context.protocol_id,
            dialect=context.dialect,
            deployment_id=context.deployment_id,
            boot_id=server.boot_id,
            foreign=_foreign(context),
            addresses=self.listeners.token_addresses,
        )
        self.table = Table(
            server.players,
            server.capacity,
            admission=admission,
            presence=self.presence,
            dispatcher=self._dispatcher,
            callbacks=callbacks,
            tick_rate=server.tick_rate,
            message_limit=message_limit,
            when_empty=lambda: self.ending.nobody_left(),
        )
        self.ending = Ending(
            self.tasks,
            close_doors=self.table.close_doors,
            players=lambda: len(self.table.roster),
            announce=self.presence.announce,
        )

    # --- the beginning ----------------------------------------------------------------------------------------

    async def open(self, *, udp: bool, websocket: bool) -> None:
        """Listen; nobody is let in yet."""
        await self.listeners.open(
            self.table,
            self.table.roster,
            self._server.boot_id,
            tasks=self.tasks,
            udp=udp,
            websocket=websocket,
        )

    async def start(self) -> None:
        """Begin to play: the game first, then the doors open and the matchmaker hears of it. Raises `GameFailed`."""
        self._dispatcher.post("on_start", self._callbacks.on_start, self._server)
        await self._dispatcher.idle()  # nobody comes in before the game is ready for it
        if self.failure is not None:
            raise self.failure
        self.clock.start()
        self._housekeeping()
        self.table.open = self.ending.state is LeaseState.READY
        await self.presence.start(self.describe, self._command)
        context, listeners = self._context, self.listeners
        udp = listeners.udp.port if listeners.udp is not None else "off"
        if context.stand_alone:
            log.info(
                "stand-alone: players come by %s, UDP port %s", self._server.url or "tokens of yours", udp
            )
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

    # --- meanwhile --------------------------------------------------------------------------------------------

    def describe(self) -> GameserverLease:
        """What the lease says at this moment."""
        context, server = self._context, self._server
        return GameserverLease(
            deployment_id=context.deployment_id,
            boot_id=server.boot_id,
            game=context.game,
            version=context.version,
            state=self.ending.state,
            transports=server.transports,
            capacity=server.capacity,
            players=len(self.table.roster),
            internal=[str(address) for address in self.listeners.addresses],
            tick_rate=server.tick_rate,
            tick_ms=round(server.tick_ms, 3),
            pid=os.getpid(),
            websocket_port=self.listeners.websocket.port if self.listeners.websocket is not None else 0,
        )

    def _command(self, command: Command) -> None:
        if isinstance(command, Drain):
            self._server.drain(command.reason or "the matchmaker says so")
        elif isinstance(command, Kick):
            self.table.kick_session(command.session_id, command.reason or "the matchmaker says so")

    def _housekeeping(self) -> None:
        """Once a second: budgets, clients that stall, callbacks that hang."""
        now = self._loop.time()
        self._health.touch()
        self.table.new_second()
        for transport in self.listeners.all():
            transport.housekeeping(now)
        waited = self._dispatcher.waited_for(time.perf_counter())
        if waited is not None and waited[1] > _SLOW_CALLBACK:
            self._complaints.say(
                "slow", "the game's %s has not returned for %.0f s; all wait for it", *waited
            )
        self._sweep = self._loop.call_later(1.0, self._housekeeping)

    # --- what the game does wrong -----------------------------------------------------------------------------

    def _give_up(self, failure: GameFailed) -> None:
        self.failure = failure
        self._server.shutdown(str(failure))
        self.clock.stop()
        for player in self._server.players:  # nothing more will come, so nobody is left waiting for it
            player.kick("the game has failed")

    def _callback_failed(self, label: str, args: tuple[Any, ...], exc: BaseException) -> None:
        if label == "on_start":
            self.failure = GameFailed(f"the game's on_start failed with {type(exc).__name__}: {exc}")
            self.failure.__cause__ = exc
            return
        player = args[0] if args and isinstance(args[0], Player) else None
        about = f" for {player}" if player else ""
        self._complaints.traceback(label, f"the game's {label} failed{about}; the game goes on", exc)
        if label == "on_join" and player is not None:
            player.kick("the game could not let you in")

    # --- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """The end, in this order, each step with a deadline of its own:

        1. nobody comes in, no tick begins; 2. players are sent away, the game hears of each (`on_leave`) and of the
        end (`on_stop`); 3. sockets; 4. presence: sessions are written off, the lease is withdrawn (an `ended` one
        stays, to be seen); 5. Edgegap is told, where we run there; 6. whatever still runs is cancelled.
        """
        self.table.open = False
        self.ending.over()
        ended = self.ending.state is LeaseState.ENDED
        self.clock.stop()
        if self._sweep is not None:
            self._sweep.cancel()
        self.table.send_everybody_away("the server ends")
        self._dispatcher.post("on_stop", self._callbacks.on_stop, self._server)
        try:
            async with asyncio.timeout(_CALLBACK_TIMEOUT):
                await self._dispatcher.idle()
        except TimeoutError:
            log.warning("a callback of the game does not return; the server ends without it")
        await self.listeners.close()
        await self.presence.close(keep_lease=ended)
        if ended and self._context.delete_url:
            await edgegap.end_deployment(self._context.delete_url, self._context.delete_token)
        await self.tasks.close()


def _foreign(context: Context) -> Foreign:
    if context.stand_alone:
        return Foreign.ACCEPT
    return Foreign.LOOK_UP if context.bevygap else Foreign.REFUSE
