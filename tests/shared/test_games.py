"""games.toml: what is read, and that every mistake is told with its line and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tipoff_shared.errors import ConfigError
from tipoff_shared.games.toml import load_games, parse_games

GOOD = """\
[[game]]
name = "arena"
version = "1"
seats = 4

[game.process]
command = ["python", "server.py"]

[[game]]
name = "arena"
version = "2"
orchestrator = "agones"
"""


def test_several_games_and_versions_are_read() -> None:
    games = parse_games(GOOD)
    assert [game.key for game in games] == [("arena", "1"), ("arena", "2")]
    assert games[0].process is not None


def test_the_earlier_name_of_the_claim_time_is_read() -> None:
    """A games.toml of the previous release, whose tokens live as long as before."""
    assert parse_games(GOOD)[0].claim_time == 15
    assert parse_games(GOOD.replace("seats = 4", "token_lifetime = 30"))[0].claim_time == 30


def test_protocol_ids_differ_by_game_and_version() -> None:
    """A client of one version cannot talk to a server of another."""
    first, second = parse_games(GOOD)
    assert first.netcode_protocol_id != second.netcode_protocol_id


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("seats = 4", "seats = 0"), 4, "1 to 1000 is allowed"),
        (("seats = 4", 'seats = "4"'), 4, "seats: a whole number without quotes is expected, like seats = 4"),
        (('version = "2"', "version = 2"), 11, 'version: text in quotes is expected, like version = "1"'),
        (
            ('command = ["python", "server.py"]', 'command = "python server.py"'),
            7,
            "command: a list is expected",
        ),
        (("seats = 4", "saets = 4"), 4, "allowed are name, version, seats"),
        (("seats = 4", 'primary = "tpc"'), 4, "primary"),
        (('name = "arena"\nversion = "2"', 'name = "a*"\nversion = "2"'), 10, "are allowed"),
        (('version = "2"', 'version = "1"'), 9, "is defined twice"),
        (('command = ["python", "server.py"]', "command = []"), 7, "command is empty"),
        (('command = ["python", "server.py"]', 'commandd = ["x"]'), 7, "command, cwd, env"),
        (("seats = 4", "min_ready = 9"), 4, "more than max_deployments"),
        (('orchestrator = "agones"', ""), 9, "no [game.process]"),
        (("seats = 4", "claim_time = 0"), 4, "1 to 3600 is allowed"),
        (("seats = 4", "claim_timeout = 5"), 4, "which is claim_time (15 s); remove it"),
        (("seats = 4", "token_lifetime = 5\nclaim_time = 6"), 4, "remove token_lifetime"),
        (("seats = 4", "token_lifetime = 0"), 4, "1 to 3600 is allowed"),
    ],
)
def test_a_mistake_is_told_with_its_line(change: tuple[str, str], line: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_games(GOOD.replace(*change), "games.toml")
    assert f"games.toml:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_broken_toml_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        parse_games("[[game]]\nname = \n")


def test_a_game_without_key_is_refused(tmp_path: Path) -> None:
    """There is no default key."""
    path = tmp_path / "games.toml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match="has no private key"):
        load_games(path, environ={})


def test_keys_come_from_file_or_variable(tmp_path: Path) -> None:
    path = tmp_path / "games.toml"
    path.write_text(
        GOOD.replace("seats = 4", 'private_key_file = "a.key"').replace(
            'orchestrator = "agones"', 'orchestrator = "agones"\nprivate_key_env = "KEY"'
        )
    )
    (tmp_path / "a.key").write_text("11" * 32 + "\n")
    games = load_games(path, environ={"KEY": ",".join(["7"] * 32)})
    first, second = games.all()
    assert games.private_key(first).reveal() == bytes([0x11] * 32)
    assert games.private_key(second).reveal() == bytes([7] * 32)


@pytest.mark.parametrize("key", ["00" * 32, "canary-not-a-key", "11" * 31])
@pytest.mark.row(58)
def test_a_bad_key_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    """The message names the place, never the value."""
    path = tmp_path / "games.toml"
    path.write_text('[[game]]\nname="a"\nversion="1"\norchestrator="fake"\nprivate_key_env="KEY"\n')
    with pytest.raises(ConfigError) as caught:
        load_games(path, environ={"KEY": key})
    assert key not in str(caught.value)
    assert "KEY" in str(caught.value)


EDGEGAP = (
    GOOD.replace('"agones"', '"edgegap"')
    + """
[game.edgegap]
application = "arena"
version = "1.0.3"
port = "game"
"""
)


def test_what_edgegap_starts_stands_in_its_section() -> None:
    """With defaults for what most games do not need."""
    spec = parse_games(EDGEGAP)[1].edgegap
    assert spec is not None
    assert (spec.application, spec.version, spec.port, spec.kind) == ("arena", "1.0.3", "game", "seat")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('port = "game"', 'colour = "red"', "'colour' is not known here; allowed are application, version"),
        ('version = "1.0.3"', "", "version"),
        ('application = "arena"', 'application = "a/b"', "application: 'a/b': 1 to 64"),
        ('port = "game"', f'env = {{MOTD = "{"x" * 256}"}}', "MOTD has 256 bytes; Edgegap takes 255"),
        ('port = "game"', 'kind = "Lobby"', "Lobby"),
    ],
)
def test_a_mistake_about_edgegap_is_told(before: str, after: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        parse_games(EDGEGAP.replace(before, after))


@pytest.mark.parametrize("orchestrator", ["edgegap", "edgegap-sessions"])
def test_edgegap_needs_its_section(orchestrator: str) -> None:
    with pytest.raises(ConfigError, match=r"no \[game.edgegap\]"):
        parse_games(GOOD.replace('"agones"', f'"{orchestrator}"'))
