"""What `tipoff up` shows: the page, its live strip of servers and sessions, and the button that kills a server.

`GET /demo/events` is a stream of server-sent events: `snapshot` {"deployments", "sessions", "gameservers"}, then
`deployment`, `session` and `gameserver` with one record each; `"state": "gone"` ends one. Read-only, from KV, without
what concerns a player (addresses, client ids). `POST /demo/kill/{deployment_id}` works from the page alone.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from tipoff_matchmaker_httpd.admission.origin import not_rebound, same_origin
from tipoff_matchmaker_httpd.state import Httpd, header
from tipoff_shared.errors import (
    ConfigError,
    Malformed,
    NotAllowed,
    OrchestratorFailed,
    TipoffError,
    Unavailable,
)
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

MAX_QUEUED = 256
"""Events kept for a page that reads slowly; then it gets a new snapshot instead."""
KEEP_ALIVE = 15.0
LIST_AGAIN = 30.0
"""Seconds after which a listing corrects what a watch may have missed."""
_PRIVATE = {"client_ip", "client_id", "owner", "internal", "pid", "proxy", "websocket_port"}
_CLAUSE_END = re.compile(r"[;\n\r]")
_IPV4 = r"\b\d{1,3}(?:\.\d{1,3}){3}\b"
_IPV6 = r"\[?(?:[0-9A-Fa-f:]*::[0-9A-Fa-f:]*|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4})\]?"
_ADDRESS = re.compile(rf"(?:{_IPV4}|{_IPV6})(?::\d+)?")
_REASON = 120
"""Characters of a reason that visitors see."""
_DEPLOYMENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_WEB = Path(__file__).parent.parent / "web"


class Demo:
    """The feed and its listeners. `running` owns the tasks."""

    def __init__(self, httpd: Httpd) -> None:
        self._httpd = httpd
        self._web = httpd.settings.web_dir or _WEB
        if not (self._web / "index.html").is_file():
            raise ConfigError(f"TIPOFF_HTTPD_WEB_DIR: there is no index.html in {self._web}")
        self._records: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {
            "deployment": {},
            "session": {},
            "gameserver": {},
        }
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._attempts: dict[str, asyncio.Timeout] = {}
        httpd.on_drain.append(self._end_listeners)

    @asynccontextmanager
    async def running(self, bus: Bus) -> AsyncIterator[None]:
        """Follow the buckets until the block ends."""
        every = buckets(bus)
        bus.on_reconnect(self._nats_is_back)
        async with Tasks("demo") as tasks:
            for kind, store in (
                ("deployment", every.deployments),
                ("session", every.sessions),
                ("gameserver", every.gameservers),
            ):
                tasks.start(self._follow(kind, store), kind)
            yield

    async def _follow(self, kind: str, store: Bucket[Any]) -> None:
        """Watch for changes and list for the truth, for ever; NATS may go and come back."""
        pause = 0.2
        while True:
            try:
                async with asyncio.timeout(None) as attempt:
                    self._attempts[kind] = attempt
                    await self._follow_for_a_while(kind, store)
                    pause = 0.2
            except TimeoutError:
                log.debug("NATS is back; looking at %s again", store.bucket)
            except TipoffError as exc:  # NATS is away, or nobody has made the buckets yet
                log.debug("the demo's view of %s: %s", store.bucket, exc)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    async def _follow_for_a_while(self, kind: str, store: Bucket[Any]) -> None:
        loop = asyncio.get_running_loop()
        async with store.watch() as changes:
            until = loop.time() + LIST_AGAIN
            present = await store.list()
            for key in self._records[kind].keys() - present.keys():
                self._changed(kind, key, None, 0)
            for key, entry in present.items():
                self._changed(kind, key, entry.value, entry.revision)
            while (left := until - loop.time()) > 0:
                for change, ack in await changes.fetch(timeout=min(5.0, max(0.1, left))):
                    self._changed(kind, change.key, change.value, change.revision)
                    await ack()

    def _nats_is_back(self) -> None:
        """What was asked of the connection that is lost gets no answer; ask again at once."""
        for attempt in self._attempts.values():
            if attempt.when() is None:
                attempt.reschedule(asyncio.get_running_loop().time())

    def _changed(self, kind: str, key: str, record: Any, revision: int) -> None:
        """Take one change in and tell the listeners; `record` None: it is gone. `revision` 0: a listing says so."""
        known = self._records[kind]
        before = known.get(key)
        if before is not None and 0 < revision <= before[0]:
            return
        if record is None:
            if before is None:
                return
            del known[key]
            self._tell(kind, before[1] | {"state": "gone"})
            return
        view = public_view(record)
        if view.get("state") == "gone":
            if known.pop(key, None) is not None:
                self._tell(kind, view)
            return
        known[key] = (revision, view)
        self._tell(kind, view)

    def _tell(self, kind: str, view: dict[str, Any]) -> None:
        if not self._listeners:
            return
        event = server_sent(kind, view)
        for queue in self._listeners:
            if queue.qsize() >= MAX_QUEUED:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(self.snapshot())
            else:
                queue.put_nowait(event)

    def snapshot(self) -> bytes:
        return server_sent(
            "snapshot",
            {f"{kind}s": [view for _, view in records.values()] for kind, records in self._records.items()},
        )

    def _end_listeners(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(None)

    async def _events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_QUEUED + 2)
        self._listeners.add(queue)
        try:
            yield b"retry: 1000\n\n" + self.snapshot()
            while not self._httpd.draining.is_set():
                try:
                    async with asyncio.timeout(KEEP_ALIVE):
                        event = await queue.get()
                except TimeoutError:
                    event = b": still here\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._listeners.discard(queue)

    async def _kill(self, http: Request, deployment_id: str) -> None:
        headers = http.scope["headers"]
        origin, host = header(headers, b"origin"), header(headers, b"host")
        secure = http.scope["scheme"] == "https"
        if origin is None or not same_origin(origin, host, secure) or not not_rebound(host, secure):
            raise NotAllowed("only the page that this server serves may kill a server")
        if not _DEPLOYMENT_ID.fullmatch(deployment_id):
            raise Malformed("deployment_id: letters, digits, _ and - are allowed")
        bus = self._httpd.bus
        question = msgspec.json.encode({"deployment_id": deployment_id})
        msg = await bus.request(bus.subjects.launcher("local", "kill"), question, timeout=3)
        try:
            answer = msgspec.json.decode(msg.data or b"{}")
        except msgspec.DecodeError as exc:
            raise OrchestratorFailed("the launcher's answer cannot be read") from exc
        if isinstance(answer, dict) and (error := answer.get("error")):
            message = error.get("message", "") if isinstance(error, dict) else str(error)
            raise OrchestratorFailed(f"the launcher: {message}")

    def routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/", include_in_schema=False)
        async def page() -> Response:
            return FileResponse(self._web / "index.html", headers={"Cache-Control": "no-cache"})

        @router.get("/demo/events", summary="Servers and sessions, live", description="Server-sent events.")
        async def events() -> Response:
            if len(self._listeners) >= self._httpd.settings.demo_listeners:
                raise Unavailable("too many pages are watching", retry_after=5)
            return StreamingResponse(
                self._events(),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )

        @router.post("/demo/kill/{deployment_id}", summary="Kill a server, as a crash would")
        async def kill(http: Request, deployment_id: str) -> Response:
            await self._kill(http, deployment_id)
            return JSONResponse({"killed": deployment_id}, status_code=202)

        router.mount("/web", NoCache(directory=self._web))
        return router


class NoCache(StaticFiles):
    """Files that a developer changes: browsers ask each time (and are answered 304)."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def public_view(record: Any) -> dict[str, Any]:
    """A record's fields, all of them present, without what concerns a player or the host."""
    view = {name: getattr(record, name) for name in record.__struct_fields__ if name not in _PRIVATE}
    if reason := view.get("reason"):
        view["reason"] = public_reason(reason)
    return view


def public_reason(reason: str) -> str:
    """The first clause of a reason, short and without addresses: what follows is for operators (a server's last
    words, an orchestrator's answer)."""
    clause = _ADDRESS.sub("…", _CLAUSE_END.split(reason, maxsplit=1)[0]).strip()
    return clause if len(clause) <= _REASON else clause[: _REASON - 1] + "…"


def server_sent(event: str, data: Any) -> bytes:
    """One event; JSON never holds a line end."""
    return b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
