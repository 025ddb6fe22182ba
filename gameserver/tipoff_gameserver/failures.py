"""Decides what an exception of the game leads to, and defines the errors of this package.

    Exception
    ├── GameFailed          the game cannot go on; exit code 1
    ├── ConfigError         (tipoff_shared.errors) settings that cannot be used; exit code 2
    └── TipoffError         (tipoff_shared.errors) what NATS or a peer did wrong: logged, and the game goes on

A callback that raises is logged. A player whose `on_join` raised is sent away. A failing `on_start`, too many failing
ticks in a row, or a callback that does not return (patience.py) end the server; a message that is too large never does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tipoff_gameserver.players.player import Player
from tipoff_gameserver.throttled_log import ThrottledLog
from tipoff_shared.errors import MessageTooLarge


class GameFailed(Exception):
    """The game's `on_start` failed, its `tick` failed so often in a row that the server gave up (the cause is the
    game's own exception), or a callback did not return."""


class GameFailures:
    """Counts and logs what the game does wrong. `failure` says why the game cannot go on, None while it can."""

    def __init__(self, throttled_log: ThrottledLog, max_tick_failures: int) -> None:
        self.failure: GameFailed | None = None
        self._log = throttled_log
        self._max_tick_failures = max_tick_failures
        self._ticks_failed = 0
        self._on_giving_up: list[Callable[[GameFailed], None]] = []
        self._on_join_failed: list[Callable[[Player, str, BaseException], None]] = []

    def on_giving_up(self, callback: Callable[[GameFailed], None]) -> None:
        """Call `callback` once too many ticks in a row have failed, or a callback hangs."""
        self._on_giving_up.append(callback)

    def on_join_failed(self, callback: Callable[[Player, str, BaseException], None]) -> None:
        """Call `callback(player, "on_join", exc)` for each player whose `on_join` raised."""
        self._on_join_failed.append(callback)

    def callback_failed(self, label: str, args: tuple[Any, ...], exc: BaseException) -> None:
        """The callback `label`, called with `args`, raised `exc`."""
        if label == "on_start":
            self.failure = GameFailed(f"the game's on_start failed with {type(exc).__name__}: {exc}")
            self.failure.__cause__ = exc
            return
        player = args[0] if args and isinstance(args[0], Player) else None
        about = f" for {player}" if player else ""
        self._log.exception(label, f"the game's {label} failed{about}; the game goes on", exc)
        if label == "on_join" and player is not None:
            for callback in self._on_join_failed:
                callback(player, label, exc)

    def hangs(self, why: str) -> None:
        """The game does not go on, and is given up. Idempotent."""
        if self.failure is None:
            self._give_up(GameFailed(why))

    def tick_succeeded(self) -> None:
        """A tick returned."""
        self._ticks_failed = 0

    def tick_failed(self, exc: Exception) -> None:
        """A tick raised `exc`. A message that was too large was not sent, and is no reason to give up."""
        if isinstance(exc, MessageTooLarge):
            self._log.exception(
                "too large", "the game's tick sent too large a message; the game goes on", exc
            )
            return
        self._ticks_failed += 1
        self._log.exception("tick", "the game's tick failed; the game goes on", exc)
        if self._ticks_failed == self._max_tick_failures:
            failure = GameFailed(
                f"the game's tick failed {self._ticks_failed} times in a row, the last time with "
                f"{type(exc).__name__}: {exc}"
            )
            failure.__cause__ = exc
            self._give_up(failure)

    def _give_up(self, failure: GameFailed) -> None:
        self.failure = failure
        for callback in self._on_giving_up:
            callback(failure)
