"""`python -m tipoff_edgegap_emulator`: an emulator with its settings from the environment."""

from __future__ import annotations

import asyncio
import logging
import sys

from pydantic import ValidationError

from tipoff_edgegap_emulator.emulator import Emulator
from tipoff_edgegap_emulator.service import serve
from tipoff_edgegap_emulator.settings import EmulatorSettings
from tipoff_shared import log
from tipoff_shared.errors import ConfigError


def main() -> None:
    """Exits with 0 after a signal, 2 when it cannot be set up."""
    log.configure("edgegap-emulator")

    def ready(emulator: Emulator) -> None:
        logging.getLogger(__name__).info("the emulated Edgegap API is at %s", emulator.url)

    try:
        asyncio.run(serve(EmulatorSettings(), ready))
    except ValidationError as exc:
        for error in exc.errors(include_input=False, include_url=False):
            where = "_".join(str(part) for part in error["loc"]).upper()
            sys.stderr.write(f"tipoff edgegap-emulator: {where}: {error['msg']}\n")
        sys.exit(2)
    except ConfigError as exc:
        sys.stderr.write(f"tipoff edgegap-emulator: {exc}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
