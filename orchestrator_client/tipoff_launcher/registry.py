"""Knows the servers of this launcher: those that start or run, the newest that have ended, the ids of older ones.

Each server is in memory and, by its record, on disk (records.py).
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
"""Ids of forgotten servers that are remembered."""


@dataclass(slots=True, eq=False)
class Server:
    """One server in memory."""

    record: Record
    event_key: str = field(default="", repr=False)
    """The secret of the isolated profile; unknown for an adopted server."""
    nats_password: str = field(default="", repr=False)
    """The server's own password on NATS; unknown for an adopted server."""
    running: RunningServer | None = None
    """None until it has started."""
    answer: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when `deploy` can be answered: the server runs, or its start is slow. Fails when the start does."""
    start_timeout: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Around its start, without a deadline; a stop reschedules it to cancel the start."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        """The deployment id."""
        return self.record.deployment_id

    def change(self, **changes: object) -> Record:
        """Change the record in memory and return it."""
        self.record = msgspec.structs.replace(self.record, **changes)
        return self.record


class ServerRegistry:
    """All servers by deployment id. `keep_stopped`: how many ended servers keep their record and log."""

    def __init__(self, records: Records, keep_stopped: int) -> None:
        self._records = records
        self._keep_stopped = keep_stopped
        self._servers: dict[str, Server] = {}
        self._stopped_before: OrderedDict[str, None] = OrderedDict()

    def get(self, deployment_id: str) -> Server | None:
        """The server of this deployment id, or None."""
        return self._servers.get(deployment_id)

    def living(self) -> list[Server]:
        """The servers that have not ended."""
        return [server for server in self._servers.values() if server.record.state is not RunState.STOPPED]

    def all(self) -> list[Server]:
        """All servers that are known, in the order in which they became known."""
        return list(self._servers.values())

    def add(self, record: Record, event_key: str = "", nats_password: str = "") -> Server:
        """Add a server; its record is not written yet."""
        server = self._servers[record.deployment_id] = Server(record, event_key, nats_password)
        return server

    def save(self, server: Server, **changes: object) -> None:
        """Change and write the record of something that has happened; a failed write is only logged."""
        record = server.change(**changes)
        try:
            self._records.save(record)
        except OSError as exc:
            log.error("the record of %s cannot be written: %s", server.id, exc)  # noqa: TRY400 # the trace says no more

    def end(self, server: Server, reason: str) -> None:
        """Record that the server has ended; it stays known for a while."""
        self.save(server, state=RunState.STOPPED, stopped_at=time.time(), reason=reason)
        self.has_ended(server)

    def has_ended(self, server: Server) -> None:
        """`end` for a server whose record says so already."""
        self._records.remove_key(server.id)
        server.ended.set()
        stopped = [one for one in self._servers.values() if one.record.state is RunState.STOPPED]
        stopped.sort(key=lambda one: one.record.stopped_at)
        for oldest in stopped[: max(0, len(stopped) - self._keep_stopped)]:
            self.forget(oldest)
            self.remember_stopped(oldest.id)

    def forget(self, server: Server) -> None:
        """Remove the server, its record and its log."""
        del self._servers[server.id]
        self._records.forget(server.id)

    def remember_stopped(self, deployment_id: str) -> None:
        """Remember the id, so that a late or repeated deploy does not start the server again."""
        self._stopped_before[deployment_id] = None
        self._stopped_before.move_to_end(deployment_id)
        if len(self._stopped_before) > _REMEMBERED:
            self._stopped_before.popitem(last=False)

    def was_stopped(self, deployment_id: str) -> bool:
        """Whether a server of this id was stopped and forgotten."""
        return deployment_id in self._stopped_before
