"""What docs, docstrings and comments refer to exists: files of ours by name, modules and their names by dotted name."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

_FILE = re.compile(r"(?<![\w./-])(?:\.\./)*((?:[\w.-]+/)*[\w-]+\.(?:py|md))\b")
_DOTTED = re.compile(r"\b(tipoff(?:_[a-z_]+)?(?:\.[A-Za-z_]\w*)+)")
NOT_OURS = {"folder/file.py", "tipoff.conf", "tipoff.orchestrators"}
NOT_OURS |= {"stars/server.py", "stars/client.py", "stars/test_game.py"}
"""An example of a path, a file of nginx's, a group of entry points; the game that the tutorial makes."""


@pytest.fixture(scope="module")
def tree() -> Path:
    return Path(os.environ.get("TIPOFF_SOURCE_TREE") or Path(__file__).parent.parent)


def files_of(tree: Path) -> list[str]:
    """Every file of the repository, `/` before its path; not what was installed, built or cached."""
    found = []
    for folder, folders, files in os.walk(tree):
        folders[:] = [f for f in folders if f in (".ci", ".github") or f[0] != "."]
        folders[:] = [f for f in folders if f not in ("node_modules", "__pycache__", "build", "dist")]
        found += ["/" + str((Path(folder) / file).relative_to(tree)) for file in files]
    return found


def prose(path: Path) -> Iterator[str]:
    """The texts of a page, or the docstrings and comments of a module."""
    text = path.read_text()
    if path.suffix == ".md":
        yield text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node, clean=False) or ""


def resolves(dotted: str, packages: dict[str, Path]) -> bool:
    """Whether `package.module.name` leads to a module, and its next name to something that the module mentions."""
    first, *rest = dotted.split(".")
    place = packages.get(first)
    for name in rest if place else ():
        if place.is_dir() and (place / name).is_dir():
            place = place / name
        elif place.is_dir() and (place / f"{name}.py").exists():
            place = place / f"{name}.py"
        else:
            module = place / "__init__.py" if place.is_dir() else place
            return re.search(rf"\b{name}\b", module.read_text()) is not None
    return place is not None


def test_files_and_modules_that_prose_names_exist(tree: Path) -> None:
    """A path may be shortened at its front: `server/run.py`, `run.py`."""
    files = files_of(tree)
    ends = {file[at:] for file in files for at, letter in enumerate(file) if letter == "/"}
    packages = {
        Path(file).parent.name: tree / file[1:].removesuffix("/__init__.py")
        for file in files
        if file.endswith("/__init__.py") and Path(file).parent.name.startswith("tipoff")
    }

    def gone(text: str) -> set[str]:
        names = {match[1] for match in _FILE.finditer(text) if "/" + match[1] not in ends}
        names |= {match[1] for match in _DOTTED.finditer(text) if not resolves(match[1], packages)}
        return names - NOT_OURS

    found = []
    for file in files:
        page = tree / file[1:]
        if page.suffix in (".py", ".md") and gone(page.read_text()):  # reading prose alone takes much longer
            found += [f"{file[1:]}: {name}" for text in prose(page) for name in sorted(gone(text))]
    assert sorted(found) == []
