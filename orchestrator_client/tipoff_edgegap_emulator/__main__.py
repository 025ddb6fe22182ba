"""Runs one emulator, with its settings from the environment: `python -m tipoff_edgegap_emulator`."""

from __future__ import annotations

import asyncio
import logging

from tipoff_edgegap_emulator.service import run_emulator
from tipoff_edgegap_emulator.settings import EmulatorSettings
from tipoff_shared.service import load_settings, run_service, wait_until_stopped

log = logging.getLogger(__name__)


def main() -> None:
    """Run the emulator until SIGTERM or SIGINT, then exit with a code as in `tipoff_shared.service`."""
    run_service("edgegap-emulator", _serve, reap_orphans=False)


async def _serve(stop: asyncio.Event) -> int:
    async with run_emulator(load_settings(EmulatorSettings)) as emulator:
        log.info("the emulated Edgegap API is at %s", emulator.url)
        return await wait_until_stopped(stop)


if __name__ == "__main__":
    main()
