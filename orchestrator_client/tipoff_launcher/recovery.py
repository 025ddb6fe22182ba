"""A launcher takes over from the one before: it goes through the records, and decides about each server it finds.

A server found running is adopted when its lease lives, else stopped. A missing lease is a suspicion, not a proof:
after an outage of NATS every lease has expired, and a server that is just starting has none yet. So nothing is
stopped before NATS has been there for the whole grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum

from tipoff_launcher.backends.interface import Backend, RunningServer
from tipoff_launcher.records import PRIVATE_KEY, Record, Records
from tipoff_launcher.supervisor import Servers
from tipoff_orchestrator_client.base import OrchestratorUnavailable, RunState
from tipoff_shared.games import Game, Games
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)


class Verdict(StrEnum):
    ADOPT = "adopt"
    WAIT = "wait"
    STOP = "stop"


def judge(
    record: Record,
    game: Game | None,
    *,
    has_lease: bool | None,
    connected_for: float | None,
    found_for: float,
    grace: float,
    now: float,
) -> Verdict:
    """`has_lease` is None where the store does not answer; `connected_for` and `found_for` are the seconds since
    NATS is there (None: it is not) and since the launcher found the server. `game` is None when games.toml no longer
    has it."""
    if game is not None and game.ready != "lease":
        return Verdict.ADOPT  # it never writes one
    if has_lease:
        return Verdict.ADOPT
    if has_lease is None or connected_for is None or min(connected_for, found_for) < grace:
        return Verdict.WAIT
    if game is not None and now < record.created_at + game.start_timeout:
        return Verdict.WAIT
    return Verdict.STOP


class Recovery:
    """`has_lease(id)` raises nothing and answers None where it cannot know; `connected_since()` is in monotonic
    seconds, None while there is no connection. `matchmaker_since()`: the same for a matchmaker that answers, without
    which nobody writes the leases of the isolated profile. `grace`: seconds."""

    def __init__(
        self,
        records: Records,
        namespace: str,
        games: Games,
        backend: Backend,
        servers: Servers,
        tasks: Tasks,
        *,
        has_lease: Callable[[str], Awaitable[bool | None]],
        connected_since: Callable[[], float | None],
        matchmaker_since: Callable[[], Awaitable[float | None]],
        grace: float,
    ) -> None:
        self._records = records
        self._namespace = namespace
        self._games = games
        self._backend = backend
        self._servers = servers
        self._tasks = tasks
        self._has_lease = has_lease
        self._connected_since = connected_since
        self._matchmaker_since = matchmaker_since
        self._grace = grace

    async def recover(self) -> None:
        """Before the first request is answered: every server that was written down is known again, and so is every
        one that was not, where the back end's servers carry our mark. Raises `OrchestratorError` when the back end
        does not say what runs."""
        records, unreadable = self._records.load()
        for directory in unreadable:
            log.error("%s holds no record that can be read; it is left alone, without its key", directory)
            (directory / PRIVATE_KEY).unlink(missing_ok=True)
        for record in records:
            if record.namespace == self._namespace:
                await self._recover(record)
            elif record.state is not RunState.STOPPED:
                log.warning(
                    "%s belongs to namespace %r and is left alone", record.deployment_id, record.namespace
                )

        ours = [record for record in records if record.namespace == self._namespace]
        for record in await self._backend.unrecorded([r.deployment_id for r in ours if r.native_id]):
            running = await self._backend.find(record.native_id, record.deployment_id)
            if running is not None:
                log.warning("%s runs without a record of ours: %s", record.deployment_id, record.native_id)
                self._records.save(record)
                self._take_over(record, running)

    async def _recover(self, record: Record) -> None:
        id = record.deployment_id
        if record.state is RunState.STOPPED:
            self._servers.take_over_ended(record)
            return
        if (
            not record.native_id
        ):  # it was never let through the gate: it may still be started, by the same name
            self._records.forget(id)
            return
        if record.backend != self._backend.name:
            log.error(
                "%s was started by the back end %s, this is %s: it is left alone",
                id,
                record.backend,
                self._backend.name,
            )
            return
        running = await self._backend.find(record.native_id, id)
        if running is None:
            await self._backend.clean_up(record.native_id, id)
            self._servers.take_over_ended(record)
            return
        log.info("%s is running: %s", id, record.native_id)
        self._take_over(record, running)

    def _take_over(self, record: Record, running: RunningServer) -> None:
        self._servers.take_over(record, running)
        if not record.stopping:
            self._tasks.start(self._decide(record), f"{record.deployment_id}/adoption")

    async def _decide(self, record: Record) -> None:
        """Adopt a server found running, or stop it."""
        id = record.deployment_id
        game = self._games.get(record.game, record.version)
        found = time.monotonic()
        while self._servers.runs(id):
            since = await self._matchmaker_since() if record.isolated else self._connected_since()
            has_lease = await self._has_lease(id)
            now = time.monotonic()
            verdict = judge(
                record,
                game,
                has_lease=has_lease,
                connected_for=None if since is None else now - since,
                found_for=now - found,
                grace=self._grace,
                now=time.time(),
            )
            if verdict is Verdict.ADOPT:
                log.info("%s is adopted", id)
                return
            if verdict is Verdict.STOP:
                log.warning("%s has no lease after %.0f s; it is stopped", id, self._grace)
                with contextlib.suppress(OrchestratorUnavailable):  # its own task goes on killing
                    await self._servers.stop(id)
                return
            await asyncio.sleep(min(1.0, max(0.05, self._grace / 10)))
