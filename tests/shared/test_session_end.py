"""Why a session ended: what travels, and what a server may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.records import NOT_CLAIMED
from tipoff_shared.server_events import MAX_END
from tipoff_shared.session_end import (
    BY_ITSELF,
    NO_HEARTBEAT,
    EndCause,
    SessionEnd,
    end_of,
    parse_end,
    server_end,
)

BY_SERVERS = (
    EndCause.LEFT,
    EndCause.LOST,
    EndCause.TIMED_OUT,
    EndCause.KICKED,
    EndCause.TOO_SLOW,
    EndCause.MISBEHAVED,
    EndCause.GAME_FAILED,
    EndCause.SERVER_STOPPED,
)


@given(st.sampled_from(BY_SERVERS), st.text(max_size=400))
def test_what_a_server_says_arrives(cause: EndCause, detail: str) -> None:
    """In one line without control characters, of bounded length, whatever the game has put into it."""
    end = end_of(cause, detail)
    assert len(end.encode()) <= MAX_END
    assert parse_end(end.encode()) == end
    assert str(end).isprintable()


@given(st.text(max_size=400))
def test_any_text_gives_an_end(text: str) -> None:
    """And never one that only a matchmaker may find."""
    end = parse_end(text)
    assert end.cause in BY_SERVERS
    assert str(end) != NOT_CLAIMED
    assert len(str(end)) < 300


@pytest.mark.parametrize("cause", sorted(set(EndCause) - set(BY_SERVERS)))
def test_a_server_does_not_name_a_matchmaker_s_cause(cause: EndCause) -> None:
    """`not_claimed` would take seats from its player's address."""
    assert parse_end(SessionEnd(cause).encode()).cause is EndCause.LEFT


def test_each_cause_has_its_text() -> None:
    """No two are the same, and a player who left by itself is the silent default."""
    assert len({str(SessionEnd(cause)) for cause in EndCause}) == len(EndCause)
    assert (str(BY_ITSELF), BY_ITSELF.encode()) == ("the player left", "left")


@pytest.mark.parametrize(
    ("reason", "cause", "text"),
    [
        (
            "exited with code 3; its last words: no map",
            EndCause.SERVER_CRASHED,
            "the server crashed: exited with",
        ),
        ("killed by signal 9 (SIGKILL)", EndCause.SERVER_CRASHED, "the server crashed: killed by signal 9"),
        ("exited with code 0", EndCause.SERVER_STOPPED, "the server stopped: exited with code 0"),
        ("the game failed: its tick raised", EndCause.GAME_FAILED, "the game failed: its tick raised"),
        ("the game failed", EndCause.GAME_FAILED, "the game failed"),
        (NO_HEARTBEAT, EndCause.SERVER_SILENT, "the server does not respond: it sends no heartbeat"),
        ("drained by an operator", EndCause.SERVER_STOPPED, "the server stopped: drained by an operator"),
    ],
)
def test_why_a_server_ended_is_why_its_sessions_did(reason: str, cause: EndCause, text: str) -> None:
    """A crash, a failure of the game, silence and a stop are different things."""
    assert server_end(reason).cause is cause
    assert str(server_end(reason)).startswith(text)
