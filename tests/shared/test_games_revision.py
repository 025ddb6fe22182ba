"""A published revision of games.toml: what it holds, and what each part makes of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.errors import Malformed
from tipoff_shared.games import EdgegapSpec, Game, Games, GamesChange, ProcessSpec
from tipoff_shared.games.current import OwnGames
from tipoff_shared.games.revision import (
    FIXED_SETTINGS,
    OWN_SETTINGS,
    PUBLIC_SETTINGS,
    GamesRevision,
    changes,
    differences,
    fixed_changes,
    merge,
    new_revision,
    published,
)
from tipoff_shared.games.toml import key_file, load_games
from tipoff_shared.netcode.keys import PrivateKey

pytestmark = pytest.mark.row(98)

SECRET = "canary"
ARENA = Game(
    "arena",
    "1",
    process=ProcessSpec([SECRET], env={SECRET: SECRET}),
    edgegap=EdgegapSpec(SECRET, "1", env={SECRET: SECRET}),
    private_key_file=SECRET,
    private_key_env=SECRET,
)
KEY = PrivateKey.generate()


def _own(*games: Game) -> OwnGames:
    return OwnGames({game.key: game for game in games}, {game.key: KEY for game in games})


def _nothing(game: Game) -> str:
    return ""


def test_a_revision_holds_neither_commands_nor_environments_nor_keys() -> None:
    """Each setting is either published or a part's own: a new one has to be sorted."""
    assert sorted((*PUBLIC_SETTINGS, *OWN_SETTINGS)) == sorted(Game.__struct_fields__)
    assert set(FIXED_SETTINGS) <= set(PUBLIC_SETTINGS)
    assert SECRET.encode() not in msgspec.json.encode(new_revision([ARENA], 1.0))


def test_who_writes_a_revision_can_set_neither_a_command_nor_a_key() -> None:
    """What a revision should not hold is not read."""
    settings = {"name": "arena", "version": "1", "process": {"command": ["rm"]}, "private_key_file": "/x"}
    games, problems = published(GamesRevision([settings]))
    assert problems == []
    game = games["arena", "1"]
    assert game.process is None
    assert game.private_key_file == ""


def test_a_part_takes_limits_from_the_revision_and_its_command_from_its_own_file() -> None:
    """Whatever limits its own file names."""
    more = msgspec.structs.replace(ARENA, seats=99, process=ProcessSpec(["other"]))
    merged = merge(new_revision([more], 1.0), _own(ARENA), _nothing)
    assert merged.problems == ()
    game = merged.games[ARENA.key]
    assert (game.seats, game.process) == (99, ARENA.process)


def test_a_game_that_a_part_cannot_serve_is_left_out_and_named() -> None:
    """The others are served."""
    duel = Game("duel", "2")
    revision = new_revision([ARENA, duel], 1.0)
    merged = merge(revision, _own(ARENA), _nothing)
    assert set(merged.games) == {ARENA.key}
    assert "game duel 2: its private key is not here" in merged.problems[0]
    merged = merge(revision, _own(ARENA, duel), lambda game: "no command" if game is not ARENA else "")
    assert merged.unusable[duel.key] == "no command"


def test_settings_of_a_later_release_are_ignored_and_a_value_of_it_costs_only_that_game() -> None:
    settings = [
        {"name": "arena", "version": "1", "colour": "red", "seats": 3},
        {"name": "duel", "version": "1", "primary": "quic"},
        {"name": "rink", "version": "1", "seats": 0},
    ]
    games, problems = published(GamesRevision(settings))
    assert {game.name: game.seats for game in games.values()} == {"arena": 3}
    assert [text.split(":")[0] for text in problems] == ["game 'duel' '1'", "game 'rink' '1'"]


