"""The state directory of `tipoff up`: one at a time, private, and found by the other commands."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tipoff.up.state_dir import (
    UpInfo,
    check_path,
    default_state_dir,
    locked,
    read_up_info,
    remove_up_info,
    usable,
    write_up_info,
)
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
    assert default_state_dir({"HOME": "/z"}) == Path("/z/.local/state/tipoff")


def circle(directory: Path) -> Path:
    (directory / "link").symlink_to(directory / "link")
    return directory / "link"


def file(directory: Path) -> Path:
    (directory / "file").touch()
    return directory / "file"


@pytest.mark.row(82)
@pytest.mark.parametrize(
    ("path_in", "says"),
    [
        (lambda directory: directory.joinpath(*["d" * 200] * 18), "at most 3500"),
        (lambda directory: directory / ("d" * 256), "File name too long"),
        (
            circle,
            "circle|symbolic links|File exists|not a directory",
        ),  # Python 3.13 resolves it without an error
        (file, "not a directory"),
        (lambda directory: file(directory) / "below", "Not a directory"),
        (lambda directory: directory / "\udce9", "not UTF-8"),
        (lambda _: Path("/proc/nowhere"), "No such file"),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused(
    tmp_path: Path, path_in: Callable[[Path], Path], says: str
) -> None:
    """Too long, a name too long, links in a circle, a file, below a file, not UTF-8, not writable."""
    path = path_in(tmp_path)

    def use() -> None:
        check_path("--state-dir", path)
        with locked(path):
            pass

    with pytest.raises(ConfigError, match=says):
        use()


@pytest.mark.row(82)
def test_a_part_of_the_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """As after `sudo tipoff up`; other files' errors stay what they are."""
    (tmp_path / "logs").touch()
    with pytest.raises(ConfigError, match=r"logs.*--state-dir"), usable(tmp_path):
        (tmp_path / "logs").mkdir()
    with pytest.raises(FileNotFoundError), usable(tmp_path):
        Path("/nowhere/x").touch()
