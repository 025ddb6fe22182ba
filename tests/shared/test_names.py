"""Names on the wire: what is allowed, how it is escaped, and that namespaces keep apart."""

from __future__ import annotations

import contextlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared import names
from tipoff_shared.errors import ConfigError, LoginReason, Malformed, NotAuthenticated, from_code
from tipoff_shared.messages import PlayRequest
from tipoff_shared.names import check_user_id, clean_player_name
from tipoff_shared.subjects import Subjects
from tipoff_shared.user_data import SIZE, TokenUserData, decode_user_data


def _first_64_bytes(text: str) -> str:
    return text.encode()[:64].decode(errors="ignore")


valid_names = st.from_regex(names.NAME, fullmatch=True).filter(lambda s: s.strip(" ."))


@given(valid_names)
def test_a_name_is_one_subject_token(name: str) -> None:
    """No name, dots and spaces included, adds a token or a wildcard to a subject."""
    token = names.subject_token(names.check_name(name, "game"))
    assert not set(token) & set(". *>")
    assert names.from_subject_tokens([token]) == name


@given(valid_names)
def test_a_bare_dotted_version_is_understood(name: str) -> None:
    """bevygap publishes `v0.0.1` as three tokens."""
    assert names.from_subject_tokens(name.split(".")) == name


@given(st.text(max_size=40))
def test_other_names_are_malformed(text: str) -> None:
    if names.NAME.fullmatch(text) and text.strip(" ."):
        return
    with pytest.raises(Malformed):
        names.check_name(text, "game")


def test_the_session_id_does_not_tell_the_request_id() -> None:
    """Same request, same session; a session id is public, its request id is not."""
    request_id = names.new_request_id()
    assert names.session_id(request_id) == names.session_id(request_id)
    assert request_id not in names.session_id(request_id)


def test_without_namespace_the_names_are_bevygaps() -> None:
    plain = Subjects()
    assert plain.request("arena", "1") == "matchmaker.request.arena.1"
    assert plain.bucket("sessions_ly2eg") == "sessions_ly2eg"
    assert plain.delete_stream == "DELETE_SESSION_STREAM"


def test_a_namespace_prefixes_everything() -> None:
    spaced = Subjects("red")
    assert spaced.request("arena", "1") == "red.matchmaker.request.arena.1"
    assert spaced.bucket("sessions") == "red_sessions"


@pytest.mark.parametrize("bad", ["a.b", "a b", "*", ">", "x" * 25, "ä"])
def test_a_bad_namespace_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        Subjects(bad)


def test_user_data_round_trips() -> None:
    data = TokenUserData("s" + "a" * 26, "arena-0123456789", "0" * 16, 7, "ann")
    assert len(data.encode()) == SIZE
    assert decode_user_data(data.encode()) == data


@given(
    st.integers(0, 2**32 - 1),
    st.text("abcdefghij-", min_size=1, max_size=63),
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64).map(_first_64_bytes),
    st.text(max_size=100),
)
def test_a_user_id_and_a_name_fit_beside_the_longest_ids(
    generation: int, deployment_id: str, user_id: str, name: str
) -> None:
    data = TokenUserData(
        "s" + "a" * 26, deployment_id, "0" * 16, generation, user_id, clean_player_name(name)
    )
    assert len(data.encode()) == SIZE
    assert decode_user_data(data.encode()) == data


def test_tokens_of_the_earlier_release_are_read() -> None:
    """They have four strings, then zeros, or nothing where the fourth fills the rest."""
    for player in ("", "ann", "x" * 200):
        strings = [b"s1", b"arena-1", b"0" * 16, player.encode()]
        body = b"TPF1" + bytes(4) + b"".join(bytes((len(text),)) + text for text in strings)
        found = decode_user_data(body.ljust(SIZE, b"\0"))
        assert found is not None
        assert (found.session_id, found.user_id, found.name) == ("s1", player, "")
    rest = SIZE - 8 - 3 - 8 - 17 - 1
    full = b"TPF1" + bytes(4) + b"\x02s1\x07arena-1\x10" + b"0" * 16 + bytes((rest,)) + b"x" * rest
    found = decode_user_data(full)
    assert found is not None
    assert (found.user_id, found.name) == ("x" * rest, "")


@given(st.text(max_size=300))
def test_any_name_becomes_one_that_games_can_show(text: str) -> None:
    """One line, NFC, at most 48 bytes, the same when it is cleaned again; "" when nothing is visible."""
    name = clean_player_name(text)
    assert len(name.encode()) <= 48
    assert name == clean_player_name(name) == unicodedata.normalize("NFC", name)
    assert all(unicodedata.category(char)[0] not in "C" or char in "\u200c\u200d" for char in name)
    assert name == " ".join(name.split())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Ann", "Ann"),
        ("  Ann \t\n Bee ", "Ann Bee"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("a\x00b\x1b[31mc\x7f", "ab[31mc"),
        ("\u202eevil\u2066\ufeff\u200b", "evil"),
        ("\u200d\u200c", ""),
        ("\u0301\u0302", ""),
        ("\ud800x", "x"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
        ("\u00e9" * 30, "\u00e9" * 24),
        ("x" * 47 + "\u00e9", "x" * 47),
        ("", ""),
    ],
)
def test_what_becomes_of_names(text: str, name: str) -> None:
    assert clean_player_name(text) == name


@pytest.mark.parametrize(
    "bad", ["", " ", "x" * 65, "\u00e9" * 33, "a\nb", "a\x00", "\u202ex", "\ud800", 5, None, ["x"]]
)
def test_what_is_no_user_id(bad: object) -> None:
    with pytest.raises(Malformed):
        check_user_id(bad)
    assert check_user_id("\u00e9" * 32) == "\u00e9" * 32


def test_the_codes_of_a_failed_login() -> None:
    """The reason survives the wire; a text of another release has none."""
    for reason in LoginReason:
        error = from_code(401, f"{reason}: do this")
        assert isinstance(error, NotAuthenticated)
        assert error.reason is reason
    assert NotAuthenticated("log in").reason is None


def test_a_request_shows_no_credential() -> None:
    shown = repr(PlayRequest("arena", "1", auth={"token": "s3cret"}, request_id="r3quest"))
    assert "s3cret" not in shown
    assert "r3quest" not in shown


def test_zero_user_data_is_not_ours() -> None:
    """bevygap's matchmaker leaves it empty."""
    assert decode_user_data(bytes(SIZE)) is None


@given(st.binary(min_size=0, max_size=300) | st.binary(min_size=252, max_size=252).map(lambda b: b"TPF1" + b))
def test_any_user_data_is_read_or_refused(data: bytes) -> None:
    """It is authenticated, but the parser trusts nobody."""
    with contextlib.suppress(ValueError):
        decode_user_data(data)
