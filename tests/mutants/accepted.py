"""Survivors that are accepted, each with its reason: accepted.toml. An entry without a reason, or of which nothing is
left in the code, is an error.

    [[accepted]]
    module = "matchmaker/tipoff_matchmaker/fleet/liveness.py"
    function = "Liveness.refresh"
    change = '''
    - before
    + after
    '''
    reason = "why no test can, or needs to, notice it"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ACCEPTED = Path(__file__).parent / "accepted.toml"
FIELDS = {"module", "function", "change", "reason"}


class AcceptedError(Exception):
    """accepted.toml is wrong. The text names the entry and what to do."""


@dataclass(frozen=True)
class Accepted:
    module: str
    function: str
    change: str
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.function, self.change


def parse(text: str) -> list[Accepted]:
    """The entries of the file. Raises `AcceptedError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise AcceptedError(f"this is not TOML: {exc}") from exc
    if unknown := document.keys() - {"accepted"}:
        raise AcceptedError(f"unknown: {', '.join(sorted(unknown))}; only [[accepted]] is known")
    entries: dict[tuple[str, str, str], Accepted] = {}
    for number, fields in enumerate(document.get("accepted", []), 1):
        where = f"entry {number} ({fields.get('module', '?')}, {fields.get('function', '?')})"
        if fields.keys() != FIELDS or not all(isinstance(value, str) for value in fields.values()):
            raise AcceptedError(f"{where}: needs exactly the texts {', '.join(sorted(FIELDS))}")
        if not fields["reason"].strip():
            raise AcceptedError(f"{where}: say why it is accepted")
        lines = [line.strip() for line in fields["change"].strip().splitlines()]
        if not lines or not all(line[:1] in ("-", "+") for line in lines):
            raise AcceptedError(f"{where}: each line of `change` begins with - or +")
        change = "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines)
        entry = Accepted(fields["module"], fields["function"], change, " ".join(fields["reason"].split()))
        if entry.key in entries:
            raise AcceptedError(f"{where}: stands there twice")
        entries[entry.key] = entry
    return list(entries.values())


def read(path: Path) -> list[Accepted]:
    return parse(path.read_text()) if path.exists() else []


def unmatched(
    entries: Iterable[Accepted], modules: Iterable[str], changes: Iterable[tuple[str, str, str]]
) -> list[Accepted]:
    """The entries for these modules that are none of their changes: (module, function, diff)."""
    known, looked_at = set(changes), set(modules)
    return [entry for entry in entries if entry.module in looked_at and entry.key not in known]
