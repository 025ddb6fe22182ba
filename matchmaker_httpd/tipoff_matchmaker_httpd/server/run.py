"""Running httpd: sockets bound, uvicorn's protocols driven, everything stopped in order.

uvicorn's own `Server` takes over signals, ends the process when it cannot start, polls while it stops, and closes
WebSockets before their players got an answer. Its protocols need none of that, so this file drives them itself.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from tipoff_matchmaker_httpd.app import HttpdApp, create_app
from tipoff_matchmaker_httpd.server.http import GuardedHttp
from tipoff_matchmaker_httpd.server.sockets import BACKLOG, bind, tls_context, url_of
from tipoff_matchmaker_httpd.server.websocket import GuardedWebSocket
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_matchmaker_httpd.state import Httpd
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.messages import MAX_MESSAGE
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.service import PATH as TURN_PATH
from tipoff_turn_relay.service import OwnPort

log = logging.getLogger(__name__)

FAREWELL = 1.0
"""Seconds for the last words to players whose request did not finish in the drain time."""


class RunningHttpd:
    """An httpd that accepts connections: `url` for people and tests, `port` the one that was bound."""

    def __init__(self, app: HttpdApp, url: str, port: int, turn_url: str | None) -> None:
        self.app = app
        self.url = url
        self.port = port
        self.turn_url = turn_url
        """The turn relay's own port, where it has one."""

    async def ended(self) -> None:
        """Returns when it cannot serve any more: NATS refuses it for good. The process should end then."""
        await self.app.httpd.bus.closed.wait()


@asynccontextmanager
async def run_httpd(settings: Settings, nats_settings: NatsSettings) -> AsyncIterator[RunningHttpd]:
    """Serve for the time of the block; yields when bound and connected to NATS.

    Raises `ConfigError` (a port in use, files that cannot be read) and `Unavailable` (NATS). Leaving takes at most
    the drain time and two seconds: requests in flight are finished first.
    """
    context = tls_context(settings)
    async with AsyncExitStack() as stack:
        sockets = bind(settings)
        for sock in sockets:
            stack.callback(sock.close)
        port: int = sockets[0].getsockname()[1]
        turn_sockets = (
            bind(settings, settings.turn_port) if settings.turn_relay and settings.turn_port else []
        )
        for sock in turn_sockets:
            stack.callback(sock.close)
        app = create_app(settings, nats_settings)
        await stack.enter_async_context(app.router.lifespan_context(app))
        listening = _Listening(app, app.httpd)
        await listening.open(sockets, context)
        url = url_of(settings.host[0], port, secure=context is not None)
        log.info("httpd listens on %s", url)
        turn_listening, turn_url = None, None
        if turn_sockets:
            turn_listening = _Listening(OwnPort(app), app.httpd, _TurnPortHttp)
            await turn_listening.open(turn_sockets, context)
            turn_url = url_of(settings.host[0], settings.turn_port, secure=context is not None)
            log.info("the turn relay listens on %s", turn_url)
        try:
            yield RunningHttpd(app, url, port, turn_url)
        finally:
            await asyncio.gather(listening.close(), *([turn_listening.close()] if turn_listening else []))


class _TurnPortHttp(GuardedHttp):
    """An HTTP connection to the turn relay's own port: the text endpoint's limit for bodies holds on every path."""

    def on_headers_complete(self) -> None:
        self.url = TURN_PATH.encode()
        super().on_headers_complete()


