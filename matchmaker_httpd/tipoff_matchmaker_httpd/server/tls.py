"""Accepts TLS connections. A socket has its place from the moment it is accepted, not from the end of its handshake.

asyncio's own server makes a protocol only after the handshake. Until then nobody would count the socket, and a client
that never begins its handshake would be held for free.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from tipoff_matchmaker_httpd.admission.places import Place, Places
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.errors import TipoffError
from tipoff_shared.primitives.text import one_line
from tipoff_shared.primitives.waiting import cancel_all

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Sockets accepted before the event loop does something else."""
_PAUSE = 0.5
"""Seconds without accepting when the process has no file or memory left for another socket."""
_SHUTDOWN = 2.0
"""Seconds for the client's part of a TLS shutdown."""


class TlsAcceptor:
    """The accepting side of one listening socket, over TLS."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[Place], asyncio.Protocol],
        state: HttpdState,
        places: Places,
    ) -> None:
        """`protocol` makes the protocol of a socket whose handshake is complete."""
        self._sock = sock
        self._context = context
        self._protocol = protocol
        self._state = state
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Accept nothing more. Handshakes go on until `closed`."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())

    async def closed(self) -> None:
        """End the handshakes that are not complete."""
        for conn in self._handshakes.values():
            _hang_up(conn)
        if self._handshakes:
            await asyncio.wait(set(self._handshakes), timeout=_SHUTDOWN)
        await cancel_all(set(self._handshakes), _SHUTDOWN)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                conn, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                self._state.log.warning("accept", "cannot accept connections: %s", exc)
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(_PAUSE, self._resume)
                return
            peer = address[0] if isinstance(address, tuple) else None
            if self._places.refusal(peer) is not None:
                conn.close()
                continue
            conn.setblocking(False)
            place = self._places.enter(peer, partial(_evict, conn))
            task = self._loop.create_task(self._handshake(conn, place))
            self._handshakes[task] = conn
            task.add_done_callback(self._handshakes.pop)

    async def _handshake(self, conn: socket.socket, place: Place) -> None:
        settings = self._state.settings
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(place),
                conn,
                ssl=self._context,
                # A client that never finishes its handshake is an idle client, too.
                ssl_handshake_timeout=settings.head_timeout if place.refusal is None else settings.linger,
                ssl_shutdown_timeout=_SHUTDOWN,
            )
        except OSError as exc:  # SSLError is one, and so is a client that hangs up
            place.leave()
            self._state.metrics.refused("tls handshake")
            if isinstance(exc, ssl.SSLError):
                self._state.log.warning("tls", "a TLS handshake failed: %s", one_line(str(exc)))
        except BaseException:
            place.leave()
            raise


def _evict(conn: socket.socket, _: TipoffError) -> None:
    _hang_up(conn)


def _hang_up(conn: socket.socket) -> None:
    """End a handshake. uvloop does not close the socket of one that is cancelled."""
    with suppress(OSError):  # the client was faster
        conn.shutdown(socket.SHUT_RDWR)
