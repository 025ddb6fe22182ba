"""What Prometheus may read: counters of one matchmaker, and the records as its last reconciliation saw them."""

from __future__ import annotations

import asyncio
from collections import Counter as Count
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tipoff_matchmaker import metrics_server
from tipoff_shared.primitives.circuit_breaker import BreakerState
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord, SessionState
from tipoff_shared.session_end import EndCause

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One registry per matchmaker, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tipoff_matchmaker_requests",
            "Play requests answered, by outcome: ready, or the error's code",
            ["outcome"],
            registry=self.registry,
        )
        seconds = Histogram(
            "tipoff_matchmaker_request_seconds",
            "Seconds from a play request to its answer, warm: a seat was free at once",
            ["warm"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        # Looked up once: these are counted for every play.
        self._ready = self._requests.labels("ready")
        self._warm, self._cold = seconds.labels("yes"), seconds.labels("no")
        self.in_flight = Gauge(
            "tipoff_matchmaker_requests_in_flight", "Play requests in hand", registry=self.registry
        )
        self.brake = Counter(
            "tipoff_matchmaker_brake", "Servers the reconciler did not end at once", registry=self.registry
        )
        self._sessions = Gauge(
            "tipoff_sessions",
            "Sessions by state, as the last listing saw them",
            ["state"],
            registry=self.registry,
        )
        self._deployments = Gauge(
            "tipoff_deployments", "Deployments by state", ["game", "version", "state"], registry=self.registry
        )
        self._breakers = Gauge(
            "tipoff_orchestrator_breaker",
            "Calls to an orchestrator that are left out for a while because they keep failing: 0 closed, 1 open",
            ["orchestrator", "operation"],
            registry=self.registry,
        )
        self._orchestrator_errors = Counter(
            "tipoff_orchestrator_errors",
            "Calls to an orchestrator that failed: no answer, none that can be used, or not now",
            ["orchestrator", "operation"],
            registry=self.registry,
        )
        self.unheard = Gauge(
            "tipoff_gameservers_unheard",
            "1 while events of isolated game servers were not read up to now lately: none is ended for its silence",
            registry=self.registry,
        )
        self._events_refused = Counter(
            "tipoff_gameserver_events_refused",
            "Events of game servers that were not theirs to send (403) or could not be read (400)",
            ["code"],
            registry=self.registry,
        )
        self._claim_limit = Counter(
            "tipoff_matchmaker_claim_limit",
            "How often one address was kept to its share of unclaimed seats: limited (its players wait), refused "
            "(429), shortened (a seat is held for a shorter time)",
            ["action"],
            registry=self.registry,
        )
        self._ended = Counter(
            "tipoff_matchmaker_sessions_ended",
            f"Sessions that ended, by cause: {', '.join(EndCause)}",
            ["cause"],
            registry=self.registry,
        )
        self._seats = Gauge("tipoff_seats_taken", "Seats taken", ["game", "version"], registry=self.registry)

    def answered(self, seconds: float, *, warm: bool) -> None:
        """A play request led to a seat."""
        self._ready.inc()
        (self._warm if warm else self._cold).observe(seconds)

    def refused(self, code: int) -> None:
        """A play request was answered by an error."""
        self._requests.labels(str(code)).inc()

    def breaker_changed(self, orchestrator: str, operation: str, state: BreakerState) -> None:
        """A circuit breaker has another state."""
        self._breakers.labels(orchestrator, operation).set(state is not BreakerState.CLOSED)

    def orchestrator_failed(self, orchestrator: str, operation: str) -> None:
        """A call to an orchestrator has failed."""
        self._orchestrator_errors.labels(orchestrator, operation).inc()

    def event_refused(self, code: int) -> None:
        """An event of a game server was refused with this error code."""
        self._events_refused.labels(str(code)).inc()

    def session_ended(self, record: SessionRecord) -> None:
        """A session's end was written."""
        self._ended.labels(record.cause).inc()

    def sessions_seen(self, records: Iterable[SessionRecord]) -> None:
        """Count all sessions by state."""
        counts = Count(record.state for record in records)
        for state in SessionState:
            self._sessions.labels(state).set(counts[state])

    def deployments_seen(self, records: Iterable[DeploymentRecord]) -> None:
        """Count all deployments by state, and their seats."""
        seen = list(records)
        counts = Count((r.game, r.version, r.state) for r in seen)
        seats: Count[tuple[str, str]] = Count()
        for record in seen:
            seats[record.game, record.version] += len(record.seats)
        for (game, version), taken in seats.items():
            self._seats.labels(game, version).set(taken)
            for state in DeploymentState:
                self._deployments.labels(game, version, state).set(counts[game, version, state])

    def claim_limit_acted(self, action: str) -> None:
        """An address was kept to its share of unclaimed seats."""
        self._claim_limit.labels(action).inc()

    def count_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Add a gauge with the number of this loop's tasks. It may be read in any thread."""
        gauge = Gauge(
            "tipoff_matchmaker_tasks",
            "Tasks of the event loop: steady while the load is",
            registry=self.registry,
        )
        gauge.set_function(lambda: len(asyncio.all_tasks(loop)))

    @contextmanager
    def serve(self, host: str, port: int) -> Iterator[None]:
        """`/metrics` on threads of its own for the time of the block; nothing when `port` is 0. Called in the event
        loop whose tasks are counted."""
        if not port:
            yield
            return
        self.count_tasks(asyncio.get_running_loop())
        with metrics_server.serve(self.registry, host, port):
            yield
