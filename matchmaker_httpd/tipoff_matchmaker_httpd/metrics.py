"""Counts what an operator's Prometheus reads at /metrics.

Each httpd has its own registry, so that two in one process do not mix. No label holds anything that a player can
choose, so the number of labels stays small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one httpd. Labelled counters are kept, because looking one up costs more than counting."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "tipoff_httpd_requests",
            "Requests for a seat that came to an end, by way in and outcome (200: a seat; 499: the player left)",
            ["transport", "code"],
            registry=self.registry,
        )
        self._refused = Counter(
            "tipoff_httpd_refused_connections",
            "Connections ended for what they sent or did not send",
            ["reason"],
            registry=self.registry,
        )
        self._logins = Counter(
            "tipoff_httpd_logins",
            "Logins that were checked, by outcome: ok, why one failed, or the code of another error",
            ["outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tipoff_httpd_ready_seconds",
            "From a request to its SessionReady",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._known: dict[tuple[str, int], Counter] = {}

    def observe(
        self, *, in_flight: Callable[[], float], connections: Callable[[], float], nats: Callable[[], float]
    ) -> None:
        """Register the gauges; each function is called when the metrics are read."""
        for name, text, read in (
            ("tipoff_httpd_requests_in_flight", "Players being served or waiting", in_flight),
            ("tipoff_httpd_connections", "Open sockets", connections),
            ("tipoff_httpd_nats_connected", "1 while NATS is connected", nats),
            ("tipoff_httpd_tasks", "Tasks of the event loop: steady while the load is", _tasks),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def finished(self, transport: str, code: int, seconds: float) -> None:
        """Count a request that has ended. `transport`: websocket, stream or wannaplay; `code` is 200 for a seat."""
        counter = self._known.get((transport, code))
        if counter is None:
            counter = self._known[transport, code] = self._requests.labels(transport, str(code))
        counter.inc()
        if code == 200:
            self._seconds.observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a connection that was ended for `reason`, one of a few fixed words."""
        self._refused.labels(reason).inc()

    def login(self, outcome: str) -> None:
        """Count a login that was checked. `outcome`: ok, a `LoginReason`, or the code of another error."""
        self._logins.labels(outcome).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def _tasks() -> float:
    return len(asyncio.all_tasks())
