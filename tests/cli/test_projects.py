"""Which project a command is in, where its state is, and which `tipoff up` a command means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tipoff.projects import NoUp, find_project, find_up, running_ups, state_dir_of
from tipoff.up.state_dir import UpInfo, read_up_info, write_up_info
from tipoff_shared.errors import ConfigError


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "home")}


def project(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "games.toml").touch()
    return path


def runs(state_dir: Path, games: Path, port: int) -> None:
    """As if a `tipoff up` of these games ran."""
    state_dir.mkdir(parents=True, exist_ok=True)
    info = UpInfo(
        os.getpid(), f"http://127.0.0.1:{port}/", "nats://x", "u", "p", games=str(games / "games.toml")
    )
    write_up_info(state_dir, info)


def test_a_project_is_the_nearest_directory_with_a_games_file(tmp_path: Path) -> None:
    """From anywhere below it; also one project within another."""
    outer = project(tmp_path / "outer")
    inner = project(outer / "games" / "inner")
    (inner / "web" / "pictures").mkdir(parents=True)
    assert find_project(outer) == outer
    assert find_project(outer / "games") == outer
    assert find_project(inner / "web" / "pictures") == inner
    (tmp_path / "link").symlink_to(inner / "web")
    assert find_project(tmp_path / "link") == inner
    (tmp_path / "elsewhere").mkdir()
    assert find_project(tmp_path / "elsewhere") is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_games_file_of_a_stranger_above_is_not_used(tmp_path: Path) -> None:
    """It names programs to run; in /tmp anybody could put one. In the directory itself it is what was asked for."""
    shared = project(tmp_path / "shared")
    (shared / "mine").mkdir()
    os.chown(shared / "games.toml", 4711, 4711)
    assert find_project(shared / "mine") is None
    assert find_project(shared) == shared
    os.chown(shared / "mine", 4711, 4711)  # somebody else's project, which root visits
    assert find_project(shared / "mine") == shared


def test_each_project_has_a_state_directory_of_its_own(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """The same at each start; of projects of one name, too; with a name that people recognise."""
    one, two = project(tmp_path / "a" / "pong"), project(tmp_path / "b" / "pong")
    assert state_dir_of(one, environ) == state_dir_of(one / ".." / "pong", environ)
    assert state_dir_of(one, environ) != state_dir_of(two, environ)
    assert state_dir_of(one, environ).name.startswith("pong-")
    assert state_dir_of(one, environ).is_relative_to(tmp_path / "home" / "tipoff")
    assert state_dir_of(None, environ) == tmp_path / "home" / "tipoff"
    assert state_dir_of(one, {**environ, "TIPOFF_STATE_DIR": "/x"}) == Path("/x")


@pytest.mark.parametrize("name", ["Jos\xe9 \U0001f3ae", "-", "...", "a b/../c d", "x" * 255, "\udce9"])
def test_any_name_of_a_project_makes_a_plain_directory(name: str, environ: Mapping[str, str]) -> None:
    """Short, and without what a shell reads otherwise."""
    made = state_dir_of(Path("/projects") / name, environ).name
    assert made.isascii()
    assert len(made) <= 60
    assert not set(made) & set(" /'\"$*")
    assert made[0].isalnum()


def test_in_a_project_its_own_up_is_meant(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """Whatever else runs, and from any directory below."""
    pong, chess = project(tmp_path / "pong"), project(tmp_path / "chess")
    (pong / "web").mkdir()
    for port, games in ((3000, chess), (3001, pong)):
        runs(state_dir_of(games, environ), games, port)
    for cwd in (pong, pong / "web"):
        found = find_up(None, cwd=cwd, environ=environ)
        assert (found.project, found.info.url) == (pong, "http://127.0.0.1:3001/")


def test_an_up_of_the_previous_release_is_found_in_its_project(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    """It keeps the state of every project in the directory that is the demo's now."""
    pong = project(tmp_path / "pong")
    runs(state_dir_of(None, environ), pong, 3000)
    assert find_up(None, cwd=pong, environ=environ).project == pong


def test_elsewhere_the_only_one_is_meant(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """And of several none is guessed: they are listed, with what to write."""
    pong, chess = project(tmp_path / "pong"), project(tmp_path / "my chess")
    with pytest.raises(NoUp, match="start it"):
        find_up(None, cwd=tmp_path, environ=environ)
    runs(state_dir_of(pong, environ), pong, 3000)
    assert find_up(None, cwd=tmp_path, environ=environ).project == pong
    runs(state_dir_of(chess, environ), chess, 3001)
    with pytest.raises(ConfigError) as caught:
        find_up(None, cwd=tmp_path, environ=environ)
    assert not isinstance(caught.value, NoUp)
    for up in running_ups(environ):
        assert f"{up.info.url}  pid {os.getpid()}  {up.project}  --state-dir {up.state_dir}" in str(
            caught.value
        )


def test_in_a_project_another_ones_up_is_not_meant(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """A kick or a restart would hit another game. The others are listed."""
    pong, chess = project(tmp_path / "pong"), project(tmp_path / "chess")
    with pytest.raises(NoUp, match=f"project {chess}; start it there"):
        find_up(None, cwd=chess, environ=environ)
    runs(state_dir_of(pong, environ), pong, 3000)
    with pytest.raises(
        ConfigError, match=f"no `tipoff up` runs in the project {chess}.*\n.*{pong}"
    ) as caught:
        find_up(None, cwd=chess, environ=environ)
    assert not isinstance(caught.value, NoUp)


def test_an_option_and_the_variable_win(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """In this order, over project and everything that runs."""
    pong = project(tmp_path / "pong")
    runs(state_dir_of(pong, environ), pong, 3000)
    runs(tmp_path / "one", pong, 3001)
    runs(tmp_path / "two", pong, 3002)
    both = {**environ, "TIPOFF_STATE_DIR": str(tmp_path / "two")}
    assert find_up(tmp_path / "one", cwd=pong, environ=both).info.url.endswith(":3001/")
    assert find_up(None, cwd=pong, environ=both).info.url.endswith(":3002/")
    with pytest.raises(ConfigError, match="state directory"):
        find_up(tmp_path / "three", cwd=pong, environ=both)


def test_ups_that_are_gone_do_not_count(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """A killed one leaves its file; strange files and directories beside it are no `tipoff up`."""
    pong, chess = project(tmp_path / "pong"), project(tmp_path / "chess")
    for games in (pong, chess):
        runs(state_dir_of(games, environ), games, 3000)
    gone = state_dir_of(chess, environ)
    info = (gone / "up.json").read_text()
    (gone / "up.json").write_text(info.replace(f'"pid":{os.getpid()}', '"pid":4194304000'))
    with pytest.raises(ConfigError, match="is gone"):
        read_up_info(gone)
    (gone.parent / "file").touch()
    (gone.parent / "broken").mkdir()
    (gone.parent / "broken" / "up.json").write_text("{")
    assert [up.project for up in running_ups(environ)] == [pong]
