"""Which servers this launcher knows: those that start or run, the newest that have ended, and the names of the others.

Each is in memory and, by its record, on the disk (record.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from tipoff_launcher.backends.interface import RunningServer
from tipoff_launcher.records import Record, Records
from tipoff_orchestrator_client.base import RunState

log = logging.getLogger(__name__)

_REMEMBERED = 1000


@dataclass(slots=True, eq=False)
class Server:
    record: Record
    event_key: str = field(default="", repr=False)
    """Of the isolated profile; not known of those who were adopted."""
    running: RunningServer | None = None
    under_way: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done when deploy can be answered: it runs, or its start takes long; or fails as the start did."""
    patience: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Around its start: what makes an end of it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.record.deployment_id

    def change(self, **changes: object) -> Record:
        self.record = msgspec.structs.replace(self.record, **changes)
        return self.record


class Register:
    """`keep_stopped`: of so many that have ended one can still ask how, and read the log."""

    def __init__(self, records: Records, keep_stopped: int) -> None:
        self._records = records
        self._keep_stopped = keep_stopped
        self._servers: dict[str, Server] = {}
        self._stopped_before: OrderedDict[str, None] = OrderedDict()

    def get(self, deployment_id: str) -> Server | None:
        return self._servers.get(deployment_id)

    def living(self) -> list[Server]:
        return [server for server in self._servers.values() if server.record.state is not RunState.STOPPED]

    def add(self, record: Record, event_key: str = "") -> Server:
        server = self._servers[record.deployment_id] = Server(record, event_key)
        return server

    def save(self, server: Server, **changes: object) -> None:
        """Write down what has already happened: the truth is then the server, not the disk."""
        record = server.change(**changes)
        try:
            self._records.save(record)
        except OSError as exc:
            log.error("the record of %s cannot be written: %s", server.id, exc)  # noqa: TRY400 # no trace needed

    def end(self, server: Server, reason: str) -> None:
        """It is no more, and is known for a while."""
        self.save(server, state=RunState.STOPPED, stopped_at=time.time(), reason=reason)
        self.has_ended(server)

    def has_ended(self, server: Server) -> None:
        """The same where that is written down already."""
        self._records.remove_key(server.id)
        server.ended.set()
        stopped = [one for one in self._servers.values() if one.record.state is RunState.STOPPED]
        stopped.sort(key=lambda one: one.record.stopped_at)
        for oldest in stopped[: max(0, len(stopped) - self._keep_stopped)]:
            self.forget(oldest)
            self.remember_stopped(oldest.id)

    def forget(self, server: Server) -> None:
        """With its record and its log."""
        del self._servers[server.id]
        self._records.forget(server.id)

    def remember_stopped(self, deployment_id: str) -> None:
        """A deploy that comes late, or twice, must not start what has been stopped."""
        self._stopped_before[deployment_id] = None
        self._stopped_before.move_to_end(deployment_id)
        if len(self._stopped_before) > _REMEMBERED:
            self._stopped_before.popitem(last=False)

    def was_stopped(self, deployment_id: str) -> bool:
        return deployment_id in self._stopped_before
