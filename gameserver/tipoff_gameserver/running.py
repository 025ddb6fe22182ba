"""Builds the parts of a server in dependency order, starts them, runs them and closes them.

Tasks, ThrottledLog -> GameFailures -> Dispatcher -> Presence -> Listeners' sockets -> TokenCheck -> Roster
-> Shutdown -> Clock -> the listeners themselves
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time

from tipoff_gameserver import edgegap
from tipoff_gameserver.blocked import BlockedWatch
from tipoff_gameserver.clock import Clock
from tipoff_gameserver.context import Context, ServerOptions
from tipoff_gameserver.failures import GameFailed, GameFailures
from tipoff_gameserver.listeners import Listeners
from tipoff_gameserver.lock import Lock
from tipoff_gameserver.patience import Patience, Verdict, in_development
from tipoff_gameserver.players.dispatch import Callbacks, Dispatcher
from tipoff_gameserver.players.expected import ExpectedPlayer
from tipoff_gameserver.players.player import Players
from tipoff_gameserver.players.roster import Roster
from tipoff_gameserver.players.token_check import TokenCheck
from tipoff_gameserver.presence.interface import NoPresence, Presence
from tipoff_gameserver.shutdown import Shutdown
from tipoff_gameserver.stand_alone import Matchmaker
from tipoff_gameserver.throttled_log import ThrottledLog
from tipoff_shared.health import HealthFile
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import Bans, Command, Drain, Expect, GameserverLease, Kick, LeaseState
from tipoff_shared.session_end import GAME_FAILED

log = logging.getLogger(__name__)

_CALLBACK_TIMEOUT = 3.0
"""Seconds that the last callbacks may take in all."""
_HOUSEKEEPING = 1.0
_SLOW_CALLBACK = 5.0


def presence_for(context: Context, boot_id: str) -> Presence:
    """The presence that a server with this context reports by."""
    if context.nats is None:
        return NoPresence()
    # Imported here, because a stand-alone server needs no nats-py.
    if context.event_key is not None:
        from tipoff_gameserver.presence.events import EventPresence

        return EventPresence(context, boot_id)
    from tipoff_gameserver.presence.kv import KvPresence

    return KvPresence(context, boot_id)


class Running:
    """A server while it runs, made in its event loop: `open`, then `start`, and `close` in any case.

    `server` is what the game's callbacks get, `players` what the game sees of the roster. Raises `ConfigError` when a
    port cannot be had.
    """

    def __init__(
        self,
        server: object,
        callbacks: Callbacks,
        players: Players,
        context: Context,
        options: ServerOptions,
        boot_id: str,
    ) -> None:
        self._server = server
        self._callbacks = callbacks
        self._players = players
        self._context = context
        self._options = options
        self._boot_id = boot_id
        self._started_at = time.time()
        self._loop = asyncio.get_running_loop()
        self._health = HealthFile()
        self._housekeeping_timer: asyncio.TimerHandle | None = None
        self._log = ThrottledLog()
        self._failures = GameFailures(self._log, options.max_tick_failures)
        self.tasks = Tasks("gameserver")
        self._patience = Patience(float(context.lease_ttl), options.callback_timeout)
        self._frozen = 0.0
        """Seconds for which this process did not run (SIGSTOP, a paused machine), which the game is not blamed for."""
        self._looked_at = time.perf_counter()
        self._dispatcher = Dispatcher(
            self.tasks, self._failures.callback_failed, lambda: time.perf_counter() - self._frozen
        )
        self._presence = presence_for(context, boot_id)
        self._listeners = Listeners(context, options)
        self.endpoints = self._listeners.endpoints
        self._token_check = TokenCheck(context, boot_id, self.endpoints.token_addresses)
        self._roster = Roster(
            players, options, self._token_check, self._presence, self._dispatcher, callbacks
        )
        self.shutdown = Shutdown(self.tasks, self._roster, self._presence)
        self.lock = Lock(self.tasks, self._presence)
        self._clock = Clock(
            functools.partial(callbacks.tick, server, 1.0 / options.tick_rate),
            options.tick_rate,
            self._dispatcher,
            self._failures,
            self._log,
        )
        self.schedule = self._clock.schedule
        self._failures.on_giving_up(self._give_up)
        self._failures.on_join_failed(self._roster.failed_for)
        self._blocked = BlockedWatch()

    @property
    def failure(self) -> GameFailed | None:
        """Why the game cannot go on; None while it can."""
        return self._failures.failure

    # --- the beginning ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen; players are refused until `start`."""
        matchmaker = None
        if self._context.stand_alone:
            matchmaker = Matchmaker(
                self._context,
                self._boot_id,
                self.endpoints.udp_port,
                self._roster,
                self.lock,
                self._options.resume_ttl,
            )
        await self._listeners.open(
            self._roster, self._token_check, self.tasks, self._options.tick_rate, matchmaker
        )

    async def start(self) -> None:
        """Start the game, then admit players and announce the server. Raises `GameFailed`."""
        self._dispatcher.post("on_start", self._callbacks.on_start, self._server)
        await self._dispatcher.idle()  # nobody comes in before the game is ready for it
        if self.failure is not None:
            raise self.failure
        self._clock.start()
        self._blocked.start()
        self._housekeeping()
        if self.shutdown.state is LeaseState.READY:
            self._roster.start_admitting()
        await self._presence.start(self.lease, self._command)
        self._log_start()

    def _log_start(self) -> None:
        context, endpoints = self._context, self.endpoints
        udp = endpoints.udp_port if endpoints.udp_port is not None else "off"
        if context.stand_alone:
            log.info(
                "stand-alone: players come by %s, UDP port %s", self.matchmaker_url or "tokens of yours", udp
            )
            return
        where = endpoints.websocket_url or "off"
        log.info(
            "%s %s, %s: UDP %s, WebSocket %s",
            context.game,
            context.version,
            context.deployment_id,
            udp,
            where,
        )

    # --- meanwhile --------------------------------------------------------------------------------------------

    @property
    def expected(self) -> tuple[ExpectedPlayer, ...]:
        """Those who have a promised seat and have not connected."""
        return self._roster.expected

    @property
    def matchmaker_url(self) -> str:
        """A stand-alone server's matchmaking URL, else ""."""
        url = self.endpoints.websocket_url
        return f"{url}matchmaker/ws" if self._context.stand_alone and url else ""

    def lease(self) -> GameserverLease:
        """The lease, as of now."""
        context, endpoints = self._context, self.endpoints
        return GameserverLease(
            deployment_id=context.deployment_id,
            boot_id=self._boot_id,
            game=context.game,
            version=context.version,
            state=self.shutdown.state,
            reason=self.shutdown.reason,
            transports=endpoints.transports,
            capacity=self._options.capacity,
            players=len(self._roster),
            internal=[str(address) for address in endpoints.addresses],
            tick_rate=self._options.tick_rate,
            tick_ms=round(self.schedule.tick_time * 1000, 3),
            pid=os.getpid(),
            websocket_port=endpoints.websocket_port or 0,
            started_at=self._started_at,
            key=context.private_key.fingerprint,
            locked=self.lock.locked,
            expects=True,
        )

    def _command(self, command: Command) -> None:
        if isinstance(command, Drain):
            self.shutdown.drain(command.reason or "the matchmaker says so", None)
        elif isinstance(command, Kick):
            self._roster.kick_session(command.session_id, command.reason or "the matchmaker says so")
        elif isinstance(command, Bans):
            self._roster.ban(command)
        elif isinstance(command, Expect):
            self._roster.expect(command.session_id, command.seconds)

    def _housekeeping(self) -> None:
        """Once a second: message budgets, clients that stall, callbacks that hang."""
        self._health.touch()
        self._roster.new_second()
        self._listeners.housekeeping(self._loop.time())
        self._look_at_game()
        self._housekeeping_timer = self._loop.call_later(_HOUSEKEEPING, self._housekeeping)

    def _look_at_game(self) -> None:
        """The lease says that the game is well, so it must be: see patience.py."""
        now = time.perf_counter()
        self._frozen += max(0.0, now - self._looked_at - 2 * _HOUSEKEEPING)
        self._looked_at = now
        late = self._dispatcher.late()
        if late is None:
            return
        if late.awaited > _SLOW_CALLBACK:
            self._log.warning(
                "slow", "the game's %s has not returned for %.0f s; all wait for it", late.label, late.awaited
            )
        verdict = Verdict.FINE if in_development() else self._patience.judge(late.behind)
        if verdict is Verdict.DRAIN:
            self.shutdown.drain(late.why(), None)
        elif verdict is Verdict.END:
            self._failures.hangs(late.why())

    def _give_up(self, failure: GameFailed) -> None:
        self._clock.stop()
        self.shutdown.begin(f"{GAME_FAILED}: {failure}", failed=True)

    # --- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close the server in this order, each step with its own deadline:

        1. nobody comes in, no tick begins; 2. players are sent away, the game hears of each (`on_leave`) and of the
        end (`on_stop`); 3. sockets; 4. presence: sessions are removed, the lease is withdrawn (an `ended` one stays,
        to be seen); 5. Edgegap is told, where the server runs there; 6. remaining tasks are cancelled.
        """
        self.shutdown.finish()
        ended = self.shutdown.state is LeaseState.ENDED
        self._clock.stop()
        self._blocked.stop()
        if self._housekeeping_timer is not None:
            self._housekeeping_timer.cancel()
        self._roster.close_all(self.shutdown.reason, self.failure)
        self._dispatcher.post("on_stop", self._callbacks.on_stop, self._server)
        try:
            async with asyncio.timeout(_CALLBACK_TIMEOUT):
                await self._dispatcher.idle()
        except TimeoutError:
            log.warning("a callback of the game does not return; the server ends without it")
        finally:  # also when the caller does not wait for the game
            await self._listeners.close()
        await self._presence.close(keep_lease=ended)
        if ended and self._context.delete_url:
            await edgegap.end_deployment(self._context.delete_url, self._context.delete_token)
        await self.tasks.close()
