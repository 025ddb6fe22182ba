"""Prints requirements for the lowest versions that pyproject.toml allows, for Python 3.11.

What tipoff needs itself is the lowest allowed; the test tools, and what others need, is as in uv.lock where that fits,
so that the result changes only with this repository.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")


def uv(*arguments: str | os.PathLike[str]) -> str:
    """Run uv in the repository; its standard output."""
    return subprocess.run([UV, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def locked(*groups: str) -> list[str]:
    """The requirements in uv.lock for `groups`, one `name==version` a line."""
    text = uv(
        "export",
        "--quiet",
        "--frozen",
        "--no-emit-project",
        "--no-hashes",
        "--no-annotate",
        "--no-header",
        *groups,
    )
    return text.splitlines()


def name_of(requirement: str) -> str:
    """The package's name, normalised."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = {
        name_of(line)
        for group in [project["dependencies"], *project["optional-dependencies"].values()]
        for line in group
    }
    with tempfile.TemporaryDirectory() as scratch:
        tools, result = Path(scratch, "tools.txt"), Path(scratch, "lowest.txt")
        tools.write_text("\n".join(locked("--only-group", "dev")))
        # uv prefers the versions that its output file holds already.
        result.write_text("\n".join(line for line in locked("--all-extras") if name_of(line) not in own))
        uv(
            "pip",
            "compile",
            "--quiet",
            "--resolution",
            "lowest-direct",
            "--python-version",
            "3.11",
            "--all-extras",
            "pyproject.toml",
            tools,
            "--no-header",
            "--no-annotate",
            "-o",
            result,
        )
        sys.stdout.write(result.read_text())


if __name__ == "__main__":
    main()
