"""Holds what a report says of each secret file, and the two ways in which one is written."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tipoff.secrets.files import is_there, mode_of, write

MADE, KEPT, RENEWED, EDITED = "made", "kept", "renewed", "edited by hand: kept"


@dataclass(slots=True)
class Item:
    """One file. `name` is its name for `rotate`, `readers` who needs it, `back_up` whether to keep a copy."""

    name: str
    path: Path
    readers: str
    back_up: str
    state: str = KEPT
    expires: datetime.datetime | None = None


@dataclass(slots=True)
class Report:
    """The files of a directory, and in `next` what to do now, in sentences for people."""

    directory: Path
    namespace: str
    items: list[Item] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    def find(self, name: str, file: str = "") -> Item | None:
        """The first item with that name, and with that file name where `file` is given; None without one."""
        return next((i for i in self.items if i.name == name and file in ("", i.path.name)), None)

    def make_missing(self, item: Item, make: Callable[[], str]) -> None:
        """Add the item, and make its file unless it exists. Raises `ConfigError`."""
        if not is_there(item.path):
            write(item.path, make(), mode_of(item.path))
            item.state = MADE
        self.items.append(item)

    def replace(self, items: Sequence[Item], texts: Sequence[str]) -> None:
        """Write `texts` into the files of `items`, whether they exist or not. Raises `ConfigError`."""
        for item, text in zip(items, texts, strict=True):
            known = self.find(item.name, item.path.name)
            if known is None:  # it was missing
                self.items.append(known := item)
            write(known.path, text, mode_of(known.path))
            known.state = RENEWED
