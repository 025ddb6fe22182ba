"""Reports presence in the isolated profile: the server has no access to KV. It publishes sealed events on one subject,
and a matchmaker writes what they say.

Memory holds what is true (the lease, the connected sessions). One loop turns what was not reported yet into one event
after another; each is sent again until the stream has it. When NATS comes back, everything is reported again: it may
have lost what it had.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict

import msgspec
from nats.aio.msg import Msg

from tipoff_gameserver.context import Context
from tipoff_gameserver.presence.interface import DescribeLease
from tipoff_gameserver.presence.reporter import REMEMBERED, WRITE_TIMEOUT, Reporter
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import describe
from tipoff_shared.primitives.waiting import wait_for_event
from tipoff_shared.server_events import MAX_CHANGES, Goodbye, Lease, Players, ServerEvent, What, seal
from tipoff_shared.server_events import Context as ContextEvent
from tipoff_shared.session_end import BY_ITSELF, SessionEnd

log = logging.getLogger(__name__)

_ENDS_BYTES = 16 * 1024
"""Bytes of one event that say why players left; it holds one reason more at most, and `MAX_CHANGES` sessions beside."""
_PACE = 0.005
"""Seconds between two events about players: a matchmaker handles a limited number per server and second."""


class PlayerReports:
    """Decides what is still to be reported of the sessions. Pure: joins and leaves go in, `Players` events come out.

    After any order of joins, leaves and lost or repeated events, once `pending` is empty the reader of all events
    knows who is connected, and has heard of every session that ever was.
    """

    def __init__(self) -> None:
        self.pending: dict[str, None] = {}
        """Sessions whose report may differ from the truth, in order."""
        self.unreported: dict[str, str] = {}
        """Sessions that came and were not reported yet (with their client ids), connected or not."""
        self._connected: dict[str, str] = {}
        self._came_since: set[str] = set()
        """Sessions that came after the last event was made: it does not speak of them."""
        self._left: OrderedDict[str, str] = OrderedDict()
        """Sessions that left lately, and why, "" for by themselves; they are reported again to a NATS that lost what it
        had."""

    @property
    def connected(self) -> list[str]:
        """The connected sessions."""
        return list(self._connected)

    def joined(self, session_id: str, client_id: int) -> None:
        """A session is connected. Idempotent."""
        if self._connected.get(session_id) != str(client_id):
            self._came_since.add(session_id)
        self._connected[session_id] = self.unreported[session_id] = str(client_id)
        self._left.pop(session_id, None)
        self.pending[session_id] = None

    def left(self, session_id: str, end: SessionEnd = BY_ITSELF) -> None:
        """A session is not connected. Idempotent, and allowed for a session that never was."""
        was = self._connected.pop(session_id, None) is not None
        if was or session_id not in self._left:
            self._left[session_id] = "" if end == BY_ITSELF else end.encode()
        self._left.move_to_end(session_id)
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        self.pending[session_id] = None

    def repeat_all(self) -> None:
        """Report every session again that is connected or left lately."""
        for session_id in (*self._connected, *self._left):
            self.pending[session_id] = None

    def next(self) -> Players:
        """The next event about pending sessions; they stay pending until it was `delivered`."""
        self._came_since.clear()
        joined: dict[str, str] = {}
        left: list[str] = []
        ends: dict[str, str] = {}
        room = _ENDS_BYTES
        for session_id in self.pending:
            if len(joined) + len(left) > MAX_CHANGES - 2 or room < 0:
                break
            client_id = self._connected.get(session_id)
            came = client_id or self.unreported.get(session_id)
            if came is not None:
                joined[session_id] = came
            if client_id is None:
                left.append(session_id)
                if end := self._left.get(session_id, ""):
                    ends[session_id] = end
                    room -= len(msgspec.json.encode(end)) + len(session_id) + 4
        return Players(joined, left, ends)

    def delivered(self, players: Players) -> None:
        """The stream has this event. A session that came or left meanwhile stays pending."""
        gone = set(players.left)
        for session_id in {*players.joined, *gone} - self._came_since:
            if session_id in players.joined:
                self.unreported.pop(session_id, None)
            if (session_id in self._connected) is not (session_id in gone):
                self.pending.pop(session_id, None)


class EventPresence(Reporter):
    """Publishes events sealed with `context.event_key`. Raises `ConfigError` for a context without that key."""

    def __init__(self, context: Context, boot_id: str) -> None:
        super().__init__(context)
        if context.event_key is None:
            raise ConfigError("events cannot be sealed without an event key")
        self._boot_id = boot_id
        self._key = context.event_key
        self._started_at = time.time()
        self._seq = 0
        self._announcement: ContextEvent | None = ContextEvent(context.announcement(boot_id))
        """Still to be published."""
        self._reports = PlayerReports()
        self._goodbye_wanted = False
        self._goodbye_sent = asyncio.Event()
        self._answers: dict[str, asyncio.Future[bytes]] = {}

    def joined(self, session_id: str, client_id: int) -> None:
        """Publish soon that the session has joined."""
        self._reports.joined(session_id, client_id)
        self._sessions_changed()

    def left(self, session_id: str, end: SessionEnd = BY_ITSELF) -> None:
        """Publish soon that the session has left."""
        self._reports.left(session_id, end)
        self._sessions_changed()

    async def look_up(self, client_id: int) -> str | None:
        """Always None: bevygap's matchmaker needs the trusted profile."""
        return None

    def resync(self) -> None:
        """Publish the lease and all sessions again."""
        self._back.set()
        self._lease_due.set()
        self._reports.repeat_all()
        if self._reports.pending:
            self._settled.clear()
        self._changed.set()

    def _connected_sessions(self) -> list[str]:
        return self._reports.connected

    async def _end_lease(self) -> None:
        self._goodbye_wanted = True
        self._changed.set()
        await self._goodbye_sent.wait()

    async def _serve(self, bus: Bus, describe: DescribeLease) -> None:
        """Answers come to unguessable subjects: a sender that knew one could answer in the stream's place."""
        inbox = f"{bus.settings.inbox_prefix}.{secrets.token_hex(16)}"

        async def answered(msg: Msg) -> None:
            answer = self._answers.pop(msg.subject.rpartition(".")[2], None)
            if answer is not None and not answer.done():
                answer.set_result(msg.data)

        await bus.subscribe(f"{inbox}.*", answered)
        self.resync()
        # A loop that fails is logged; then everything starts again with a new connection.
        async with Tasks("presence", on_failure=lambda _: bus.closed.set()) as tasks:
            tasks.start(self._publish_all(bus, inbox, describe), "events")
            await bus.closed.wait()

    async def _publish_all(self, bus: Bus, inbox: str, describe: DescribeLease) -> None:
        """Publish one event after another: the lease when it is due, then whatever else is to be reported."""
        loop = asyncio.get_running_loop()
        next_lease = loop.time()
        while not self._ended:
            self._changed.clear()
            if not self._closing and (self._lease_due.is_set() or loop.time() >= next_lease):
                await self._publish_lease(bus, inbox, describe)
                next_lease = loop.time() + self._lease_ttl / 3
            elif self._announcement is not None:
                await self._deliver(bus, inbox, self._announcement)
                self._announcement = None
            elif self._reports.pending:
                players = self._reports.next()
                await self._deliver(bus, inbox, players)
                self._reports.delivered(players)
                if not self._reports.pending:
                    self._settled.set()
                await asyncio.sleep(_PACE)  # what happens meanwhile goes into one event
            elif self._goodbye_wanted:
                await self._deliver(bus, inbox, Goodbye())
                self._goodbye_wanted = False
                self._goodbye_sent.set()
            else:
                timeout = None if self._closing else max(0.0, next_lease - loop.time())
                await wait_for_event(self._changed, timeout)

    async def _publish_lease(self, bus: Bus, inbox: str, describe: DescribeLease) -> None:
        self._lease_due.clear()
        waiters, self._lease_waiters = self._lease_waiters, []
        try:
            await self._deliver(bus, inbox, Lease(describe(), self._lease_ttl))
        except BaseException:
            self._lease_waiters += waiters
            raise
        if not self._ended:
            self._lease_reported(waiters)

    async def _deliver(self, bus: Bus, inbox: str, what: What) -> None:
        """Send one event until the stream has it; returns earlier when the server has ended."""
        self._seq += 1
        event = ServerEvent(self._boot_id, self._started_at, self._seq, what)
        body, headers = seal(self._key, self._deployment_id, event)
        failing = False
        while not self._ended:
            error = await self._send(bus, inbox, body, headers)
            if not error:
                if failing:
                    log.info("events are stored again")
                return
            if not failing:
                log.warning("an event is not stored: %s; the game goes on", error)
            failing = True
            await self._pause()

    async def _send(self, bus: Bus, inbox: str, body: bytes, headers: dict[str, str]) -> str:
        """Why the stream has not stored it; "" if it has."""
        token = secrets.token_hex(16)
        answer = self._answers[token] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await bus.publish(
                    bus.subjects.events(self._deployment_id), body, headers, reply=f"{inbox}.{token}"
                )
                return refusal(await answer)
        except TimeoutError:
            return bus.last_error or "no answer"
        except Unavailable as exc:
            return describe(exc)
        finally:
            self._answers.pop(token, None)


class _Error(msgspec.Struct):
    """Why the stream refused a message."""

    description: str = ""


class _Answer(msgspec.Struct):
    """What the stream answers: its name once the message is stored, or an error."""

    stream: str = ""
    error: _Error | None = None


def refusal(data: bytes) -> str:
    """Why the stream did not store what was published, from its answer; "" if it did."""
    if not data:
        return "no matchmaker has made the stream yet"
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return "an unreadable answer"
    if answer.error is not None:
        return answer.error.description or "refused"
    return "" if answer.stream else "an unreadable answer"
