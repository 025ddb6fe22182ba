"""A short soak of both profiles, by the command that `make soak` runs."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.mark.row(62)
async def test_a_minute_of_churn_and_faults_breaks_no_rule_and_leaves_nothing(
    tmp_path: Path, source_tree: Path
) -> None:
    """It finds no problem, and writes its figures and its plot."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.soak", "--minutes", "1.2", "--seed", "5", "--players", "6", "--out", str(tmp_path)),
        cwd=source_tree,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert all(json.loads(line)["figure"] for line in out.splitlines())
    written = json.loads((tmp_path / "soak.json").read_text())
    for result in written["results"]:
        assert result["recoveries"], "no fault was injected"
        assert result["plays"] > 20
    assert (tmp_path / "soak.svg").read_text().startswith("<svg")
