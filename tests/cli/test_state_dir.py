"""The state directory of `tipoff up`: one at a time, private, and found by the other commands."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tipoff.up.state_dir import UpInfo, default_state_dir, locked, read_up_info, remove_up_info, write_up_info
from tipoff_shared.errors import ConfigError

INFO = UpInfo(
    os.getpid(), "http://127.0.0.1:3000/", "nats://127.0.0.1:4222", "tipoff", "canary-password", "red"
)


def test_a_directory_in_use_names_its_holder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=f"in use by another .*pid {os.getpid()}"),
        locked(tmp_path),
    ):
        pass


def test_a_directory_is_free_again_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_password_file_is_the_owners_alone(tmp_path: Path) -> None:
    write_up_info(tmp_path, INFO)
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600
    assert "canary" not in repr(read_up_info(tmp_path))


def test_settings_come_back(tmp_path: Path) -> None:
    write_up_info(tmp_path, INFO)
    settings = read_up_info(tmp_path).nats_settings()
    assert settings.servers == ("nats://127.0.0.1:4222",)
    assert settings.namespace == "red"


def test_without_up_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start it"):
        read_up_info(tmp_path)
    write_up_info(tmp_path, INFO)
    remove_up_info(tmp_path)
    with pytest.raises(ConfigError, match="start it"):
        read_up_info(tmp_path)


def test_an_up_that_was_killed_is_said_to_be_gone(tmp_path: Path) -> None:
    """What it left behind names no running system."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_up_info(tmp_path, msgspec.structs.replace(INFO, pid=child.pid))
    with pytest.raises(ConfigError, match="is gone"):
        read_up_info(tmp_path)


def test_the_default_follows_the_variables() -> None:
    assert default_state_dir({"TIPOFF_STATE_DIR": "/x"}) == Path("/x")
    assert default_state_dir({"XDG_STATE_HOME": "/y"}) == Path("/y/tipoff")
