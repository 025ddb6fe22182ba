"""Reads the output of game servers from their launcher, for `tipoff logs` and the terminal of `tipoff up`.

    launcher ──parts of logs──> follow_logs ──LogLine──> LogPrinter (people) or as_json (machines)

A line may be plain text, or tipoff's own key=value or JSON, whose traceback is shown as Python shows it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_orchestrator_client.wire import LogRequest, ServerLog
from tipoff_shared.primitives.token_bucket import TokenBucket

_WAIT = 5.0
"""Seconds that one request waits for new lines."""
_PAUSE = 0.5
"""Seconds before a launcher that does not answer is asked again."""
_LINES_A_SECOND = 20.0
_LINES_AT_ONCE = 200.0
_SERVERS = 1000
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)=("(?:[^"\\]|\\.)*"|[^ ]*)(?: |$)')
_PLAIN = re.compile(r"[0-9-]{10} [0-9:,]{12} ([A-Z]+) ([a-zA-Z0-9_.]+): (.*)", re.ASCII | re.DOTALL)
"""What a server writes where structlog is not installed."""
_ESCAPE = re.compile(r"\\(.)")
_OWN = "tipoff_gameserver"
_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red"}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a server's output. `at`: Unix seconds, 0 where the line does not say. `level` and `logger` are "" for
    a plain line. `traceback`: Python's, or ""."""

    deployment_id: str
    game: str
    version: str
    text: str
    at: float = 0.0
    level: str = ""
    logger: str = ""
    traceback: str = ""

    @property
    def is_routine(self) -> bool:
        """What the SDK says of itself while all is well: of use when one looks for something, not every day."""
        return self.logger.startswith(_OWN) and self.level in ("debug", "info")


def parse_line(raw: str, log: ServerLog) -> LogLine:
    """A line as its server wrote it. Whatever the bytes, it gives a line."""
    line = LogLine(log.deployment_id, log.game, log.version, raw)
    fields = _fields(raw)
    if "event" not in fields or "level" not in fields:
        if (found := _PLAIN.fullmatch(raw)) is None:
            return line
        return replace(line, text=found[3], level=found[1].lower(), logger=found[2])
    return replace(
        line,
        text=fields["event"],
        at=_unix(fields.get("timestamp", "")),
        level=fields["level"].lower(),
        logger=fields.get("logger", ""),
        traceback=_of_the_game(fields.get("exception", "")),
    )


def _fields(raw: str) -> dict[str, str]:
    if raw.startswith("{"):
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            return {}
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
    if not raw.startswith("timestamp="):
        return {}
    return {
        pair[1]: _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], pair[2][1:-1])
        if pair[2].startswith('"')
        else pair[2]
        for pair in _PAIR.finditer(raw)
    }


def _unix(timestamp: str) -> float:
    try:
        at = datetime.fromisoformat(timestamp)
    except ValueError:
        return 0.0
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _of_the_game(traceback: str) -> str:
    """The traceback without the SDK's frames at its beginning: how the game was called says nothing about the game."""
    lines = traceback.splitlines()
    frames = [n for n, line in enumerate(lines) if line.startswith('  File "')]
    for n in frames:
        if f"/{_OWN}/" not in lines[n]:
            return "\n".join([*lines[:1], *lines[n:]]) if lines[0].startswith("Traceback") else traceback
    return traceback


async def follow_logs(
    launcher: LauncherOrchestrator,
    show: Callable[[LogLine], None],
    *,
    select: str = "",
    tail: int = 0,
    whole_since: float = 0.0,
    since: float = 0.0,
    follow: bool = True,
    on_failure: Callable[[str], None] = lambda text: None,
) -> int:
    """Call `show` with each line of the servers that `select` (a game or a deployment id; "": all) names, until
    cancelled, or, without `follow`, until the end of what is there. Returns how many servers there were.

    `tail`: the last lines of each server, negative for all. `whole_since`: servers made at this time (Unix seconds) or
    later are shown from their first line. `since`: no line that says an earlier time (Unix seconds),
    and none that follows it without a time. While a launcher does not answer, `on_failure` hears why, once;
    without `follow` that raises `OrchestratorError`.
    """
    cursors: dict[str, str] = {}
    old: set[str] = set()
    away = False
    first = True
    while True:
        wait = _WAIT if follow and not first else 0.0
        request = LogRequest(select, dict(cursors), tail if first else -1, whole_since, wait)
        try:
            logs = await launcher.logs(request)
        except OrchestratorError as exc:
            if not follow:
                raise
            if not away:
                on_failure(str(exc))
            away = True
            await asyncio.sleep(_PAUSE)
            continue
        away = first = False
        for log in logs:
            cursors[log.deployment_id] = log.cursor
            _show_part(log, show, since, old)
        if not follow and not any(log.lines for log in logs):
            return len(cursors)


def _show_part(log: ServerLog, show: Callable[[LogLine], None], since: float, old: set[str]) -> None:
    """`old`: servers whose last line was too old, so that plain lines after it are, too."""
    if log.lost:
        show(_note(log, "... older lines are not kept"))
    for raw in log.lines:
        line = parse_line(raw, log)
        if since and line.at:
            (old.add if line.at < since else old.discard)(log.deployment_id)
        if log.deployment_id not in old:
            show(line)


def _note(log: ServerLog, text: str) -> LogLine:
    return LogLine(log.deployment_id, log.game, log.version, text, level="warning", logger="tipoff")


def as_json_line(line: LogLine) -> str:
    """A line as `--json` prints it."""
    return json.dumps(asdict(line))


class LogPrinter:
    """Prints lines for people: time, server, text; tracebacks below. Colours where the console has them."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, line: LogLine) -> None:
        """Print one line."""
        style = _STYLES.get(line.level, "")
        text = Text()
        if line.at:
            text.append(f"{datetime.fromtimestamp(line.at).astimezone():%H:%M:%S} ", "dim")
        text.append(f"{line.deployment_id}  ", "cyan")
        text.append(line.text, style)
        if line.traceback:
            text.append("\n" + "\n".join("    " + row for row in line.traceback.splitlines()), style)
        self._console.print(text, soft_wrap=True, highlight=False)


class ServerLines:
    """What the terminal of `tipoff up` shows of the servers' output: without routine, and of a server that writes
    without end only a part, so that the others can be read. `now`: monotonic seconds."""

    def __init__(self, printed: Callable[[LogLine], None], say: Callable[[str], None]) -> None:
        self._printed = printed
        self._say = say
        self._limits: OrderedDict[str, TokenBucket] = OrderedDict()
        self._left_out: dict[str, int] = {}

    def show(self, line: LogLine, now: float) -> None:
        """Print a line, unless it is routine or one too many."""
        if line.is_routine:
            return
        server = line.deployment_id
        limit = self._limits.setdefault(server, TokenBucket(_LINES_A_SECOND, _LINES_AT_ONCE))
        self._limits.move_to_end(server)
        if len(self._limits) > _SERVERS:
            gone, _ = self._limits.popitem(last=False)
            self._left_out.pop(gone, None)
        if limit.take(now) is None:
            self._left_out[server] = self._left_out.get(server, 0) + 1
            return
        if left_out := self._left_out.pop(server, 0):
            self._say(f"... {left_out} lines of {server} are not shown here; `tipoff logs {server}` has them")
        self._printed(line)
