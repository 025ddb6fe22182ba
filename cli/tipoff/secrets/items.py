"""One file of a secrets directory, the report on all of them, and the two ways in which a file is written."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tipoff.secrets.files import is_there, mode_of, write

MADE, KEPT, RENEWED, EDITED = "made", "kept", "renewed", "edited by hand: kept"


@dataclass(slots=True)
class Item:
    """One file. `name` is what `rotate` calls it, `readers` who needs it, `back_up` whether a copy is worth keeping."""

    name: str
    path: Path
    readers: str
    back_up: str
    state: str = KEPT
    expires: datetime.datetime | None = None


@dataclass(slots=True)
class Report:
    """What lies where, and what is to do now: sentences for people."""

    directory: Path
    namespace: str
    items: list[Item] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    def find(self, name: str, file: str = "") -> Item | None:
        """The first item of that name; `file`: the one of that file name."""
        return next((i for i in self.items if i.name == name and file in ("", i.path.name)), None)

    def make_missing(self, item: Item, make: Callable[[], str]) -> None:
        """Its file, unless it is there. Raises `ConfigError`."""
        if not is_there(item.path):
            write(item.path, make(), mode_of(item.path))
            item.state = MADE
        self.items.append(item)

    def replace(self, items: Sequence[Item], texts: Sequence[str]) -> None:
        """The files of one name, in the order of `texts`, whether they are there or not. Raises `ConfigError`."""
        for item, text in zip(items, texts, strict=True):
            known = self.find(item.name, item.path.name)
            if known is None:  # it was missing
                self.items.append(known := item)
            write(known.path, text, mode_of(known.path))
            known.state = RENEWED
