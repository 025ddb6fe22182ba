"""`python -m bench.trace_play` follows a play and a departure through httpd and the matchmaker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_trace_names_what_a_play_and_a_departure_pass_through(source_tree: Path, tmp_path: Path) -> None:
    """Both services are on a play's path, the matchmaker is on a departure's."""
    output = tmp_path / "trace.json"
    with output.open("wb") as out:  # it is longer than a pipe takes at once
        done = subprocess.run(
            [sys.executable, "-m", "bench.trace_play", "--json", "--rounds", "1"],
            cwd=source_tree,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=50,
        )
    assert done.returncode == 0, done.stderr
    trails = json.loads(output.read_text())
    assert list(trails) == ["play", "play until quiet", "departure", "departure until quiet"]
    for name, trail in trails.items():
        assert all(total > 0 for total in trail["totals"].values()), name
        assert trail["totals"]["hops"] == len(trail["hops"])
        assert trail["totals"]["nats_operations"] == sum(trail["nats_operations"].values())
    assert _packages(trails["play"]) >= {"tipoff_matchmaker_httpd", "tipoff_matchmaker", "tipoff_shared"}
    assert _packages(trails["departure"]) >= {"tipoff_matchmaker", "tipoff_shared"}
    for operation in ("publish matchmaker.request", "write sessions", "write deployments"):
        assert trails["play"]["nats_operations"][operation] == 1
    assert trails["departure"]["nats_operations"]["write deployments"] == 1


def _packages(trail: dict[str, list[str]]) -> set[str]:
    return {file.split("/")[0] for file in trail["files"]}
