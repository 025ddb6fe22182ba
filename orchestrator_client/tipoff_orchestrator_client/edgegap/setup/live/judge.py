"""Decides from what a live check has seen which assumptions about Edgegap hold. Pure.

Each place in code and docs that rests on an assumption carries its mark, like `(A: page-size)`. To add one: its
judge here, and what that needs in `evidence.py` and `check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from tipoff_orchestrator_client.edgegap.setup.live.evidence import Burst, Evidence

KNOWN_WITHIN = 10.0
"""Seconds after an order in which its id may still be unknown; as `orders/placement.py` allows."""
MAX_TAG = 40
OUR_LONGEST_TAG = 31
PAGE = 100
WINDOW = 1.0
"""Seconds over which the rate limits are assumed to count."""


class Outcome(StrEnum):
    """What the check found out about an assumption."""

    HELD = "held"
    NOT_HELD = "not held"
    NOT_SEEN = "not seen"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`step` names the assumption, `assumed` says it; `seen`: what was seen, or why nothing could be."""

    step: str
    assumed: str
    outcome: Outcome
    seen: str


ASSUMPTIONS: dict[str, str] = {}
"""Step -> what is assumed, in the order of the report."""

_Verdict = tuple[Outcome, str]
_Judge = Callable[[Evidence], _Verdict | None]
_HELD, _NOT_HELD, _NOT_SEEN = Outcome.HELD, Outcome.NOT_HELD, Outcome.NOT_SEEN
_JUDGES: dict[str, _Judge] = {}


def _assumed(step: str, assumed: str) -> Callable[[_Judge], _Judge]:
    """Enter what is assumed under `step`, and the function that judges it: None where the check did not come so far."""

    def enter(judge: _Judge) -> _Judge:
        ASSUMPTIONS[step], _JUDGES[step] = assumed, judge
        return judge

    return enter


def judge(seen: Evidence) -> list[Conclusion]:
    """One conclusion for each assumption."""
    found: list[Conclusion] = []
    for step, assumed in ASSUMPTIONS.items():
        verdict = _JUDGES[step](seen)
        if verdict is None:
            verdict = _NOT_SEEN, seen.unseen.get(step) or "the check did not come that far"
        found.append(Conclusion(step, assumed, *verdict))
    return found


@_assumed("unknown-id", "the status of an unknown id is refused with 400, 404 or 410")
def _unknown_id(seen: Evidence) -> _Verdict | None:
    call = seen.unknown_id
    if call is None:
        return None
    if call.ok:
        return _NOT_HELD, "Edgegap has a status for an id that never was"
    if not call.refused:
        return _NOT_SEEN, str(call)
    return (_HELD if call.status in (None, 400) else _NOT_HELD), str(call)


@_assumed("rate-limits", "the rate limits count over any one second")
def _rate_limits(seen: Evidence) -> _Verdict | None:
    verdicts = [_of_burst(burst) for burst in seen.bursts]
    if not verdicts:
        return None
    told = "; ".join(text for _, text in verdicts)
    outcomes = [outcome for outcome, _ in verdicts]
    return next(one for one in (_NOT_HELD, _HELD, _NOT_SEEN) if one in outcomes), told


def _of_burst(burst: Burst) -> _Verdict:
    """A call is wrongly refused if fewer than `rate` calls can have come in the second before it, whenever between
    sending and answer they arrived."""
    for hit in burst.hits:
        if not hit.limited:
            continue
        possible = sum(
            other.answered > hit.sent - WINDOW and other.sent < hit.answered
            for other in burst.hits
            if other is not hit
        )
        if possible < burst.rate:
            return (
                _NOT_HELD,
                f"{burst.what}: refused with at most {possible} of {burst.rate} calls in the second before (do other "
                "programs use this account now?)",
            )
    count = sum(hit.limited for hit in burst.hits)
    if burst.later_limited:
        return (
            _NOT_HELD,
            f"{burst.what}: still refused {burst.pause:.1f} s after {len(burst.hits)} calls",
        )
    took = max(hit.answered for hit in burst.hits) - min(hit.sent for hit in burst.hits)
    calls = f"{len(burst.hits)} calls in {took:.1f} s"
    if not count:
        if took > WINDOW:
            return _NOT_SEEN, f"{burst.what}: {calls} are no more than the limit allows"
        return _NOT_HELD, f"{burst.what}: {calls} were all taken: the limit is higher, or counts over longer"
    return (
        _HELD,
        f"{burst.what}: {count} of {calls} were refused, none {burst.pause:.1f} s later",
    )


