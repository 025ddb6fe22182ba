"""The `tipoff` command starts quickly: what only some commands need is imported when they run."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["nats", "aiohttp", "httpx", "websockets", "fastapi", "uvicorn", "tipoff_gameserver"]
)
def test_the_help_does_not_import(module: str, imported: frozenset[str]) -> None:
    assert module not in imported


@pytest.fixture(scope="module")
def imported() -> frozenset[str]:
    """The modules that every start of the command imports."""
    code = "import sys, tipoff.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = frozenset(done.stdout.split())
    assert "typer" in names
    return names
