"""`tipoff secrets`: made once, kept, replaced one at a time, never shown."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest
from typer.testing import CliRunner

from tests.cli.secrets_files import changed, contents
from tipoff.nats_roles.users import hashes_in, namespace_of
from tipoff.secrets.commands import app
from tipoff.secrets.directory import SecretsDirectory
from tipoff.secrets.items import EDITED, KEPT, MADE, RENEWED, Report
from tipoff_shared.errors import ConfigError
from tipoff_shared.games.toml import load_games
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.settings import ROLES


def states(report: Report) -> set[str]:
    return {item.state for item in report.items}


@pytest.fixture
def tipoff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`tipoff secrets ...` in an empty directory: all that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_init_makes_everything_that_an_installation_needs(made: SecretsDirectory) -> None:
    """A password for each role, nats-server's files, certificates, a key for each game that names none itself."""
    assert set(contents(made.directory)) == {
        ".gitignore",
        *(f"nats/{role}.password" for role in ROLES),
        *(f"nats/{name}" for name in ("users.conf", "isolated.conf")),
        *(f"nats/{name}" for name in ("ca.pem", "ca.key", "server.pem", "server.key")),
        "nats/server-auth.seed",
        "edgegap/hook.key",
        "netcode/arena.1.key",
    }


@pytest.mark.row(65)
def test_matchmakers_sign_with_the_key_that_nats_server_asks_for(made: SecretsDirectory) -> None:
    """Their seed and isolated.conf belong together, also after a rotation; nats-server is not told the seed. It has to
    be restarted, since it does not reload that part."""
    for report in (None, made.rotate("server-auth")):
        seed = (made.directory / "nats" / "server-auth.seed").read_text()
        text = (made.directory / "nats" / "isolated.conf").read_text()
        assert f'issuer: "{AccountKey.parse(seed).public}"' in text
        assert seed.strip() not in text
        if report is not None:
            assert any("restart nats-server" in line for line in report.next)


@pytest.mark.row(65)
def test_a_directory_of_an_earlier_release_gets_the_seed_by_init(made: SecretsDirectory) -> None:
    (made.directory / "nats" / "server-auth.seed").unlink()
    report = made.initialise()
    assert any("isolated.conf is new" in line and "restart nats-server" in line for line in report.next)


@pytest.mark.row(65)
def test_a_seed_that_is_none_is_an_error_that_does_not_show_it(made: SecretsDirectory) -> None:
    path = made.directory / "nats" / "server-auth.seed"
    path.chmod(0o600)
    path.write_text("SAcanary\n")
    with pytest.raises(ConfigError, match="rotate server-auth") as caught:
        made.initialise()
    assert "canary" not in str(caught.value)


def test_nobody_else_reads_them(made: SecretsDirectory) -> None:
    """The directory keeps others out; files inside can be mounted one by one; the authority's key cannot be."""
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in made.directory.rglob("*") if p.is_file()}
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
    assert modes.pop("ca.key") == 0o400
    assert modes.pop(".gitignore") == 0o644
    assert set(modes.values()) == {0o444}


