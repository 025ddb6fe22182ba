"""Presence by events, isolated profile: this server reaches no bucket. It says what happens on one subject, and a
matchmaker writes it down.

What is wanted (the lease, the connected sessions) is state in memory, as in the trusted profile. One loop turns what
has not been told yet into one event after another; each is sealed, and sent again until the stream has it. When NATS
comes back, everything is told again: it may have lost what it had.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping

import msgspec
import nats.errors
from nats.aio.msg import Msg

from tipoff_gameserver.presence.over_nats import REMEMBERED, WRITE_TIMEOUT, OverNats
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import LEASE_TTL
from tipoff_shared.server_events import (
    MAX_CHANGES,
    Context,
    EventKey,
    Goodbye,
    Lease,
    Players,
    ServerEvent,
    What,
    seal,
)
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_PACE = 0.005
"""Between two events about players: a matchmaker handles only so many of one server in a second."""


class EventPresence(OverNats):
    """`key` is this deployment's own; `announcement` is told once per process; `lease_ttl` is in seconds, and the
    lease is refreshed every third of it. Made anew for each server."""

    def __init__(
        self,
        settings: NatsSettings,
        deployment_id: str,
        boot_id: str,
        key: EventKey,
        *,
        announcement: Mapping[str, object],
        lease_ttl: int = LEASE_TTL,
    ) -> None:
        super().__init__(settings, deployment_id, lease_ttl)
        self._boot_id = boot_id
        self._key = key
        self._started_at = time.time()
        self._seq = 0
        self._context: Context | None = Context(dict(announcement))
        """Still to be told."""

        self._visitors: dict[str, str] = {}
        """Sessions that came and of which nobody was told yet (with their client ids), whether or not still here."""
        self._left: OrderedDict[str, None] = OrderedDict()
        """Sessions that left lately: a NATS that lost what it had is told again."""
        self._goodbye_wanted = False
        self._goodbye_told = asyncio.Event()
        self._answers: dict[str, asyncio.Future[bytes]] = {}

    def joined(self, session_id: str, client_id: int) -> None:
        self._connected[session_id] = self._visitors[session_id] = str(client_id)
        self._left.pop(session_id, None)
        self._doubt(session_id)

    def left(self, session_id: str) -> None:
        self._connected.pop(session_id, None)
        self._left[session_id] = None
        self._left.move_to_end(session_id)
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        self._doubt(session_id)

    async def announce(self, timeout: float) -> bool:
        self._changed.set()
        return await super().announce(timeout)

    async def look_up(self, client_id: int) -> str | None:
        """bevygap's matchmaker needs the trusted profile: nothing can be looked up here."""
        return None

    async def _end_lease(self) -> None:
        self._goodbye_wanted = True
        self._changed.set()
        await self._goodbye_told.wait()

    # --- what is to be told -----------------------------------------------------------------------------------

    def _nats_is_back(self) -> None:
        self._back.set()
        self._lease_due.set()
        for session_id in (*self._connected, *self._left):
            self._doubt(session_id)
        self._changed.set()

    def _players(self) -> Players:
        """What to tell of the sessions in doubt; they are in doubt no more when that has been told."""
        joined: dict[str, str] = {}
        left: list[str] = []
        for session_id in self._unsure:
            if len(joined) + len(left) > MAX_CHANGES - 2:
                break
            client_id = self._connected.get(session_id)
            came = client_id or self._visitors.get(session_id)
            if came is not None:
                joined[session_id] = came
            if client_id is None:
                left.append(session_id)
        return Players(joined, left)

    def _told(self, players: Players) -> None:
        """Only what is still so is told: who came and went meanwhile stays in doubt."""
        gone = set(players.left)
        for session_id in {*players.joined, *gone}:
            if session_id in players.joined:
                self._visitors.pop(session_id, None)
            elif session_id in self._visitors:
                continue
            here = self._connected.get(session_id)
            if here is not None and (session_id in gone or here != players.joined[session_id]):
                self._visitors[session_id] = here
            elif (here is None) == (session_id in gone):
                self._unsure.pop(session_id, None)
        if not self._unsure:
            self._settled.set()

    # --- telling ----------------------------------------------------------------------------------------------

    async def _serve(self, bus: Bus) -> None:
        """Answers come to subjects that nobody can guess: whoever knew one could answer in the stream's place."""
        inbox = f"{bus.settings.inbox_prefix}.{secrets.token_hex(16)}"

        async def answered(msg: Msg) -> None:
            answer = self._answers.pop(msg.subject.rpartition(".")[2], None)
            if answer is not None and not answer.done():
                answer.set_result(msg.data)

        await bus.nc.subscribe(f"{inbox}.*", cb=answered)
        self._nats_is_back()
        # A loop that fails is logged; then everything begins again with a new connection.
        async with Tasks("presence", on_failure=lambda _: bus.closed.set()) as tasks:
            tasks.start(self._tell(bus, inbox), "events")
            await bus.closed.wait()

    async def _tell(self, bus: Bus, inbox: str) -> None:
        loop = asyncio.get_running_loop()
        next_lease = loop.time()
        while not self._ended:
            self._changed.clear()
            if not self._closing and (self._lease_due.is_set() or loop.time() >= next_lease):
                await self._tell_lease(bus, inbox)
                next_lease = loop.time() + self._lease_ttl / 3
            elif self._context is not None:
                await self._deliver(bus, inbox, self._context)
                self._context = None
            elif self._unsure:
                players = self._players()
                await self._deliver(bus, inbox, players)
                self._told(players)
                await asyncio.sleep(_PACE)  # what happens meanwhile is told in one event
            elif self._goodbye_wanted:
                await self._deliver(bus, inbox, Goodbye())
                self._goodbye_wanted = False
                self._goodbye_told.set()
            else:
                timeout = None if self._closing else max(0.0, next_lease - loop.time())
                try:
                    async with asyncio.timeout(timeout):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    async def _tell_lease(self, bus: Bus, inbox: str) -> None:
        assert self._describe is not None
        self._lease_due.clear()
        waiters, self._lease_waiters = self._lease_waiters, []
        try:
            await self._deliver(bus, inbox, Lease(self._describe(), self._lease_ttl))
        except BaseException:
            self._lease_waiters += waiters
            raise
        if not self._ended:
            self._told_lease(waiters)

    async def _deliver(self, bus: Bus, inbox: str, what: What) -> None:
        """Returns when the stream has it (or all is over): the same event is sent until then."""
        self._seq += 1
        event = ServerEvent(self._boot_id, self._started_at, self._seq, what)
        body, headers = seal(self._key, self._deployment_id, event)
        failing = False
        while not self._ended:
            error = await self._send(bus, inbox, body, headers)
            if not error:
                if failing:
                    log.info("events are taken again")
                return
            if not failing:
                log.warning("an event is not taken: %s; the game goes on", error)
            failing = True
            await self._pause()

    async def _send(self, bus: Bus, inbox: str, body: bytes, headers: dict[str, str]) -> str:
        """Why the stream has not taken it; "" when it has."""
        token = secrets.token_hex(16)
        answer = self._answers[token] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await bus.nc.publish(
                    bus.subjects.events(self._deployment_id), body, reply=f"{inbox}.{token}", headers=headers
                )
                return refusal(await answer)
        except TimeoutError:
            return bus.last_error or "no answer"
        except nats.errors.Error as exc:
            return str(exc) or type(exc).__name__
        finally:
            self._answers.pop(token, None)


class _Error(msgspec.Struct):
    description: str = ""


class _Answer(msgspec.Struct):
    stream: str = ""
    error: _Error | None = None


def refusal(data: bytes) -> str:
    """Why the stream did not take what was published; "" when it did."""
    if not data:
        return "no matchmaker has made the stream yet"
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return "an answer that cannot be read"
    if answer.error is not None:
        return answer.error.description or "refused"
    return "" if answer.stream else "an answer that cannot be read"
