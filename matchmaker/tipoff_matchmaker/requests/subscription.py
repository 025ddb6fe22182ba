"""Play requests as they come over NATS: from a message to an `Ask`, and from each answer to messages.

A new request goes to one matchmaker, by the queue group. One that nobody has acknowledged in time is asked again of all
of them, on another subject: each acknowledges, one sees it through, the others watch over that one (allocation.py). One
that cannot take part says nothing there when there are others, because they may.

Feedback goes to the request's inbox: `Acknowledged` at once, then `SessionRequestAccepted`, `ProgressReport`s,
`SessionReady` or `Error`, and an empty message at the end. Nothing else ever does: bevygap's httpd hands every
message on to the player.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.requests.pending import Ask, Elsewhere, Stopping, Tell
from tipoff_matchmaker.requests.plays import Plays
from tipoff_matchmaker.requests.reply_interest import Askers
from tipoff_shared import names
from tipoff_shared.errors import Internal, Malformed, TipoffError, Unavailable, UnknownGame
from tipoff_shared.games import Games
from tipoff_shared.messages import (
    ACKNOWLEDGED,
    Failed,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
    decode_request,
    encode_feedback,
)
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.records import Kick, decode_command
from tipoff_shared.subjects import ASK_AGAIN_HEADER, REQUEST_ID_HEADER, RETRY_AFTER_HEADER, TIMEOUT_HEADER

log = logging.getLogger(__name__)

QUEUE = "matchmakers"
OVERLOADED_RETRY = 2.0
_DRAIN = 2.0


class Requests:
    """The subscriptions for play requests: new ones, and those asked again of everybody (`again` is their bound).

    `alone()`: whether there is no other matchmaker."""

    def __init__(
        self,
        bus: Bus,
        games: Games,
        plays: Plays,
        handlers: BoundedHandlers,
        again: BoundedHandlers,
        metrics: Metrics,
        alone: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._games = games
        self._plays = plays
        self._handlers = handlers
        self._again = again
        self._alone = alone
        self._metrics = metrics
        self._askers = Askers()
        self._prefix = len(bus.subjects.all_requests) - 1
        self._retry_prefix = len(bus.subjects.all_retries) - 1
        self._subs: list[Subscription] = []

    async def open(self) -> None:
        subjects, subscribe = self._bus.subjects, self._bus.nc.subscribe
        self._subs = [
            await subscribe(subjects.all_requests, queue=QUEUE, cb=self._received),
            await subscribe(subjects.all_retries, cb=self._received_again),
            await subscribe(subjects.left, cb=self._player_left),
            await subscribe(subjects.over, cb=self._session_over),
        ]

    async def stop_taking(self) -> None:
        """No new requests; those in hand go on. Idempotent."""
        subs, self._subs = self._subs, []
        if subs and self._bus.connected:
            # What the server has sent us already is ours to answer: a drain lets the callback have it.
            try:
                async with asyncio.timeout(_DRAIN):
                    for sub in subs:
                        await sub.drain()  # type: ignore[no-untyped-call] # nats-py has no annotation there
            except (nats.errors.Error, TimeoutError) as exc:
                log.info("unsubscribing: %s", str(exc) or type(exc).__name__)

    async def _received(self, msg: Msg) -> None:
        """Runs for one message at a time, so it only begins."""
        if not msg.reply:
            return  # nobody waits for an answer, so nobody would claim the seat
        started = time.perf_counter()
        if not self._handlers.submit(lambda: self._handle(msg, started)):
            self._metrics.refused(503)
            refusal = Unavailable(
                "too many players ask at once, try again soon", retry_after=OVERLOADED_RETRY
            )
            await self._end(msg.reply, refusal)
            return
        await self._send(msg.reply, ACKNOWLEDGED)

    async def _received_again(self, msg: Msg) -> None:
        """The same, for a request that nobody has acknowledged in time."""
        started = time.perf_counter()
        if msg.reply and self._again.submit(lambda: self._handle(msg, started, broadcast=True)):
            await self._send(msg.reply, ACKNOWLEDGED)

    async def _player_left(self, msg: Msg) -> None:
        """An httpd says that nobody waits for this inbox any more."""
        self._askers.left(msg.data.decode("ascii", "replace"))

    async def _session_over(self, msg: Msg) -> None:
        """An operator has ended a session, perhaps one that waits here."""
        try:
            kick = decode_command(msg.data)
        except Malformed as exc:
            log.warning("a message on %s is not understood: %s", msg.subject, exc)
            return
        if isinstance(kick, Kick):
            self._plays.end(kick.session_id, kick.reason)

    async def _play(self, ask: Ask, inbox: str, tell: Tell) -> SessionReady:
        """Let go of it when its players have left: others may take it over, and no seat is held for it."""
        task = asyncio.current_task()
        assert task is not None
        self._askers.came(inbox, ask.session_id, task)
        try:
            return await self._plays.play(ask, tell)
        finally:
            self._askers.went(inbox, ask.session_id, task)

    async def _handle(self, msg: Msg, started: float, *, broadcast: bool = False) -> None:
        inbox = msg.reply
        told = False

        async def tell(text: str) -> None:
            nonlocal told
            told = True
            await self._send(inbox, encode_feedback(ProgressReport(text)))

        error: TipoffError
        try:
            ask = self._ask(msg, broadcast)
            failpoints.reach("F1")
            await self._send(inbox, encode_feedback(SessionRequestAccepted(ask.session_id)))
            ready = await self._play(ask, inbox, tell)
        except TipoffError as exc:
            if isinstance(exc, Elsewhere) or (broadcast and isinstance(exc, Stopping) and not self._alone()):
                return
            error = exc
        except Exception:
            log.exception("a play request failed")
            error = Internal("the matchmaker has made a mistake; it is logged")
        else:
            await self._send(inbox, encode_feedback(ready))
            await self._send(inbox, b"")
            if failpoints.ARMED == "F8":
                await self._bus.flush()
                failpoints.reach("F8")
            self._metrics.answered(time.perf_counter() - started, warm=not told)
            return
        self._metrics.refused(error.code)
        # Only those who say how long they wait are ours, and know the header.
        again = isinstance(error, Stopping) and bool(msg.headers and msg.headers.get(TIMEOUT_HEADER))
        await self._end(inbox, error, {ASK_AGAIN_HEADER: "1"} if again else None)

    def _ask(self, msg: Msg, broadcast: bool) -> Ask:
        """What is asked; raises `Malformed` or `UnknownGame`."""
        request = decode_request(msg.data)
        tokens = msg.subject[self._retry_prefix if broadcast else self._prefix :].split(".")
        if tokens and (
            names.from_subject_tokens(tokens[:1]) != request.game
            or names.from_subject_tokens(tokens[1:]) != request.version
        ):
            raise Malformed("the request names another game or version than its subject")
        headers = msg.headers or {}
        given = headers.get(REQUEST_ID_HEADER) or request.request_id
        request_id = names.check_request_id(given) if given else names.new_request_id()
        game = self._games.get(request.game, request.version)
        if game is None:
            raise UnknownGame("unknown game or version")
        return Ask(
            request_id=request_id,
            session_id=names.session_id(request_id),
            game=game,
            client_ip=address_or_nothing(request.client_ip),
            timeout=min(game.request_timeout, _seconds(headers.get(TIMEOUT_HEADER))),
            broadcast=broadcast,
        )

    # Answers. While NATS is away there is nobody to tell.

    async def _send(self, inbox: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            await self._bus.nc.publish(inbox, data, headers=headers)
        except nats.errors.Error as exc:
            log.info("an answer could not be sent: %s", str(exc) or type(exc).__name__)

    async def _end(self, inbox: str, error: TipoffError, headers: dict[str, str] | None = None) -> None:
        if error.retry_after is not None:
            headers = {**(headers or {}), RETRY_AFTER_HEADER: f"{error.retry_after:g}"}
        await self._send(inbox, encode_feedback(Failed(error.code, error.message)), headers)
        await self._send(inbox, b"")


def address_or_nothing(text: str | None) -> str:
    """An IP address, or "" for anything else: it goes on to orchestrators."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        return ""


def _seconds(text: str | None) -> float:
    """A header's limit in seconds; none for what is not a sensible number."""
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return float("inf")
    return value if 0 < value < float("inf") else float("inf")
