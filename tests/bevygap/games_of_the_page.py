"""The games.toml that docs/from-bevygap.md shows, as an operator would write it down."""

from __future__ import annotations

import re
from pathlib import Path

from tests.matchmaker.world import KEY
from tipoff_shared.games import Games
from tipoff_shared.games.toml import load_games

PORT = 6420
"""On which the image of the page listens."""
_IMAGE = re.compile(r'image = "[^"]*"')


def games_of_the_page(source_tree: Path, directory: Path, *, image: str = "") -> Games:
    """Written to `directory` with a key in bevygap's form, then read; with another image where one is given."""
    page = (source_tree / "docs" / "from-bevygap.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    if image:
        text, count = _IMAGE.subn(f'image = "{image}"', text)
        assert count == 1
    (directory / "games.toml").write_text(text)
    (directory / "spaceships.key").write_text(", ".join(map(str, KEY.reveal())) + "\n")
    return load_games(directory / "games.toml", environ={})
