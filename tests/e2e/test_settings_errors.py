"""A service with a wrong setting prints one line about it and ends with exit code 2, however it is started."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WRONG = [
    ("matchmaker", "tipoff_matchmaker", "TIPOFF_MATCHMAKER_MAX_REQUESTS", "0", "greater than or equal to 1"),
    ("httpd", "tipoff_matchmaker_httpd", "TIPOFF_HTTPD_PORT", "99999", "less than or equal to 65535"),
    ("launcher", "tipoff_launcher", "TIPOFF_LAUNCHER_BACKEND", "vm", "'process' or 'docker'"),
    ("edgegap-emulator", "tipoff_edgegap_emulator", "TIPOFF_EDGEGAP_EMULATOR_CAPACITY", "many", "integer"),
]
"""Name, module, variable, its value, what the line says is allowed."""


def run(command: list[str], variable: str, value: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("name", "module", "variable", "value", "allowed"), WRONG)
@pytest.mark.parametrize("started", ["python -m", pytest.param("tipoff", marks=pytest.mark.slow)])
def test_a_wrong_setting_is_one_line(
    started: str, name: str, module: str, variable: str, value: str, allowed: str
) -> None:
    """It names the service, the variable and what is allowed; and the value, where the settings hold no secret."""
    by_command = ["tipoff", name] if name == "edgegap-emulator" else ["tipoff", "serve", name]
    done = run([module] if started == "python -m" else by_command, variable, value)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"tipoff {name}: {variable}: must be ")
    assert allowed in line
    # Settings about Edgegap hide every value, because some of them are secrets.
    assert line.endswith(f"(it is {value!r})") is (name != "edgegap-emulator")
