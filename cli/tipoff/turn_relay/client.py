"""Speaks the turn relay's JSON API, for `tipoff relay` and for other Python programs.

The relay does nothing twice, so every call is repeated while the relay is away or busy, for `patience` seconds.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import httpx

from tipoff_shared.errors import ConfigError, TipoffError, Unavailable
from tipoff_shared.primitives.text import describe
from tipoff_turn_relay.messages import Error

LONG_POLL = 20.0
"""Seconds for which one request waits for news."""
_PAUSE = 0.25


class TurnRefused(TipoffError):
    """The relay refuses a request; `error` is its code, None where something else refuses (httpd, a proxy)."""

    code = 409

    def __init__(self, message: str, status: int, error: Error | None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error


class TurnClient:
    """One player; use it by `async with`. `patience`: seconds for which a call outlives failures of the network and the
    relay, which ends a game after 20 s of silence."""

    def __init__(self, url: str, *, patience: float = 15.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url}: http://HOST:PORT is expected")
        self._patience = patience
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/v1/turn/", timeout=httpx.Timeout(10, read=LONG_POLL + 10)
        )
        self._key = ""
        self._number = 0
        self._after = 0

    async def __aenter__(self) -> TurnClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def join(self, name: str, partner: str | None = None) -> str:
        """Enter the list and wait for a partner without a time limit; returns its name. Raises `TurnRefused`."""
        while True:
            answer = await self._call("register", name=name, partner=partner)
            self._key = answer["key"]
            try:
                while True:
                    answer = await self._call("play", key=self._key, wait=LONG_POLL)
                    if answer["state"] == "playing":
                        self._key = answer["key"]
                        return str(answer["partner"])
            except TurnRefused as exc:
                if exc.error not in (
                    Error.NOT_REGISTERED,
                    Error.DROPPED,
                    Error.NAMED_PARTNER_DROPPED,
                    Error.GAMES_FULL,
                ):
                    raise
                await asyncio.sleep(_PAUSE)

    async def send(self, data: str) -> None:
        """Hand over one update; returns when the relay has stored it. One call at a time."""
        while True:
            try:
                await self._call("exchange", key=self._key, number=self._number, data=data, wait=LONG_POLL)
            except TurnRefused as exc:
                if exc.error is not Error.CACHE_FULL:
                    raise
            else:
                self._number += 1
                return

    async def receive(self) -> list[str]:
        """The partner's next updates, as soon as there are any; an empty list after a long poll without. What was
        received is confirmed by the next call."""
        answer = await self._call("exchange", key=self._key, after=self._after, wait=LONG_POLL)
        self._after = answer["after"]
        return list(answer["updates"])

    async def leave(self, *, playing: bool) -> None:
        """Leave the game, or the list."""
        await self._call("quit" if playing else "unregister", key=self._key)

    async def _call(self, path: str, **body: Any) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            try:
                response = await self._http.post(path, json=body)
                if response.status_code == 200:
                    return dict(response.json())
                failure, again = _refusal(response)
            except httpx.TransportError as exc:
                failure, again = (
                    Unavailable(f"the relay cannot be reached: {describe(exc)}"),
                    _PAUSE,
                )
            except ValueError as exc:
                raise Unavailable("this is not a turn relay: its answer is not JSON") from exc
            until = until or loop.time() + self._patience
            if again is None or loop.time() + again > until:
                raise failure
            await asyncio.sleep(again)  # as the relay asked, or until the network is back


def _refusal(response: httpx.Response) -> tuple[TipoffError, float | None]:
    """The error, and after how many seconds the same may be asked again; None: never."""
    body = response.json()
    if not (isinstance(body, dict) and isinstance(body.get("Error"), list)):
        return Unavailable(f"this is not a turn relay: it answers with status {response.status_code}"), None
    turn = body.get("turn")
    if turn is None and response.status_code in (404, 405):
        return Unavailable(f"this is not a turn relay: there is no {response.request.url}"), None
    error = Error(turn) if turn in list(Error) else None
    refused = TurnRefused(str(body["Error"][1]), response.status_code, error)
    if response.status_code in (429, 503) and error is not Error.CACHE_FULL:
        try:
            return refused, max(_PAUSE, float(response.headers.get("retry-after", _PAUSE)))
        except ValueError:
            return refused, _PAUSE
    return refused, None
