"""Answers nats-server's questions about game servers that connect (auth callout); credentials.py says what to answer.

Every matchmaker answers, each question one of them. A server is let in with its own password while its deployment
lives, and has at most `MAX_CONNECTIONS` connections at one nats-server: it needs one, and another one while an earlier
one that broke is still counted. What is open when its deployment ends, or more than that on all nodes of a cluster,
disconnector.py closes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from nats.aio.msg import Msg

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.isolated.credentials import (
    ACCOUNT,
    AuthRequest,
    denied,
    granted,
    read_request,
)
from tipoff_matchmaker.isolated.open_connections import MAX_CONNECTIONS, question, read_list
from tipoff_shared.errors import Malformed, TipoffError, Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.primitives.token_bucket import TokenBuckets
from tipoff_shared.secret import Secret
from tipoff_shared.settings import server_user
from tipoff_shared.subjects import AUTH_CALLOUT, connections_of

log = logging.getLogger(__name__)

_QUEUE = "tipoff-auth"
_AT_ONCE = 256
_PER_SECOND = 5.0
"""Connections of one server that are looked into in a second; more are refused at once."""
_TRACKED = 4096
_NEW = 1.0
"""Seconds for which a connection counts that was let in and may not be listed yet."""
_ANSWER = 2.0
_LOG_EVERY = 10.0


class AuthCallout:
    """`password_of(deployment id)`: what its server must show."""

    def __init__(
        self,
        bus: Bus,
        key: AccountKey,
        ages: BucketAges,
        deployments: DeploymentStore,
        password_of: Callable[[str], Secret],
    ) -> None:
        self._bus = bus
        self._key = key
        self._ages = ages
        self._deployments = deployments
        self._password_of = password_of
        self._handlers = BoundedHandlers("connection of a game server", _AT_ONCE)
        self._rates = TokenBuckets[str](_PER_SECOND, 2 * MAX_CONNECTIONS, max_keys=_TRACKED)
        self._turns: OrderedDict[str, tuple[asyncio.Lock, deque[float]]] = OrderedDict()
        """Deployment id -> whose turn it is to be counted, and when its newest connections were let in."""
        self._refused = 0
        self._logged_at = -_LOG_EVERY

    async def open(self) -> None:
        """Begin to answer; what is asked ends with the connection to NATS. Raises `Unavailable`."""
        await self._bus.serve(
            AUTH_CALLOUT, self._answer, queue=_QUEUE, handlers=self._handlers, busy=self._busy
        )
        await self._bus.flush()

    async def _busy(self, msg: Msg) -> None:
        """Nothing is looked into: the client tries again."""
        if (request := self._read(msg)) is not None:
            await self._reply(msg, denied(self._key, request, "too many connections at once"))

    async def _answer(self, msg: Msg) -> None:
        request = self._read(msg)
        if request is None:
            return
        try:
            answer = await self._decide(request)
        except TipoffError as exc:
            log.warning("NATS user %r has to try again: %s", request.user[:80], exc)
            answer = denied(self._key, request, "it cannot be checked now")
        await self._reply(msg, answer)

    def _read(self, msg: Msg) -> AuthRequest | None:
        try:
            return read_request(msg.data)
        except Malformed as exc:
            log.warning("%s", exc)
            return None

    async def _reply(self, msg: Msg, answer: bytes) -> None:
        try:
            await self._bus.publish(msg.reply, answer)
        except Unavailable as exc:
            log.info("the answer to a connection is lost: %s", exc)

    async def _decide(self, request: AuthRequest) -> bytes:
        deployment_id = request.deployment_id
        if deployment_id is None or not request.has_password(self._password_of(deployment_id)):
            return self._deny(request, "unknown user or wrong password")
        if self._rates.take(deployment_id, time.monotonic()) > 0:
            return self._deny(request, "it connects too often")
        record = self._deployments.get(deployment_id) or await self._deployments.fetch(deployment_id)
        # Where the records are lost, its password says that it was started: its lease is what its record is rebuilt
        # from. One that has ended is found by the disconnector.
        lost = record is None and await self._ages.may_have_lost("deployments")
        if not lost and (record is None or not state_machine.is_live(record)):
            return self._deny(request, "its deployment has ended")
        lock, let_in = self._turn(deployment_id)
        async with lock:
            now = time.monotonic()
            while let_in and now - let_in[0] > _NEW:
                let_in.popleft()
            # One that was let in just now may be listed or not: it counts once at least.
            if max(await self._connections(deployment_id), len(let_in)) >= MAX_CONNECTIONS:
                return self._deny(request, f"it has {MAX_CONNECTIONS} connections")
            let_in.append(now)
        return granted(self._key, request, deployment_id, self._bus.subjects)

    def _turn(self, deployment_id: str) -> tuple[asyncio.Lock, deque[float]]:
        turn = self._turns.pop(deployment_id, None) or (asyncio.Lock(), deque(maxlen=MAX_CONNECTIONS))
        self._turns[deployment_id] = turn
        if len(self._turns) > _TRACKED:
            self._turns.popitem(last=False)
        return turn

    async def _connections(self, deployment_id: str) -> int:
        """How many connections nats-server lists for this server."""
        asked = question(server_user(deployment_id), most=2 * MAX_CONNECTIONS)
        answer = await self._bus.request(connections_of(ACCOUNT), asked, timeout=_ANSWER)
        return read_list(answer.data).total

    def _deny(self, request: AuthRequest, why: str) -> bytes:
        """One line in the log for many: who is refused once tries again."""
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY:
            log.warning(
                "%d connection(s) to NATS refused; the last of user %r from %s: %s",
                self._refused,
                request.user[:80],
                request.host[:64],
                why,
            )
            self._logged_at, self._refused = now, 0
        return denied(self._key, request, why)
