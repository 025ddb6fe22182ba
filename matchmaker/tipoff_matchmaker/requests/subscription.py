"""Takes play requests from NATS: turns a message into a `PendingRequest`, and each answer into messages.

A new request goes to one matchmaker, by the queue group. One that nobody has acknowledged in time is sent again to all
of them, on another subject: each acknowledges, one handles it, the others watch over that one (placement.py). A
matchmaker that cannot take part says nothing there when there are others, because they may.

Feedback goes to the request's inbox: `Acknowledged` at once, then `SessionRequestAccepted`, `ProgressReport`s,
`SessionReady` or `Error`, and an empty message at the end. Nothing else ever does: bevygap's httpd forwards every
message to the player.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time

from nats.aio.msg import Msg

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.errors import AnsweredElsewhere, ShuttingDown
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.requests.pending import PendingRequest, PendingRequests, Tell
from tipoff_matchmaker.requests.resumption import ResumeRequest, Resumption
from tipoff_matchmaker.settings import Settings
from tipoff_shared import names
from tipoff_shared.errors import Internal, Malformed, NoServerInTime, TipoffError, Unavailable, UnknownGame
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
from tipoff_shared.nats.connection import Bus, Subscription
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.records import Kick, decode_command
from tipoff_shared.subjects import (
    ASK_AGAIN_HEADER,
    REQUEST_ID_HEADER,
    RESUME,
    RESUME_KEY_HEADER,
    RETRY_AFTER_HEADER,
    TIMEOUT_HEADER,
)

log = logging.getLogger(__name__)

QUEUE = "matchmakers"
OVERLOADED_RETRY = 2.0
RESUME_TIMEOUT = 10.0
_DRAIN = 2.0
_DRAIN_AGAIN = 1.0
"""How long requests sent again may still take when the process stops: other matchmakers have them, too."""


class RequestSubscription:
    """The subscriptions for play requests. `handlers` bounds the new ones; those sent again have as many places."""

    def __init__(
        self,
        bus: Bus,
        games: Games,
        pending: PendingRequests,
        resumption: Resumption,
        handlers: BoundedHandlers,
        peers: Peers,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._bus = bus
        self._games = games
        self._pending = pending
        self._resumption = resumption
        self._handlers = handlers
        self._again = BoundedHandlers("repeated play request", settings.max_requests)
        self._peers = peers
        self._metrics = metrics
        self._tell_reasons = settings.tell_reasons
        self._prefix = len(bus.subjects.all_requests) - 1
        self._retry_prefix = len(bus.subjects.all_retries) - 1
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Begin to take requests. Raises `Unavailable`."""
        subjects, subscribe = self._bus.subjects, self._bus.subscribe
        self._subscriptions = [
            await subscribe(subjects.all_requests, self._received, queue=QUEUE),
            await subscribe(subjects.all_retries, self._received_again),
            await subscribe(subjects.left, self._client_left),
            await subscribe(subjects.over, self._session_over),
        ]

    async def stop_taking(self) -> None:
        """Take no new requests; those in hand go on. Idempotent."""
        # Requests that the server has sent us already are ours to answer: a drain passes them to the callback.
        await gather_then_raise(*(one.drain(_DRAIN) for one in self._subscriptions))

    async def drain(self, timeout: float) -> None:
        """Wait for the requests in hand, at most `timeout` seconds, then cancel the rest."""
        await asyncio.gather(self._handlers.drain(timeout), self._again.drain(_DRAIN_AGAIN))

    async def _received(self, msg: Msg) -> None:
        """nats-py calls it for one message at a time, so it only begins."""
        if not msg.reply:
            return  # without a reply subject nobody would claim the seat
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
        """The same, for a request that no matchmaker has acknowledged in time."""
        started = time.perf_counter()
        if msg.reply and self._again.submit(lambda: self._handle(msg, started, broadcast=True)):
            await self._send(msg.reply, ACKNOWLEDGED)

    async def _client_left(self, msg: Msg) -> None:
        """An httpd says that the client behind these inboxes has disconnected."""
        self._pending.reply_unread(msg.data.decode("ascii", "replace"))

    async def _session_over(self, msg: Msg) -> None:
        """An operator has ended a session; its request may be in hand here."""
        try:
            kick = decode_command(msg.data)
        except Malformed as exc:
            log.warning("a message on %s cannot be read: %s", msg.subject, exc)
            return
        if isinstance(kick, Kick):
            self._pending.end(kick.session_id, kick.reason)

    async def _handle(self, msg: Msg, started: float, *, broadcast: bool = False) -> None:
        inbox = msg.reply
        told = False

        async def tell(text: str) -> None:
            nonlocal told
            told = True
            await self._send(inbox, encode_feedback(ProgressReport(text)))

        error: TipoffError
        try:
            request = self._request(msg, tell, broadcast)
            failpoints.reach("F1")
            await self._send(inbox, encode_feedback(SessionRequestAccepted(request.session_id)))
            if isinstance(request, ResumeRequest):
                ready = await self._resume(request)
            else:
                ready = await self._pending.play(request, inbox)
        except TipoffError as exc:
            if isinstance(exc, AnsweredElsewhere):
                return
            if broadcast and isinstance(exc, ShuttingDown) and not self._peers.alone:
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
        # Only our httpd says how long it waits, and knows the header.
        again = isinstance(error, ShuttingDown) and bool(msg.headers and msg.headers.get(TIMEOUT_HEADER))
        await self._end(inbox, error, {ASK_AGAIN_HEADER: "1"} if again else None)

    async def _resume(self, request: ResumeRequest) -> SessionReady:
        try:
            async with asyncio.timeout(request.timeout):
                return await self._resumption.resume(request)
        except TimeoutError:
            raise NoServerInTime(f"the seat was not found within {request.timeout:g} s; try again") from None

    def _request(self, msg: Msg, tell: Tell, broadcast: bool) -> PendingRequest | ResumeRequest:
        """Parse a request. Raises `Malformed` or `UnknownGame`."""
        tokens = msg.subject[self._retry_prefix if broadcast else self._prefix :].split(".")
        subject = names.from_subject_tokens(tokens[:1]), names.from_subject_tokens(tokens[1:])
        request = decode_request(msg.data, subject=subject)
        headers = msg.headers or {}
        given = headers.get(REQUEST_ID_HEADER) or request.request_id
        key = headers.get(RESUME_KEY_HEADER)
        resume = None
        if given == RESUME or key is not None or request.session is not None:
            resume = names.check_resume(request.session, key)
            given = None
        request_id = names.check_request_id(given) if given else names.new_request_id()
        game = self._games.get(request.game, request.version)
        if game is None:
            known = f": {self._games.unknown(request.game, request.version)}" if self._tell_reasons else ""
            raise UnknownGame(f"unknown game or version{known}")
        client_ip = address_or_nothing(request.client_ip)
        timeout = min(game.request_timeout, _seconds(headers.get(TIMEOUT_HEADER)))
        if resume is not None:
            return ResumeRequest(*resume, game, client_ip, min(timeout, RESUME_TIMEOUT))
        return PendingRequest(
            session_id=names.session_id(request_id),
            game=game,
            client_ip=client_ip,
            timeout=timeout,
            tell=tell,
            user_id=names.check_user_id(request.user_id) if request.user_id else "",
            name=names.clean_player_name(request.name),
            broadcast=broadcast,
        )

    # Answers. While NATS is away they are lost; httpd asks again.

    async def _send(self, inbox: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            await self._bus.publish(inbox, data, headers)
        except Unavailable as exc:
            log.info("an answer could not be sent: %s", exc)

    async def _end(self, inbox: str, error: TipoffError, headers: dict[str, str] | None = None) -> None:
        if error.retry_after is not None:
            headers = {**(headers or {}), RETRY_AFTER_HEADER: f"{error.retry_after:g}"}
        await self._send(inbox, encode_feedback(Failed(error.code, error.message)), headers)
        await self._send(inbox, b"")


def address_or_nothing(text: str | None) -> str:
    """An IP address, "" for anything else: it is passed on to orchestrators."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        return ""


def _seconds(text: str | None) -> float:
    """A header's limit in seconds; infinite for anything but a positive number."""
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return float("inf")
    return value if 0 < value < float("inf") else float("inf")
