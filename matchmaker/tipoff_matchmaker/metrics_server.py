"""Serves `/metrics` for Prometheus: a thread for each connection, few at a time, and none for long.

When all are taken, or one address has its share, the oldest connection of the greediest address is closed: whoever
opens connections without end keeps the operator's Prometheus out for no longer than it takes to connect.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from tipoff_shared.admission.connection_shares import ConnectionShares

MAX_CONNECTIONS = 32
MAX_PER_ADDRESS = 8
TIMEOUT = 5.0
"""Seconds for a request, and for each part of the answer to be taken."""


class _Handler(WSGIRequestHandler):
    """One request, without a line on standard error."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what strangers send is not worth a line."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._shares = ConnectionShares[socket.socket](MAX_CONNECTIONS, MAX_PER_ADDRESS)
        self._lock = threading.Lock()
        super().__init__(*arguments, **options)

    def server_bind(self) -> None:
        """As `WSGIServer` does, without asking for this machine's name, which may take long."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for the connection, once there is a place for it."""
        with self._lock:
            eviction = self._shares.enter(request, ip_address(client_address[0]))
        if eviction is not None:
            _cut(eviction.connection)
            if eviction.connection is request:
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection has ended."""
        with self._lock:
            self._shares.leave(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that sends nonsense, is too slow or hangs up is no error of ours."""


def _cut(connection: socket.socket) -> None:
    """Its thread reads the end, and closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(registry: CollectorRegistry, host: str, port: int, *, timeout: float = TIMEOUT) -> Iterator[int]:
    """Serve for the time of the block; yields the port. Raises `OSError` when it cannot listen there."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

    class Server(_Server):
        address_family = family

    class Handler(_Handler):
        pass

    Handler.timeout = timeout  # socketserver gives it to the socket

    app = make_wsgi_app(registry)
    server = make_server(str(address[0]), port, app, server_class=Server, handler_class=Handler)
    # Whoever stops it waits for one interval at most.
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
