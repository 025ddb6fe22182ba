"""`python -m tipoff_launcher`: one launcher, with its settings from the environment, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable

from pydantic import ValidationError

from tipoff_launcher.run import run_launcher
from tipoff_launcher.settings import Settings
from tipoff_shared import log
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games import Games
from tipoff_shared.games.toml import load_games
from tipoff_shared.health import HealthFile
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings


def main() -> None:
    """Exits with 0 after a signal, 1 when it failed (its log says how), 2 when it cannot be set up."""
    log.configure("launcher")
    try:
        settings = Settings()
        games = load_games(settings.games)
        nats_settings = NatsSettings.from_environment()
        code = _run(settings, games, nats_settings)
    except ValidationError as exc:
        for error in exc.errors(include_input=False, include_url=False):
            where = "_".join(str(part) for part in error["loc"]).upper()
            prefix = "" if where.startswith("TIPOFF_") else "TIPOFF_LAUNCHER_"
            sys.stderr.write(f"tipoff launcher: {prefix}{where}: {error['msg']}\n")
        code = 2
    except (ConfigError, Unavailable) as exc:
        sys.stderr.write(f"tipoff launcher: {exc}\n")
        code = 2
    sys.exit(code)


def _run(settings: Settings, games: Games, nats_settings: NatsSettings) -> int:
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(settings, games, nats_settings))


async def _serve(settings: Settings, games: Games, nats_settings: NatsSettings) -> int:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    async with (
        run_launcher(settings, games, nats_settings) as launcher,
        Tasks("launcher's health") as tasks,
    ):
        tasks.start(HealthFile().beat(lambda: launcher.bus.connected), "health file")
        waits = [asyncio.create_task(asked.wait()), asyncio.create_task(launcher.failed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await wait
    return 0 if asked.is_set() else 1


if __name__ == "__main__":
    main()
