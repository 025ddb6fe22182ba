"""Players over UDP: the thin driver around the sans-I/O netcode server.

Sockets are drained whenever they are readable, and what is to be sent goes out once per turn of the event loop, however
many messages the game sent meanwhile. Events reach the game in the order of their packets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tipoff_gameserver.players.admission import Grant, LookUp, Refusal
from tipoff_gameserver.players.roster import LeaveReason, Player
from tipoff_gameserver.throttled_log import Complaints
from tipoff_gameserver.transports import Host
from tipoff_gameserver.transports.sockets import bind
from tipoff_shared.netcode import (
    Address,
    AdmitRequest,
    Connected,
    Decision,
    Denial,
    Dialect,
    Disconnected,
    DisconnectReason,
    Payload,
    PrivateKey,
    Server,
    ServerEvent,
)
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

DRAINED_AT_ONCE = 512
"""Datagrams taken in before the event loop gets its turn again."""
MAX_LOOK_UPS = 64
_READ_BYTES = 2048
_SHORTEST_WAIT = 0.005

_REASONS = {
    DisconnectReason.BY_CLIENT: LeaveReason.LEFT,
    DisconnectReason.TIMED_OUT: LeaveReason.TIMED_OUT,
}


class UdpLink:
    """One client: its slot in the netcode server."""

    __slots__ = ("_transport", "address", "index")

    transport = "udp"
    rtt: float | None = None  # the client measures it, not we

    def __init__(self, transport: UdpTransport, index: int, address: Address) -> None:
        self.index = index
        self.address = str(address)
        self._transport = transport

    def send(self, data: bytes) -> None:
        self._transport.send(self.index, data)

    def close(self, code: int, reason: str) -> None:
        self._transport.disconnect(self.index)


class UdpTransport:
    """Made by `listen`."""

    def __init__(self, host: Host, tasks: Tasks, netcode: Server, sockets: list[socket.socket]) -> None:
        self.port: int = sockets[0].getsockname()[1]
        self.netcode = netcode
        self.datagrams_dropped = 0
        """Datagrams that the system would not take."""
        self._host = host
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._sockets = sockets
        self._by_family = {sock.family: sock for sock in sockets}
        self._default = sockets[0]
        self._one_family = len(self._by_family) == 1
        self._datagram_transports: list[asyncio.DatagramTransport] = []
        self._players: dict[int, Player] = {}
        self._grants: dict[bytes, Grant] = {}
        self._look_ups: set[bytes] = set()
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False
        self._complaints = Complaints()
        self._ignored_before: Counter[str] = Counter()

    @classmethod
    async def listen(
        cls,
        host: Host,
        bind_hosts: Sequence[str],
        port: int,
        *,
        tasks: Tasks,
        private_key: PrivateKey,
        protocol_id: int,
        dialect: Dialect,
        addresses: Callable[[int], Sequence[Address]] | None,
        max_clients: int,
        is_connected: Callable[[int], bool],
        has_room: Callable[[], bool],
    ) -> UdpTransport:
        """Start; `addresses(port)` are those that tokens name, None if they are not compared. Raises
        `ConfigError` when the port cannot be had."""
        sockets = bind(bind_hosts, port, socket.SOCK_DGRAM, "UDP")
        bound: int = sockets[0].getsockname()[1]
        own = None if addresses is None else addresses(bound)
        transport: UdpTransport

        def admission(request: AdmitRequest) -> Decision | Denial:
            return transport._judge(request)

        netcode = Server(
            private_key=private_key,
            protocol_id=protocol_id,
            addresses=own or (),
            max_clients=max_clients,
            dialect=dialect,
            used_tokens=host.admission.used_tokens,
            admission=admission,
            is_client_connected=is_connected,
            has_room=has_room,
            check_address=own is not None and dialect is Dialect.STANDARD,
            answer_keep_alives=True,
        )
        transport = cls(host, tasks, netcode, sockets)
        await transport._start_reading()
        return transport

    async def _start_reading(self) -> None:
        for sock in self._sockets:
            try:
                self._loop.add_reader(sock, self._readable, sock)
            except NotImplementedError:  # Windows' proactor loop reads by itself
                datagram_transport, _ = await self._loop.create_datagram_endpoint(
                    lambda: _Reader(self._received_one), sock=sock
                )
                self._datagram_transports.append(datagram_transport)

    def housekeeping(self, now: float) -> None:
        """Whoever is ignored hears nothing, so that nobody can probe us; operators should hear of it."""
        ignored = Counter(self.netcode.ignored)
        if ignored != self._ignored_before:
            reasons = ", ".join(
                f"{reason} {count}" for reason, count in (ignored - self._ignored_before).items()
            )
            if self._complaints.say("ignored", "handshakes not answered lately: %s", reasons):
                self._ignored_before = ignored

    async def close(self) -> None:
        if self._closed:
            return
        self.netcode.stop(self._now())
        self._flush()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for datagram_transport in self._datagram_transports:
            datagram_transport.close()
        for sock in self._sockets:
            if not self._datagram_transports:
                self._loop.remove_reader(sock)
                sock.close()

    # --- out --------------------------------------------------------------------------------------------------

    def send(self, index: int, data: bytes) -> None:
        self.netcode.send(index, data, self._now())
        self._flush_soon()

    def disconnect(self, index: int) -> None:
        self._players.pop(index, None)  # whoever hangs up knows already
        self.netcode.disconnect(index, self._now())
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out = self.netcode.datagrams_to_send()
        if out and not self._closed:
            if self._datagram_transports:
                for data, address in out:
                    self._datagram_transports[self._index_for(address)].sendto(data, address)
            elif self._one_family:
                self._send_all(self._default.sendto, out)
            else:
                for item in out:
                    sock = self._by_family.get(item[1].family, self._default)
                    self._send_all(sock.sendto, (item,))
        self._set_timer()

    def _send_all(self, sendto: Callable[[bytes, Any], int], out: Sequence[tuple[bytes, Address]]) -> None:
        for data, address in out:
            try:
                sendto(data, address)
            except (
                OSError
            ):  # buffer full, no route, or the peer's port is closed: a datagram may always get lost
                self.datagrams_dropped += 1

    def _index_for(self, address: Address) -> int:
        families = [sock.family for sock in self._sockets]
        return families.index(address.family) if address.family in families else 0

    # --- in ---------------------------------------------------------------------------------------------------

    def _readable(self, sock: socket.socket) -> None:
        receive = self.netcode.receive_datagram
        recvfrom = sock.recvfrom
        from_socket = Address.from_socket
        take_events = self.netcode.events
        now = self._now()
        for _ in range(DRAINED_AT_ONCE):
            try:
                data, sockaddr = recvfrom(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # Windows reports that an earlier datagram found nobody; the next one may be good
                continue
            receive(data, from_socket(sockaddr), now)
            if events := take_events():
                self._tell(events)
        self._flush()

    def _received_one(self, data: bytes, sockaddr: tuple[Any, ...]) -> None:
        self.netcode.receive_datagram(data, Address.from_socket(sockaddr), self._now())
        self._tell(self.netcode.events())
        self._flush()

    def _tell(self, events: Sequence[ServerEvent]) -> None:
        """Pass on what happened, after every single datagram: while the game hears of it, a slot must still belong to
        the client that the event is about."""
        players = self._players
        host = self._host
        for event in events:
            if isinstance(event, Payload):
                if (player := players.get(event.index)) is not None:
                    host.received(player, event.data)
            elif isinstance(event, Connected):
                self._connected(event)
            elif isinstance(event, Disconnected):
                if (player := players.pop(event.index, None)) is not None:
                    host.left(player, _REASONS.get(event.reason, LeaveReason.KICKED))
            else:
                self._look_up_later(event)

    def _set_timer(self) -> None:
        due = self.netcode.next_timeout()
        if self._closed or due == float("inf"):
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return  # early is fine: it then finds nothing due and is set again
            self._timer.cancel()
        self._timer_due = max(due, self._now() + _SHORTEST_WAIT)
        self._timer = self._loop.call_at(self._timer_due, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        self.netcode.update(self._now())
        self._tell(self.netcode.events())
        self._flush()

    # --- the way in -------------------------------------------------------------------------------------------

    def _judge(self, request: AdmitRequest) -> Decision | Denial:
        """Asked by netcode once for each valid, unused token."""
        if refusal := self._host.refusal(request.client_id):
            return Denial(refusal.deny)
        verdict = self._host.admission.judge(request.client_id, request.user_data)
        if isinstance(verdict, LookUp):
            return Decision.PENDING
        if isinstance(verdict, Refusal):
            log.info("refused %s: %s", request.address, verdict.text)
            return Denial(verdict.deny)
        return Decision.ADMIT

    def _connected(self, event: Connected) -> None:
        """The client proved its address. What was judged at the request is judged again: time has passed."""
        verdict = self._host.admission.judge(event.client_id, event.user_data)
        if isinstance(verdict, LookUp):
            verdict = self._grants.pop(event.token_tag, Refusal(403, "its session is not known"))
        refusal = verdict if isinstance(verdict, Refusal) else self._host.refusal(event.client_id)
        if refusal is not None:
            log.info("refused %s: %s", event.address, refusal.text)
            self.disconnect(event.index)
            return
        assert isinstance(verdict, Grant)
        player = self._host.seat(verdict, UdpLink(self, event.index, event.address))
        self._players[event.index] = player
        self._host.joined(player)

    def _look_up_later(self, request: AdmitRequest) -> None:
        if request.token_tag not in self._look_ups and len(self._look_ups) < MAX_LOOK_UPS:
            self._look_ups.add(request.token_tag)
            self._tasks.start(self._look_up(request), "look-up")

    async def _look_up(self, request: AdmitRequest) -> None:
        try:
            found = await self._host.look_up(request.client_id)
        finally:
            self._look_ups.discard(request.token_tag)
        now = self._now()
        if isinstance(found, Refusal):
            log.info("refused %s: %s", request.address, found.text)
            self.netcode.deny(request.id, Denial(found.deny), now)
        else:
            if len(self._grants) >= 4096:
                self._grants.clear()  # of clients that never answered their challenge
            self._grants[request.token_tag] = found
            self.netcode.admit(request.id, now)
        self._flush()


class _Reader(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, tuple[Any, ...]], None]) -> None:
        self.datagram_received = received  # type: ignore[method-assign,assignment]  # a shortcut past one call
