"""Makes short texts for logs, records and players: the text of an exception, one line of bounded length."""

from __future__ import annotations


def describe(exc: BaseException) -> str:
    """The exception's text, or the name of its type where the text is empty (`TimeoutError()` has none)."""
    text = str(exc)
    return text if text.strip() else type(exc).__name__


def one_line(text: str, limit: int = 200) -> str:
    """`text` with every run of white space as one space, cut to at most `limit` characters; a cut ends in "…"."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
