"""What matchmakers say of the system's health, to each other and to httpd's readiness.

blocking   nobody gets a seat: NATS takes no writes, no orchestrator answers, no game's servers stay up
degraded   some do not: one of several orchestrators or games
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec

from tipoff_shared.primitives.text import one_line

_MOST = 20
_LONGEST = 300
"""Texts of one kind in a report, and characters of one text."""


class Report(msgspec.Struct, frozen=True):
    """What is wrong, a text for people each."""

    blocking: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()

    def shortened(self) -> Report:
        """With few and short texts, each one line."""
        return Report(_short(self.blocking), _short(self.degraded))


NOTHING = Report()


def encode_report(report: Report) -> bytes:
    """The report as JSON."""
    return msgspec.json.encode(report)


def header_text(report: Report) -> str:
    """The report for a header of NATS, which holds ASCII."""
    return json.dumps(msgspec.to_builtins(report))


def decode_report(data: bytes | str) -> Report:
    """The report in `data`, shortened; an empty one where it cannot be read, such as of another release."""
    try:
        return msgspec.json.decode(data, type=Report).shortened()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return NOTHING


def _short(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(one_line(text, _LONGEST) for text in list(texts)[:_MOST])
