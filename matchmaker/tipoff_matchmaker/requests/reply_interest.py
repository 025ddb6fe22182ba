"""Tracks who waits for the replies of the requests in hand. A request whose reply nobody reads is cancelled.

A client is known by what the reply inboxes of its attempts begin with. The same request id may come from another httpd
meanwhile, because the first one did not answer in time; then the request goes on for that one. Does no I/O.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LOST = ""


class ReplyInterest:
    """`add` and `remove` around each request; `lost` when its client has disconnected."""

    def __init__(self) -> None:
        self._sessions: dict[str, dict[asyncio.Task[Any], str]] = {}
        """By session, the client that each task works for; `_LOST` when that one has disconnected."""
        self._session_of: dict[str, str] = {}

    def __len__(self) -> int:
        """How many sessions and clients are known."""
        return len(self._sessions) + len(self._session_of)

    def add(self, inbox: str, session_id: str, task: asyncio.Task[Any]) -> None:
        """`task` works for the session; its reply is read at `inbox`."""
        client = inbox.rpartition(".")[0]
        self._sessions.setdefault(session_id, {})[task] = client
        self._session_of[client] = session_id

    def remove(self, inbox: str, session_id: str, task: asyncio.Task[Any]) -> None:
        """The request was answered, or let go. Once for each `add`."""
        tasks = self._sessions[session_id]
        del tasks[task]
        client = inbox.rpartition(".")[0]
        if client not in tasks.values() and self._session_of.get(client) == session_id:
            del self._session_of[client]
        if not tasks:
            del self._sessions[session_id]

    def lost(self, client: str) -> None:
        """Cancel the tasks of a session whose reply nobody reads any longer. Idempotent; ignores unknown clients."""
        session_id = self._session_of.pop(client, None)
        if session_id is None:
            return
        tasks = self._sessions[session_id]
        for task, reader in tasks.items():
            if reader == client:
                tasks[task] = _LOST
        if all(reader == _LOST for reader in tasks.values()):
            for task in tasks:
                task.cancel()
