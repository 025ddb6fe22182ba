"""Decides who may ask the turn relay now, and counts what it answers: the same for both protocols."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter
from starlette.types import Scope

from tipoff_shared.admission.client_address import Address, AddressRule, scope_address
from tipoff_shared.admission.connection_shares import ConnectionShares
from tipoff_shared.admission.limits import RETRY_AFTER, ConcurrencyLimit, RateLimit, address_key
from tipoff_shared.errors import SlowDown, Unavailable


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
        check_ban: Callable[[str], None],
    ) -> None:
        """`places`: those of the whole service; each long poll takes one, and all of them at most half.
        `check_ban(address)` raises `NotAllowed` where players are banned."""
        self._addresses = addresses
        self._check_ban = check_ban
        self._requests = RateLimit(settings.requests_per_second, 2 * settings.requests_per_second)
        self._registrations = RateLimit(
            settings.registrations_per_minute / 60, settings.registrations_per_minute
        )
        self._places = places
        self._polls = ConnectionShares[asyncio.Timeout](max(1, places.most // 2), places.most_per_address)
        self._answers = Counter(
            "tipoff_turn_answers",
            "Requests to the turn relay, by the error of the answer (0: none)",
            ["error"],
            registry=registry,
        )
        self._by_error: dict[int, Counter] = {}

    def admit(self, scope: Scope, *, registers: bool = False) -> Address:
        """The address of the player, whose request counts. Raises `SlowDown` when there are too many of them, and
        `NotAllowed`, with the reason and the end of the ban, when players there are banned."""
        address = scope_address(scope, self._addresses)
        self._check_ban(str(address))
        key, now = address_key(address), time.monotonic()
        if wait := self._requests.take(key, now):
            raise SlowDown("too many requests from one address", retry_after=wait)
        if registers and (wait := self._registrations.take(key, now)):
            raise SlowDown("too many registrations from one address", retry_after=wait)
        return address

    @asynccontextmanager
    async def poll(self, address: Address) -> AsyncIterator[None]:
        """A place for a long poll of that address, for the time of the block.

        Raises `SlowDown` when the address has too many, `Unavailable` when there is none, also in the middle of the
        block: when all places for long polls are taken, the oldest poll of the address that holds most ends. Raises
        `NotAllowed` at the end of the block when the address was banned meanwhile.
        """
        poll = asyncio.timeout(None)
        try:
            async with poll:
                self._claim(poll, address)
                try:
                    place = self._places.enter(address)
                    try:
                        yield
                    finally:
                        self._places.leave(place)
                    self._check_ban(str(address))
                finally:
                    self._polls.leave(poll)
        except TimeoutError as exc:
            if not poll.expired():
                raise  # the block's own
            raise _too_many() from exc

    def _claim(self, poll: asyncio.Timeout, address: Address) -> None:
        eviction = self._polls.claim(poll, address)
        if eviction is None:
            return
        if eviction.over_share:
            most = self._polls.most_per_address
            raise SlowDown(f"at most {most} long polls at once from one address", retry_after=RETRY_AFTER)
        if eviction.connection is poll:
            raise _too_many()
        eviction.connection.reschedule(asyncio.get_running_loop().time())

    def answered(self, error: int) -> None:
        """Count an answer with this error code; 0 means success."""
        counter = self._by_error.get(error)
        if counter is None:
            counter = self._by_error[error] = self._answers.labels(str(int(error)))
        counter.inc()


def _too_many() -> Unavailable:
    return Unavailable("too many long polls; send the same again in a moment", retry_after=RETRY_AFTER)
