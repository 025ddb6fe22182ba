"""What the engine says while it fetches an image, as one line for the players who wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MB = 1_000_000


class PullProgress:
    """Feed it the engine's lines; `text` is for people who know nothing of images."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[float, float]] = {}
        self._unpacking = False

    def feed(self, line: Mapping[str, Any]) -> str:
        """One line in, the text as it now is out. Lines of any shape are let in: other engines say other things."""
        layer, status = str(line.get("id", "")), str(line.get("status", ""))
        detail = line.get("progressDetail")
        current, total = (
            (_number(detail.get("current")), _number(detail.get("total")))
            if isinstance(detail, Mapping)
            else (0, 0)
        )
        if status == "Downloading" and total > 0:
            self._layers[layer] = (min(current, total), total)
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            total = self._layers[layer][1]
            self._layers[layer] = (total, total)
        elif status == "Extracting":
            self._unpacking = True
        return self.text

    @property
    def text(self) -> str:
        fetched = sum(current for current, _ in self._layers.values())
        total = sum(total for _, total in self._layers.values())
        if total and fetched < total:
            return f"Fetching the game server's image: {fetched / _MB:.0f} of {total / _MB:.0f} MB"
        return "Unpacking the game server's image" if self._unpacking else "Fetching the game server's image"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