@given(
    st.lists(
        st.dictionaries(st.sampled_from([*PUBLIC_SETTINGS, "other"]), st.none() | st.integers() | st.text())
    )
)
def test_no_revision_stops_a_part(settings: list[dict[str, object]]) -> None:
    """Whoever wrote it."""
    games, problems = published(GamesRevision(settings))
    assert len(games) + len(problems) <= len(settings)


def test_too_many_games_are_refused() -> None:
    with pytest.raises(Malformed, match="remove old versions"):
        new_revision([Game("arena", str(version)) for version in range(2000)], 1.0)


def test_what_differs_is_named() -> None:
    """For the log of a part whose file says otherwise, and for who publishes."""
    more = msgspec.structs.replace(ARENA, seats=4, bevygap=True)
    assert changes(ARENA, more) == ["seats 16 -> 4", "bevygap False -> True"]
    assert fixed_changes(ARENA, more) == ["bevygap"]
    revision = new_revision([more, Game("duel", "1")], 1.0)
    assert differences(revision, {ARENA.key: ARENA, ("rink", "1"): Game("rink", "1")}) == [
        "rink 1 is not published",
        "duel 1 is published, and not in the file",
        "arena 1: seats 4 -> 16, bevygap True -> False",
    ]
    assert differences(new_revision([ARENA], 1.0), {ARENA.key: ARENA}) == []


def test_listeners_hear_what_changes_and_a_game_keeps_its_key() -> None:
    """Also after it was removed: players are still on its servers."""
    duel, other = Game("duel", "1"), PrivateKey.generate()
    games = Games({ARENA.key: ARENA}, {ARENA.key: KEY}, Path())
    heard: list[GamesChange] = []
    games.subscribe(heard.append)
    games.replace({ARENA.key: ARENA, duel.key: duel}, {ARENA.key: other, duel.key: other})
    assert games.private_key(ARENA) is KEY
    more = msgspec.structs.replace(ARENA, seats=3)
    games.replace({ARENA.key: more}, {ARENA.key: other})
    games.replace({ARENA.key: more}, {ARENA.key: other})
    assert heard == [GamesChange(added=(duel,)), GamesChange(changed=(more,), removed=(duel,))]
    assert games.private_key(duel) is other
    assert duel.key not in games


def test_a_part_of_the_games_hears_of_its_own_kind_only() -> None:
    """A game that changes its kind is removed there, and added here."""
    games = Games({ARENA.key: ARENA}, {}, Path())
    big, heard = games.only(lambda game: game.seats > 20), list[GamesChange]()
    big.subscribe(heard.append)
    games.replace({ARENA.key: ARENA, ("duel", "1"): Game("duel", "1")}, {})
    large = msgspec.structs.replace(ARENA, seats=30)
    larger = msgspec.structs.replace(ARENA, seats=40)
    for game in (large, larger, ARENA, large):
        games.replace({game.key: game}, {})
    games.replace({}, {})
    assert heard == [
        GamesChange(added=(large,)),
        GamesChange(changed=(larger,)),
        GamesChange(removed=(ARENA,)),
        GamesChange(added=(large,)),
        GamesChange(removed=(large,)),
    ]
    assert big.all() == []


def test_a_part_reads_its_own_file_again_and_finds_keys_in_the_directory(tmp_path: Path) -> None:
    """The key of a published game that its file does not have."""
    path, keys = tmp_path / "games.toml", tmp_path / "keys"
    keys.mkdir()
    duel = Game("duel", "1")
    path.write_text('[[game]]\nname = "a"\nversion = "1"\norchestrator = "fake"\n')
    for game in (Game("a", "1"), duel):
        key_file(keys, game).write_text("11" * 32)
    games = load_games(path, environ={"TIPOFF_KEYS_DIR": str(keys)})
    assert set(games.read_own().keys) == {("a", "1")}
    assert set(games.read_own([duel, Game("rink", "1")]).keys) == {("a", "1"), duel.key}
    path.write_text(path.read_text() + "seats = 3\n")
    assert games.read_own().games["a", "1"].seats == 3