def test_the_keys_are_those_that_a_matchmaker_reads(
    made: SecretsDirectory, games_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TIPOFF_KEYS_DIR=DIR/netcode."""
    monkeypatch.setenv("OWN_KEY", "17" * 32)
    monkeypatch.setenv("TIPOFF_KEYS_DIR", str(made.directory / "netcode"))
    loaded = load_games(games_toml)
    game = loaded.get("arena", "1")
    assert game is not None
    key = (made.directory / "netcode" / "arena.1.key").read_text().strip()
    assert loaded.private_key(game).reveal().hex() == key


def test_users_conf_holds_hashes_of_the_passwords(made: SecretsDirectory) -> None:
    """And not one of the passwords."""
    text = (made.directory / "nats" / "users.conf").read_text()
    hashes = hashes_in(text)
    assert set(hashes) == set(ROLES)
    for role in ROLES:
        password = (made.directory / "nats" / f"{role}.password").read_text().strip()
        assert len(password) >= 43
        assert password not in text
        assert bcrypt.checkpw(password.encode(), hashes[role].encode())


def test_init_again_changes_nothing(made: SecretsDirectory) -> None:
    before = contents(made.directory)
    report = made.initialise(["play.example.org"])
    assert states(report) == {KEPT}
    assert report.next == []
    assert contents(made.directory) == before


def test_init_again_completes_what_is_missing(made: SecretsDirectory) -> None:
    """As after a crash half-way, or for a new game."""
    before = contents(made.directory)
    for name in ("nats/httpd.password", "nats/users.conf", "netcode/arena.1.key", "nats/server.key"):
        (made.directory / name).unlink()
    report = made.initialise()
    assert MADE in states(report)
    assert changed(before, contents(made.directory)) == {
        "nats/httpd.password",
        "nats/users.conf",
        "nats/isolated.conf",
        "nats/server.pem",
        "nats/server.key",
        "netcode/arena.1.key",
    }


def test_what_docker_made_of_missing_files_gives_way(tmp_path: Path) -> None:
    """`docker compose up` before `tipoff secrets init` leaves empty directories where files belong."""
    for name in ("nats/users.conf", "nats/server.pem", "nats/httpd.password", "netcode"):
        (tmp_path / "secrets" / name).mkdir(parents=True)
    SecretsDirectory(tmp_path / "secrets").initialise()
    assert (tmp_path / "secrets" / "nats" / "users.conf").is_file()
    assert (tmp_path / "secrets" / "nats" / "httpd.password").is_file()


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """`tipoff secrets init ~` must not close the home directory to everybody."""
    (tmp_path / "homework.txt").write_text("x")
    mode = tmp_path.stat().st_mode
    with pytest.raises(ConfigError, match="not empty"):
        SecretsDirectory(tmp_path).initialise()
    assert tmp_path.stat().st_mode == mode
    assert [path.name for path in tmp_path.iterdir()] == ["homework.txt"]


def test_permissions_of_a_new_version_are_brought_up_to_date(made: SecretsDirectory) -> None:
    """users.conf as an older version made it is renewed, with the same hashes, and NATS is to reload it."""
    path = made.directory / "nats" / "users.conf"
    hashes = hashes_in(path.read_text())
    older = SecretsDirectory(made.directory)
    older.initialise(namespace="older")  # another table, unedited
    report = made.initialise(namespace="")
    assert any("reload" in line for line in report.next)
    assert hashes_in(path.read_text()) == hashes


def test_users_conf_edited_by_hand_is_kept(made: SecretsDirectory) -> None:
    """An operator's own user is not lost at the next init; `rotate users` makes the file anew."""
    path = made.directory / "nats" / "users.conf"
    edited = path.read_text().replace("timeout: 5", "timeout: 9")
    path.chmod(0o644)
    path.write_text(edited)
    report = made.initialise(namespace="blue")
    assert EDITED in states(report)
    assert path.read_text() == edited
    made.rotate("users")
    assert "timeout: 5" in path.read_text()


def test_the_namespace_is_remembered(tmp_path: Path) -> None:
    directory = SecretsDirectory(tmp_path / "secrets")
    directory.initialise(namespace="blue")
    assert directory.initialise().namespace == "blue"
    assert namespace_of((tmp_path / "secrets" / "nats" / "users.conf").read_text()) == "blue"
    with pytest.raises(ConfigError, match="namespace"):
        directory.initialise(namespace="a b")


def test_rotating_a_password_changes_that_user_alone(made: SecretsDirectory) -> None:
    before = contents(made.directory)
    report = made.rotate("httpd")
    after = contents(made.directory)
    assert changed(before, after) == {"nats/httpd.password", "nats/users.conf", "nats/isolated.conf"}
    old, new = hashes_in(before["nats/users.conf"]), hashes_in(after["nats/users.conf"])
    assert {role for role in ROLES if old[role] != new[role]} == {"httpd"}
    assert any("restart every httpd" in line for line in report.next)


def test_a_rotated_file_is_the_same_file(made: SecretsDirectory) -> None:
    """A container that has it mounted by itself sees the new content: the inode stays, the mode too."""
    path = made.directory / "nats" / "users.conf"
    before = path.stat()
    made.rotate("users")
    made.rotate("admin")
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mode == before.st_mode


def test_rotating_a_netcode_key_says_who_must_restart(made: SecretsDirectory) -> None:
    before = contents(made.directory)
    report = made.rotate("arena.1")
    assert changed(before, contents(made.directory)) == {"netcode/arena.1.key"}
    assert any("drain" in line for line in report.next)
    assert RENEWED in states(report)


def test_an_unknown_name_is_answered_with_those_there_are(made: SecretsDirectory) -> None:
    with pytest.raises(ConfigError, match=r"matchmaker, .*nats-tls, .*arena\.1"):
        made.rotate("nope")


@pytest.mark.parametrize("host", ["a b", "-x", "", "host:4222", "é.example.org", "x" * 254])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        SecretsDirectory(tmp_path / "secrets").initialise([host])


@pytest.mark.row(58)
def test_no_command_shows_a_secret(tmp_path: Path, games_toml: Path, tipoff: Callable[..., str]) -> None:
    """Init, again, show-paths and rotate, as a table and as JSON: places, never contents."""
    said = ""
    for arguments in (
        ("init", "--games", str(games_toml)),
        ("init", "--json"),
        ("show-paths",),
        ("show-paths", "--json"),
        ("rotate", "httpd", "--json"),
        ("rotate", "nats-ca"),
    ):
        said += tipoff(*arguments)
    for name, text in contents(tmp_path / "secrets").items():
        if name.endswith((".password", ".key", ".seed")):
            for line in text.strip().splitlines():
                assert line.startswith("-----") or line not in said, name


def test_the_json_says_where_everything_lies(tmp_path: Path, tipoff: Callable[..., str]) -> None:
    told = json.loads(tipoff("init", "--json", "--host", "nats.example.org"))
    assert told["directory"] == str(tmp_path / "secrets")
    assert all(Path(item["path"]).is_file() for item in told["items"])
    assert {"name", "path", "state", "for", "back_up"} <= set(told["items"][0])
    assert sum("expires" in item for item in told["items"]) == 2


def test_a_file_that_was_being_written_at_a_crash_is_made_again(made: SecretsDirectory) -> None:
    """An empty password would let anybody in."""
    for name in ("nats/httpd.password", "netcode/arena.1.key", "nats/users.conf"):
        (made.directory / name).chmod(0o644)
        (made.directory / name).write_text("")
    made.initialise()
    assert len((made.directory / "nats" / "httpd.password").read_text().strip()) >= 43
    assert set(hashes_in((made.directory / "nats" / "users.conf").read_text())) == set(ROLES)
    assert len((made.directory / "netcode" / "arena.1.key").read_text().strip()) == 64


def test_a_file_whose_writing_broke_off_before_its_last_step_can_be_read_again(
    made: SecretsDirectory,
) -> None:
    """It was written, and still nobody's but its owner's: containers could not read it."""
    path = made.directory / "nats" / "httpd.password"
    path.chmod(0o600)
    made.initialise()
    assert path.stat().st_mode & 0o777 == 0o444


def test_rotating_the_game_servers_password_says_what_it_costs(made: SecretsDirectory) -> None:
    """Servers that run lose their leases, and with them their players."""
    assert any("with their players" in line for line in made.rotate("gameserver").next)


def test_an_empty_namespace_in_the_environment_means_the_one_there_is(
    tipoff: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose files pass variables on that nobody has set."""
    monkeypatch.setenv("TIPOFF_NAMESPACE", "blue")
    assert json.loads(tipoff("init", "--json"))["namespace"] == "blue"
    monkeypatch.setenv("TIPOFF_NAMESPACE", "")
    assert json.loads(tipoff("init", "--json"))["namespace"] == "blue"
