"""Which tests run which lines: recorded once, kept in .mutants/map.json, renewed for each file that changed.

{"tests/matchmaker/test_bans.py": {"sha": ..., "seconds": {test: s}, "failed": [test],
                                   "modules": {module: {"sha": ..., "lines": {test: hex}}}}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutants.tree import NO_TESTS, NOTICED, SURVIVED, Tree


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def stale(known: Mapping[str, Any], tests: Mapping[str, str], modules: Mapping[str, str]) -> list[str]:
    """The test files to record again: new, changed, or covering one of `modules` as it was. Both map a path to its
    hash."""
    return sorted(
        name
        for name, digest in tests.items()
        if name not in known
        or known[name]["sha"] != digest
        or any(
            seen["lines"] and seen["sha"] != modules[module]
            for module, seen in known[name]["modules"].items()
            if module in modules
        )
    )


@dataclass
class Covering:
    """The tests of one module, by line."""

    lines: dict[str, int] = field(default_factory=dict)
    """For each test the lines that it runs, one bit each."""
    seconds: dict[str, float] = field(default_factory=dict)

    def tests(self, lines: Iterable[int]) -> list[str]:
        """The tests that run one of these lines, quickest first; without lines, all of them."""
        wanted = sum(1 << line for line in set(lines))
        found = [test for test, seen in self.lines.items() if not wanted or seen & wanted]
        return sorted(found, key=lambda test: (self.seconds.get(test, 0.0), test))


def covering(known: Mapping[str, Any], module: str) -> Covering:
    """What is known of a module. Tests that failed without any change are left out."""
    found = Covering()
    for file in known.values():
        for test, digits in file["modules"].get(module, {"lines": {}})["lines"].items():
            if test not in file["failed"]:
                found.lines[test] = int(digits, 16)
                found.seconds[test] = file["seconds"].get(test, 0.0)
    return found


def record(
    tree: Tree, store: Path, tools: Path, modules: list[str], within: list[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """The map, after the stale files among the fast tests under `within` have been recorded again."""
    known: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    files = {
        str(path.relative_to(tree.root)): sha(path)
        for folder in within
        for path in (
            [tree.root / folder] if folder.endswith(".py") else (tree.root / folder).rglob("test_*.py")
        )
    }
    known = {name: seen for name, seen in known.items() if (tree.root / name).exists()}
    again = stale(known, files, {module: sha(tree.root / module) for module in modules})
    if again:
        say(f"recording which lines the fast tests of {len(again)} files run")
        fresh = _recorded(tree, again, tools)
        known |= fresh
        store.parent.mkdir(exist_ok=True)
        store.write_text(json.dumps(known))
        for name in again:
            for test in fresh[name]["failed"]:
                say(f"left out, it fails without any change: {test}")
    return {name: seen for name, seen in known.items() if name in files}


def _recorded(tree: Tree, files: list[str], tools: Path) -> dict[str, Any]:
    directory = tree.root / ".recorded"
    directory.mkdir()
    run = tree.pytest(
        ["-n", "2", "--dist", "worksteal", *files],
        seconds=3600, tools=tools, MUTANTS_RECORD=str(directory), COVERAGE_CORE="ctrace",
    )  # fmt: skip
    if run.code not in (SURVIVED, NOTICED, NO_TESTS):
        raise SystemExit(f"the tests cannot be run:\n{run.output}")
    fresh: dict[str, Any] = {
        name: {"sha": sha(tree.root / name), "seconds": {}, "failed": [], "modules": {}} for name in files
    }
    for path in directory.iterdir():
        seen = json.loads(path.read_text())
        for test, seconds in seen["tests"].items():
            fresh[test.split("::")[0]]["seconds"][test] = round(seconds, 3)
        for test in seen["failed"]:
            fresh[test.split("::")[0]]["failed"].append(test)
        for module, lines in seen["lines"].items():
            for test, digits in lines.items():
                modules = fresh[test.split("::")[0]]["modules"]
                known = modules.setdefault(module, {"sha": sha(tree.root / module), "lines": {}})
                known["lines"][test] = digits
        path.unlink()
    directory.rmdir()
    return fresh
