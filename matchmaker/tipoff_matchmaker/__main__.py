"""`python -m tipoff_matchmaker`: one matchmaker until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from tipoff_matchmaker.run import run_matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import ConfigError, TipoffError
from tipoff_shared.games.toml import load_games
from tipoff_shared.health import HealthFile
from tipoff_shared.log import configure
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings

log = logging.getLogger("tipoff.matchmaker")


async def serve(settings: Settings) -> int:
    """Until told to stop; or until the NATS connection is gone for good or a part has failed, then 1: a supervisor
    starts us again."""
    games = load_games(settings.games)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with (
        run_matchmaker(settings, games, NatsSettings.from_environment()) as matchmaker,
        Tasks("matchmaker's health") as tasks,
    ):
        tasks.start(HealthFile().beat(lambda: matchmaker.bus.connected), "health file")
        stopped = asyncio.ensure_future(stop.wait())
        lost = asyncio.ensure_future(matchmaker.bus.closed.wait())
        failed = asyncio.ensure_future(matchmaker.failed.wait())
        await asyncio.wait((stopped, lost, failed), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (stopped, lost, failed):
            waiting.cancel()
        return 0 if stop.is_set() else 1


def main() -> None:
    configure("matchmaker")
    try:
        import uvloop
    except ImportError:  # not on every platform
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        code = run(serve(Settings()))
    except (ConfigError, TipoffError) as exc:
        log.critical("%s", exc)  # says what to do; a traceback would not
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
