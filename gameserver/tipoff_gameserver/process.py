"""Runs a server as a process: signals, event loop, logging, exit codes.

The first SIGTERM or SIGINT drains (nobody new comes in, players may stay for the grace period); the second one ends at
once. Works on Windows too, where event loops know no signals.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tipoff_gameserver.failures import GameFailed
from tipoff_shared.errors import ConfigError, TipoffError

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals(on_signal: Callable[[str], None]) -> Iterator[None]:
    """Call `on_signal(name)` in the running event loop for each SIGTERM or SIGINT during the block.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    undo: list[Callable[[], object]] = []
    for number in _SIGNALS:
        name = number.name
        try:
            loop.add_signal_handler(number, on_signal, name)
            undo.append(lambda number=number: loop.remove_signal_handler(number))  # type: ignore[misc]  # binds it now
        except NotImplementedError:  # Windows

            def handler(_number: int, _frame: FrameType | None, name: str = name) -> None:
                loop.call_soon_threadsafe(on_signal, name)

            before = signal.signal(number, handler)
            undo.append(lambda number=number, before=before: signal.signal(number, before))  # type: ignore[misc]
    try:
        yield
    finally:
        for step in undo:
            step()


def run_process(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` to its end in an event loop of its own (uvloop's, where there is one).

    Exit code 2 for settings that cannot be used, 1 when the game failed; both say why on standard error.
    """
    _configure_logging()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(main())
    except (ConfigError, TipoffError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc
    except GameFailed as exc:
        if exc.__cause__ is not None:
            traceback.print_exception(exc.__cause__)
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(1) from exc
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def ca_contents_argument(argv: list[str]) -> str:
    """The PEM text of bevygap's `--ca_contents PEM` or `--ca_contents=PEM`, "" without one."""
    for index, argument in enumerate(argv):
        if argument == "--ca_contents" and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith("--ca_contents="):
            return argument.partition("=")[2]
    return ""


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _configure_logging() -> None:
    """Unless the game has set up logging itself: one line per event, to standard error."""
    if logging.getLogger().handlers:
        return
    try:
        from tipoff_shared.log import configure

        configure("gameserver")
    except ImportError:  # structlog comes with the services' extras only
        level = os.environ.get("TIPOFF_LOG_LEVEL", "INFO").upper()
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
