"""What operators may ask of matchmakers: end a session, let a server run empty, say how it goes.

`kick` and `drain` are answered by one matchmaker of all (queue group), `status` by every one. Both effects are the
usual ones, the same compare-and-sets that players and sweeps cause: whoever asks twice changes nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import nats.errors
from nats.aio.msg import Msg

from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.deployments.store import Ledger, NoRecord
from tipoff_matchmaker.fleet.liveness import Servers
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_matchmaker.orchestrators.resilient import Guarded
from tipoff_matchmaker.requests.subscription import QUEUE
from tipoff_matchmaker.sessions.kicker import Kicks
from tipoff_matchmaker.sessions.machine import Ended, is_open
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_shared import admin
from tipoff_shared.errors import Internal, TipoffError, Unavailable, UnknownGame
from tipoff_shared.nats.connection import Bus, Subscription
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionState

log = logging.getLogger(__name__)

_AT_ONCE = 50
_DRAIN = 1.0


class NotFound(UnknownGame):
    """404: there is no such session or server (any more)."""


class Admin:
    def __init__(
        self,
        bus: Bus,
        instance: str,
        book: SessionBook,
        ledger: Ledger,
        fleet: Fleet,
        servers: Servers,
        kicks: Kicks,
        orchestrators: Mapping[str, Guarded],
        in_flight: Callable[[], int],
    ) -> None:
        self._bus = bus
        self._instance = instance
        self._book = book
        self._ledger = ledger
        self._fleet = fleet
        self._servers = servers
        self._kicks = kicks
        self._orchestrators = orchestrators
        self._in_flight = in_flight
        self._handlers = BoundedHandlers("operator's request", _AT_ONCE)
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Begin to answer."""
        for operation, handle, queue in (
            ("kick", self._kick, QUEUE),
            ("drain", self._drain, QUEUE),
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
        """No more requests; those in hand are answered. Idempotent."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions if self._bus.connected else ():
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as exc:
                log.debug("unsubscribing: %s", exc)
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
        """The session ends as if the player had left; its server is told, so that the player hears why."""
        asked = admin.decode_kick(data)
        reason = asked.reason or "an operator ended the session"
        before = await self._book.read(asked.session_id)
        if before is None:
            raise NotFound(f"there is no session {asked.session_id} (any more); `tipoff status` lists them")
        outcome = await self._book.apply(asked.session_id, Ended(reason))
        after = outcome.record or before
        if is_open(before):
            log.warning("session %s is ended by an operator: %s", asked.session_id, reason)
        if after.deployment_id and after.state is not SessionState.GONE:
            self._kicks.start(asked.session_id, after, reason)
        elif before.state is SessionState.REQUESTED:
            await self._kicks.tell_waiting(asked.session_id, reason)
        return admin.Kicked(asked.session_id, before.state.value, after.deployment_id, after.reason)

    async def _drain(self, data: bytes) -> admin.Drained:
        """No new players; it ends with the last seat. The server is not told: it would turn away those who hold a
        token for their seat."""
        asked = admin.decode_drain(data)
        reason = asked.reason or "drained by an operator"
        before = await self._ledger.fetch(asked.deployment_id)
        if before is None or not deployments.is_live(before):
            raise NotFound(f"there is no server {asked.deployment_id} (any more); `tipoff status` lists them")
        log.warning("server %s is drained by an operator: %s", asked.deployment_id, reason)
        if asked.now or deployments.is_coming(before):
            self._servers.distrust(asked.deployment_id)
            self._fleet.end(asked.deployment_id, reason)
        else:
            await self._servers.drain(asked.deployment_id, reason)
        after = await self._after(before, asked.deployment_id)
        return admin.Drained(asked.deployment_id, after.state.value, len(after.seats), after.reason)

    async def _after(self, before: DeploymentRecord, deployment_id: str) -> DeploymentRecord:
        try:
            # It is applied together with what was begun above, so it tells what became of it; it changes nothing.
            return await self._ledger.change(deployment_id, lambda record: record)
        except NoRecord:
            return msgspec.structs.replace(before, state=DeploymentState.GONE, seats={})

    async def _status(self, data: bytes) -> admin.MatchmakerStatus:
        return admin.MatchmakerStatus(
            self._instance,
            self._in_flight(),
            [orchestrator.describe() for orchestrator in self._orchestrators.values()],
        )
