"""Sends players' requests to the matchmakers over NATS, and hands each its answers.

    PendingRequest   one player's request: its timer, its inbox, the messages that its player reads
    MatchmakerClient all of them: one wildcard inbox, and what the matchmakers and NATS do

One subscription (`PREFIX.<request>.<attempt>`) serves the whole process, because a subscription for each request costs
more than the request. What is sent, and what a player reads, is decided by `FeedbackMerge`; here is its I/O.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.msg import Msg

from tipoff_matchmaker_httpd.matchmaker.feedback import Deadlines, FeedbackMerge, Kind, Presence, Publish
from tipoff_shared.errors import Malformed, TipoffError, Unavailable
from tipoff_shared.messages import PlayRequest, encode_request
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.subjects import TIMEOUT_HEADER

log = logging.getLogger(__name__)

_DEAF_FOR = 5.0
"""Seconds during which new requests are repeated sooner, after one matchmaker did not answer."""
_SOONER = 0.15
"""By this factor."""


class PendingRequest:
    """One player's request. Made by `MatchmakerClient.request`.

    `await ask()`, then iterate: each message as it goes to the player, the last one `SessionReady` or `Error`. Call
    `close()` in any case. Cancelling either is safe.
    """

    __slots__ = (
        "_client",
        "_headers",
        "_merge",
        "_payload",
        "_play",
        "_timer",
        "_timer_due",
        "_token",
        "_waiter",
    )

    def __init__(
        self, client: MatchmakerClient, token: str, play: PlayRequest, payload: bytes, headers: dict[str, str]
    ) -> None:
        now = client.loop.time()
        self._client = client
        self._token = token
        self._play = play
        self._payload = payload
        self._headers = headers
        self._merge = FeedbackMerge(client.deadlines, now, client.first_retry(now))
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._arm_timer()

    @property
    def ready(self) -> bool:
        """Whether it ended with `SessionReady`."""
        return self._merge.ready

    @property
    def failure(self) -> TipoffError | None:
        """The error it ended with; None before the end, after `SessionReady` and when the player left."""
        return self._merge.failure

    @property
    def inbox(self) -> str:
        """What the inboxes of all its attempts begin with."""
        return f"{self._client.prefix}.{self._token}"

    async def ask(self) -> None:
        """Publish the first attempt. Never raises for NATS: the request ends with `Unavailable` instead."""
        if not self._client.bus.connected:
            self.fail(Unavailable("NATS is away", retry_after=2))
            return
        self._merge.ask(self._client.loop.time())
        await self._publish_all()

    async def ask_again(self) -> None:
        """Publish another attempt, because NATS is back."""
        self._merge.nats_is_back(self._client.loop.time())
        self._arm_timer()
        await self._publish_all()

    def receive(self, msg: Msg, attempt: str) -> None:
        """Take in a message that came to the inbox of `attempt`."""
        presence = self._merge.receive(msg.data, msg.headers, attempt, self._client.loop.time())
        if presence is not None:
            self._client.noticed(presence)
        self._settle()

    def fail(self, error: TipoffError) -> None:
        """End with `error`. Does nothing after the end."""
        self._merge.fail(error)
        self._settle()

    def close(self) -> None:
        """Stop listening and tell the matchmakers; messages that have come can still be read. Idempotent."""
        if not self._merge.ended:
            self._merge.abandon()
            self._settle()

    def __aiter__(self) -> PendingRequest:
        return self

    async def __anext__(self) -> bytes:
        merge = self._merge
        while not merge.messages:
            if merge.ended:
                raise StopAsyncIteration
            self._waiter = self._client.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return merge.messages.popleft()

    def _settle(self) -> None:
        """Carry out what the merge wants after an event: publish, set the timer or end, wake the reader."""
        merge = self._merge
        if merge.publishes:
            self._client.start(self._publish_all(), "publish")
        if merge.ended:
            self._client.forget(self._token)
            if self._timer is not None:
                self._timer.cancel()
        else:
            self._arm_timer()
        if self._waiter is not None and not self._waiter.done() and (merge.messages or merge.ended):
            self._waiter.set_result(None)

    def _arm_timer(self) -> None:
        """A timer that fires too early costs one call; most requests end before theirs ever fires."""
        due = self._merge.next_timeout()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._client.loop.call_at(due, self._on_timer)
        self._timer_due = due

    def _on_timer(self) -> None:
        self._timer = None
        self._merge.timeout(self._client.loop.time())
        self._settle()

    async def _publish_all(self) -> None:
        client, merge = self._client, self._merge
        while merge.publishes:
            publish = merge.publishes.pop(0)
            if not client.bus.connected:
                continue  # when NATS is back, all is asked again
            if publish.kind is not Kind.LEFT and merge.ended:
                continue
            try:
                await self._publish(publish)
            except Unavailable as exc:
                if publish.kind is Kind.LEFT:
                    log.info("a player who left could not be reported: %s", exc)
                else:
                    self.fail(Unavailable(exc.message, retry_after=2))

    async def _publish(self, publish: Publish) -> None:
        bus = self._client.bus
        if publish.kind is Kind.LEFT:
            await bus.publish(bus.subjects.left, self.inbox.encode())
            return
        name = bus.subjects.retry if publish.kind is Kind.RETRY else bus.subjects.request
        headers = self._headers
        if not publish.first:
            headers = headers | {TIMEOUT_HEADER: timeout_text(publish.left)}
        reply = f"{self.inbox}.{publish.attempt}"
        await bus.publish(name(self._play.game, self._play.version), self._payload, headers, reply=reply)


class MatchmakerClient:
    """All requests of this process. Made by `open_client`."""

    def __init__(self, bus: Bus, tasks: Tasks, deadlines: Deadlines) -> None:
        self.bus = bus
        self.deadlines = deadlines
        self.loop = asyncio.get_running_loop()
        self.prefix = bus.nc.new_inbox()
        """What all inboxes of this process begin with."""
        self._tasks = tasks
        self._timeout_text = timeout_text(deadlines.request)
        self._pending: dict[str, PendingRequest] = {}
        self._count = 0
        self._outage_timer: asyncio.TimerHandle | None = None
        """Runs while NATS is away and requests wait for it."""
        self._absent = False
        """Nobody listened to the last request."""
        self._deaf_until = 0.0

    @property
    def pending(self) -> int:
        """Requests that wait for an answer."""
        return len(self._pending)

    def request(self, play: PlayRequest, headers: dict[str, str]) -> PendingRequest:
        """A request that is not asked yet. `play.client_ip` is the resolved address; `headers` go with it to NATS.

        Raises `Malformed` when it cannot be written as JSON.
        """
        try:
            payload = encode_request(play)
        except (RecursionError, OverflowError, ValueError, TypeError) as exc:
            raise Malformed(f"the request cannot be passed on: {exc}") from exc
        self._count += 1
        token = str(self._count)
        headers[TIMEOUT_HEADER] = self._timeout_text
        request = self._pending[token] = PendingRequest(self, token, play, payload, headers)
        return request

    async def received(self, msg: Msg) -> None:
        """The callback of the inbox."""
        _, token, attempt = msg.subject.rsplit(".", 2)
        request = self._pending.get(token)
        if request is not None:
            request.receive(msg, attempt)

    def forget(self, token: str) -> None:
        """The request has ended."""
        self._pending.pop(token, None)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` in a task of this client's."""
        self._tasks.start(work, name)

    def fail_all(self, error: TipoffError) -> None:
        """End every request with `error`."""
        for request in list(self._pending.values()):
            request.fail(error)

    def stop(self) -> None:
        """End every request, because this process is stopping. Idempotent."""
        if self._outage_timer is not None:
            self._outage_timer.cancel()
            self._outage_timer = None
        self.fail_all(Unavailable("this server is restarting; ask again", retry_after=1))

    # What is known of the matchmakers.

    def noticed(self, presence: Presence) -> None:
        """Take in what an answer says of the matchmakers; a change is logged once."""
        absent = presence is Presence.ABSENT
        if absent is not self._absent:
            self._absent = absent
            if absent:
                log.warning("no matchmaker listens on %s", self.bus.subjects.all_requests)
            else:
                log.info("a matchmaker answers again")
        if presence is Presence.ONE_IS_DEAF:
            now = self.loop.time()
            if now >= self._deaf_until:
                log.warning("a matchmaker does not answer; the others are asked sooner")
            self._deaf_until = now + _DEAF_FOR

    def first_retry(self, now: float) -> float:
        """Seconds after which a new request is repeated to all matchmakers. Sooner while one is deaf: NATS goes on
        to give it its share. (A matchmaker that only has too much to do acknowledges in order.)"""
        return self.deadlines.retry if now >= self._deaf_until else self.deadlines.retry * _SOONER

    # What NATS does.

    def denied(self, denied: PermissionDenied) -> None:
        """NATS forbids something. Where it is to ask a matchmaker, no request will be answered."""
        requests = self.bus.subjects.all_requests[:-1].lower()
        if not denied.subscription and denied.subject.lower().startswith(requests):
            self.fail_all(denied.again())

    def disconnected(self) -> None:
        """The connection is lost: requests wait for it for a while."""
        if self._outage_timer is None:
            self._outage_timer = self.loop.call_later(self.deadlines.nats, self._outage_too_long)

    def _outage_too_long(self) -> None:
        self._outage_timer = None
        if not self.bus.connected:
            self.fail_all(Unavailable("NATS is away", retry_after=2))

    def reconnected(self) -> None:
        """The connection is back: ask all again."""
        if self._outage_timer is not None:
            self._outage_timer.cancel()
            self._outage_timer = None
        if self._pending:
            self.start(self._ask_all_again(), "ask again")

    async def _ask_all_again(self) -> None:
        for request in list(self._pending.values()):
            await request.ask_again()


@asynccontextmanager
async def open_client(bus: Bus, tasks: Tasks, deadlines: Deadlines) -> AsyncIterator[MatchmakerClient]:
    """Subscribe the inbox; raises `Unavailable`. Leaving ends every request with `Unavailable`."""
    client = MatchmakerClient(bus, tasks, deadlines)
    await bus.subscribe(f"{client.prefix}.*.*", client.received)
    await bus.flush()  # raises when the inbox is denied
    bus.on_denied(client.denied)
    bus.on_disconnect(client.disconnected)
    bus.on_reconnect(client.reconnected)
    try:
        yield client
    finally:
        client.stop()


def timeout_text(left: float) -> str:
    """The header's value for `left` seconds: a little less, so that the matchmaker's reason comes before our own."""
    return f"{max(left - 0.5, left * 0.8):.3f}"
