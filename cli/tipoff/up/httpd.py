"""Runs the httpd of `tipoff up`: httpd, and the developer's dashboard at `/_tipoff`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from tipoff.dashboard.options import DashboardOptions
from tipoff.dashboard.routes import dashboard
from tipoff_matchmaker_httpd.server import run
from tipoff_shared.errors import ConfigError
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.service import CONFIGURATION


def main() -> NoReturn:
    """Run the service from the environment, as `tipoff_matchmaker_httpd` does. Without `TIPOFF_UP_DASHBOARD` there is
    no dashboard."""
    try:
        options = DashboardOptions.from_environment()
        extension = None
        if options is not None:
            path = Path(os.environ["TIPOFF_GAMES"])
            extension = dashboard(options, parse_games(read_games(path), str(path)))
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        sys.exit(CONFIGURATION)
    run.main(extension)


if __name__ == "__main__":
    main()
