"""What /metrics says of the turn relay. Labels are the protocol's error codes: few for ever."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class TurnMetrics:
    """Counters are bound once for each code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._answers = Counter(
            "tipoff_turn_answers",
            "Requests to the turn relay, by the error of the answer (0: none)",
            ["error"],
            registry=registry,
        )
        self._known: dict[int, Counter] = {}

    def observe(self, *, players: Callable[[], float], games: Callable[[], float]) -> None:
        """Gauges that are read when somebody asks."""
        for name, text, read in (
            ("tipoff_turn_players", "Players in the pairing list, as last seen by this process", players),
            ("tipoff_turn_games", "Games whose last state this process keeps", games),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)

    def answered(self, error: int) -> None:
        counter = self._known.get(error)
        if counter is None:
            counter = self._known[error] = self._answers.labels(str(int(error)))
        counter.inc()
