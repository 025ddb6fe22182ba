"""What a live check concludes from what it has seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api import client
from tipoff_orchestrator_client.edgegap.api.errors import (
    Gone,
    NoRoom,
    Rejected,
    Unauthorized,
    Unreachable,
)
from tipoff_orchestrator_client.edgegap.orders import placement
from tipoff_orchestrator_client.edgegap.setup.live import judge as judging
from tipoff_orchestrator_client.edgegap.setup.live.evidence import (
    Burst,
    Call,
    Evidence,
    Hit,
    HooksSeen,
    PageSeen,
    ScratchVersion,
    SessionSeen,
    StoppedSeen,
)
from tipoff_orchestrator_client.edgegap.setup.live.judge import ASSUMPTIONS, Outcome, judge

HELD, NOT_HELD, NOT_SEEN = Outcome.HELD, Outcome.NOT_HELD, Outcome.NOT_SEEN
OK = Call()
NO = Call(Rejected("Edgegap answers 400: no", status=400))
CONFLICT = Call(Rejected("Edgegap answers 409: no", status=409))
AWAY = Call(Unreachable("Edgegap has not answered", sent=True))
FULL = Call(NoRoom("Edgegap answers 422"))


def outcome(step: str, seen: Evidence) -> Outcome:
    (found,) = [one for one in judge(seen) if one.step == step]
    assert found.seen
    return found.outcome


def test_without_evidence_nothing_is_concluded() -> None:
    seen = Evidence(unseen={"page-size": "because"})
    conclusions = judge(seen)
    assert [one.step for one in conclusions] == list(ASSUMPTIONS)
    assert {one.outcome for one in conclusions} == {NOT_SEEN}
    assert [one.seen for one in conclusions if one.step == "page-size"] == ["because"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Gone("404"), HELD),
        (Rejected("400", status=400), HELD),
        (Rejected("418", status=418), NOT_HELD),
        (None, NOT_HELD),
        (Unreachable("500", sent=True), NOT_SEEN),
        (Unauthorized("401"), NOT_SEEN),
    ],
)
def test_an_unknown_id_is_refused(error: OrchestratorError | None, expected: Outcome) -> None:
    assert outcome("unknown-id", Evidence(unknown_id=Call(error))) is expected


def burst(
    *, accepted: int, limited: int, over: float, later: bool = False, answered_after: float = 0.001
) -> Burst:
    """Calls sent evenly over `over` seconds, those beyond `accepted` answered with 429, against a limit of 20."""
    count = accepted + limited
    at = [over * number / count for number in range(count)]
    hits = tuple(Hit(sent, sent + answered_after, number >= accepted) for number, sent in enumerate(at))
    return Burst("status", 20, hits, 1.1, later)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (burst(accepted=20, limited=5, over=0.1), HELD),
        (burst(accepted=20, limited=5, over=0.1, later=True), NOT_HELD),
        (burst(accepted=25, limited=0, over=0.1), NOT_HELD),
        (burst(accepted=25, limited=0, over=1.3), NOT_SEEN),  # no more than 20 in any second
        # 30 calls in three seconds are never more than 20 in one, and yet some are refused: a longer window
        (burst(accepted=25, limited=5, over=3.0), NOT_HELD),
        # the eleventh is refused, when ten were made
        (burst(accepted=10, limited=15, over=0.1), NOT_HELD),
        # all are on their way at once, in any order
        (burst(accepted=20, limited=5, over=0.1, answered_after=0.2), HELD),
        (burst(accepted=10, limited=15, over=0.1, answered_after=0.2), HELD),
        # fewer than the limit were made at all
        (burst(accepted=5, limited=10, over=0.1, answered_after=0.2), NOT_HELD),
    ],
)
def test_a_rate_limit_counts_over_a_second(seen: Burst, expected: Outcome) -> None:
    assert outcome("rate-limits", Evidence(bursts=[seen])) is expected


def test_one_limit_that_counts_otherwise_is_enough() -> None:
    good, bad = burst(accepted=20, limited=5, over=0.1), burst(accepted=5, limited=1, over=0.1)
    assert outcome("rate-limits", Evidence(bursts=[good, bad])) is NOT_HELD


@pytest.mark.parametrize(
    ("page", "large", "expected"),
    [
        (PageSeen(100, OK, 100, 101), PageSeen(200, OK, 100, 101), HELD),
        (PageSeen(100, OK, 100, 101), PageSeen(200, NO), HELD),
        (PageSeen(100, OK, 100, 101), PageSeen(200, OK, 101, 101), NOT_HELD),
        (PageSeen(100, OK, 50, 101), PageSeen(200, OK, 50, 101), NOT_HELD),
        (PageSeen(100, NO), None, NOT_HELD),
        (PageSeen(100, OK, 100, 100), None, NOT_SEEN),
        (PageSeen(100, AWAY), None, NOT_SEEN),
        (PageSeen(100, OK, 100, 101), PageSeen(200, AWAY), NOT_SEEN),
    ],
)
def test_a_page_holds_a_hundred(page: PageSeen, large: PageSeen | None, expected: Outcome) -> None:
    assert outcome("page-size", Evidence(page=page, large_page=large)) is expected


@pytest.mark.parametrize(
    ("scratch", "expected"),
    [
        (ScratchVersion(OK), HELD),
        (ScratchVersion(NO, OK), NOT_HELD),
        (ScratchVersion(NO, NO), NOT_SEEN),
        (ScratchVersion(FULL), NOT_SEEN),
    ],
)
def test_a_version_has_members_that_the_description_lacks(scratch: ScratchVersion, expected: Outcome) -> None:
    assert outcome("version-members", Evidence(scratch=scratch)) is expected


@pytest.mark.parametrize(
    ("inactive", "unknown", "expected"),
    [
        (NO, NO, HELD),
        (OK, NO, NOT_HELD),
        (NO, OK, NOT_HELD),
        (CONFLICT, NO, NOT_HELD),
        (NO, CONFLICT, NOT_HELD),
        (AWAY, NO, NOT_SEEN),
        (NO, FULL, NOT_SEEN),
    ],
)
def test_inactive_and_unknown_versions_are_refused(inactive: Call, unknown: Call, expected: Outcome) -> None:
    seen = Evidence(order_of_inactive=inactive, order_of_unknown=unknown)
    assert outcome("inactive-version", seen) is expected


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ({41: NO, 40: OK}, HELD),
        ({41: OK}, NOT_HELD),
        ({41: NO, 40: NO, 31: OK}, NOT_HELD),
        ({41: NO, 40: NO, 31: NO}, NOT_SEEN),
        ({41: FULL}, NOT_SEEN),
        ({41: NO, 40: AWAY}, NOT_SEEN),
    ],
)
def test_a_tag_has_forty_characters(orders: dict[int, Call], expected: Outcome) -> None:
    assert outcome("tag-length", Evidence(orders=orders)) is expected


@pytest.mark.parametrize(
    ("known_after", "unknown_for", "expected"),
    [
        (0.1, 0.1, HELD),
        (10.0, 10.0, HELD),
        (10.1, 10.1, NOT_HELD),
        (None, 10.1, NOT_HELD),
        (None, 9.9, NOT_SEEN),
    ],
)
def test_a_new_deployment_is_known_soon(
    known_after: float | None, unknown_for: float, expected: Outcome
) -> None:
    assert outcome("new-known", Evidence(known_after=known_after, unknown_for=unknown_for)) is expected


def good_session() -> SessionSeen:
    return SessionSeen(OK, "d", waited=True, usable=True, deleted=OK, gone=True, deployment_runs=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, HELD),
        ({"created": NO}, NOT_HELD),
        ({"created": AWAY}, NOT_SEEN),
        ({"failed": "Its deployment is gone"}, NOT_HELD),
        ({"linked_to": "another"}, NOT_HELD),
        ({"usable": False}, NOT_SEEN),
        ({"deleted": NO}, NOT_HELD),
        ({"deleted": AWAY}, NOT_SEEN),
        ({"gone": False}, NOT_HELD),
        ({"deployment_runs": False}, NOT_HELD),
    ],
)
def test_a_session_lives_as_bevygaps_does(changes: dict[str, object], expected: Outcome) -> None:
    session = good_session()
    for name, value in changes.items():
        setattr(session, name, value)
    assert outcome("sessions-v1", Evidence(request_id="d", session=session)) is expected


def test_a_deployment_that_ended_by_itself_says_nothing_about_sessions() -> None:
    session = good_session()
    session.failed = "Its deployment is gone"
    assert outcome("sessions-v1", Evidence(request_id="d", session=session, ended="it crashed")) is NOT_SEEN


LINKED, READY = (True, False), (True, True)


@pytest.mark.parametrize(
    ("proved", "states", "waited", "expected"),
    [
        (True, [LINKED, READY], True, HELD),
        (True, [READY], True, NOT_HELD),
        (True, [READY], False, NOT_SEEN),
        (True, [LINKED], True, NOT_HELD),
        (True, [], True, NOT_HELD),
        (False, [], True, NOT_SEEN),
    ],
)
def test_a_session_has_two_webhooks(
    proved: bool, states: list[tuple[bool, bool]], waited: bool, expected: Outcome
) -> None:
    session = good_session()
    session.waited = waited
    seen = Evidence(request_id="d", session=session, hooks=HooksSeen(proved, states))
    assert outcome("session-webhooks", seen) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("wss://d.pr.edgegap.net:30001/", HELD),
        ("ws://1.2.3.4:30001/", NOT_HELD),
        ("", NOT_HELD),
        (None, NOT_SEEN),
    ],
)
def test_a_server_reads_tls_from_its_context(url: str | None, expected: Outcome) -> None:
    assert outcome("context-tls", Evidence(announced_url=url)) is expected


@pytest.mark.parametrize(
    ("looks", "known", "forgotten"),
    [
        ([(0.1, True), (30.0, False)], HELD, HELD),
        ([(0.1, True), (60.0, True)], HELD, NOT_SEEN),
        ([(0.1, False)], NOT_HELD, HELD),
    ],
)
def test_a_stopped_deployment_is_known_and_then_forgotten(
    looks: list[tuple[float, bool]], known: Outcome, forgotten: Outcome
) -> None:
    seen = Evidence(stopped=[StoppedSeen(after, is_known) for after, is_known in looks])
    assert outcome("stopped-known", seen) is known
    assert outcome("stopped-forgotten", seen) is forgotten


def test_the_numbers_are_those_that_the_client_relies_on() -> None:
    assert client.PAGE == judging.PAGE
    assert placement.LATE == judging.KNOWN_WITHIN


MARKED = re.compile(r"\(A(?:\)|:[^)]*\))")
MARK = re.compile(r"\(A: ([a-z0-9-]+(?:, A: [a-z0-9-]+)*)\)")


def test_each_marked_assumption_names_its_step(source_tree: Path) -> None:
    """In code and docs alike, and each step is named in code and in docs/edgegap.md."""
    found: dict[str, set[str]] = {}
    for folder in ("orchestrator_client", "gameserver", "matchmaker", "shared", "cli", "docs"):
        for path in sorted((source_tree / folder).rglob("*")):
            if path.suffix not in (".py", ".md"):
                continue
            text = path.read_text()
            for marked in MARKED.findall(text.replace("`", "")):
                steps = MARK.fullmatch(marked)
                assert steps is not None, f"{path}: {marked} names no step"
                for step in steps[1].split(", A: "):
                    found.setdefault(step, set()).add(path.suffix)
    assert found == {step: {".py", ".md"} for step in ASSUMPTIONS}