@_assumed("page-size", f"a page of a list holds at most {PAGE} items")
def _page_size(seen: Evidence) -> _Verdict | None:
    page, large = seen.page, seen.large_page
    if page is None:
        return None
    if page.call.refused:
        return _NOT_HELD, f"a page of {page.asked} items is refused: {page.call}"
    if not page.call.ok:
        return _NOT_SEEN, str(page.call)
    if page.total <= PAGE:
        return _NOT_SEEN, f"the account has {page.total} deployment(s); a second page begins after {PAGE}"
    if page.rows != PAGE:
        return _NOT_HELD, f"a page of {page.asked} has {page.rows} of {page.total} items"
    if large is None:
        return None
    if large.call.ok and large.rows > PAGE:
        return _NOT_HELD, f"a page of {large.asked} has {large.rows} items"
    if not large.call.ok and not large.call.refused:
        return _NOT_SEEN, str(large.call)
    what = f"has {large.rows} items" if large.call.ok else "is refused"
    return (
        _HELD,
        f"of {page.total} items, a page of {page.asked} has {page.rows}; a page of {large.asked} {what}",
    )


@_assumed("version-members", "a version may have `arguments` and `session_config`")
def _version_members(seen: Evidence) -> _Verdict | None:
    scratch = seen.scratch
    if scratch is None:
        return None
    if scratch.full.ok:
        hidden = [name for name in ("arguments", "session_config") if not (scratch.shown or {}).get(name)]
        shown = f"not shown: {', '.join(hidden)}" if hidden else "both are shown"
        return _HELD, f"a new version with both was accepted; {shown}"
    if scratch.full.refused and scratch.plain is not None and scratch.plain.ok:
        return _NOT_HELD, f"with them a new version is refused, without them accepted: {scratch.full}"
    return _NOT_SEEN, f"no version could be created: {scratch.plain or scratch.full}"


@_assumed(
    "inactive-version", "an order of an inactive version is refused with 400, like one of an unknown version"
)
def _inactive_version(seen: Evidence) -> _Verdict | None:
    inactive, unknown = seen.order_of_inactive, seen.order_of_unknown
    if inactive is None or unknown is None:
        return None
    for what, call in (("an inactive", inactive), ("an unknown", unknown)):
        if call.ok:
            return _NOT_HELD, f"the order of {what} version was accepted"
    for what, call in (("an inactive", inactive), ("an unknown", unknown)):
        if not call.refused:
            return _NOT_SEEN, f"{what} version: {call}"
        if call.status != 400:
            return _NOT_HELD, f"{what} version: {call}"
    return _HELD, f"inactive: {inactive}; unknown: {unknown}"


@_assumed("tag-length", f"a tag of a v2 deployment has at most {MAX_TAG} characters")
def _tag_length(seen: Evidence) -> _Verdict | None:
    beyond, longest, ours = (seen.orders.get(size) for size in (MAX_TAG + 1, MAX_TAG, OUR_LONGEST_TAG))
    if beyond is None:
        return None
    if beyond.ok:
        return _NOT_HELD, f"a tag of {MAX_TAG + 1} characters was accepted: the limit is higher"
    if longest is not None and longest.ok and beyond.refused:
        return _HELD, f"{MAX_TAG} characters were accepted, {MAX_TAG + 1} refused: {beyond}"
    if longest is not None and longest.refused and ours is not None and ours.ok:
        return _NOT_HELD, f"{MAX_TAG} characters are refused, {OUR_LONGEST_TAG} accepted: {longest}"
    return _NOT_SEEN, f"no order with such a tag was decided on: {ours or longest or beyond}"


