"""Asks the operator's own URL who a player is: one POST with the player's credential, bounded and remembered.

    POST URL   {"auth": {...}, "address": "203.0.113.7"}
    200        {"user_id": "ann", "name": "Ann"}           who it is
    401, 403   {"reason": "..."}                           refused; the player reads the reason

Answers are remembered under a keyed digest of the credential, never the credential. An address may have a few calls
at a time, so that nobody uses up all of them; equal credentials share one call; a breaker spares a URL that is down.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import httpx
import msgspec

from tipoff_matchmaker_httpd.login.interface import Identity, failed, identity_of, missing
from tipoff_shared.admission.client_address import Address
from tipoff_shared.admission.limits import ConcurrencyLimit
from tipoff_shared.errors import LoginReason, Malformed, NotAuthenticated, Unavailable
from tipoff_shared.http_exchange import UnusableAnswer, exchange, make_client
from tipoff_shared.primitives.circuit_breaker import Breaker
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.text import describe, one_line
from tipoff_shared.primitives.throttled_log import ThrottledLog

log = logging.getLogger(__name__)

MAX_ANSWER = 64 * 1024
"""Bytes of the longest answer."""
REFUSED_FOR = 5.0
"""Seconds for which a refusal is remembered, at most."""
REMEMBERED = 20_000
"""Identities that are remembered; half as many refusals, apart, so that strangers push nobody out."""
_AGAIN = 2.0
_DOWN = frozenset((429, 502, 503, 504))
"""Statuses by which a service says that it serves nobody; a 500 may be about one credential."""


class UrlFailed(Exception):
    """The URL gave no answer that can be used. `down`: it is likely to give none to others, too."""

    def __init__(self, why: str, *, down: bool) -> None:
        super().__init__(why)
        self.down = down


def read_answer(status: int, body: bytes) -> Identity:
    """Who the URL says it is. Raises `NotAuthenticated` when it refuses, `UrlFailed` when it says neither."""
    if status in (401, 403):
        raise failed(LoginReason.REFUSED, _reason(body) or "the login was refused; log in again")
    if status != 200:
        raise UrlFailed(f"the answer is {status}", down=status in _DOWN)
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
        return identity_of(members.get("user_id"), members.get("name"))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise UrlFailed(f'the answer is not like {{"user_id": "..."}}: {exc}', down=False) from exc
    except Malformed as exc:
        raise UrlFailed(f"the answer names no user: {exc}", down=False) from exc


def _reason(body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=dict[str, Any]).get("reason")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
    text = one_line(said, 200) if isinstance(said, str) else ""
    return text if text.isprintable() else ""


class Remembered:
    """What the URL said lately, by the digest of the credential. Pure: `now` is an argument."""

    def __init__(self, ttl: float, most: int = REMEMBERED) -> None:
        self._most = {True: most, False: most // 2}
        self._ttl = {True: ttl, False: min(ttl, REFUSED_FOR)}
        self._kept: dict[bool, OrderedDict[bytes, tuple[float, Identity | str]]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def get(self, digest: bytes, now: float) -> Identity | str | None:
        """The identity, or the message of the refusal; None when nothing is known any more."""
        for kept in self._kept.values():
            if (found := kept.get(digest)) is not None:
                if now < found[0]:
                    return found[1]
                del kept[digest]
        return None

    def put(self, digest: bytes, said: Identity | str, now: float) -> None:
        """Remember an answer. Beyond the bound the oldest one goes."""
        known = isinstance(said, Identity)
        if not self._ttl[known]:
            return
        kept = self._kept[known]
        kept.pop(digest, None)
        kept[digest] = (now + self._ttl[known], said)
        if len(kept) > self._most[known]:
            kept.popitem(last=False)


class UrlLogin:
    """The login of `TIPOFF_HTTPD_AUTH=http`. Made by `open_url_login`. `clock` returns seconds."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        calls: SingleFlight[bytes, Identity],
        places: ConcurrencyLimit,
        remembered: Remembered,
        *,
        timeout: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._client = client
        self._url = url
        self._calls = calls
        self._places = places
        self._remembered = remembered
        self._timeout = timeout
        self._clock = clock
        self._breaker = Breaker()
        self._log = ThrottledLog(log)
        self._salt = secrets.token_bytes(32)

    async def identify(self, auth: Mapping[str, Any] | None, address: Address) -> Identity:
        """As `Login.identify`. A call, once made, goes to its end, so that its answer is remembered."""
        if not auth:
            raise missing()
        try:
            text = json.dumps(auth, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        except (ValueError, TypeError, RecursionError) as exc:
            raise failed(LoginReason.MALFORMED, 'write the login as "auth": {"token": "..."}') from exc
        digest = hashlib.blake2b(text, digest_size=32, key=self._salt).digest()
        said = self._remembered.get(digest, self._clock())
        if isinstance(said, Identity):
            return said
        if said is not None:
            raise NotAuthenticated(said)
        return await self._calls.run(digest, lambda: self._ask(text, digest, address))

    async def _ask(self, auth: bytes, digest: bytes, address: Address) -> Identity:
        place = self._places.enter(address)
        try:
            identity = await self._call(auth, address)
        except NotAuthenticated as exc:
            self._remembered.put(digest, exc.message, self._clock())
            raise
        finally:
            self._places.leave(place)
        self._remembered.put(digest, identity, self._clock())
        return identity

    async def _call(self, auth: bytes, address: Address) -> Identity:
        if wait := self._breaker.admit(self._clock()):
            raise Unavailable("logins cannot be checked at the moment; try again soon", retry_after=wait)
        body = b'{"auth":' + auth + b',"address":"' + str(address).encode() + b'"}'
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    status, _, answer = await exchange(
                        self._client,
                        "POST",
                        self._url,
                        most=MAX_ANSWER,
                        content=body,
                        headers={"content-type": "application/json"},
                    )
            except TimeoutError:
                raise UrlFailed(f"no answer within {self._timeout:g} s", down=True) from None
            except UnusableAnswer as exc:
                raise UrlFailed(f"the answer {exc}", down=False) from exc
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise UrlFailed(one_line(describe(exc)), down=True) from None
            identity = read_answer(status, answer)
        except UrlFailed as exc:
            if exc.down:
                self._breaker.failed(self._clock(), str(exc))
            else:
                self._breaker.succeeded()
            self._log.warning("url", "TIPOFF_HTTPD_AUTH_URL: a login cannot be checked: %s", exc)
            raise Unavailable(
                "logins cannot be checked at the moment; try again soon", retry_after=_AGAIN
            ) from None
        except NotAuthenticated:
            self._breaker.succeeded()
            raise
        except asyncio.CancelledError:
            self._breaker.abandoned(self._clock())
            raise
        self._breaker.succeeded()
        return identity


@asynccontextmanager
async def open_url_login(
    url: str,
    *,
    timeout: float,
    calls: int,
    calls_per_address: int,
    ttl: float,
    clock: Callable[[], float] = monotonic,
) -> AsyncIterator[UrlLogin]:
    """The login by `url`, for the time of the block. `timeout`: seconds for one call; `calls`: at one time, and
    `calls_per_address` of them for one address; `ttl`: seconds for which an identity is remembered."""
    limits = httpx.Limits(max_connections=calls, max_keepalive_connections=calls, keepalive_expiry=15.0)
    async with (
        make_client(timeout=timeout, limits=limits) as client,
        SingleFlight[bytes, Identity]("login") as flight,
    ):
        places = ConcurrencyLimit(calls, calls_per_address)
        yield UrlLogin(client, url, flight, places, Remembered(ttl), timeout=timeout, clock=clock)
