"""Serves what `tipoff up` shows: the page, its live view of servers and sessions, the button that kills a server.

`GET /demo/events` is a stream of server-sent events: `snapshot` {"deployments", "sessions", "gameservers"}, then
`deployment`, `session` and `gameserver` with one record each; `"state": "gone"` is the last of one. It is read from KV
and leaves out what concerns a player (addresses, client ids). `POST /demo/kill/{deployment_id}` works only from the
page that httpd serves itself.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from tipoff_matchmaker_httpd.admission.origin import not_rebound, same_origin
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_matchmaker_httpd.state import HttpdState, header
from tipoff_shared.admission.client_address import Address, scope_address
from tipoff_shared.admission.connection_shares import ConnectionShares
from tipoff_shared.errors import (
    ConfigError,
    Malformed,
    NotAllowed,
    OrchestratorFailed,
    SlowDown,
    TipoffError,
    Unavailable,
)
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

MAX_QUEUED = 256
"""Events kept for a page that reads slowly; beyond that it gets a new snapshot instead."""
KEEP_ALIVE = 15.0
"""Seconds between two comments on a stream without events."""
LIST_AGAIN = 30.0
"""Seconds after which a listing corrects what a watch may have missed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
"""Seconds until a bucket is followed again after a failure."""
_KINDS = ("deployment", "session", "gameserver")
_PRIVATE = {
    "client_ip",
    "client_id",
    "user_id",
    "name",
    "owner",
    "internal",
    "pid",
    "proxy",
    "websocket_port",
}
_CLAUSE_END = re.compile(r"[;\n\r]")
_IPV4 = r"\b\d{1,3}(?:\.\d{1,3}){3}\b"
_IPV6 = r"\[?(?:[0-9A-Fa-f:]*::[0-9A-Fa-f:]*|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4})\]?"
_ADDRESS = re.compile(rf"(?:{_IPV4}|{_IPV6})(?::\d+)?")
_REASON = 120
"""Characters of a reason that visitors see."""
_DEPLOYMENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_WEB = Path(__file__).parent.parent / "web"


def web_directory(settings: Settings) -> Path:
    """The directory of the page; raises `ConfigError` when it has no index.html."""
    web = settings.web_dir or _WEB
    if not (web / "index.html").is_file():
        raise ConfigError(f"TIPOFF_HTTPD_WEB_DIR: there is no index.html in {web}")
    return web


def public_view(record: Any) -> dict[str, Any]:
    """All fields of a record, without what concerns a player or the host."""
    view = {name: getattr(record, name) for name in record.__struct_fields__ if name not in _PRIVATE}
    if reason := view.get("reason"):
        view["reason"] = public_reason(reason)
    return view


