"""Decides who may ask the turn relay now, and counts what it answers: the same for both protocols."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter
from starlette.types import Scope

from tipoff_shared.admission.client_address import Address, AddressRule, scope_address
from tipoff_shared.admission.limits import ConcurrencyLimit, RateLimit, address_key
from tipoff_shared.errors import SlowDown


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """The turn relay's settings. Rates are per client address; 0 means no limit."""

    requests_per_second: float = 300.0
    """In the long run; twice as many at once."""
    registrations_per_minute: float = 120.0
    """The same for registrations, as many at once."""
    nats_patience: float = 1.5
    """Seconds for which a request waits for a lost NATS connection."""


class TurnAdmission:
    """The rates of the client addresses, the places for long polls, and the counter of answers."""

    def __init__(
        self,
        settings: TurnSettings,
        addresses: AddressRule,
        places: ConcurrencyLimit,
        registry: CollectorRegistry,
    ) -> None:
        """`places`: those of the whole service; each long poll takes one."""
        self._addresses = addresses
        self._requests = RateLimit(settings.requests_per_second, 2 * settings.requests_per_second)
        self._registrations = RateLimit(
            settings.registrations_per_minute / 60, settings.registrations_per_minute
        )
        self.places = places
        self._answers = Counter(
            "tipoff_turn_answers",
            "Requests to the turn relay, by the error of the answer (0: none)",
            ["error"],
            registry=registry,
        )
        self._by_error: dict[int, Counter] = {}

    def admit(self, scope: Scope, *, registers: bool = False) -> Address:
        """The address of the player, whose request counts. Raises `SlowDown` when there are too many of them."""
        address = scope_address(scope, self._addresses)
        key, now = address_key(address), time.monotonic()
        if wait := self._requests.take(key, now):
            raise SlowDown("too many requests from one address", retry_after=wait)
        if registers and (wait := self._registrations.take(key, now)):
            raise SlowDown("too many registrations from one address", retry_after=wait)
        return address

    def answered(self, error: int) -> None:
        """Count an answer with this error code; 0 means success."""
        counter = self._by_error.get(error)
        if counter is None:
            counter = self._by_error[error] = self._answers.labels(str(int(error)))
        counter.inc()
