"""Runs the arena's server: `python -m tipoff_arena.server`.

Started by the launcher it reads its environment (see tipoff_gameserver.context); started by hand it is a stand-alone
server on `TIPOFF_LISTEN` (127.0.0.1:7777) and answers players' requests itself. Its own variables: `ARENA_BOTS`, the
number of wandering squares (5), and `ARENA_TICK_RATE`, ticks per second (30).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from tipoff_arena.game import ArenaGame
from tipoff_arena.wire import MAX_SQUARES
from tipoff_gameserver import GameServer
from tipoff_shared.errors import ConfigError

DEFAULT_BOTS = 5
DEFAULT_TICK_RATE = 30.0


def arena_from_environment(environ: Mapping[str, str] | None = None) -> ArenaGame:
    """The game with the values of `ARENA_BOTS` and `ARENA_TICK_RATE`; raises `ConfigError`."""
    env = os.environ if environ is None else environ
    return ArenaGame(
        bots=int(_number(env, "ARENA_BOTS", DEFAULT_BOTS, 0, MAX_SQUARES // 2)),
        tick_rate=_number(env, "ARENA_TICK_RATE", DEFAULT_TICK_RATE, 1, 120),
    )


def _number(env: Mapping[str, str], variable: str, default: float, low: float, high: float) -> float:
    text = env.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ConfigError(f"{variable}={text!r}: a number from {low:g} to {high:g} is expected")
    return value


def main() -> None:
    """Run the server until its end; exits with 2 when a variable cannot be used."""
    try:
        game = arena_from_environment()
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc
    GameServer(game).main()


if __name__ == "__main__":
    main()