class DemoFeed:
    """A view of all records, and the pages that follow it."""

    def __init__(
        self,
        most: int = 64,
        most_per_address: int = 16,
        *,
        view: Callable[[Any], dict[str, Any]] = public_view,
        more: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """`most`: pages at one time; `most_per_address`: of one address. `view`: what pages see of a record; `more`:
        further members of a snapshot."""
        self._view = view
        self._more = more
        self._shares = ConnectionShares[asyncio.Queue[bytes | None]](most, most_per_address)
        self._records: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {kind: {} for kind in _KINDS}
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._attempts: dict[str, asyncio.Timeout] = {}
        self._stopped = False

    @property
    def listeners(self) -> int:
        """Pages that follow the feed now."""
        return len(self._listeners)

    @asynccontextmanager
    async def running(self, bus: Bus) -> AsyncIterator[None]:
        """Follow the buckets during the block."""
        every = buckets(bus)
        bus.on_reconnect(self._nats_is_back)
        async with Tasks("demo") as tasks:
            tasks.start(self._follow_forever("deployment", every.deployments), "deployments")
            tasks.start(self._follow_forever("session", every.sessions), "sessions")
            tasks.start(self._follow_forever("gameserver", every.gameservers), "gameservers")
            yield

    async def _follow_forever(self, kind: str, bucket: Bucket[Any]) -> None:
        def failed(_: int, exc: Exception) -> None:
            log.debug("the demo's view of %s: %s", bucket.bucket, exc)

        async def follow(backoff: Backoff) -> None:
            while True:
                try:
                    async with asyncio.timeout(None) as attempt:
                        self._attempts[kind] = attempt
                        try:
                            await self._follow_for_a_while(kind, bucket)
                        finally:
                            del self._attempts[kind]
                except TimeoutError:
                    log.debug("NATS is back; reading %s again", bucket.bucket)
                backoff.reset()

        # NATS is away, or no matchmaker has made the buckets yet.
        await run_forever(
            follow,
            first_pause=_FIRST_PAUSE,
            longest_pause=_LONGEST_PAUSE,
            retry_on=TipoffError,
            on_failure=failed,
        )

    async def _follow_for_a_while(self, kind: str, bucket: Bucket[Any]) -> None:
        """Read a whole listing, then changes until the next one is due."""
        loop = asyncio.get_running_loop()
        async with bucket.watch() as changes:
            until = loop.time() + LIST_AGAIN
            present = await bucket.list()
            for key in self._records[kind].keys() - present.keys():
                self.changed(kind, key, None, 0)
            for key, entry in present.items():
                self.changed(kind, key, entry.value, entry.revision)
            while (left := until - loop.time()) > 0:
                for change, ack in await changes.fetch(timeout=min(5.0, max(0.1, left))):
                    self.changed(kind, change.key, change.value, change.revision)
                    await ack()

    def _nats_is_back(self) -> None:
        """Begin again at once: requests on the lost connection get no answer."""
        for attempt in self._attempts.values():
            if attempt.when() is None:
                attempt.reschedule(asyncio.get_running_loop().time())

    def changed(self, kind: str, key: str, record: Any, revision: int) -> None:
        """Take in one change and pass it on; `record` None: it is deleted. `revision` 0: a listing says so."""
        known = self._records[kind]
        before = known.get(key)
        if before is not None and 0 < revision <= before[0]:
            return
        if record is None:
            if before is None:
                return
            del known[key]
            self.tell(kind, before[1] | {"state": "gone"})
            return
        view = self._view(record)
        if view.get("state") == "gone":
            if known.pop(key, None) is not None:
                self.tell(kind, view)
            return
        known[key] = (revision, view)
        self.tell(kind, view)

    def tell(self, kind: str, view: dict[str, Any]) -> None:
        """Send one event to all pages. One that is too far behind gets a snapshot instead of what it has not read."""
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

    def view(self, kind: str) -> list[dict[str, Any]]:
        """All records of that kind, as visitors see them."""
        return [view for _, view in self._records[kind].values()]

    def snapshot(self) -> bytes:
        """The event that shows everything."""
        return server_sent("snapshot", {f"{kind}s": self.view(kind) for kind in _KINDS} | self._more())

    def stop(self) -> None:
        """End all streams, because the process is stopping."""
        self._stopped = True
        for queue in tuple(self._listeners):
            self._end(queue)

    def claim(self, address: Address) -> asyncio.Queue[bytes | None]:
        """A place for a page at that address, for `events`; `leave` gives it back. Raises `SlowDown` when the address
        has too many, `Unavailable` when there is none; may end the stream of an address that has more."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_QUEUED + 2)
        eviction = self._shares.claim(queue, address)
        if eviction is not None:
            if eviction.over_share:
                most = self._shares.most_per_address
                raise SlowDown(f"at most {most} pages of one address may watch", retry_after=5)
            if eviction.connection is queue:
                raise Unavailable("too many pages are watching", retry_after=5)
            self._end(eviction.connection)
        self._listeners.add(queue)
        return queue

    def leave(self, queue: asyncio.Queue[bytes | None]) -> None:
        """The page has gone. Idempotent."""
        self._listeners.discard(queue)
        self._shares.leave(queue)

    def _end(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._listeners.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    async def events(self, queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        """The stream of one page, whose place `claim` returned."""
        while not queue.empty():  # what the snapshot holds already
            if queue.get_nowait() is None:
                return
        yield b"retry: 1000\n\n" + self.snapshot()
        while not self._stopped:
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    event = await queue.get()
            except TimeoutError:
                event = b": still here\n\n"
            if event is None:
                return
            yield event


def demo_routes(state: HttpdState, feed: DemoFeed, web: Path) -> APIRouter:
    """The routes of demo mode. `web` holds index.html and the page's other files."""
    router = APIRouter()

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(web / "index.html", headers={"Cache-Control": "no-cache"})

    @router.get("/demo/events", summary="Servers and sessions, live", description="Server-sent events.")
    async def events(http: Request) -> Response:
        return FeedStream(feed, feed.claim(scope_address(http.scope, state.addresses)))

    @router.post("/demo/kill/{deployment_id}", summary="Kill a server, as a crash would")
    async def kill(http: Request, deployment_id: str) -> Response:
        await _kill(state.bus, http, deployment_id)
        return JSONResponse({"killed": deployment_id}, status_code=202)

    router.mount("/web", _NoCache(directory=web))
    return router


async def _kill(bus: Bus, http: Request, deployment_id: str) -> None:
    headers = http.scope["headers"]
    origin, host = header(headers, b"origin"), header(headers, b"host")
    secure = http.scope["scheme"] == "https"
    if origin is None or not same_origin(origin, host, secure) or not not_rebound(host, secure):
        raise NotAllowed("only the page that this server serves may kill a server")
    if not _DEPLOYMENT_ID.fullmatch(deployment_id):
        raise Malformed("deployment_id: letters, digits, _ and - are allowed")
    question = msgspec.json.encode({"deployment_id": deployment_id})
    msg = await bus.request(bus.subjects.launcher("local", "kill"), question, timeout=3)
    try:
        answer = msgspec.json.decode(msg.data or b"{}")
    except msgspec.DecodeError as exc:
        raise OrchestratorFailed("the launcher's answer cannot be read") from exc
    if isinstance(answer, dict) and (error := answer.get("error")):
        message = error.get("message", "") if isinstance(error, dict) else str(error)
        raise OrchestratorFailed(f"the launcher: {message}")


class FeedStream(StreamingResponse):
    """The stream of one page. Gives its place back also when the client has gone before the first event."""

    def __init__(self, feed: DemoFeed, queue: asyncio.Queue[bytes | None]) -> None:
        super().__init__(
            feed.events(queue),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._feed = feed
        self._queue = queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the page or httpd goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave(self._queue)


class _NoCache(StaticFiles):
    """Files that a developer changes: browsers ask each time (and get 304)."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As Starlette makes it, to be checked by the browser every time."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def public_reason(reason: str) -> str:
    """The first clause of a reason, short and without addresses. The rest is for operators: a server's last output, an
    orchestrator's answer."""
    clause = _ADDRESS.sub("…", _CLAUSE_END.split(reason, maxsplit=1)[0]).strip()
    return clause if len(clause) <= _REASON else clause[: _REASON - 1] + "…"


def server_sent(event: str, data: Any) -> bytes:
    """One server-sent event; JSON never contains a line end."""
    return b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
