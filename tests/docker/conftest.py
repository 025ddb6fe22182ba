"""Builds the images of this source tree when they are missing or outdated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docker.image_builds import built_images, snapshot


@pytest.fixture(scope="session")
def sources(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of what goes into the images, and its digest, so that all images of a run have one state."""
    target = tmp_path_factory.mktemp("sources")
    return target, snapshot(source_tree, target)


@pytest.fixture(scope="session")
def images(sources: tuple[Path, str]) -> Mapping[str, str]:
    """role -> image, `tipoff/ROLE:test`, of this source tree. They are kept for the next run."""
    return built_images(*sources)
