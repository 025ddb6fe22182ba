"""Answers operators: end a session, retire a server, restart a game or replace its servers, tell the status.

`kick`, `drain`, `restart`, `rollout`, `start` and `ban` are answered by one matchmaker of all (queue group), `status`
by every one. They use the compare-and-sets that players and the reconciler use, so repeating one changes nothing more
(a repeated `start` leaves an empty server, which is stopped as any other).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from nats.aio.msg import Msg

from tipoff_matchmaker.bans import BanEnforcer
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord, NotFound
from tipoff_matchmaker.fleet.planner import Planner
from tipoff_matchmaker.fleet.stop import Stopper
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.orchestrators.resilient import ResilientOrchestrator
from tipoff_matchmaker.requests.subscription import QUEUE
from tipoff_matchmaker.service_health import ServiceHealth
from tipoff_matchmaker.sessions.claim_limit import LIMITED, REFUSED, SHORTENED, ClaimLimit
from tipoff_matchmaker.sessions.kicker import Kicker
from tipoff_matchmaker.sessions.state_machine import is_open
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_shared import admin
from tipoff_shared.ban_list import new_ban
from tipoff_shared.errors import Internal, TipoffError, Unavailable
from tipoff_shared.games import Game, SomeGames
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.nats.connection import Bus, Subscription
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

_AT_ONCE = 50
_DRAIN = 1.0


class Admin:
    """The operators' subjects. `requests`: the play requests in hand, whose number is part of the status."""

    def __init__(
        self,
        bus: Bus,
        instance: str,
        sessions: SessionStore,
        deployments: DeploymentStore,
        trust: Trust,
        stopper: Stopper,
        planner: Planner,
        kicker: Kicker,
        orchestrators: Mapping[str, ResilientOrchestrator],
        games: SomeGames,
        requests: BoundedHandlers,
        health: ServiceHealth,
        claims: ClaimLimit,
        bans: BanEnforcer,
        published: GamesFollower,
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._instance = instance
        self._sessions = sessions
        self._deployments = deployments
        self._trust = trust
        self._stopper = stopper
        self._planner = planner
        self._kicker = kicker
        self._orchestrators = orchestrators
        self._games = games
        self._requests = requests
        self._health = health
        self._claims = claims
        self._bans = bans
        self._published = published
        self._clock = clock
        self._handlers = BoundedHandlers("operator's request", _AT_ONCE)
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Begin to answer. Raises `Unavailable`."""
        for operation, handle, queue in (
            ("kick", self._kick, QUEUE),
            ("drain", self._drain, QUEUE),
            ("restart", self._restart, QUEUE),
            ("rollout", self._rollout, QUEUE),
            ("start", self._start, QUEUE),
            ("ban", self._ban, QUEUE),
            ("status", self._status, ""),
        ):
            subscription = await self._bus.serve(
                self._bus.subjects.admin(operation),
                self._answering(handle),
                queue=queue,
                handlers=self._handlers,
                busy=self._busy,
            )
            self._subscriptions.append(subscription)

    async def stop(self) -> None:
        """Take no more requests; those in hand are answered. Idempotent."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()
        await self._handlers.drain(_DRAIN)

    def _answering(
        self, handle: Callable[[bytes], Awaitable[msgspec.Struct]]
    ) -> Callable[[Msg], Awaitable[None]]:
        async def answer(msg: Msg) -> None:
            try:
                reply = admin.encode(await handle(msg.data))
            except TipoffError as exc:
                reply = admin.encode_error(exc)
            except Exception:
                log.exception("a request on %s failed", msg.subject)
                reply = admin.encode_error(Internal("the matchmaker has made a mistake; it is logged"))
            await self._reply(msg, reply)

        return answer

    async def _busy(self, msg: Msg) -> None:
        await self._reply(msg, admin.encode_error(Unavailable("too much in hand, ask again", retry_after=1)))

    async def _reply(self, msg: Msg, reply: bytes) -> None:
        if msg.reply:
            try:
                await self._bus.publish(msg.reply, reply)
            except Unavailable as exc:
                log.info("an operator's answer is lost: %s", exc)

    async def _kick(self, data: bytes) -> admin.Kicked:
        """End the session as if the player had left; its server gets the reason for the player."""
        asked = admin.decode_kick(data)
        reason = asked.reason or "an operator ended the session"
        before = await self._sessions.read(asked.session_id)
        if before is None:
            raise NotFound(f"there is no session {asked.session_id}; `tipoff status` lists them")
        if is_open(before):
            log.warning("session %s is ended by an operator: %s", asked.session_id, reason)
        after = await self._kicker.end(self._sessions, before, reason)
        return admin.Kicked(asked.session_id, before.state.value, after.deployment_id, after.reason)

    async def _drain(self, data: bytes) -> admin.Drained:
        """Send no new players; the server is stopped when its last seat is free. The server is not told: it would turn
        away players who hold a token for their seat."""
        asked = admin.decode_drain(data)
        reason = asked.reason or "drained by an operator"
        before = await self._deployments.fetch(asked.deployment_id)
        if before is None or not state_machine.is_live(before):
            raise NotFound(f"there is no server {asked.deployment_id}; `tipoff status` lists them")
        log.warning("server %s is drained by an operator: %s", asked.deployment_id, reason)
        if asked.now or state_machine.is_coming(before):
            self._trust.remove(asked.deployment_id)
            self._stopper.stop(asked.deployment_id, reason)
        else:
            await self._stopper.drain(asked.deployment_id, reason)
        after = await self._after(before, asked.deployment_id)
        return admin.Drained(asked.deployment_id, after.state.value, len(after.seats), after.reason)

    async def _restart(self, data: bytes) -> admin.Restarted:
        """Stop every server of the game that there is now. New ones are planned at once, whatever failed before."""
        asked = admin.decode_restart(data)
        reason = asked.reason or "restarted by an operator"
        games = self._games.by_key()
        keys = [key for key in games if asked.game == key[0] and asked.version in ("", key[1])]
        if not keys:
            known = ", ".join(f"{name} {version}" for name, version in games)
            raise NotFound(
                f"there is no game {asked.game} {asked.version}".rstrip() + f"; there are: {known}"
            )
        servers = [
            record for key in keys for record in self._deployments.of(*key) if state_machine.is_live(record)
        ]
        log.warning("%d server(s) of %s are restarted by an operator: %s", len(servers), asked.game, reason)
        for record in servers:
            self._trust.remove(record.id)
            self._stopper.stop(record.id, reason)
        for key in keys:
            self._planner.forget_failures(key)
        for record in servers:
            await self._after(record, record.id)
        return admin.Restarted([version for _, version in keys], [record.id for record in servers])

    async def _rollout(self, data: bytes) -> admin.RollingOut:
        """Write down since when servers count as new. What is replaced next, the operator's program decides."""
        asked = admin.decode_rollout(data)
        game = self._game(asked.game, asked.version)
        since = await self._planner.begin_rollout(game, again=asked.again)
        log.warning("servers of %s %s from before %.3f are replaced", *game.key, since)
        return admin.RollingOut(*game.key, since)

    async def _start(self, data: bytes) -> admin.ServerStarted:
        """Start one server more, which the reconciler stops again when it stays empty and is not needed."""
        asked = admin.decode_start(data)
        return admin.ServerStarted(await self._planner.start_one(self._game(asked.game, asked.version)))

    def _game(self, name: str, version: str) -> Game:
        """A game whose servers are started here. Raises `NotFound`."""
        game = self._games.get(name, version)
        if game is None:
            raise NotFound(f"there is no game {name} {version}; {self._games.unknown(name, version)}")
        if game.orchestrator == SESSIONS:
            raise NotFound(f"the servers of {name} {version} are Edgegap's: it starts and stops them itself")
        return game

    async def _ban(self, data: bytes) -> admin.Banned:
        """Write the ban, or lift it. All that follow the bucket act on it, this matchmaker included."""
        asked = admin.decode_ban(data)
        ban = new_ban(asked.kind, asked.subject, until=asked.until, reason=asked.reason, now=self._clock())
        return await (self._bans.lift(ban) if asked.lift else self._bans.add(ban))

    async def _after(self, before: DeploymentRecord, deployment_id: str) -> DeploymentRecord:
        try:
            # It changes nothing, and is written together with what was begun above, so it returns the outcome.
            return await self._deployments.change(deployment_id, lambda record: record)
        except NoRecord:
            return msgspec.structs.replace(before, state=DeploymentState.GONE, seats={})

    async def _status(self, data: bytes) -> admin.MatchmakerStatus:
        own = self._health.own()
        return admin.MatchmakerStatus(
            self._instance,
            self._requests.in_flight,
            [orchestrator.describe() for orchestrator in self._orchestrators.values()],
            list(own.blocking + own.degraded),
            admin.ClaimLimitStatus(
                self._claims.acted[LIMITED], self._claims.acted[REFUSED], self._claims.acted[SHORTENED]
            ),
            self._published.revision,
            self._published.problems,
        )