@_assumed("new-known", f"v1's status knows a new deployment within {KNOWN_WITHIN:g} s")
def _new_known(seen: Evidence) -> _Verdict | None:
    if seen.known_after is not None:
        late = seen.known_after > KNOWN_WITHIN
        return (_NOT_HELD if late else _HELD), f"known {seen.known_after:.1f} s after the order"
    if seen.unknown_for > KNOWN_WITHIN:
        return _NOT_HELD, f"unknown {seen.unknown_for:.1f} s after the order"
    return None


@_assumed("sessions-v1", "v1 sessions work as bevygap uses them")
def _sessions_v1(seen: Evidence) -> _Verdict | None:
    session = seen.session
    if session is None:
        return None
    if not session.created.ok:
        outcome = _NOT_HELD if session.created.refused else _NOT_SEEN
        return outcome, f"the session could not be created: {session.created}"
    if seen.ended:
        return None
    if session.failed:
        return _NOT_HELD, f"the session failed: {session.failed}"
    if session.linked_to and session.linked_to != seen.request_id:
        return _NOT_HELD, f"the session was linked to deployment {session.linked_to}, not to the one it named"
    if session.deleted is not None and session.deleted.refused:
        return _NOT_HELD, f"the session could not be deleted: {session.deleted}"
    if not session.usable or session.deleted is None or not session.deleted.ok or session.gone is None:
        return None
    if not session.gone:
        return _NOT_HELD, "the session is still known after its deletion"
    if session.deployment_runs is False:
        return _NOT_HELD, "the deployment ended with its session"
    return _HELD, "created, ready with address and ports, deleted; the deployment went on"


@_assumed("session-webhooks", "a session's webhook is sent when it is linked, and again when it is ready")
def _session_webhooks(seen: Evidence) -> _Verdict | None:
    session, states = seen.session, seen.hooks.states
    if session is None or not seen.hooks.proved or not (session.usable and session.deleted):
        return None
    linked = any(is_linked and not is_ready for is_linked, is_ready in states)
    if not any(is_ready for _, is_ready in states):
        return _NOT_HELD, f"{len(states)} webhook(s) came, none of which said that the session is ready"
    if linked:
        return _HELD, f"{len(states)} webhook(s) came: linked, then ready"
    if session.waited:
        return _NOT_HELD, "a webhook came when the session was ready, none when it was linked before"
    return _NOT_SEEN, "a webhook came when the session was ready, which it was at once"


@_assumed("context-tls", "a server's context says `tls_upgrade` of its ports as the status does")
def _context_tls(seen: Evidence) -> _Verdict | None:
    if seen.announced_url is None:
        return None
    if seen.announced_url.startswith("wss://"):
        return _HELD, f"the server announced {seen.announced_url}"
    return (
        _NOT_HELD,
        f"the server announced {seen.announced_url or 'no WebSocket'}, though Edgegap terminates TLS",
    )


@_assumed("stopped-known", "a stopped deployment is known by its id for a while")
def _stopped_known(seen: Evidence) -> _Verdict | None:
    if not seen.stopped:
        return None
    first = seen.stopped[0]
    known = [one.after for one in seen.stopped if one.known]
    if not first.known:
        return _NOT_HELD, f"unknown {first.after:.1f} s after its stop"
    return _HELD, f"known up to {max(known):.1f} s after its stop"


@_assumed("stopped-forgotten", "a stopped deployment is unknown later")
def _stopped_forgotten(seen: Evidence) -> _Verdict | None:
    if not seen.stopped:
        return None
    gone = [one.after for one in seen.stopped if not one.known]
    if gone:
        return _HELD, f"unknown {gone[0]:.1f} s after its stop"
    return _NOT_SEEN, f"still known {seen.stopped[-1].after:.1f} s after its stop; the check waits no longer"


def refuted(conclusions: Iterable[Conclusion]) -> int:
    """How many assumptions do not hold."""
    return sum(one.outcome is Outcome.NOT_HELD for one in conclusions)
