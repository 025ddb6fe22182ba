"""Runs one launcher, with its settings from the environment, until SIGTERM or SIGINT: `python -m tipoff_launcher`."""

from __future__ import annotations

import asyncio

from tipoff_launcher.compose import run_launcher
from tipoff_launcher.settings import Settings
from tipoff_shared.games.toml import load_games
from tipoff_shared.health import HealthFile
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.service import load_settings, run_service, wait_until_stopped
from tipoff_shared.settings import NatsSettings


def main() -> None:
    """Run the launcher, then exit with a code as in `tipoff_shared.service`."""
    run_service("launcher", _serve, reap_orphans=False)


async def _serve(stop: asyncio.Event) -> int:
    settings = load_settings(Settings)
    games = load_games(settings.games)
    async with (
        run_launcher(settings, games, NatsSettings.from_environment(), own_process=True) as launcher,
        Tasks("launcher's health") as tasks,
    ):
        tasks.start(HealthFile().beat(lambda: launcher.bus.connected), "health file")
        return await wait_until_stopped(stop, launcher.failed)


if __name__ == "__main__":
    main()
