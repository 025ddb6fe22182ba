"""The client SDK runs where Python runs, and needs no dependency of the services."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys, asyncio, logging, ssl, multiprocessing  # what these import of their own is the platform's matter
blocked = ["fcntl", "resource", "pwd", "grp", "termios", "uvloop"]
before = set(sys.modules)
for name in blocked:
    sys.modules[name] = None
import tipoff_client_sdk
heavy = {"nats", "fastapi", "uvicorn", "pydantic", "structlog", "prometheus_client"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_client_sdk_imports_without_posix_modules_and_services() -> None:
    """On Windows they are not there, and a game should not have to install NATS."""
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], check=True, timeout=30)
