"""Runs httpd: binds sockets, drives uvicorn's protocols on them, and stops everything in order.

uvicorn's own `Server` takes over signals, exits the process when it cannot start, polls while it stops, and closes
WebSockets before their players have an answer. Its protocols need none of that, so this module drives them itself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from functools import partial
from typing import NoReturn

from starlette.types import ASGIApp

# uvicorn 0.54 (<0.55): neither is public; `Config.load` and `ServerState` are what its protocols are made with.
from uvicorn.config import Config
from uvicorn.server import ServerState

from tipoff_matchmaker_httpd.admission.places import Place, Places
from tipoff_matchmaker_httpd.compose import Extension, Parts, compose
from tipoff_matchmaker_httpd.server.gate import Gate
from tipoff_matchmaker_httpd.server.http import GuardedHttp
from tipoff_matchmaker_httpd.server.sockets import BACKLOG, bind, bind_port, certificate_of, url_of
from tipoff_matchmaker_httpd.server.tls import TlsAcceptor
from tipoff_matchmaker_httpd.server.websocket import GuardedWebSocket
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.errors import Unavailable
from tipoff_shared.file_limit import raise_file_limit
from tipoff_shared.messages import MAX_MESSAGE
from tipoff_shared.primitives.server_certificate import ServerCertificate
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.waiting import wait_for_any
from tipoff_shared.service import run_service
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.service import PATH as TURN_PATH
from tipoff_turn_relay.service import OwnPort

log = logging.getLogger(__name__)

_FAREWELL = 1.0
"""Seconds for the last messages to players whose request did not finish in the drain time."""
_METRICS_CONNECTIONS = 64
"""Sockets on the port for health and metrics."""
_CLOSING = 0.5
"""Seconds for closing handshakes, and for requests that were cancelled."""


class RunningHttpd:
    """An httpd that accepts connections."""

    def __init__(
        self, parts: Parts, url: str, port: int, turn_url: str | None, metrics_url: str | None
    ) -> None:
        self.parts = parts
        self.url = url
        """For people and tests."""
        self.port = port
        """The port that was bound."""
        self.turn_url = turn_url
        """The turn relay's own port; None where it has none."""
        self.metrics_url = metrics_url
        """The operator's own port; None where there is none."""

    @property
    def state(self) -> HttpdState:
        """What its routes share."""
        return self.parts.state

    @property
    def failed(self) -> asyncio.Event:
        """Set when it cannot serve any more, because NATS refuses it for good: the process must end."""
        return self.state.bus.closed


@asynccontextmanager
async def run_httpd(
    settings: Settings, nats_settings: NatsSettings, extension: Extension | None = None
) -> AsyncIterator[RunningHttpd]:
    """Serve for the time of the block; yields when bound and connected to NATS.

    Raises `ConfigError` (a port in use, files that cannot be read) and `Unavailable` (NATS). Leaving takes at most the
    drain time and two seconds: requests in flight are finished first.
    """
    certificate = certificate_of(settings)
    async with AsyncExitStack() as stack:

        def opened(sockets: list[socket.socket]) -> list[socket.socket]:
            for sock in sockets:
                stack.callback(sock.close)
            return sockets

        sockets = opened(bind(settings))
        turn_sockets: list[socket.socket] = []
        if settings.turn_relay and settings.turn_port:
            variables = "TIPOFF_HTTPD_TURN_PORT (0: none), TIPOFF_HTTPD_HOST"
            turn_sockets = opened(bind_port(settings.host, settings.turn_port, variables))
        metrics_sockets: list[socket.socket] = []
        if settings.metrics_port:
            variables = "TIPOFF_HTTPD_METRICS_PORT (0: none), TIPOFF_HTTPD_METRICS_HOST"
            metrics_sockets = opened(bind_port(settings.metrics_host, settings.metrics_port, variables))
        parts = await stack.enter_async_context(compose(settings, nats_settings, extension))
        state = parts.state
        if certificate is not None:
            tasks = await stack.enter_async_context(Tasks("certificate"))
            tasks.start(certificate.watch(), "renewals")
        secure = certificate is not None
        listeners = [_Listener(parts.app, state, state.places)]
        await listeners[0].open(sockets, certificate)
        port: int = sockets[0].getsockname()[1]
        url = url_of(settings.host[0], port, secure=secure)
        log.info("httpd listens on %s", url)
        turn_url = metrics_url = None
        if turn_sockets:
            listeners.append(_Listener(OwnPort(parts.app), state, state.places, _TurnPortHttp))
            await listeners[-1].open(turn_sockets, certificate)
            turn_url = url_of(settings.host[0], settings.turn_port, secure=secure)
            log.info("the turn relay listens on %s", turn_url)
        if metrics_sockets:
            places = Places(
                _METRICS_CONNECTIONS,
                _METRICS_CONNECTIONS // 4,
                state.addresses,
                state.metrics.refused,
                state.log,
                per_second=settings.connections_per_second,
            )
            listeners.append(_Listener(parts.health, state, places))
            await listeners[-1].open(metrics_sockets, None)
            metrics_url = url_of(settings.metrics_host[0], settings.metrics_port, secure=False)
            log.info("health and metrics are at %s", metrics_url)
        try:
            yield RunningHttpd(parts, url, port, turn_url, metrics_url)
        finally:
            await asyncio.gather(*(listener.close() for listener in listeners))


