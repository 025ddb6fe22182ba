"""Keeps the keys of a JWKS URL: fetched once for all, again when they are old, and for a key that is unknown.

    known key, set younger than REFRESH       used at once
    known key, older set                      used at once; the set is fetched beside
    set older than LONGEST_USE, or none       the player waits for a fetch
    unknown key                               a fetch, at most one every UNKNOWN_EVERY for all such tokens

While the URL does not answer, known keys are used up to LONGEST_USE; a breaker spares it the calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import httpx

from tipoff_matchmaker_httpd.login.interface import failed
from tipoff_matchmaker_httpd.login.key_set import (
    MAX_KEY_SET,
    UnusableKeys,
    VerifyKey,
    choose_key,
    read_key_set,
)
from tipoff_shared.errors import LoginReason, Unavailable
from tipoff_shared.http_exchange import UnusableAnswer, exchange, make_client
from tipoff_shared.primitives.circuit_breaker import Breaker
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.text import describe, one_line
from tipoff_shared.primitives.throttled_log import ThrottledLog
from tipoff_shared.primitives.token_bucket import TokenBucket

log = logging.getLogger(__name__)

REFRESH = 300.0
"""Seconds after which the set is fetched again."""
LONGEST_USE = 24 * 3600.0
"""Seconds for which a set is used while it cannot be fetched."""
UNKNOWN_EVERY = 5.0
"""Seconds between two fetches for keys that are unknown."""
_SET = "keys"
"""The one key of the single flight."""


class WebKeys:
    """The keys at one URL. Made by `open_web_keys`. `clock` returns seconds."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        flight: SingleFlight[str, None],
        *,
        timeout: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.fetches = 0
        """How often the URL was asked."""
        self._client = client
        self._url = url
        self._flight = flight
        self._timeout = timeout
        self._clock = clock
        self._keys: tuple[VerifyKey, ...] = ()
        self._fetched_at = float("-inf")
        self._breaker = Breaker(threshold=3)
        self._unknown = TokenBucket(1 / UNKNOWN_EVERY)
        self._log = ThrottledLog(log)

    async def key(self, kid: str | None, algorithm: str) -> VerifyKey:
        """The key for a token with this header. Raises `NotAuthenticated` when the set has none, `Unavailable` while
        the set cannot be fetched. Cancelling is safe."""
        age = self._clock() - self._fetched_at
        if age > LONGEST_USE:
            await self._fetch_now()
        elif age > REFRESH:
            self.refresh()
        if (found := choose_key(self._keys, kid, algorithm)) is not None:
            return found
        if age <= LONGEST_USE:
            await self._fetch_for_unknown()
            if (found := choose_key(self._keys, kid, algorithm)) is not None:
                return found
        raise failed(
            LoginReason.UNKNOWN_KEY,
            "no key of this server's issuer has signed this login token; log in again, at the right place",
        )

    def refresh(self) -> None:
        """Fetch the set beside, unless the URL is being spared."""
        if _SET not in self._flight and not self._breaker.wait(self._clock()):
            self._flight.start(_SET, self._fetch)

    async def _fetch_now(self) -> None:
        await self._flight.run(_SET, self._fetch)

    async def _fetch_for_unknown(self) -> None:
        now = self._clock()
        if _SET not in self._flight and self._unknown.take(now) is None:
            raise failed(
                LoginReason.UNKNOWN_KEY,
                "the key that signed this login token is unknown here so far; try again in a moment, or log in again",
                retry_after=self._unknown.wait(now),
            )
        await self._fetch_now()

    async def _fetch(self) -> None:
        """One fetch, with its deadline. Raises `Unavailable`; the keys stay as they were then."""
        if wait := self._breaker.admit(self._clock()):
            raise Unavailable("logins cannot be checked at the moment; try again soon", retry_after=wait)
        self.fetches += 1
        try:
            async with asyncio.timeout(self._timeout):
                status, _, body = await exchange(self._client, "GET", self._url, most=MAX_KEY_SET)
            if status != 200:
                raise UnusableKeys(f"the answer is {status}")
            keys = read_key_set(body)
        except asyncio.CancelledError:
            self._breaker.abandoned(self._clock())
            raise
        except (httpx.HTTPError, httpx.InvalidURL, UnusableAnswer, UnusableKeys, TimeoutError) as exc:
            why = _why(exc, self._timeout)
            self._breaker.failed(self._clock(), why)
            self._log.warning("keys", "TIPOFF_HTTPD_AUTH_JWKS_URL: the keys cannot be fetched: %s", why)
            raise Unavailable(
                "logins cannot be checked at the moment; try again soon", retry_after=2
            ) from None
        self._breaker.succeeded()
        self._keys, self._fetched_at = keys, self._clock()


def _why(exc: Exception, timeout: float) -> str:
    if isinstance(exc, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(exc, UnusableAnswer):
        return f"the answer {exc}"
    return one_line(describe(exc), 200)


@asynccontextmanager
async def open_web_keys(
    url: str, *, timeout: float, clock: Callable[[], float] = monotonic
) -> AsyncIterator[WebKeys]:
    """The keys at `url`, for the time of the block; the first fetch begins at once. `timeout`: seconds for one."""
    async with (
        make_client(timeout=timeout, limits=httpx.Limits(max_connections=2)) as client,
        SingleFlight[str, None]("login keys") as flight,
    ):
        keys = WebKeys(client, url, flight, timeout=timeout, clock=clock)
        keys.refresh()
        yield keys
