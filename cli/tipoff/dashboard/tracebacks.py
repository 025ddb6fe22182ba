"""Finds tracebacks in the plain lines of a server: what Python prints when a program cannot start or dies. Pure.

The lines of one traceback come one by one, from several servers in turn:

    Traceback (most recent call last):          or, of a syntax error, the first frame at once
      File "server.py", line 3, in <module>
        import maps
    ModuleNotFoundError: No module named 'maps'   <- the first line without indentation ends it
"""

from __future__ import annotations

import re
from collections import OrderedDict

_BEGIN = "Traceback (most recent call last):"
_FRAME = re.compile(r'  File ".*", line \d+')
_END = re.compile(r"[A-Za-z_][\w.]*(?:: .*|:)?", re.DOTALL)
_MOST_LINES = 200
_MOST_SERVERS = 200


class TracebackCollector:
    """The tracebacks that have begun, by server; of each at most 200 lines are kept, of the oldest servers none."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, list[str]] = OrderedDict()

    def line(self, server: str, text: str) -> str:
        """Take a plain line. Returns the whole traceback with the line that ends it, else ""."""
        lines = self._open.get(server)
        if text.startswith(_BEGIN) or (lines is None and _FRAME.fullmatch(text.partition(", in ")[0])):
            self._open[server] = [text]
            if len(self._open) > _MOST_SERVERS:
                self._open.popitem(last=False)
            return ""
        if lines is None:
            return ""
        if text.startswith(" ") or not text.strip():
            if len(lines) < _MOST_LINES:
                lines.append(text)
            return ""
        del self._open[server]
        return "\n".join([*lines, text]) if _END.fullmatch(text) else ""
