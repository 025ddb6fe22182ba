"""A pytest plugin (`-p tests.mutants.plugin`): records which lines each test runs, or runs chosen tests in order.

MUTANTS_RECORD=directory   one JSON file per test process:
                               {"tests": {test: seconds}, "failed": [...], "lines": {file: {test: hex}}}
MUTANTS_TESTS=file         one test per line: only these run, in this order
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def lines_to_hex(lines: list[int]) -> str:
    """A set of line numbers as one number with a bit for each."""
    number = 0
    for line in lines:
        number |= 1 << line
    return f"{number:x}"


class _Recorder:
    """Switches coverage's context with the test, so that what a background task does counts for the test it runs in."""

    def __init__(self, directory: Path, root: Path) -> None:
        import coverage  # from .mutants/tools

        self._directory = directory
        self._root = root
        self._coverage: Any = coverage.Coverage(
            data_file=None, config_file=False, include=[f"{root}/*/tipoff*/*"]
        )
        self._seconds: dict[str, float] = {}
        self._failed: list[str] = []
        self._coverage.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, dict[str, str]] = {}
        for path in data.measured_files():
            tests: dict[str, list[int]] = {}
            for line, contexts in data.contexts_by_lineno(path).items():
                for test in contexts:
                    if test:
                        tests.setdefault(test, []).append(line)
            name = str(Path(path).relative_to(self._root))
            lines[name] = {test: lines_to_hex(numbers) for test, numbers in tests.items()}
        seen = {"tests": self._seconds, "failed": self._failed, "lines": lines}
        (self._directory / f"{os.getpid()}.json").write_text(json.dumps(seen))


class _Chosen:
    def __init__(self, wanted: list[str]) -> None:
        self._wanted = {test: at for at, test in enumerate(wanted)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._wanted]
        items[:] = sorted(chosen, key=lambda item: self._wanted[item.nodeid])


def pytest_configure(config: pytest.Config) -> None:
    controls_workers = getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput")
    if (directory := os.environ.get("MUTANTS_RECORD")) and not controls_workers:
        config.pluginmanager.register(_Recorder(Path(directory), Path(config.rootpath)))
    if path := os.environ.get("MUTANTS_TESTS"):
        config.pluginmanager.register(_Chosen(Path(path).read_text().splitlines()))
