"""Names on the wire: what is allowed, how it is escaped, and that namespaces keep apart."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared import names
from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.subjects import Subjects
from tipoff_shared.user_data import SIZE, TokenUserData, decode_user_data

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


def test_zero_user_data_is_not_ours() -> None:
    """bevygap's matchmaker leaves it empty."""
    assert decode_user_data(bytes(SIZE)) is None


@given(st.binary(min_size=0, max_size=300) | st.binary(min_size=252, max_size=252).map(lambda b: b"TPF1" + b))
def test_any_user_data_is_read_or_refused(data: bytes) -> None:
    """It is authenticated, but the parser trusts nobody."""
    with contextlib.suppress(ValueError):
        decode_user_data(data)
