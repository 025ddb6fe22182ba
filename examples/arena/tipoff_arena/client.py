"""Plays the arena by script: joins a game, walks about, counts what it sees. `tipoff play` runs it.

`ArenaView` is the pure half: messages in, where every square is out. `play` does the I/O.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tipoff_arena import wire
from tipoff_arena.bots import Wanderer
from tipoff_arena.rules import Input, Point
from tipoff_client_sdk import Player, PlayerError, Progress, ServerLost, Transport, connect
from tipoff_shared.errors import TipoffError

HELLO_EVERY = 0.25
"""Seconds between two HELLOs until the WELCOME has come: over UDP either may be lost."""
INPUT_EVERY = 0.1
"""Seconds after which an input is sent again though it did not change."""

Steering: TypeAlias = Callable[[Point], Input]
"""Position of the player's square -> keys to hold; called once per snapshot."""


@dataclass(frozen=True, slots=True)
class Joined:
    """In the game."""

    session_id: str
    deployment_id: str
    transport: str
    server: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The server vanished; `play(rejoin=True)` connects to a new game."""

    reason: str


PlayEvent: TypeAlias = Progress | Joined | wire.Snapshot | Lost


@dataclass
class PlayReport:
    """How the game went. Ticks are the server's; `rtt` is in seconds; positions are in units.

    `games` counts the games that were joined: more than one after a lost server. `distance` is how far this player's
    square went.
    """

    connected: bool = False
    transport: str = ""
    server: str = ""
    session_id: str = ""
    deployment_id: str = ""
    games: int = 0
    first_tick: int | None = None
    last_tick: int | None = None
    messages: int = 0
    dropped: int = 0
    rtt: float | None = None
    number: int | None = None
    first_position: Point | None = None
    last_position: Point | None = None
    distance: float = 0.0
    others: int = 0
    error: str = ""
    error_code: int | None = None
    sessions: list[str] = field(default_factory=list)


class ArenaView:
    """What one client knows of the arena. Snapshots that come late are skipped."""

    def __init__(self) -> None:
        self.welcome: wire.Welcome | None = None
        self.snapshot: wire.Snapshot | None = None
        self.messages = 0

    def receive(self, data: bytes) -> wire.Snapshot | None:
        """Take in one message; returns the snapshot if it is a newer one. Raises `WireError`."""
        message = wire.parse_server(data)
        self.messages += 1
        if isinstance(message, wire.Welcome):
            self.welcome = message
            return None
        if self.snapshot is not None and message.tick <= self.snapshot.tick:
            return None
        self.snapshot = message
        return message

    def square(self, number: int) -> wire.Square | None:
        """The square with this number in the newest snapshot, or None."""
        if self.snapshot is None:
            return None
        return next((square for square in self.snapshot.squares if square.number == number), None)

    @property
    def me(self) -> wire.Square | None:
        """This player's square, None before it is known."""
        return self.square(self.welcome.number) if self.welcome is not None else None


async def play(
    url: str,
    game: str = "arena",
    version: str = "1",
    seconds: float = 5.0,
    on_event: Callable[[PlayEvent], None] | None = None,
    *,
    steering: Steering | None = None,
    transports: Sequence[Transport] = ("udp", "websocket"),
    timeout: float = 60.0,
    auth: str | None = None,
    name: str = "",
    rejoin: bool = False,
) -> PlayReport:
    """Play for `seconds` (counted from the first connection) and report; wanders about unless `steering` is given.

    Failures stand in the report (`error`, `error_code`) and are not raised. With `rejoin` a lost server leads to a new
    game.
    """
    report = PlayReport()
    emit = on_event or _ignore
    steer = steering or _wander(Wanderer(seed=random.randrange(2**32)))
    loop = asyncio.get_running_loop()
    ends: float | None = None
    failures = 0
    while True:
        try:
            async with connect(
                url,
                game=game,
                version=version,
                progress=emit,
                transports=transports,
                timeout=timeout,
                auth=auth,
                name=name,
            ) as player:
                if ends is None:
                    ends = loop.time() + seconds
                failures = 0
                _joined(report, player, emit)
                await _play_until(player, ends, steer, report, emit)
                return report
        except ServerLost as exc:
            emit(Lost(str(exc)))
            failure: TipoffError = exc
        except TipoffError as exc:
            failure = exc
        # Connect again only after a game was joined, and not for ever.
        failures += 1
        remaining = 0.0 if ends is None else ends - loop.time()
        if not rejoin or report.games == 0 or failures > 20 or remaining <= 0:
            report.error, report.error_code = str(failure), failure.code
            return report
        if not isinstance(failure, ServerLost):
            await asyncio.sleep(min(remaining, failure.retry_after or 0.25 * min(failures, 8)))


def _joined(report: PlayReport, player: Player, emit: Callable[[PlayEvent], None]) -> None:
    report.connected = True
    report.games += 1
    report.transport, report.server = player.transport, player.server
    report.session_id, report.deployment_id = player.session_id, player.deployment_id
    report.sessions.append(player.session_id)
    emit(Joined(player.session_id, player.deployment_id, player.transport, player.server))


async def _play_until(
    player: Player, ends: float, steer: Steering, report: PlayReport, emit: Callable[[PlayEvent], None]
) -> None:
    """Read and steer until `ends` (loop time), or the match is over. Raises `ServerLost`."""
    loop = asyncio.get_running_loop()
    view = ArenaView()
    sequence, held, last_sent, last_hello = 0, Input.NONE, -math.inf, -math.inf
    last: Point | None = None
    try:
        async with asyncio.timeout_at(ends):
            await player.send(wire.encode_hello())
            async for data in player:
                snapshot = view.receive(data)
                now = loop.time()
                if view.welcome is None and now - last_hello >= HELLO_EVERY:
                    last_hello = now
                    await player.send(wire.encode_hello())
                if snapshot is None:
                    continue
                emit(snapshot)
                report.last_tick = snapshot.tick
                if report.first_tick is None:
                    report.first_tick = snapshot.tick
                report.others = len(snapshot.squares) - 1
                if (me := view.me) is None:
                    continue
                at = Point(me.x, me.y)
                report.number, report.last_position = me.number, at
                report.first_position = report.first_position or at
                report.distance += math.dist(at, last) if last is not None else 0.0
                last = at
                wanted = steer(at)
                if wanted != held or now - last_sent >= INPUT_EVERY:
                    sequence, held, last_sent = sequence + 1, wanted, now
                    await player.send(wire.encode_input(sequence, held))
    except TimeoutError:
        pass  # time is up: the normal end
    except wire.WireError as exc:
        raise PlayerError(f"this server does not speak the arena's wire: {exc}") from exc
    finally:
        report.messages += view.messages
        report.dropped += player.dropped
        report.rtt = player.rtt


def _wander(wanderer: Wanderer) -> Steering:
    return wanderer.held


def _ignore(event: PlayEvent) -> None:
    """The event callback of callers that pass none."""
