"""The wheel's metadata has links to the repository that it is built from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def _urls(root: Path, repository: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"],
        cwd=root,
        env=os.environ | {"TIPOFF_REPOSITORY_URL": repository},
        capture_output=True,
        text=True,
        check=True,
    )
    urls: dict[str, str] = json.loads(done.stdout).get("urls", {})
    return urls


@pytest.mark.parametrize(
    "repository",
    [
        "https://forge.example.org/games/tipoff",
        "https://forge.example.org/games/tipoff.git",
        "git@forge.example.org:games/tipoff.git",
        "ssh://git@forge.example.org/games/tipoff",
    ],
)
def test_the_wheel_links_to_its_repository(source_tree: Path, repository: str) -> None:
    assert _urls(source_tree, repository) == {
        "Source": "https://forge.example.org/games/tipoff",
        "Documentation": "https://forge.example.org/games/tipoff/blob/main/docs/README.md",
        "Changelog": "https://forge.example.org/games/tipoff/blob/main/CHANGELOG.md",
        "Issues": "https://forge.example.org/games/tipoff/issues",
    }


@pytest.mark.parametrize(
    "repository", ["/srv/tipoff", "../tipoff", "https://somebody:secret@forge.example.org/games/tipoff"]
)
def test_what_is_no_public_address_is_no_link(source_tree: Path, repository: str) -> None:
    assert _urls(source_tree, repository) == {}
