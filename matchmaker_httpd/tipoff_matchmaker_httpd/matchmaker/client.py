"""A player's request over NATS: asked once, answered by a stream of feedback.

One wildcard inbox for the whole process (`PREFIX.<call>.<attempt>`) and a table of the calls that wait, because a
subscription for each request costs more than the request. A call may be asked again (nobody acknowledges it, it falls
silent, NATS came back): every attempt has an inbox of its own, the request id stays, so a matchmaker makes no second
session of it. What attempts answer is merged in `call.py`. When a player leaves, the matchmakers are told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.errors
from nats.aio.msg import Msg

from tipoff_matchmaker_httpd.matchmaker.feedback import Call, timeout_text
from tipoff_shared.errors import Malformed, TipoffError, Unavailable
from tipoff_shared.messages import (
    PlayRequest,
    encode_request,
)
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.subjects import TIMEOUT_HEADER

log = logging.getLogger(__name__)

_ASK_AGAIN_AFTER = 0.25
_DEAF = 5.0
_HURRY = 0.15
_GOING_AWAY = "this server is restarting; ask again"


class Calls:
    """All calls of this process. Use `open_calls`."""

    def __init__(
        self,
        bus: Bus,
        tasks: Tasks,
        *,
        deadline: float,
        acknowledge: float,
        patience: float,
        retry: float,
        silence: float,
    ) -> None:
        self.bus = bus
        self.deadline = deadline
        self.acknowledge = acknowledge
        self.retry = retry
        self.silence = silence
        self._timeout_text = timeout_text(deadline)
        self.prefix = bus.nc.new_inbox()
        self.waiting: dict[str, Call] = {}
        self.loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._patience = patience
        self._count = 0
        self._giving_up: asyncio.TimerHandle | None = None
        self._absent = False
        self._deaf_until = 0.0

    def call(self, request: PlayRequest, headers: dict[str, str]) -> Call:
        """A call for `request`, whose `client_ip` is the resolved address. Ask it with `await call.ask()`, read
        it with `async for`, and `close()` it in any case. Raises `Malformed` when it cannot be put in JSON."""
        try:
            payload = encode_request(request)
        except (RecursionError, OverflowError, ValueError, TypeError) as exc:
            raise Malformed(f"the request cannot be passed on: {exc}") from exc
        self._count += 1
        headers[TIMEOUT_HEADER] = self._timeout_text
        call = Call(self, str(self._count), request, payload, headers)
        self.waiting[call.token] = call
        return call

    async def received(self, msg: Msg) -> None:
        _, token, attempt = msg.subject.rsplit(".", 2)
        call = self.waiting.get(token)
        if call is not None:
            call.receive(msg.data, msg.headers, attempt)

    def fail_all(self, error: TipoffError) -> None:
        for call in list(self.waiting.values()):
            call.fail(error)

    def going_away(self) -> None:
        self.fail_all(Unavailable(_GOING_AWAY, retry_after=1))

    def matchmaker_seen(self, there: bool) -> None:
        """One line in the log when it goes, one when it comes."""
        if there is self._absent:
            self._absent = not there
            if there:
                log.info("a matchmaker answers again")
            else:
                log.warning("no matchmaker listens on %s", self.bus.subjects.all_requests)

    def denied(self, denied: PermissionDenied) -> None:
        """This httpd may not ask a matchmaker: nobody need wait for an answer."""
        requests = self.bus.subjects.all_requests[:-1].lower()
        if not denied.subscription and denied.subject.lower().startswith(requests):
            self.fail_all(denied.again())

    # NATS went or came back.

    def disconnected(self) -> None:
        if self._giving_up is None:
            self._giving_up = self.loop.call_later(self._patience, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        if not self.bus.connected:
            self.fail_all(Unavailable("NATS is away", retry_after=2))

    def reconnected(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        if self.waiting:
            self._tasks.start(self._ask_all_again(), "ask again")

    async def _ask_all_again(self) -> None:
        """What was asked or answered during the outage may be lost; asking twice does no harm."""
        until = self.loop.time() + self._patience
        for call in list(self.waiting.values()):
            call.ask_again_until = until
            await call.ask(alone=True)

    def one_is_deaf(self) -> None:
        """Others acknowledged what the one that was asked did not: more players would wait for it in vain, because
        NATS goes on to give it its share. (A matchmaker that only has too much to do acknowledges in order.)"""
        if self.loop.time() >= self._deaf_until:
            log.warning("a matchmaker does not answer; the others are asked sooner")
        self._deaf_until = self.loop.time() + _DEAF

    def first_retry(self, now: float) -> float:
        """Seconds after which a new request is asked of everybody."""
        return self.retry if now >= self._deaf_until else self.retry * _HURRY

    def ask_everybody(self, call: Call) -> None:
        """The one that was asked does not answer. Without NATS nobody can: then all is asked again when it is back."""
        if not self.bus.connected:
            return
        self._tasks.start(call.ask(alone=True, everybody=True), "ask everybody")

    def left(self, call: Call) -> None:
        """Its player is gone: no seat need be held for it. A hint; the claim deadline holds anyway."""
        if call.asked and self.bus.connected:
            self._tasks.start(self._tell_left(call.inbox), "left")

    async def _tell_left(self, inbox: str) -> None:
        try:
            await self.bus.publish(self.bus.subjects.left, inbox.encode())
        except Unavailable as exc:
            log.info("a player who left could not be reported: %s", exc)

    def ask_again_later(self, call: Call, *, everybody: bool = False) -> None:
        async def later() -> None:
            await asyncio.sleep(
                _ASK_AGAIN_AFTER
            )  # its matchmaker is not back on NATS yet; bounded by patience
            if call.token in self.waiting and self.bus.connected:
                await call.ask(alone=True, everybody=everybody)

        self._tasks.start(later(), "ask again")

    def close(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self.going_away()


@asynccontextmanager
async def open_calls(
    bus: Bus,
    tasks: Tasks,
    *,
    deadline: float,
    acknowledge: float,
    patience: float,
    retry: float = 2.0,
    silence: float = 5.0,
) -> AsyncIterator[Calls]:
    """Subscribe the inbox. Seconds: `deadline` for a whole call, `acknowledge` for a sign of life of any matchmaker,
    `retry` for one of the matchmaker that was asked before all of them are, `silence` for its next word;
    `patience` for a lost NATS connection. Leaving ends every call with `Unavailable`."""
    calls = Calls(
        bus,
        tasks,
        deadline=deadline,
        acknowledge=acknowledge,
        patience=patience,
        retry=retry,
        silence=silence,
    )
    try:
        await bus.nc.subscribe(f"{calls.prefix}.*.*", cb=calls.received)
    except nats.errors.Error as exc:
        raise Unavailable(f"cannot subscribe the inbox {calls.prefix}: {exc}") from exc
    await bus.flush()  # which raises when the inbox is denied
    bus.on_denied(calls.denied)
    bus.on_disconnect(calls.disconnected)
    bus.on_reconnect(calls.reconnected)
    try:
        yield calls
    finally:
        calls.close()
