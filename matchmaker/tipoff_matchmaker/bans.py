"""Keeps banned players out: refuses their requests, ends their sessions, and tells game servers whom not to let in.

    tipoff ban ──> add ──> bucket `bans` ──> every matchmaker and httpd follows it
                                                └──> gs.<id>.cmd: `Bans` to every server, of both profiles

Servers of the isolated profile are not trusted with addresses: they hear only of users and clients. Their players of
banned addresses are kicked by their sessions.

Game servers have no access to the bucket. A server gets all bans when it becomes ready, then each change, and all of
them again after each listing, because a command may be lost. Any number of matchmakers may do so: it is idempotent.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable

import msgspec
from nats.aio.msg import Msg

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.state_machine import serves
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.sessions.kicker import Kicker
from tipoff_matchmaker.sessions.state_machine import is_open
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_shared import admin
from tipoff_shared.ban_follower import BanFollower
from tipoff_shared.ban_list import MAX_BANS, ban_key, is_over, new_ban, text_of
from tipoff_shared.errors import Malformed, TipoffError, Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import BoundedHandlers, Tasks
from tipoff_shared.records import (
    Ban,
    BanKind,
    Bans,
    DeploymentRecord,
    SessionRecord,
    decode_command,
    encode,
)

log = logging.getLogger(__name__)

_AT_ONCE = 500
"""Bans in one command: well below NATS's largest message."""
_LIFTED_FOR = 120.0
"""Seconds for which a lifted ban stays written, so that everybody who follows hears of it."""
_SHORTEST_TTL = 1.0
_HANDLED = 16
_QUEUE = "bans"


