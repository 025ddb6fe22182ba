"""Who waits for the requests in hand. When nobody waits for one any more, it is let go: no seat is held for it.

An asker is known by what the reply inboxes of its attempts begin with: the same request id may be asked by another
httpd meanwhile, because the first one did not answer, and then the request goes on for that one. Pure bookkeeping.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LEFT = ""


class Askers:
    """`came` and `went` around each request; `left` when its asker is gone."""

    def __init__(self) -> None:
        self._sessions: dict[str, dict[asyncio.Task[Any], str]] = {}
        """By session, who each task works for; `_LEFT` when that one has left."""
        self._session_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def came(self, inbox: str, session_id: str, task: asyncio.Task[Any]) -> None:
        """`task` works for the session, for whoever reads `inbox`."""
        asker = inbox.rpartition(".")[0]
        self._sessions.setdefault(session_id, {})[task] = asker
        self._session_of[asker] = session_id

    def went(self, inbox: str, session_id: str, task: asyncio.Task[Any]) -> None:
        """It has been answered, or let go. Once for each `came`."""
        tasks = self._sessions[session_id]
        del tasks[task]
        asker = inbox.rpartition(".")[0]
        if asker not in tasks.values() and self._session_of.get(asker) == session_id:
            del self._session_of[asker]
        if not tasks:
            del self._sessions[session_id]

    def left(self, asker: str) -> None:
        """Cancel what nobody waits for. Idempotent; strangers are not known here."""
        session_id = self._session_of.pop(asker, None)
        if session_id is None:
            return
        tasks = self._sessions[session_id]
        for task, who in tasks.items():
            if who == asker:
                tasks[task] = _LEFT
        if all(who == _LEFT for who in tasks.values()):
            for task in tasks:
                task.cancel()
