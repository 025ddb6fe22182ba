"""Puts the project's links into the wheel's metadata.

They lead to the repository that the wheel is built from: `TIPOFF_REPOSITORY_URL`, else git's `origin`. A build from
neither, as in a container, has no links.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_SSH = re.compile(r"(?:ssh://)?git@([^/:]+)[:/](.+)")
_WEB = re.compile(r"https://[^/@\s]+/\S+")


class Links(MetadataHookInterface):
    """Found by hatchling, because it is the only hook in this file."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `urls`."""
        metadata["urls"] = links(os.environ.get("TIPOFF_REPOSITORY_URL") or _origin(self.root))


def links(repository: str) -> dict[str, str]:
    """The links to a repository on the web; none where it is not on the web."""
    home = _SSH.sub(r"https://\1/\2", repository.strip()).removesuffix("/").removesuffix(".git")
    if not _WEB.fullmatch(home):
        return {}
    return {
        "Source": home,
        "Documentation": f"{home}/blob/main/docs/README.md",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }


def _origin(root: str) -> str:
    command = ["git", "-C", root, "config", "--get", "remote.origin.url"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
