"""Runs the `tipoff` command: `python -m tipoff`, and the console script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command and exit. A typed failure is one line on standard error and exit code 1, Ctrl-C is 130."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    try:
        from tipoff.app import app
    except ModuleNotFoundError as exc:
        if exc.name in ("typer", "rich", "nats", "httpx"):
            sys.exit(f"tipoff: the command needs {exc.name}: pip install 'tipoff[all]'")
        raise
    from tipoff_shared.errors import ConfigError, TipoffError

    try:
        app(standalone_mode=True)
    except (ConfigError, TipoffError, BaseExceptionGroup) as exc:
        failure = _first(exc)
        if isinstance(failure, (ConfigError, TipoffError)):
            sys.exit(f"tipoff: {failure}")
        raise failure from exc


def _first(exc: BaseException) -> BaseException:
    """The first failure of a task group, which the user wants to read; any other exception itself."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


if __name__ == "__main__":
    main()
