"""The `tipoff` command: what it is called with, and where each part of it lives."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script. Typed failures end with one line and exit code 1, Ctrl-C with 130."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    try:
        from tipoff.commands import app
    except ModuleNotFoundError as exc:
        if exc.name in ("typer", "rich", "nats", "httpx"):
            sys.exit(f"tipoff: the command needs {exc.name}: pip install 'tipoff[all]'")
        raise
    from tipoff_shared.errors import ConfigError, TipoffError

    try:
        app(standalone_mode=True)
    except (ConfigError, TipoffError) as exc:
        sys.exit(f"tipoff: {exc}")


if __name__ == "__main__":
    main()