class BanEnforcer:
    """The bans of one matchmaker. `follower.run` must run."""

    def __init__(
        self,
        bus: Bus,
        ages: BucketAges,
        buckets: Buckets,
        follower: BanFollower,
        deployments: DeploymentStore,
        sessions: SessionStore,
        kicker: Kicker,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._ages = ages
        self._bucket = buckets.bans
        self._records = buckets.sessions
        self._follower = follower
        self._deployments = deployments
        self._sessions = sessions
        self._kicker = kicker
        self._tasks = tasks
        self._clock = clock
        self._tells_addresses = settings.profile == "trusted"
        self._told_any = False
        self._endings = SingleFlight[str, None]("banned", begin=tasks.start)
        self._known_elsewhere = BoundedHandlers("bans that httpd knows", _HANDLED)
        follower.subscribe(self._changed, on_listed=self._tell_all_servers)
        follower.subscribe_missing(self._lost)
        deployments.subscribe_states(self._server_changed)
        sessions.subscribe(self._session_seen)

    def _lost(self, bans: list[Ban]) -> None:
        self._tasks.start(self._write_back(bans), "bans that were lost")

    def check(self, client_ip: str, user_id: str) -> None:
        """Raises `NotAllowed` when a player at `client_ip` or this user is banned; the message names the end of the
        ban."""
        self._follower.check(client_ip, user_id)

    async def open(self) -> None:
        """Begin to listen for bans that httpds know and NATS has lost. Raises `Unavailable`."""
        await self._bus.serve(
            self._bus.subjects.known_bans, self._told, queue=_QUEUE, handlers=self._known_elsewhere
        )

    # What operators ask for.

    async def add(self, ban: Ban) -> admin.Banned:
        """Write a ban. Raises `Malformed` when it would be over at once or there are too many, and `Unavailable`."""
        now = self._clock()
        if ban.until and ban.until - now < _SHORTEST_TTL:
            raise Malformed("until: the ban would end at once; a later time is expected")
        before = await self._bucket.get(ban_key(ban))
        if before is None and len(self._follower.bans) >= MAX_BANS:
            raise Malformed(f"there are {MAX_BANS} bans already; lift some, or ban a network")
        await self._bucket.put(ban_key(ban), ban, ttl=ban.until - now if ban.until else None)
        log.warning(
            "an operator bans %s %s until %s: %s", ban.kind, ban.subject, ban.until or "-", ban.reason
        )
        existed = before is not None and not is_over(before.value, now)
        return admin.Banned(ban.kind, ban.subject, ban.until, ban.reason, existed)

    async def lift(self, ban: Ban) -> admin.Banned:
        """End a ban; one that is not there is no error. Raises `Unavailable`."""
        now = self._clock()
        before = await self._bucket.get(ban_key(ban))
        if before is None or is_over(before.value, now):
            return admin.Banned(ban.kind, ban.subject)
        lifted = msgspec.structs.replace(before.value, until=now)
        await self._bucket.put(ban_key(ban), lifted, ttl=_LIFTED_FOR)
        log.warning("an operator lifts the ban of %s %s", ban.kind, ban.subject)
        return admin.Banned(ban.kind, ban.subject, before.value.until, before.value.reason, existed=True)

    # What NATS has lost.

    async def _told(self, msg: Msg) -> None:
        """An httpd knows bans that are missing. It counts only while the bucket has just been lost: at any other time a
        missing ban is one that was lifted."""
        try:
            if not await self._ages.may_have_lost("bans"):
                return
            command = decode_command(msg.data)
            bans = command.bans if isinstance(command, Bans) else []
            known = [
                new_ban(b.kind, b.subject, until=b.until, reason=b.reason, now=b.created_at) for b in bans
            ]
        except Malformed as exc:
            log.warning("an httpd's bans cannot be read: %s", exc)
            return
        except Unavailable as exc:
            log.info("an httpd says its bans again: %s", exc)
            return
        await self._write_back(known)

    async def _write_back(self, bans: list[Ban]) -> None:
        """Write bans that are missing in NATS, each unless something was written of it meanwhile."""
        written = 0
        try:
            for ban in bans[:MAX_BANS]:
                left = ban.until - self._clock() if ban.until else None
                if left is not None and left < _SHORTEST_TTL:
                    continue
                with contextlib.suppress(LostRace):  # another matchmaker has, or an operator
                    await self._bucket.create(ban_key(ban), ban, ttl=left)
                    written += 1
        except TipoffError as exc:
            log.warning("lost bans are written back with the next listing: %s", exc)
        if written:
            log.warning("%d lost ban(s) are written back", written)

    # What follows from a ban.

    def _changed(self, bans: list[Ban]) -> None:
        now = self._clock()
        servers = self._servers()
        if servers:
            self._tasks.start(self._tell(servers, bans, complete=False), "tell of bans")
        if any(ban.kind is not BanKind.CLIENT and not is_over(ban, now) for ban in bans):
            self._tasks.start(self._end_sessions(), "end banned sessions")

    async def _end_sessions(self) -> None:
        """End the open sessions of banned addresses and users, whichever matchmaker made them."""
        try:
            for entry in (await self._records.list()).values():
                self._session_seen(entry.value)
        except TipoffError as exc:
            log.info("the sessions of banned players are left to the next listing: %s", exc)

    def _session_seen(self, record: SessionRecord) -> None:
        if not (len(self._follower.bans) and is_open(record)):
            return
        ban = self._follower.bans.find(self._clock(), address=record.client_ip, user=record.user_id)
        if ban is not None:
            self._endings.start(record.id, lambda: self._end(record, text_of(ban)))

    async def _end(self, record: SessionRecord, reason: str) -> None:
        log.warning("session %s is ended: its player is banned", record.id)
        try:
            await self._kicker.end(self._sessions, record, reason)
        except TipoffError as exc:
            log.info("the banned session %s is left to the next listing: %s", record.id, exc)

    # What game servers are told.

    def _servers(self) -> list[str]:
        return [id for id, entry in self._deployments.entries.items() if serves(entry.value)]

    def _server_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if serves(after) and len(self._follower.bans):
            self._start_telling([after.id])

    def _tell_all_servers(self) -> None:
        if len(self._follower.bans) or self._told_any:
            self._start_telling(self._servers())

    def _start_telling(self, servers: list[str]) -> None:
        if servers:
            bans = list(self._follower.bans.all().values())
            self._tasks.start(self._tell(servers, bans, complete=True), "tell of bans")

    async def _tell(self, servers: Iterable[str], bans: list[Ban], *, complete: bool) -> None:
        """`complete`: these are all."""
        if not self._tells_addresses:
            bans = [ban for ban in bans if ban.kind is not BanKind.ADDRESS]
        if not (bans or complete):
            return
        self._told_any = True
        commands = [
            encode(Bans(bans[at : at + _AT_ONCE], first=complete and at == 0))
            for at in range(0, max(1, len(bans)), _AT_ONCE)
        ]
        try:
            for deployment_id in servers:
                for command in commands:
                    await self._bus.publish(self._bus.subjects.commands(deployment_id), command)
        except Unavailable as exc:
            log.info("game servers hear of bans later: %s", exc)
