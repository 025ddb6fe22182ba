"""Changes one line of a module at a time and looks whether the fast tests notice: `make mutants MODULE=path SAMPLE=50`.

A change is made in a copy of the tree. The tests that run the changed line run there, those that noticed changes before
first, until one fails. A failure is believed when the test fails again, and passes without the change. Exit code 1: too
few changes were noticed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from tests.mutants import accepted, report
from tests.mutants.changes import Change, changes_of
from tests.mutants.covering import Covering, covering, record
from tests.mutants.report import Result
from tests.mutants.tree import BAD_USAGE, NO_TESTS, SURVIVED, Run, Tree

STATE = Path(".mutants")
TEST_TIMEOUT = 20.0
"""Seconds for one test; a fast one takes two."""
FIRST = 40
"""So many tests run in one process before several are started."""


def main(arguments: list[str]) -> int:
    """Run what the arguments say; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "modules", nargs="+", help="modules or folders, such as matchmaker/tipoff_matchmaker/fleet"
    )
    parser.add_argument("--sample", type=int, help="how many changes to try (default: all)")
    parser.add_argument("--seed", type=int, help="repeats the sample of this seed; by default a new one")
    parser.add_argument(
        "--tests", nargs="+", default=["tests"], help="folders or files of tests (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="changes tried at the same time (default: 1)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes for the tests of one change (default: 1)"
    )
    parser.add_argument("--again", action="store_true", help="only what survived in the last run")
    parser.add_argument("--at-least", type=float, default=90, help="per cent to notice (default: 90)")
    parser.add_argument("--list", action="store_true", help="print the changes and try none")
    given = parser.parse_args(arguments)
    modules = _modules(given.modules)
    sources = {module: Path(module).read_text() for module in modules}
    every = [(module, change) for module in modules for change in changes_of(sources[module])]
    known = {entry.key: entry for entry in accepted.read(accepted.ACCEPTED)}
    _check(list(known.values()), modules, sources, every)
    seed = random.randrange(1, 10**6) if given.seed is None else given.seed
    chosen = report.sample(every, given.sample, seed)
    if given.again:
        last = {tuple(key) for key in json.loads((STATE / "survivors.json").read_text())}
        chosen = [(m, change) for m, change in every if (m, change.function, change.diff(sources[m])) in last]
    if given.list:
        for module, change in chosen:
            place = f"{module}:{min(change.lines, default=0)} {change.function}"
            _say(f"{place}: {change.kind}\n{change.diff(sources[module])}")
        return 0
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    )
    size = "" if given.sample is None else f" SAMPLE={given.sample} SEED={seed}"
    size = " AGAIN=1" if given.again else size
    tests = "" if given.tests == ["tests"] else f' ARGS="--tests {" ".join(given.tests)}"'
    again = f"make mutants MODULE={','.join(given.modules)}{size}{tests}"
    _say(f"{len(chosen)} of {len(every)} changes at {commit.stdout.strip()}; the same again: {again}")
    with tempfile.TemporaryDirectory(prefix="tipoff-mutants-") as directory:
        trees = [Tree(Path.cwd(), Path(directory) / str(number)) for number in range(given.jobs)]
        mapped = record(trees[0], STATE / "map.json", (STATE / "tools").resolve(), modules, given.tests, _say)
        tested = {module: covering(mapped, module) for module in modules}
        history = STATE / "noticed_by.json"
        noticed_by = Counter(json.loads(history.read_text()) if history.exists() else {})
        trials = _Trials(trees, sources, tested, known, noticed_by, len(chosen), given.workers)
        results: list[Result] = []
        with ThreadPoolExecutor(given.jobs) as pool:
            try:
                for result in pool.map(lambda one: trials.tried(*one), chosen):
                    results.append(result)  # noqa: PERF402 # what has been found is kept when Ctrl-C ends it
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                _say(f"ended after {len(results)} of {len(chosen)}")
        history.write_text(json.dumps(noticed_by))
    possible = Counter(module for module, _ in every)
    (STATE / "survivors.json").write_text(json.dumps([result.key for result in results if result.survived]))
    (STATE / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    _say(f"\n{report.survivors(results)}\n\n{report.table(results, dict(possible))}")
    _say(f"\n{again} at {commit.stdout.strip()}")
    noticed = report.share(results)
    return 0 if noticed is None or noticed >= given.at_least else 1


def _modules(paths: list[str]) -> list[str]:
    found: list[str] = []
    for path in map(Path, paths):
        if not path.exists():
            raise SystemExit(
                f"{path} does not exist; name a module or folder, such as matchmaker/tipoff_matchmaker/fleet"
            )
        found += [str(path)] if path.suffix == ".py" else sorted(map(str, path.rglob("*.py")))
    return list(dict.fromkeys(found))


def _check(
    entries: list[accepted.Accepted],
    modules: list[str],
    sources: dict[str, str],
    every: list[tuple[str, Change]],
) -> None:
    """Raises SystemExit for accepted changes that cannot be made any more."""
    concerned = {entry.module for entry in entries}
    keys = [(m, change.function, change.diff(sources[m])) for m, change in every if m in concerned]
    for entry in accepted.unmatched(entries, modules, keys):
        raise SystemExit(
            f"{accepted.ACCEPTED}: no such change in {entry.module}, {entry.function}; remove it:\n{entry.change}"
        )


def _run(tree: Tree, tests: list[str], seconds: float, workers: int = 1) -> Run:
    names = tree.root / ".chosen"
    names.write_text("\n".join(tests))
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    options = ["-n", str(workers)] if workers > 1 else []
    options += ["-x", "--timeout", str(TEST_TIMEOUT)]
    return tree.pytest([*options, *files], seconds=seconds, MUTANTS_TESTS=str(names))


class _Trials:
    """Tries changes, several at the same time, each in its own tree."""

    def __init__(
        self,
        trees: list[Tree],
        sources: dict[str, str],
        tested: dict[str, Covering],
        known: dict[tuple[str, str, str], accepted.Accepted],
        noticed_by: Counter[str],
        total: int,
        workers: int,
    ) -> None:
        self._free: SimpleQueue[Tree] = SimpleQueue()
        for tree in trees:
            self._free.put(tree)
        self._sources = sources
        self._tested = tested
        self._known = known
        self._total = total
        self._done = 0
        self._workers = workers
        self._passes: dict[str, bool] = {}
        self._noticed_by = noticed_by

    def tried(self, module: str, change: Change) -> Result:
        """How the change ended; says so."""
        started = time.monotonic()
        diff = change.diff(self._sources[module])
        line = min(change.lines, default=0)
        entry = self._known.get((module, change.function, diff))
        if entry is not None:
            outcome, by = report.ACCEPTED, entry.reason
        else:
            tree = self._free.get()
            try:
                outcome, by = self._outcome(tree, module, change)
            finally:
                tree.write(module, self._sources[module])
                self._free.put(tree)
        self._done += 1
        took = time.monotonic() - started
        _say(f"{self._done}/{self._total} {outcome} ({took:.0f} s) {module}:{line} {change.kind} {by}")
        return Result(module, change.function, line, change.kind, diff, outcome, by)

    def _outcome(self, tree: Tree, module: str, change: Change) -> tuple[str, str]:
        covered = self._tested[module]
        tests = covered.tests(() if change.imported else change.lines)
        place = f"{module} {change.function}"
        tests.sort(
            key=lambda test: (-self._noticed_by[f"{place} {test}"], -self._noticed_by[f"{module} {test}"])
        )
        if not tests:
            return report.UNREACHED, ""
        for some, workers in ((tests[:FIRST], 1), (tests[FIRST:], self._workers)):
            tree.write(module, change.applied_to(self._sources[module]))
            outcome, by = self._outcome_of(tree, module, some, covered.seconds, workers)
            while outcome == report.NOTICED and by in some and not self._sound(tree, module, by):
                _say(f"left out, it fails without any change: {by}")
                some.remove(by)
                tree.write(module, change.applied_to(self._sources[module]))
                outcome, by = self._outcome_of(tree, module, some, covered.seconds, workers)
            if outcome != report.SURVIVED:
                self._noticed_by.update([f"{place} {by}", f"{module} {by}"])
                return outcome, by
        return report.SURVIVED, ""

    def _sound(self, tree: Tree, module: str, test: str) -> bool:
        """Whether the test passes while nothing is changed; looked at once for each test."""
        if test not in self._passes:
            tree.write(module, self._sources[module])
            self._passes[test] = _run(tree, [test], 3 * TEST_TIMEOUT).code == SURVIVED
        return self._passes[test]

    def _outcome_of(
        self, tree: Tree, module: str, tests: list[str], known: dict[str, float], workers: int
    ) -> tuple[str, str]:
        while tests:
            seconds = 3 * sum(known.get(test, 0.0) for test in tests) + 2 * TEST_TIMEOUT
            run = _run(tree, tests, seconds, workers)
            if run.code is None:
                return report.TIMED_OUT, ""
            if run.code == SURVIVED:
                return report.SURVIVED, ""
            if run.failed is None:
                if not tree.imports(module):
                    return report.NOTICED, "it cannot be imported"
                if run.code in (BAD_USAGE, NO_TESTS):
                    raise SystemExit(f"pytest ended with {run.code}:\n{run.output}")
                return report.NOTICED, f"pytest ended with {run.code}"
            if run.failed not in tests or _run(tree, [run.failed], seconds).code != SURVIVED:
                return report.NOTICED, run.failed
            tests = [test for test in tests if test != run.failed]  # it failed by chance
        return report.SURVIVED, ""


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