class _Listening:
    """uvicorn's protocols on our sockets."""

    def __init__(
        self, app: HttpdApp | OwnPort, httpd: Httpd, protocol: type[GuardedHttp] = GuardedHttp
    ) -> None:
        settings = httpd.settings
        self._httpd = httpd
        self._protocol = protocol
        self._settings = settings
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._date_timer: asyncio.TimerHandle | None = None
        self._config = Config(
            app,
            http=GuardedHttp,
            ws=GuardedWebSocket,
            ws_max_size=MAX_MESSAGE,
            ws_ping_interval=settings.ping_interval,
            ws_ping_timeout=settings.ping_timeout,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            log_level="error",  # the rest is about what clients send; /metrics counts it
            access_log=False,
            proxy_headers=False,  # client_ip.py knows the rule
            server_header=False,
            timeout_keep_alive=5,
        )

    async def open(self, sockets: list[socket.socket], context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        self._config.load()
        self._set_date()

        def protocol() -> asyncio.Protocol:
            return self._protocol(self._config, self._state, {}, self._httpd, loop)

        tls: dict[str, Any] = {}
        if context is not None:  # a client that never finishes its TLS handshake is an idle client, too
            tls = {
                "ssl": context,
                "ssl_handshake_timeout": self._settings.head_timeout,
                "ssl_shutdown_timeout": 2.0,
            }
        for sock in sockets:
            server = await loop.create_server(protocol, sock=sock, backlog=BACKLOG, **tls)
            self._servers.append(server)

    def _set_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date_timer = asyncio.get_running_loop().call_later(1.0, self._set_date)

    async def close(self) -> None:
        """In this order: accept nothing; begin nothing; let requests in flight finish; give the others an answer;
        cancel what still runs; cut what is still open."""
        for server in self._servers:
            server.close()
        self._httpd.drain()
        for connection in list(self._state.connections):
            connection.shutdown()
        if not await self._tasks_end(self._settings.drain_seconds):
            log.info("%d players are still waiting; they are told to ask again", len(self._state.tasks))
            self._httpd.end_calls()
            if not await self._tasks_end(FAREWELL):
                for task in list(self._state.tasks):
                    task.cancel()
                await self._tasks_end(0.5)
        await self._connections_end()
        if self._date_timer is not None:
            self._date_timer.cancel()

    async def _tasks_end(self, timeout: float) -> bool:
        if tasks := set(self._state.tasks):
            await asyncio.wait(tasks, timeout=timeout)
        return not any(not task.done() for task in self._state.tasks)

    async def _connections_end(self) -> None:
        """Closing handshakes get half a second; idle HTTP connections none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.5
        while self._state.connections and loop.time() < until:
            for connection in list(self._state.connections):
                if isinstance(connection, GuardedHttp):
                    connection.shutdown()
            await asyncio.sleep(0.01)  # shutting down, nobody waits: connections tell nobody that they ended
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # connection_lost comes with the loop's next turn


async def serve_until_stopped(settings: Settings, nats_settings: NatsSettings) -> None:
    """Serve until SIGTERM or SIGINT; raises `Unavailable` when NATS ends the connection for good."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with run_httpd(settings, nats_settings) as httpd:
        stopping = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(httpd.ended())
        try:
            await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, ended):
                task.cancel()
        if ended.done() and not stop.is_set():
            raise Unavailable("NATS has closed the connection for good; are the credentials still valid?")
        log.info("stopping; requests in flight have %.0f s", settings.drain_seconds)


def main() -> None:
    """Run the service from the environment: `TIPOFF_HTTPD_*`, `NATS_*`. Exit code 1: NATS; 2: configuration."""
    from tipoff_shared.log import configure

    configure("httpd")
    _raise_file_limit()
    try:
        settings = Settings.load()
        nats_settings = NatsSettings.from_environment()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve_until_stopped(settings, nats_settings))
    except ConfigError as exc:
        log.error("%s", exc)  # noqa: TRY400 # the message says it all
        sys.exit(2)
    except Unavailable as exc:
        log.error("%s", exc)  # noqa: TRY400 # the message says it all
        sys.exit(1)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return None
    return uvloop.new_event_loop


def _raise_file_limit() -> None:
    """Each socket is an open file, and 1024 is the usual soft limit."""
    try:
        import resource
    except ImportError:  # not on every platform
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
