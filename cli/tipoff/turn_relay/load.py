"""Puts load on a turn relay: pairs of players hand each other numbered updates by the text protocol, and check them.

The client costs little (one keep-alive connection per player, no HTTP library), so that the relay is what is measured.
Every update a player gets must be the one after the last: lost, doubled and swapped ones are counted.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from tipoff_shared.errors import ConfigError, TipoffError, Unavailable
from tipoff_shared.primitives.text import describe
from tipoff_turn_relay.messages import Error, Symbol
from tipoff_turn_relay.text import NOTHING, encode_request, parse_answer

ANSWER_WITHIN = 10.0
"""Seconds after which an answer counts as lost."""
AWAY = 60.0
"""Seconds of failures that a run outlives."""
AWAY_AT_FIRST = 5.0
"""The same before there is a game."""
_AGAIN_AFTER = 0.05
_POLL = 0.1
_ONCE_MORE = (Error.KEEP_ALIVE_FAILED, Error.REGISTER_FAILED, Error.LIST_FULL)


@dataclass(slots=True)
class LoadReport:
    """What a run measured. `latencies` are seconds, one for each answered update, from sending to the answer."""

    clients: int
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    handed_over: int = 0
    arrived: int = 0
    wrong: int = 0
    """Updates that were not the one after the last: doubled, swapped, or behind a lost one."""

    @property
    def requests_per_second(self) -> float:
        """Requests per second over the whole run."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def clean(self) -> bool:
        """No error, and every update arrived exactly once and in order."""
        return not self.errors and not self.wrong and self.handed_over == self.arrived and self.arrived > 0

    def percentile(self, share: float) -> float:
        """In seconds; `share` 0.99 is the p99."""
        if not self.latencies:
            return float("nan")
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class TurnConnection(asyncio.Protocol):
    """One HTTP connection with one request at a time. When it breaks, the next one goes to the next of `urls`."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._targets = [turn_url(url) for url in urls]
        self._at = 0
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio: keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the pending request fails with `Unavailable`."""
        self._transport = None
        self._fail(Unavailable(f"the connection was closed: {str(exc) or 'by the server'}"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: complete the pending request once the whole body has arrived."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) >= length and not self._answer.done():
            self._buffer = b""
            self._answer.set_result((int(head[9:12]), body[:length]))
            if b"connection: close" in lower and self._transport is not None:
                self._transport.close()
                self._transport = None

    def _fail(self, error: TipoffError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body; raises `Unavailable` when there is no answer within ten seconds."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        try:
            if self._transport is None:
                host, port, path = self._targets[self._at % len(self._targets)]
                self._head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: ".encode()
                async with asyncio.timeout(ANSWER_WITHIN):
                    await loop.create_connection(lambda: self, host, port)
            assert self._transport is not None
            self._buffer = b""
            self._answer = loop.create_future()
            timer = loop.call_later(ANSWER_WITHIN, self._fail, Unavailable("no answer"))
            self._transport.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
            return await self._answer
        except (OSError, TimeoutError, TipoffError) as exc:
            self.close()
            self._at += 1
            raise Unavailable(describe(exc)) from exc
        finally:
            if timer is not None:
                timer.cancel()
            self._answer = None

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


class LoadPlayer:
    """One player of the load: pairs with the one it names, then hands over 0, 1, 2, ..."""

    def __init__(self, connection: TurnConnection, name: str, partner: str, report: LoadReport) -> None:
        self._connection = connection
        self._name = name
        self._partner_name = partner
        self._report = report
        self._game_key = self._player_key = ""
        self._number = 0
        self.sent = 0
        self.got = 0

    async def _ask(self, body: bytes, counted: bool = False) -> tuple[int, str, str]:
        """The answer to `body`, asked again until there is one. Raises `Unavailable` for an error of the protocol, for
        what is no answer of it, and when the relay is away for too long."""
        first_failure: float | None = None
        while True:
            began = time.perf_counter()
            try:
                status, answer = await self._connection.ask(body)
            except Unavailable as exc:
                failed = str(exc)
            else:
                try:
                    error, code, data = parse_answer(answer)
                except ValueError:  # UnicodeDecodeError is one
                    raise Unavailable(f"this is not a turn relay: it answers with status {status}") from None
                if status == 200 and error == 0:
                    if counted:
                        self._report.latencies.append(time.perf_counter() - began)
                    return error, code, data
                failed = f"answer {error}/{code}, status {status}"
                if error not in _ONCE_MORE:
                    raise Unavailable(f"the relay refused: {failed}")
            self._report.errors[failed[:60]] += 1
            first_failure = first_failure or began
            if began - first_failure > (AWAY if self._game_key else AWAY_AT_FIRST):
                raise Unavailable(f"the relay is away: {failed}")
            await asyncio.sleep(_AGAIN_AFTER)

    async def pair(self) -> None:
        """From registering to `0/8`."""
        _, _, key = await self._ask(
            encode_request(Symbol.REGISTER, self._name, "bibbybabbis", self._partner_name)
        )
        await self._ask_while("2", encode_request(Symbol.REQUEST_PAIR, key=key))
        await self._ask(encode_request(Symbol.MAP_INIT, key=key))
        keys = await self._ask_while("7", encode_request(Symbol.MAP_READY, key=key))
        self._game_key, _, self._player_key = keys.partition("|")

    async def _ask_while(self, code: str, body: bytes) -> str:
        """The data of the first answer that has another code: this protocol is one of polls."""
        while True:
            _, answered, data = await self._ask(body)
            if answered != code:
                return data
            await asyncio.sleep(_POLL)

    async def play(self, rate: float, until: float, size: int) -> None:
        """`rate` updates per second (0: the next as soon as the last is answered) until `until` (loop time)."""
        loop = asyncio.get_running_loop()
        padding = "." * max(0, size - 8)
        next_at = loop.time() + secrets.randbelow(1000) / 1000 / (rate or 1000)
        while (now := loop.time()) < until:
            if rate:
                if next_at > now:
                    await asyncio.sleep(next_at - now)
                next_at += 1 / rate
            self.sent += 1
            await self._update(f"{self.sent}{padding}", counted=True)

    async def fetch_all(self, partner: LoadPlayer) -> None:
        """Until everything has arrived that the partner handed over."""
        while self.got < partner.sent:
            await self._update(NOTHING)
            await asyncio.sleep(0.02)

    async def _update(self, data: str, counted: bool = False) -> None:
        body = encode_request(Symbol.GAME_UPDATE, data, self._game_key, self._player_key, str(self._number))
        _, code, answer = await self._ask(body, counted)
        self._number += 1
        if code != "9":
            return
        for update in answer.split("|"):
            number = int(update.rstrip("."))
            if number != self.got + 1:
                self._report.wrong += 1
            self.got = number
            self._report.arrived += 1

    async def leave(self) -> None:
        """Leave the game if the relay answers, and close the connection."""
        if self._game_key:
            quit_game = encode_request(
                Symbol.GAME_QUIT, NOTHING, self._game_key, self._player_key, str(self._number)
            )
            await self._connection.ask(quit_game)
        self._connection.close()


def turn_url(url: str) -> tuple[str, int, str]:
    """Host, port and path of the text endpoint at `url`: `/turn` unless it names a path. Raises `ConfigError`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{url}: http://HOST:PORT is expected (the load speaks no TLS)")
    return parts.hostname, parts.port or 80, parts.path.rstrip("/") or "/turn"


async def run_load(
    urls: Sequence[str],
    *,
    clients: int,
    rate: float,
    seconds: float,
    size: int = 32,
    start_at: float | None = None,
) -> LoadReport:
    """Pair `clients` (an even number) among themselves, then play for `seconds`, from `start_at` (Unix time) on.

    Of several `urls`, the two of a pair use different ones, and the next when one fails.

    Raises `ConfigError`, and `Unavailable` when the relay refuses to go on.
    """
    if clients < 2 or clients % 2:
        raise ConfigError(f"{clients} clients: an even number is expected, they play in pairs")
    report = LoadReport(clients)
    run = secrets.token_hex(4)
    players = [
        LoadPlayer(
            TurnConnection([*urls[n % len(urls) :], *urls[: n % len(urls)]]),
            f"load-{run}-{n}",
            f"load-{run}-{n ^ 1}",
            report,
        )
        for n in range(clients)
    ]
    try:
        async with asyncio.TaskGroup() as pairing:
            for player in players:
                pairing.create_task(player.pair())
        if start_at is not None:
            await asyncio.sleep(max(0.0, start_at - time.time()))
        began = time.perf_counter()
        until = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as playing:
            for player in players:
                playing.create_task(player.play(rate, until, size))
        report.seconds = time.perf_counter() - began
        async with asyncio.timeout(30), asyncio.TaskGroup() as fetching:
            for n, player in enumerate(players):
                fetching.create_task(player.fetch_all(players[n ^ 1]))
    except* TipoffError as group:
        raise group.exceptions[0] from group
    except* TimeoutError:
        report.errors["updates that never arrived"] += 1
    finally:
        report.handed_over = sum(player.sent for player in players)
        await asyncio.gather(*(player.leave() for player in players), return_exceptions=True)
    return report
