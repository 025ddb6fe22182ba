"""Connects by bare netcode, has payloads echoed, and measures that; `tipoff connect` prints the report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
from dataclasses import dataclass, field
from typing import Any

from tipoff.interop.udp_driver import UdpDriver, bind_udp
from tipoff_shared.netcode import (
    Address,
    Client,
    ClientState,
    ConnectToken,
    NetcodeError,
    Payload,
    StateChanged,
)

TRIES = 5
ECHO_PATIENCE = 0.5
"""Seconds after which an echo counts as lost; a payload is sent at most TRIES times."""


class ConnectFailed(NetcodeError):
    """There was no connection, it ended too early, or an echo did not arrive."""


@dataclass
class Report:
    """The measurements so far, in seconds."""

    server: Address | None = None
    connected_after: float | None = None
    client_index: int | None = None
    max_clients: int | None = None
    echoes: int = 0
    repeated: int = 0
    round_trips: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values, with times in milliseconds."""

        def milliseconds(seconds: float | None) -> float | None:
            return None if seconds is None else round(1000 * seconds, 3)

        trips = sorted(self.round_trips)
        return {
            "server": None if self.server is None else str(self.server),
            "connected_ms": milliseconds(self.connected_after),
            "client_index": self.client_index,
            "max_clients": self.max_clients,
            "echoes": self.echoes,
            "repeated": self.repeated,
            "rtt_min_ms": milliseconds(trips[0]) if trips else None,
            "rtt_median_ms": milliseconds(statistics.median(trips)) if trips else None,
            "rtt_max_ms": milliseconds(trips[-1]) if trips else None,
        }

    def text(self) -> str:
        """The report for people, of a client that was connected."""
        values = self.as_dict()
        lines = [f"connected to {values['server']} in {values['connected_ms']} ms"]
        if self.client_index is not None:
            lines[0] += f", slot {self.client_index} of {self.max_clients}"
        if self.round_trips:
            lines.append(
                f"{self.echoes} echoes, {self.repeated} payloads sent again, round trip min {values['rtt_min_ms']}"
                f" median {values['rtt_median_ms']} max {values['rtt_max_ms']} ms"
            )
        return "\n".join(lines)


async def connect_and_echo(
    token: ConnectToken, report: Report, *, count: int, size: int, timeout: float
) -> None:
    """Connect, have `count` payloads of `size` bytes echoed one after the other, disconnect.

    Fills `report` on the way. Raises `ConnectFailed`.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    client = Client(token, now=started)
    ends = EchoEnd(client)
    driver = UdpDriver(client, ends.handle)
    try:
        await driver.open([bind_udp(Address(host, 0)) for host in _local_hosts(token.addresses)])
        try:
            async with asyncio.timeout(timeout):
                await ends.connected
        except TimeoutError:
            raise ConnectFailed(
                f"no connection within {timeout:g} s; last dialled {client.server_address}"
            ) from None
        report.server = client.server_address
        report.connected_after = loop.time() - started
        report.client_index, report.max_clients = client.client_index, client.max_clients
        for number in range(count):
            payload = number.to_bytes(8, "little") + os.urandom(size - 8)
            await _echo_one(payload, ends, driver, report)
    finally:
        client.disconnect(loop.time())
        await driver.close()


async def _echo_one(payload: bytes, ends: EchoEnd, driver: UdpDriver, report: Report) -> None:
    loop = asyncio.get_running_loop()
    for attempt in range(TRIES):
        sent = loop.time()
        echoed = ends.send(payload)
        driver.pump()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ECHO_PATIENCE):
                await echoed
            report.echoes += 1
            if attempt == 0:  # for a repeated payload the answered sending is unknown
                report.round_trips.append(loop.time() - sent)
            return
        report.repeated += 1
    raise ConnectFailed(f"payload {report.echoes + 1} was not echoed, though sent {TRIES} times")


def _local_hosts(addresses: tuple[Address, ...]) -> list[str]:
    """A wildcard address for each address family to dial."""
    return sorted({"::" if ":" in address.host else "0.0.0.0" for address in addresses})  # noqa: S104 # to dial from


class EchoEnd:
    """Turns a client's events into futures: connected, echoed, or failed with `ConnectFailed`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = self._loop.create_future()
        self._echoed: asyncio.Future[None] = self._loop.create_future()
        self._expected = b""

    def send(self, payload: bytes) -> asyncio.Future[None]:
        """Send a payload; the future is done when its echo arrives."""
        self._expected = payload
        self._echoed = self._loop.create_future()
        if not self._client.send(payload, self._loop.time()):
            self._fail(self._echoed)
        return self._echoed

    def handle(self, event: Any) -> None:
        """Take an event of the client."""
        if isinstance(event, Payload):
            if event.data == self._expected and not self._echoed.done():
                self._echoed.set_result(None)
        elif isinstance(event, StateChanged):
            if event.state is ClientState.CONNECTED:
                if not self.connected.done():  # a time-out may just have cancelled it
                    self.connected.set_result(None)
            elif event.state <= ClientState.DISCONNECTED:
                self._fail(self.connected)
                self._fail(self._echoed)

    def _fail(self, waiting: asyncio.Future[None]) -> None:
        if not waiting.done():
            waiting.set_exception(ConnectFailed(self._client.failure or "the connection is closed"))
            waiting.exception()  # marks it as retrieved: there may be no waiter
