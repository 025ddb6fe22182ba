"""What the endpoints of one httpd share: settings, rules, counters, and (while it runs) the way to the matchmakers."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable

from tipoff_matchmaker_httpd.admission.origin import OriginRule
from tipoff_matchmaker_httpd.matchmaker.client import Calls
from tipoff_matchmaker_httpd.matchmaker.feedback import Call
from tipoff_matchmaker_httpd.metrics import Metrics
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.admission.client_address import Address
from tipoff_shared.admission.limits import ConcurrencyLimit, RateLimit
from tipoff_shared.errors import SlowDown, Unavailable
from tipoff_shared.messages import PlayRequest
from tipoff_shared.names import new_request_id
from tipoff_shared.nats.connection import Bus
from tipoff_shared.subjects import REQUEST_ID_HEADER, TRACEPARENT_HEADER

_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00."""


class Httpd:
    """`bus` and `calls` exist while the app's lifespan runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.addresses = settings.address_rule
        self.origins = OriginRule.from_settings(settings)
        self.limits = ConcurrencyLimit(settings.max_requests, settings.max_requests_per_address)
        self._rate = RateLimit(settings.requests_per_second, settings.request_burst)
        self.metrics = Metrics()
        self.draining = asyncio.Event()
        """Set when the process is about to end: nothing new is begun."""
        self.first_messages: set[asyncio.Timeout] = set()
        """The waits for a first message; `drain` ends them."""
        self.on_drain: list[Callable[[], None]] = []
        self.connections = 0
        """Open sockets, counted by the protocol."""
        self.body_limits: dict[bytes, int] = {}
        """Path, or beginning of paths with a `/` at its end -> bytes of a body there, where it is not what every
        other path allows."""
        self._bus: Bus | None = None
        self._calls: Calls | None = None
        self.metrics.observe(
            in_flight=lambda: self.limits.inside,
            connections=lambda: self.connections,
            nats=lambda: float(self._bus is not None and self._bus.connected),
        )

    @property
    def bus(self) -> Bus:
        if self._bus is None:
            raise Unavailable("httpd is not running", retry_after=1)
        return self._bus

    def running_on(self, bus: Bus | None, calls: Calls | None) -> None:
        self._bus, self._calls = bus, calls

    def admit(self, address: Address) -> str:
        """A place for a player's request, to be given back by `limits.leave`. Raises `Unavailable` when the process
        is full, `SlowDown` when the address asks too often or has too many; both say when to come back."""
        place = self.limits.enter(address)
        if place and (wait := self._rate.take(place, time.monotonic())):
            self.limits.leave(place)
            raise SlowDown(
                "too many requests from your address; try again in a moment", retry_after=max(1.0, wait)
            )
        return place

    def call(self, request: PlayRequest, address: str, traceparent: str | None) -> Call:
        """A call for a player at `address` (resolved). The request id travels in a header alone: it is a secret
        of the player's, and what is logged or shown of a request is its payload."""
        if self._calls is None or self.draining.is_set():
            raise Unavailable("this server is going away; ask again", retry_after=1)
        headers = {
            REQUEST_ID_HEADER: request.request_id or new_request_id(),
            TRACEPARENT_HEADER: traceparent or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        }
        request.client_ip = address
        request.request_id = None
        return self._calls.call(request, headers)

    def drain(self) -> None:
        """Begin nothing new; who has not asked yet is sent away. Requests in flight go on."""
        self.draining.set()
        now = asyncio.get_running_loop().time()
        for wait in self.first_messages:
            wait.reschedule(now)
        for callback in self.on_drain:
            callback()

    def max_body(self, path: bytes, otherwise: int) -> int:
        path = path.partition(b"?")[0]
        for place, limit in self.body_limits.items():
            if path == place or (place.endswith(b"/") and path.startswith(place)):
                return limit
        return otherwise

    def end_calls(self) -> None:
        if self._calls is not None:
            self._calls.going_away()


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def traceparent(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The caller's trace, when it is well formed."""
    for key, value in headers:
        if key == b"traceparent" and _TRACEPARENT.fullmatch(value):
            return value.decode("ascii")
    return None
