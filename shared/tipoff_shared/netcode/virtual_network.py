"""Simulates a network in virtual time, with loss, delay, reordering and duplicates, for tests and benchmarks.

Endpoints are driven exactly as a real driver would: every datagram is passed in, ``update`` is called at
``next_timeout`` and never between. Nothing waits; an hour passes in the time its datagrams take to compute.
"""

from __future__ import annotations

import heapq
import random
from typing import NamedTuple, Protocol

from .addresses import Address


class Endpoint(Protocol):
    """The interface that Client and Server share."""

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take in one datagram; `now` is in monotonic seconds."""
        ...

    def update(self, now: float) -> None:
        """Do what is due by `now`."""
        ...

    def next_timeout(self) -> float:
        """When ``update`` must be called next; infinity for never."""
        ...

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        """Datagrams and their targets; each is returned once."""
        ...


class Datagram(NamedTuple):
    """A datagram that was sent, whether or not it arrived."""

    sent: float
    source: Address
    target: Address
    data: bytes


class VirtualNetwork:
    """`loss` and `duplication` are probabilities, `delay` seconds one way, `jitter` up to so many more (reordering)."""

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.loss = loss
        self.duplication = duplication
        self.delay = delay
        self.jitter = jitter
        self.sent: list[Datagram] = []
        self._random = random.Random(seed)
        self._endpoints: dict[Address, Endpoint] = {}
        self._in_flight: list[tuple[float, int, Datagram]] = []
        self._count = 0

    def attach(self, address: Address, endpoint: Endpoint) -> None:
        """Put an endpoint at an address; what it wants to send goes out at the next ``advance``."""
        self._endpoints[address] = endpoint

    def detach(self, address: Address) -> None:
        """Remove the endpoint at an address; datagrams that it has sent still arrive."""
        del self._endpoints[address]

    def inject(self, data: bytes, source: Address, target: Address) -> None:
        """Send a datagram with any source address, as an attacker would."""
        self._send(Datagram(self.now, source, target, data))

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises RuntimeError when an endpoint requests update after update without time passing.
        """
        until = self.now + seconds
        turns_at_once = 0
        while True:
            self._collect()
            due = min((endpoint.next_timeout() for endpoint in self._endpoints.values()), default=until)
            due = min(due, self._in_flight[0][0]) if self._in_flight else due
            if due > until:
                break
            turns_at_once = turns_at_once + 1 if due <= self.now else 0
            if turns_at_once > 10_000:
                raise RuntimeError(f"time stands still at {self.now}: an endpoint is never done")
            self.now = max(self.now, due)
            self._deliver()
            for endpoint in list(self._endpoints.values()):
                if endpoint.next_timeout() <= self.now:
                    endpoint.update(self.now)
        self.now = until

    def _collect(self) -> None:
        for source, endpoint in list(self._endpoints.items()):
            for data, target in endpoint.datagrams_to_send():
                self._send(Datagram(self.now, source, target, data))

    def _send(self, datagram: Datagram) -> None:
        self.sent.append(datagram)
        copies = 2 if self._random.random() < self.duplication else 1
        for _ in range(copies):
            if self._random.random() >= self.loss:
                self._count += 1
                arrival = self.now + self.delay + self._random.random() * self.jitter
                heapq.heappush(self._in_flight, (arrival, self._count, datagram))

    def _deliver(self) -> None:
        while self._in_flight and self._in_flight[0][0] <= self.now:
            datagram = heapq.heappop(self._in_flight)[2]
            endpoint = self._endpoints.get(datagram.target)
            if endpoint is not None:
                endpoint.receive_datagram(datagram.data, datagram.source, self.now)
