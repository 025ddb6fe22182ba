"""netcode is importable by itself: a client needs neither NATS nor a POSIX system for it."""

from __future__ import annotations

import subprocess
import sys


def test_netcode_imports_nothing_it_does_not_need() -> None:
    """In a fresh interpreter: no NATS, no event loop, no modules that Windows lacks."""
    foreign = "{'nats', 'asyncio', 'fcntl', 'resource', 'pwd', 'uvloop', 'pydantic'}"
    program = f"import sys, tipoff_shared.netcode; print(sorted({foreign} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert result.stdout.strip() == "[]"