class _TurnPortHttp(GuardedHttp):
    """An HTTP connection to the turn relay's own port: the text endpoint's limit for bodies holds on every path."""

    def on_headers_complete(self) -> None:
        """The head is complete; its path does not count."""
        self.url = TURN_PATH.encode()
        super().on_headers_complete()


class _Listener:
    """Drives uvicorn's protocols on some sockets."""

    def __init__(
        self,
        app: ASGIApp,
        state: HttpdState,
        places: Places,
        protocol: type[GuardedHttp] = GuardedHttp,
    ) -> None:
        settings = state.settings
        self._places = places
        self._acceptors: list[TlsAcceptor] = []
        self._httpd = state
        self._protocol = protocol
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
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
            proxy_headers=False,  # `AddressRule` decides about them
            server_header=False,
            timeout_keep_alive=settings.keep_alive_timeout,  # type: ignore[arg-type]  # any number of seconds
        )
        self._config.load()
        self._date_timer = self._set_date()

    async def open(self, sockets: list[socket.socket], certificate: ServerCertificate | None) -> None:
        """Accept connections on `sockets`, over TLS with a `certificate`."""
        loop = asyncio.get_running_loop()

        def protocol(place: Place | None = None) -> asyncio.Protocol:
            return self._protocol(self._config, self._state, {}, self._httpd, self._places, place, loop)

        for sock in sockets:
            if certificate is not None:
                acceptor = TlsAcceptor(sock, certificate.context, protocol, self._httpd, self._places)
                self._acceptors.append(acceptor)
            else:
                gate = partial(Gate, self._places, protocol)
                self._servers.append(await loop.create_server(gate, sock=sock, backlog=BACKLOG))

    def _set_date(self) -> asyncio.TimerHandle:
        """Set the Date header of all answers, now and every second."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date_timer = asyncio.get_running_loop().call_later(1.0, self._set_date)
        return self._date_timer

    async def close(self) -> None:
        """Stop, in this order: accept nothing; begin nothing; let requests in flight finish; give the others an answer;
        cancel what still runs; cut what is still open."""
        for server in self._servers:
            server.close()
        for acceptor in self._acceptors:
            acceptor.close()
        self._httpd.drain()
        for connection in list(self._state.connections):
            connection.shutdown()
        if not await self._tasks_end(self._httpd.settings.drain_seconds):
            log.info("%d players are still waiting; they get 503 and may ask again", len(self._state.tasks))
            self._httpd.client.stop()
            if not await self._tasks_end(_FAREWELL):
                for task in list(self._state.tasks):
                    task.cancel()
                await self._tasks_end(_CLOSING)
        for acceptor in self._acceptors:
            await acceptor.closed()
        await self._connections_end()
        self._date_timer.cancel()

    async def _tasks_end(self, timeout: float) -> bool:
        if tasks := set(self._state.tasks):
            await asyncio.wait(tasks, timeout=timeout)
        return all(task.done() for task in self._state.tasks)

    async def _connections_end(self) -> None:
        """Wait a moment for closing handshakes; idle HTTP connections are closed at once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _CLOSING
        while self._state.connections and loop.time() < until:
            for connection in list(self._state.connections):
                if isinstance(connection, GuardedHttp):
                    connection.shutdown()
            await asyncio.sleep(0.01)  # no player waits, and connections do not announce their end
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # connection_lost comes with the loop's next turn


async def serve(stop: asyncio.Event, extension: Extension | None = None) -> None:
    """Serve until `stop` is set. Raises `Unavailable` when NATS closes the connection for good."""
    settings = Settings.load()
    nats_settings = NatsSettings.from_environment()
    async with run_httpd(settings, nats_settings, extension) as httpd:
        await wait_for_any(stop, httpd.failed)
        if not stop.is_set():
            raise Unavailable("NATS has closed the connection for good; are the credentials still valid?")
        log.info("stopping; requests in flight have %.0f s", settings.drain_seconds)


def main(extension: Extension | None = None) -> NoReturn:
    """Run the service from the environment: `TIPOFF_HTTPD_*`, `NATS_*`. Exit code 1: NATS; 2: configuration."""
    raise_file_limit()
    run_service("httpd", partial(serve, extension=extension))
