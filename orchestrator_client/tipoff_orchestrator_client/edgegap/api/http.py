"""Makes HTTP calls to Edgegap: with a deadline, a bounded size and typed errors, whose texts never hold the token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from tipoff_orchestrator_client.edgegap.api.answers import Json, parse_json, text
from tipoff_orchestrator_client.edgegap.api.errors import (
    Gone,
    NoRoom,
    RateLimited,
    Rejected,
    Unauthorized,
    Unreachable,
    Unreadable,
)
from tipoff_orchestrator_client.edgegap.api.rates import Rate
from tipoff_shared.http_exchange import UnusableAnswer, exchange, make_client
from tipoff_shared.primitives.text import describe
from tipoff_shared.secret import Secret

MAX_ANSWER = 2 * 1024 * 1024
"""Bytes of the longest answer; a page of a hundred deployments has about 100 KB."""
_CONNECT = 3.0
_LONGEST_RETRY_AFTER = 60.0
_QUOTA = ("quota", "limit", "maximum", "capacity", "too many")
"""Words by which an answer is assumed to mean that a quota is reached; no page of Edgegap's documents them."""
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class Http:
    """A pool of connections to the API at `url`; `close` ends them. `timeout`: seconds for one call. `transport` is for
    tests."""

    def __init__(
        self, url: str, token: Secret, *, timeout: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._token = token
        self._timeout = timeout
        self._client = make_client(
            base_url=url,
            headers={
                "authorization": f"token {token.reveal()}",
                "accept": "application/json",
            },
            timeout=httpx.Timeout(timeout, connect=min(_CONNECT, timeout)),
            limits=httpx.Limits(max_connections=128, max_keepalive_connections=20, keepalive_expiry=15.0),
            transport=transport,
        )

    async def __aenter__(self) -> Http:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        rate: Rate,
        longest_wait: float,
        body: Json | None = None,
        query: Mapping[str, int | str] | None = None,
        repeatable: bool = True,
        timeout: float | None = None,
    ) -> Json:
        """The JSON object of the answer; {} for a success without a body.

        A `repeatable` call is made a second time when its connection breaks, as one may that was kept alive too long.
        The call waits at most `longest_wait` seconds for its turn within `rate`, then takes at most `timeout` seconds.
        Raises the errors of errors.py: `Gone` for 404 and 410 (`Rejected` for a POST). Cancelling is safe.
        """
        await rate.turn(longest_wait)
        timeout = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(timeout):
                status, headers, answer = await self._exchange(method, path, body, query, repeatable)
        except TimeoutError:
            raise Unreachable(f"Edgegap has not answered within {timeout:g} s", sent=True) from None
        except httpx.HTTPError as exc:
            sent = not isinstance(exc, _NOT_SENT)
            raise Unreachable(f"Edgegap cannot be reached: {self._clean(describe(exc))}", sent=sent) from None
        if 200 <= status < 300:
            return parse_json(answer) if answer.strip() else {}
        self._refuse(method, status, headers, answer, rate)
        raise AssertionError("_refuse raises for every other status")

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Json | None,
        query: Mapping[str, int | str] | None,
        repeatable: bool,
    ) -> tuple[int, httpx.Headers, bytes]:
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {} if content is None else {"content-type": "application/json"}
        try:
            return await exchange(
                self._client,
                method,
                path,
                most=MAX_ANSWER,
                content=content,
                params=query,
                headers=headers,
                repeatable=repeatable,
            )
        except UnusableAnswer as exc:
            raise Unreadable(f"Edgegap's answer {exc}") from exc

    def _refuse(self, method: str, status: int, headers: httpx.Headers, answer: bytes, rate: Rate) -> None:
        said = self._said(answer)
        message = f"Edgegap answers {status}" + (f": {said}" if said else "")
        retry_after = _retry_after(headers.get("retry-after", ""))
        if (
            status in (404, 410) and method != "POST"
        ):  # a POST names an application or version, which stays unknown
            raise Gone(message)
        if status in (401, 403):
            raise Unauthorized(f"{message}. Is TIPOFF_EDGEGAP_TOKEN right?")
        if status == 429:
            rate.pause(1.0 if retry_after is None else retry_after)
            raise RateLimited(message, retry_after=retry_after)
        quota = method == "POST" and any(word in said.lower() for word in _QUOTA)
        if status == 422 or (quota and 400 <= status < 500):
            raise NoRoom(message, request_id=_request_id(answer))
        if 300 <= status < 500:
            raise Rejected(message, status=status)
        raise Unreachable(message, sent=True, retry_after=retry_after)

    def _said(self, answer: bytes) -> str:
        """Edgegap's message: `message`, `error` and `details`, or the beginning of an answer that is no JSON."""
        try:
            told: dict[str, Any] = parse_json(answer)
        except Unreadable:
            return self._clean(answer[:400].decode(errors="replace"))
        details = told.get("details")
        if details is not None and not isinstance(details, str):
            try:
                details = json.dumps(details)
            except (ValueError, RecursionError):  # nested deeply, or a number of thousands of digits
                details = ""
        words = [self._clean(part) for part in (told.get("message"), told.get("error"), details)]
        return ": ".join(part for part in dict.fromkeys(words) if part)

    def _clean(self, said: object) -> str:
        if self._token and isinstance(said, str):
            said = said.replace(self._token.reveal(), "***")  # before it is cut: half a token is secret, too
        return text(said)[:400]


def _request_id(answer: bytes) -> str:
    with suppress(Unreadable):
        value = parse_json(answer).get("request_id")
        if isinstance(value, str) and len(value) <= 100:
            return value
    return ""


def _retry_after(value: str) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None for any other value."""
    seconds: float | None = None
    try:
        seconds = float(value)
    except ValueError:
        with suppress(ValueError, TypeError):
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    if seconds is None or seconds != seconds:
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)
