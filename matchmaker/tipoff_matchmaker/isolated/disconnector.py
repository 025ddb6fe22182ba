"""Closes connections of game servers whose deployment has ended (open_connections.py says which).

nats-server asks about a connection once, when it is made (auth_callout.py); nothing ends it when its deployment does,
and a hostile server would publish for as long as its process lives. So the matchmaker that reconciles has nats-server
close what is left: at once when it learns of an end, and every few seconds whatever it finds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.isolated.credentials import ACCOUNT
from tipoff_matchmaker.isolated.open_connections import (
    MAX_CONNECTIONS,
    OpenConnection,
    kick,
    question,
    read_list,
    to_close,
    was_closed,
)
from tipoff_shared.errors import Malformed, TipoffError
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.primitives.waiting import gather_then_raise, wait_for_event
from tipoff_shared.records import DeploymentRecord, DeploymentState
from tipoff_shared.settings import server_user
from tipoff_shared.subjects import connections_of, kicks_at

log = logging.getLogger(__name__)

_PAGE = 1000
_PAGES = 64
"""Pages of one listing; the next one begins where the connections that were closed have made room."""
_FIRST_ANSWER = 2.0
_EACH_ANSWER = 0.2
_NODES = 100
_AT_ONCE = 20
_MOST_ENDED = 1000
"""Ended deployments to look after at once; the listing of all finds the others."""


class Disconnector:
    """`reconciles()`: whether this matchmaker is the one that acts. `interval`: seconds between two listings."""

    def __init__(
        self,
        bus: Bus,
        ages: BucketAges,
        deployments: DeploymentStore,
        reconciles: Callable[[], bool],
        *,
        interval: float,
    ) -> None:
        self._bus = bus
        self._ages = ages
        self._deployments = deployments
        self._reconciles = reconciles
        self._interval = interval
        self._ended: set[str] = set()
        """Those that have ended since the latest look."""
        self._soon = asyncio.Event()
        self._suspects: set[str] = set()
        """Deployments with connections and without a record, as the latest listing found them."""
        self._may_not = False
        deployments.subscribe_states(self._changed)

    def _changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        # The record of one that ended before is news to the store whenever it is read, and it is read here.
        ended_now = before is not None and after.state is DeploymentState.GONE
        if ended_now and len(self._ended) < _MOST_ENDED and self._reconciles():
            self._ended.add(after.id)
            self._soon.set()

    async def run(self) -> None:
        """Until cancelled."""
        next_listing = time.monotonic() + self._interval
        while True:
            await wait_for_event(self._soon, max(0.0, next_listing - time.monotonic()))
            self._soon.clear()
            ended, self._ended = self._ended, set()
            due = time.monotonic() >= next_listing
            if due:
                next_listing = time.monotonic() + self._interval
            if not self._reconciles():
                continue
            try:
                await self._look_at(ended)
                if due:
                    await self.look_at_all()
            except TipoffError as exc:
                log.info("open connections of game servers are looked at later: %s", exc)

    async def _look_at(self, deployment_ids: set[str]) -> None:
        await gather_then_raise(*map(self._look_at_one, deployment_ids), at_once=_AT_ONCE)

    async def _look_at_one(self, deployment_id: str) -> None:
        if not (found := await self._listed(server_user(deployment_id))):
            return
        record = await self._deployments.fetch(deployment_id)  # that it was forgotten here proves nothing
        if record is not None and not state_machine.is_live(record):
            await self._close(to_close(found, lambda _: True))

    async def look_at_all(self) -> None:
        """List every connection, and close those that must not be. Raises a `TipoffError`."""
        # Listed before the records are read: a deployment is written down before its server can connect.
        found = await self._listed()
        known = {id for id, entry in self._deployments.entries.items() if state_machine.is_live(entry.value)}
        ended = await self._have_ended({one.deployment_id for one in found} - known)
        await self._close(to_close(found, lambda deployment_id: deployment_id in ended))

    async def _have_ended(self, deployment_ids: set[str]) -> set[str]:
        """Those that have ended for certain: their record says so, or two listings in a row found none. While records
        are lost, a missing one means nothing."""
        ids = list(deployment_ids)
        records = await gather_then_raise(*map(self._deployments.fetch, ids), at_once=_AT_ONCE)
        without = {id for id, record in zip(ids, records, strict=True) if record is None}
        ended = {record.id for record in records if record is not None and not state_machine.is_live(record)}
        if without and await self._ages.may_have_lost("deployments"):
            without = set()
        ended |= without & self._suspects
        self._suspects = without
        return ended

    async def _listed(self, user: str = "") -> list[OpenConnection]:
        """The open connections of one user, or of all, on every node that answers."""
        found: list[OpenConnection] = []
        for page in range(_PAGES):
            answers = await self._bus.request_all(
                connections_of(ACCOUNT),
                question(user, most=_PAGE, skip=page * _PAGE),
                first=_FIRST_ANSWER,
                each=_EACH_ANSWER,
                most=_NODES,
            )
            more = False
            for answer in answers:
                try:
                    node = read_list(answer.data)
                except Malformed as exc:
                    log.warning("nats-server: %s", exc)
                    continue
                found += node.connections
                more = more or node.total > page * _PAGE + node.listed > page * _PAGE
            if not more:
                break
        return found

    async def _close(self, closing: Mapping[str, list[OpenConnection]]) -> None:
        for deployment_id, connections in closing.items():
            try:
                answers = [
                    await self._bus.request(kicks_at(one.node), kick(one), timeout=_FIRST_ANSWER)
                    for one in connections
                ]
            except PermissionDenied:
                self._say_that_it_may_not(deployment_id, len(connections))
                return
            closed = sum(was_closed(answer.data) for answer in answers)
            if closed:
                log.warning(
                    "closed %d connection(s) to NATS of server %s: it has ended, or had more than %d",
                    closed,
                    deployment_id,
                    MAX_CONNECTIONS,
                )

    def _say_that_it_may_not(self, deployment_id: str, count: int) -> None:
        if not self._may_not:
            self._may_not = True
            log.error(
                "server %s has ended, or has too many connections to NATS, and this matchmaker may not close %d of "
                "them: `tipoff secrets init` writes a new isolated.conf, then let nats-server reload it",
                deployment_id,
                count,
            )
