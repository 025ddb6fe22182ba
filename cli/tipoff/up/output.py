"""What `tipoff up` prints: for people (`Terminal`), or one JSON object a line for programs (`JsonLines`).

{"event": "note", "text": "a server of pong 1 starts (pong-9d7c49df51)"}
{"event": "output", "deployment_id": "pong-9d7c49df51", "text": "map loaded", ...}      as `tipoff logs --json`
{"event": "ready", "ready": true, "urls": ["http://127.0.0.1:3000/"], "nats": "nats://...", "seconds": 1.2, ...}
{"event": "stopped"}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from rich.console import Console

from tipoff.operate.logs import LogLine, LogPrinter, ServerLines
from tipoff.up.run import Running


class Output(Protocol):
    """Hears of everything that a person should know."""

    def say(self, text: str) -> None:
        """A sentence about the system."""

    def show_line(self, line: LogLine) -> None:
        """A line that a game server has written."""

    def ready(self, running: Running) -> None:
        """The system runs."""

    def stopped(self) -> None:
        """It has ended, as was asked for."""


class Terminal:
    """The `ready` line goes to standard output, for scripts that wait for it; all else to `console`. `where`: what
    other commands need to find this system, with a space before it, or ""."""

    def __init__(self, console: Console, where: str) -> None:
        self._console = console
        self._where = where
        self._servers = ServerLines(LogPrinter(console), self.say)

    def say(self, text: str) -> None:
        """Print a sentence."""
        self._console.print(text, style="dim", soft_wrap=True, markup=False, highlight=False)

    def show_line(self, line: LogLine) -> None:
        """Print a server's line, unless it is routine or one too many."""
        self._servers.show(line, time.monotonic())

    def ready(self, running: Running) -> None:
        """Print where the system is, and what to do next."""
        others = "".join(f"  {url}" for url in running.urls[1:])
        state = "not ready yet" if running.without_server else "ready"
        print(
            f"{state}  {running.urls[0]}{others}  nats {running.nats_url}  ({running.took:.1f} s)", flush=True
        )
        self.say(f"games: {', '.join(running.games)}")
        if running.dashboard:
            self.say(f"dashboard: {running.dashboard}")
        if running.without_server:
            names = ", ".join(running.without_server)
            self.say(
                f"no server of {names} has announced itself yet; `tipoff logs{self._where}` shows its output"
            )
        self.say(
            f"`tipoff status{self._where}` and `tipoff watch{self._where}` show what goes on. Ctrl-C stops everything."
        )

    def stopped(self) -> None:
        """Print so."""
        self._console.print("[dim]stopped[/dim]")


class JsonLines:
    """One JSON object for each event, by `write`, which gets a line without its end."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def _event(self, event: str, **members: object) -> None:
        self._write(json.dumps({"event": event, **members}))

    def say(self, text: str) -> None:
        """A note."""
        self._event("note", text=text)

    def show_line(self, line: LogLine) -> None:
        """A server's line; routine too, for programs choose themselves."""
        self._event("output", **asdict(line))

    def ready(self, running: Running) -> None:
        """Where the system is; `ready` is false while a game that should have a server has none."""
        self._event(
            "ready",
            ready=not running.without_server,
            urls=running.urls,
            nats=running.nats_url,
            games=running.games,
            without_server=running.without_server,
            dashboard=running.dashboard,
            seconds=round(running.took, 3),
        )

    def stopped(self) -> None:
        """The last event."""
        self._event("stopped")
