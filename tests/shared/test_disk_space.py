"""How much room a disk has, and when that is too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from tipoff_shared.disk_space import DiskSpace, disk_space

MIB = 2**20


@pytest.mark.row(76)
@pytest.mark.parametrize(
    ("free", "total", "least", "nearly_full"),
    [
        (300, 100_000, 256, False),
        (200, 100_000, 256, True),
        (200, 1000, 256, False),  # a small disk: a twentieth
        (40, 1000, 256, True),
        (0, 1000, 256, True),
        (0, 1000, 0, False),
    ],
)
def test_a_disk_is_nearly_full_by_its_free_space_and_its_size(
    free: int, total: int, least: int, nearly_full: bool
) -> None:
    """The text names the place, what is free and what to do."""
    problem = DiskSpace(Path("/state"), free * MIB, total * MIB).problem(least * MIB)
    assert bool(problem) is nearly_full
    if problem:
        assert "/state" in problem
        assert f"{free} MiB" in problem


async def test_the_space_of_a_directory(tmp_path: Path) -> None:
    found = await disk_space(tmp_path)
    assert 0 < found.free <= found.total
