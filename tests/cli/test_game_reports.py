"""What the terminal of `tipoff up` says of game servers, decided without any."""

from __future__ import annotations

from tipoff.operate.game_reports import AT_ONCE, REPEAT_AFTER, UNANNOUNCED_AFTER, GameReports
from tipoff.operate.logs import LogLine
from tipoff_orchestrator_client.base import STOPPED_BY_FORCE, Deployment, RunState


def server(number: int = 1, state: RunState = RunState.RUNNING, reason: str = "") -> Deployment:
    return Deployment(f"pong-{number}", "pong", "1", state, reason=reason)


def crash(number: int, reason: str = "exited with code 1: no map") -> Deployment:
    return server(number, RunState.STOPPED, reason)


def reports() -> GameReports:
    return GameReports({("pong", "1")})


def test_a_start_and_a_crash_are_said_and_an_end_that_was_asked_for_is_not() -> None:
    """Each start once, however often it is heard of."""
    said = reports()
    assert said.event(server(), 0) == "a server of pong 1 starts (pong-1)"
    assert said.event(server(), 1) == ""
    assert said.event(server(2, RunState.STARTING, "Fetching the image"), 1) == ""
    assert said.event(crash(1), 2) == "a server of pong 1 ended: exited with code 1: no map (pong-1)"
    for reason in ("stopped", "stopped before it started", "exited with code 0"):
        assert said.event(crash(2, reason), 3) == ""


def test_a_server_that_ends_as_soon_as_it_starts_is_asked_about() -> None:
    """It has no call of `main()`; one that has run for a while, or need not announce itself, may end."""
    said = reports()
    said.event(server(1), 0)
    assert "call `GameServer(...).main()`?" in said.event(crash(1, "exited with code 0"), 1)
    said.event(server(2), 1)
    assert said.event(crash(2, "exited with code 0"), 1 + AT_ONCE) == ""
    said.event(Deployment("bevy-1", "bevy", "1", RunState.RUNNING), 5)
    bevy = Deployment("bevy-1", "bevy", "1", RunState.STOPPED, reason="exited with code 0")
    assert said.event(bevy, 6) == ""


def test_a_server_that_had_to_be_killed_hangs() -> None:
    """It was asked to end, for its silence or by an operator, and did not."""
    said = reports()
    text = said.event(crash(1, STOPPED_BY_FORCE), 0)
    assert text.startswith("a server of pong 1 was stopped and had to be killed (pong-1): does its game hang")
    assert said.event(crash(2, STOPPED_BY_FORCE), 1) == ""
    assert "(pong-3, and 1 more since)" in said.event(crash(3, STOPPED_BY_FORCE), REPEAT_AFTER)


def test_equal_crashes_are_counted_and_said_now_and_then() -> None:
    """Another crash is said at once."""
    said = reports()
    assert said.event(crash(1), 0)
    assert [said.event(crash(n), n) for n in (2, 3)] == ["", ""]
    assert "segfault" in said.event(crash(4, "segfault"), 4)
    assert said.event(crash(5), REPEAT_AFTER - 0.1) == ""
    assert said.event(crash(6), REPEAT_AFTER).endswith("(pong-6, and 3 more since)")
    assert said.event(crash(7), 2 * REPEAT_AFTER).endswith("(pong-7)")


def test_a_server_that_runs_without_being_ready_is_asked_about_once() -> None:
    """Not before its time, not of a game whose servers need not announce themselves, not of one that has ended."""
    said = reports()
    said.event(server(1), 0)
    said.event(server(2), 0)
    said.event(Deployment("bevy-1", "bevy", "1", RunState.RUNNING), 0)
    assert said.due(UNANNOUNCED_AFTER - 0.1) == []
    said.event(crash(2), 1)
    assert said.due(UNANNOUNCED_AFTER) == ["pong-1"]
    assert said.due(UNANNOUNCED_AFTER + 9) == []
    assert said.unannounced("pong-2") == ""


def test_its_last_output_is_quoted() -> None:
    """The last three lines, and what to look for."""
    said = reports()
    said.event(server(), 0)
    assert said.unannounced("pong-1").endswith("call `GameServer(...).main()`? Its last output: nothing")
    for text in ("one", "two", "three", "four"):
        said.line(LogLine("pong-1", "pong", "1", text))
    said.line(LogLine("pong-9", "pong", "1", "of another"))
    said.line(LogLine("pong-1", "pong", "1", "routine", level="info", logger="tipoff_gameserver"))
    assert said.unannounced("pong-1") == (
        "pong-1 runs but has not announced itself after 5 s, so nobody is sent there; does pong 1 call "
        "`GameServer(...).main()`? Its last output: two | three | four"
    )


def test_what_is_remembered_is_bounded() -> None:
    """By a week of crashes with a different reason each."""
    said = reports()
    for n in range(3000):
        said.event(server(n), n)
        said.event(crash(n, f"reason {n}"), n)
    for n in range(3000, 5000):
        said.event(server(n), n)
    assert len(said.due(9999)) == 1000
