"""Debian's Chromium for the browser tests: where it is, how it is started, and the gate where there is none.

Without it such tests are skipped with the reason; with `TIPOFF_TEST_REQUIRE_BROWSER=1` they fail.
"""

from __future__ import annotations

import os
import shutil

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Its path. Skips or fails the test where it is not installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is not None:
        return found
    reason = "chromium is not installed: apt-get install chromium"
    if os.environ.get("TIPOFF_TEST_REQUIRE_BROWSER"):
        pytest.fail(f"{reason}; TIPOFF_TEST_REQUIRE_BROWSER says that it must be")
    pytest.skip(reason)
