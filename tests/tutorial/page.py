"""Reads docs/tutorial.md as a list of steps, each of which a person could take who has only this page."""

from __future__ import annotations

import re
from dataclasses import dataclass

_START = re.compile(r'^```(?P<kind>\w+) title="(?P<title>[^"]+)"$')
_BROWSER = re.compile(r"^<!-- browser: (?P<name>.+) -->$")
GAP = "..."
"""In output: whatever is here. As a line of a change: further down in the file."""


@dataclass(frozen=True)
class Commands:
    """A block of one terminal: commands (`$ `), Ctrl-C (`^C`), and lines of output after each."""

    terminal: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """The whole new content of a file."""

    path: str
    text: str


@dataclass(frozen=True)
class Change:
    """Lines to remove and to add in a file."""

    path: str
    hunks: tuple[tuple[str, str], ...]
    """(old lines, new lines), each pair with the unchanged lines around it."""

    def apply(self, text: str) -> str:
        """The changed text. Raises `AssertionError` for lines that are not there, or there more than once."""
        for old, new in self.hunks:
            assert text.count(old) == 1, f"{self.path}: {text.count(old)} places for the change\n{old}"
            text = text.replace(old, new)
        return text


@dataclass(frozen=True)
class Browser:
    """What a person does in the browser; the code for it has this name."""

    name: str


Step = Commands | File | Change | Browser


def steps(page: str) -> list[Step]:
    """Every step of the page, in order. Raises `AssertionError` for a block that is none."""
    found: list[Step] = []
    lines = iter(page.splitlines())
    for line in lines:
        if browser := _BROWSER.match(line):
            found.append(Browser(browser["name"]))
        if not line.startswith("```"):
            continue
        start = _START.match(line)
        assert start, f"a block that nobody can follow: {line}"
        body = []
        for inner in lines:
            if inner == "```":
                break
            body.append(inner)
        if start["kind"] == "console":
            found.append(Commands(start["title"], tuple(body)))
        elif start["kind"] == "diff":
            found.append(Change(start["title"], tuple(_hunks(body))))
        else:
            found.append(File(start["title"], "\n".join(body) + "\n"))
    return found


def _hunks(body: list[str]) -> list[tuple[str, str]]:
    hunks: list[tuple[list[str], list[str]]] = [([], [])]
    for line in body:
        if line == GAP:
            hunks.append(([], []))
            continue
        mark, text = line[:1] or " ", line[1:]
        assert mark in " +-", f"neither added, removed nor unchanged: {line}"
        if mark != "+":
            hunks[-1][0].append(text + "\n")
        if mark != "-":
            hunks[-1][1].append(text + "\n")
    return [("".join(old), "".join(new)) for old, new in hunks]
