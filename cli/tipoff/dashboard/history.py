"""What a page that opens now should see of the past: the latest lines of servers, errors and notes. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Any

from tipoff.dashboard.tracebacks import TracebackCollector
from tipoff.operate.logs import LogLine
from tipoff_shared.primitives.token_bucket import TokenBucket

MOST_LINES = 1000
MOST_BYTES = 1_000_000
"""Of the lines that are kept, and so of a page's first message."""
MOST_ERRORS = 50
MOST_NOTES = 100
_LONGEST_TEXT = 8_000
_LONGEST_TRACEBACK = 16_000
_LINES_A_SECOND = 50.0
_LINES_AT_ONCE = 400.0
_SERVERS = 500
_BAD = ("error", "critical")


@dataclass(frozen=True, slots=True)
class GameError:
    """An error of the developer's game. `number` is new for each; `count`: how often it has come."""

    number: int
    deployment_id: str
    game: str
    version: str
    text: str
    traceback: str
    at: float
    count: int = 1


class History:
    """Takes what servers write and `tipoff up` notes; says what pages hear of it.

    Lines of one server beyond 50 a second are left out, and their number is said. Equal errors of a game are one error
    with a count.
    """

    def __init__(self) -> None:
        self._lines: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MOST_LINES)
        self._bytes = 0
        self._errors: OrderedDict[tuple[str, str, str], GameError] = OrderedDict()
        self._notes: deque[dict[str, Any]] = deque(maxlen=MOST_NOTES)
        self._tracebacks = TracebackCollector()
        self._limits: OrderedDict[str, TokenBucket] = OrderedDict()
        self._left_out: dict[str, int] = {}
        self._numbers = 0

    def line(self, line: LogLine, now: float, wall: float) -> list[tuple[str, dict[str, Any]]]:
        """The events (name, data) of one more line. `now`: monotonic seconds; `wall`: Unix seconds."""
        told: list[tuple[str, dict[str, Any]]] = []
        if (error := self._error(line, wall)) is not None:
            told.append(("error", _shown(error)))
        limit = self._limits.setdefault(line.deployment_id, TokenBucket(_LINES_A_SECOND, _LINES_AT_ONCE))
        self._limits.move_to_end(line.deployment_id)
        if len(self._limits) > _SERVERS:
            self._left_out.pop(self._limits.popitem(last=False)[0], None)
        if limit.take(now) is None:
            self._left_out[line.deployment_id] = self._left_out.get(line.deployment_id, 0) + 1
            return told
        if left_out := self._left_out.pop(line.deployment_id, 0):
            text = f"... {left_out} lines are left out here; `tipoff logs {line.deployment_id}` has them"
            told.append(
                ("line", self._keep(replace(line, text=text, traceback="", level="warning", logger="tipoff")))
            )
        told.append(("line", self._keep(line)))
        return told

    def note(self, text: str, wall: float) -> dict[str, Any]:
        """The data of the event of a note: a sentence about the system."""
        note = {"at": wall, "text": _cut(text, _LONGEST_TEXT)}
        self._notes.append(note)
        return note

    def snapshot(self) -> dict[str, Any]:
        """What a page gets first."""
        return {
            "lines": [line for _, line in self._lines],
            "errors": [_shown(error) for error in self._errors.values()],
            "notes": list(self._notes),
        }

    def clear(self) -> None:
        """Forget all lines and errors: they will be read again."""
        self._lines.clear()
        self._bytes = 0
        self._errors.clear()
        self._tracebacks = TracebackCollector()

    def _keep(self, line: LogLine) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "deployment_id": line.deployment_id,
            "game": line.game,
            "version": line.version,
            "text": _cut(line.text, _LONGEST_TEXT),
            "at": line.at,
            "level": line.level,
            "traceback": _cut(line.traceback, _LONGEST_TRACEBACK),
            "routine": line.is_routine,
        }
        size = len(shown["text"]) + len(shown["traceback"]) + 100
        if len(self._lines) == MOST_LINES:
            self._bytes -= self._lines[0][0]
        self._lines.append((size, shown))
        self._bytes += size
        while self._bytes > MOST_BYTES:
            self._bytes -= self._lines.popleft()[0]
        return shown

    def _error(self, line: LogLine, wall: float) -> GameError | None:
        text, traceback = line.text, line.traceback
        if not line.level:
            traceback = self._tracebacks.line(line.deployment_id, line.text)
            text = traceback.rpartition("\n")[2]
        elif line.level not in _BAD and not traceback:
            return None
        if not text:
            return None
        text, traceback = _cut(text, 1000), _cut(traceback, _LONGEST_TRACEBACK)
        key = (line.game, line.version, traceback or text)
        before = self._errors.pop(key, None)
        self._numbers += 1
        error = GameError(
            before.number if before else self._numbers,
            line.deployment_id,
            line.game,
            line.version,
            text,
            traceback,
            line.at or wall,
            before.count + 1 if before else 1,
        )
        self._errors[key] = error
        if len(self._errors) > MOST_ERRORS:
            self._errors.popitem(last=False)
        return error


def _shown(error: GameError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in error.__slots__}


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + " ..."
