"""What `tipoff doctor` makes of facts: each situation, well and ill."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff.doctor.facts.engine import EngineFacts
from tipoff.doctor.facts.games import GamesFacts
from tipoff.doctor.facts.nats import (
    MonitorFacts,
    NatsFacts,
    StreamFacts,
)
from tipoff.doctor.facts.network import ClockFacts, DnsFacts, HttpFacts, TlsFacts
from tipoff.doctor.facts.udp import ANSWER, REQUEST, LoopFacts, PortFacts, ProbeFacts, answer_to
from tipoff.doctor.findings import Finding, Status
from tipoff.doctor.rules import host as rules_host
from tipoff.doctor.rules import nats as rules_nats
from tipoff.doctor.rules import network as rules_network
from tipoff.doctor.rules import udp as rules_udp
from tipoff_shared.disk_space import DiskSpace
from tipoff_shared.games import Game

NOW = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)
GOOD_TLS = TlsFacts(
    "play.example.org:443", True, "", NOW - 30 * DAY, NOW + 60 * DAY, ("play.example.org",), "CN=R3"
)
GOOD_NATS = NatsFacts(
    "tls://nats:4222",
    version="2.12.1",
    secure=True,
    streams={name: StreamFacts(name, messages=2) for name in ("sessions", "deployments")},
    matchmakers=("m1",),
    orchestrators={"launcher": ""},
)
GOOD_ENGINE = EngineFacts(Path("/s"), version="27.1", api="1.46", live_restore=True, images={"game:1": True})


def worst(findings: list[Finding] | Finding) -> Status:
    found = [findings] if isinstance(findings, Finding) else findings
    order = [Status.OK, Status.SKIP, Status.WARN, Status.FAIL]
    for finding in found:
        assert finding.said
        if finding.status in (Status.WARN, Status.FAIL):
            assert finding.todo, f"{finding.said}: what is one to do?"
    return max((finding.status for finding in found), key=order.index)


@pytest.mark.parametrize(
    ("facts", "public", "expected"),
    [
        (
            DnsFacts("play.example.org", ("203.0.113.7",)),
            (),
            Status.WARN,
        ),  # documentation addresses are not global
        (DnsFacts("play.example.org", ("93.184.216.34",)), ("93.184.216.34",), Status.OK),
        (DnsFacts("play.example.org", ("93.184.216.34",)), ("play.example.org",), Status.OK),
        (DnsFacts("play.example.org", ("93.184.216.34",)), ("93.184.216.99",), Status.WARN),
        (DnsFacts("play.example.org", ("192.168.1.5",)), (), Status.WARN),
        (DnsFacts("localhost", ("127.0.0.1",), ("::1",)), ("127.0.0.1",), Status.OK),
        (DnsFacts("play.example.org", (), ("2001:db8::1",)), (), Status.FAIL),
        (DnsFacts("play.example.org", error="Name or service not known"), (), Status.FAIL),
    ],
)
def test_dns(facts: DnsFacts, public: tuple[str, ...], expected: Status) -> None:
    """The name leads to this host, by IPv4."""
    assert worst(rules_network.judge_dns(facts, public)) is expected


@pytest.mark.parametrize(
    ("changes", "expected", "says"),
    [
        ({}, Status.OK, "valid until 2027-01-19"),
        ({"not_after": NOW + 15 * DAY}, Status.OK, "valid"),  # a short-lived one: 45 days in all
        ({"not_before": NOW - 75 * DAY, "not_after": NOW + 15 * DAY}, Status.WARN, "15 days left"),
        ({"not_after": NOW + 2 * DAY}, Status.FAIL, "left"),
        (
            {"not_before": NOW - DAY / 4, "not_after": NOW + DAY / 4},
            Status.OK,
            "valid",
        ),  # Caddy's own authority
        ({"not_before": NOW - DAY / 2, "not_after": NOW + DAY / 50}, Status.WARN, "0 days left"),
        ({"not_after": NOW - DAY, "problem": "certificate has expired"}, Status.FAIL, "has expired"),
        ({"not_before": NOW + DAY}, Status.FAIL, "not valid before"),
        ({"problem": "self-signed certificate"}, Status.FAIL, "not trusted"),
        (
            {"problem": "Hostname mismatch, certificate is not valid for 'x'"},
            Status.FAIL,
            "is for play.example.org",
        ),
        ({"not_after": None, "problem": "wrong version number"}, Status.FAIL, "shows no certificate"),
        ({"connected": False, "problem": "Connection refused"}, Status.FAIL, "cannot be reached"),
    ],
)
def test_tls(changes: dict[str, object], expected: Status, says: str) -> None:
    """Trusted, for this name, and not about to expire."""
    finding = rules_network.judge_tls("https", dataclasses.replace(GOOD_TLS, **changes), NOW)  # type: ignore[arg-type]
    assert worst(finding) is expected
    assert says in finding.said


def test_caddys_own_authority_is_meant_on_this_machine_alone() -> None:
    """For localhost a warning, for a public name a failure."""
    for host, expected in (("localhost", Status.WARN), ("play.example.org", Status.FAIL)):
        facts = dataclasses.replace(
            GOOD_TLS, where=f"{host}:443", problem="unable to get local issuer certificate"
        )
        assert worst(rules_network.judge_tls("https", facts, NOW, own_authority="trust it")) is expected


@pytest.mark.parametrize(
    ("offset", "within", "expected"),
    [
        (0.2, 0.01, Status.OK),
        (1.4, 0.5, Status.OK),  # a Date header knows no better
        (-1.4, 0.01, Status.WARN),
        (6.0, 0.5, Status.FAIL),
        (-3600.0, 0.5, Status.FAIL),
    ],
)
def test_clocks(offset: float, within: float, expected: Status) -> None:
    """As far as it is certain, and no further."""
    assert worst(rules_network.judge_clock(ClockFacts("NATS", offset, within), "NATS")) is expected


def test_a_date_header_is_a_clock() -> None:
    """Whole seconds: half of one is not known."""
    facts = HttpFacts(
        "https://x", 200, b"", "Fri, 20 Nov 2026 00:00:10 GMT", NOW.timestamp(), NOW.timestamp() + 0.2
    )
    clock = facts.clock()
    assert clock is not None
    assert clock.offset == pytest.approx(10.4)
    assert clock.within == pytest.approx(0.6)
    for date in ("", "yesterday", "Fri, 20 Nov 2026 00:00:10"):
        assert dataclasses.replace(facts, date=date).clock() is None


@pytest.mark.parametrize(
    ("facts", "expected", "says"),
    [
        (HttpFacts("u", 200), Status.OK, "ready for players"),
        (
            HttpFacts("u", 503, b'{"ready":false,"missing":["matchmaker: none"]}'),
            Status.FAIL,
            "matchmaker: none",
        ),
        (HttpFacts("u", 502, b"<html>"), Status.FAIL, "answers 502"),
        (HttpFacts("u", error="refused"), Status.FAIL, "does not answer"),
    ],
)
def test_httpd(facts: HttpFacts, expected: Status, says: str) -> None:
    """Ready, or what is missing."""
    finding = rules_network.judge_ready(facts)
    assert worst(finding) is expected
    assert says in finding.said


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PortFacts(range(30000, 30100)), Status.OK),
        (PortFacts(range(30000, 30100), tuple(range(30000, 30010))), Status.OK),
        (PortFacts(range(30000, 30100), tuple(range(30000, 30090))), Status.WARN),
        (PortFacts(range(30000, 30100), tuple(range(30000, 30100))), Status.FAIL),
        (PortFacts(range(80, 90), denied="port 80: Permission denied"), Status.FAIL),
        (PortFacts(range(32000, 33000), ephemeral=range(32768, 61000)), Status.WARN),
    ],
)
def test_ports(facts: PortFacts, expected: Status) -> None:
    """Free ones for the servers to come, and nobody else's."""
    assert worst(rules_udp.judge_ports(facts)) is expected


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [((), Status.OK), (("127.0.0.1", "::1"), Status.OK), (("127.0.0.1", "192.168.1.5"), Status.WARN)],
)
def test_any_ports_are_right_where_no_firewall_is(hosts: tuple[str, ...], expected: Status) -> None:
    finding = rules_udp.judge_any_ports(hosts)
    assert finding.status is expected
    assert ("tipoff up --ports" in finding.todo) == (expected is Status.WARN)


@pytest.mark.row(72)
@pytest.mark.parametrize(("size", "expected"), [(4 << 20, Status.OK), (212_992, Status.WARN)])
def test_udp_receive_buffer(size: int, expected: Status) -> None:
    """A small one is told with the setting that mends it."""
    finding = rules_udp.judge_buffer(size)
    assert worst(finding) is expected
    assert ("sysctl -w net.core.rmem_max=4194304" in finding.todo) == (expected is Status.WARN)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (LoopFacts("127.0.0.1", 30000, True), Status.OK),
        (LoopFacts("93.184.216.34", 30000, True), Status.OK),
        (LoopFacts("93.184.216.34", 30000, False), Status.WARN),
        (LoopFacts("93.184.216.34", 0, None, "no port is free"), Status.WARN),
    ],
)
def test_udp_from_inside(facts: LoopFacts, expected: Status) -> None:
    """What cannot be known from here is said, with the way to know it."""
    finding = rules_udp.judge_loop(facts)
    assert worst(finding) is expected
    if not facts.host.startswith("127."):
        assert "tipoff doctor --probe 93.184.216.34" in finding.todo


@pytest.mark.parametrize(
    ("answered", "error", "expected"),
    [
        (range(30000, 30010), "", Status.OK),
        (range(30000, 30005), "", Status.WARN),
        ((), "", Status.FAIL),
        ((), "Name or service not known", Status.FAIL),
    ],
)
def test_udp_from_outside(answered: range, error: str, expected: Status) -> None:
    """All, some or none of the ports."""
    facts = ProbeFacts("play.example.org", range(30000, 30010), frozenset(answered), error=error)
    assert worst(rules_udp.judge_probe(facts)) is expected


def test_ports_are_told_in_spans() -> None:
    """Not one by one."""
    assert rules_udp.spans([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert rules_udp.spans(range(0, 100, 2), most=2) == "0, 2, and 48 more"


@given(st.binary(max_size=64))
def test_the_echo_answers_nothing_but_probes_and_never_with_more(data: bytes) -> None:
    """It amplifies nothing and is no use for loops: what it says, it does not answer."""
    answer = answer_to(data)
    assert answer is None
    probe = REQUEST + data[:16].ljust(16, b"\0")
    answer = answer_to(probe)
    assert answer is not None
    assert len(answer) == len(probe)
    assert answer.startswith(ANSWER)
    assert answer_to(answer) is None


@pytest.mark.parametrize(
    ("changes", "expected", "says"),
    [
        ({}, Status.OK, "nats-server 2.12.1"),
        ({"error": "Authorization Violation"}, Status.FAIL, "Authorization"),
        ({"error": "connection refused"}, Status.FAIL, "refused"),
        ({"denied": "NATS user 'httpd' may not publish to x"}, Status.FAIL, "may not"),
        ({"version": "2.10.4"}, Status.FAIL, "2.10.4"),
        ({"version": "a-build"}, Status.OK, "a-build"),
        ({"jetstream": False}, Status.FAIL, "no JetStream"),
        ({"secure": False}, Status.WARN, "no TLS"),
        ({"secure": False, "server": "nats://127.0.0.1:4222"}, Status.OK, "127.0.0.1"),
        ({"rtt": 0.3}, Status.WARN, "300 ms"),
        ({"matchmakers": ()}, Status.FAIL, "no matchmaker"),
        ({"orchestrators": {"launcher": "list: nobody listens"}}, Status.FAIL, "nobody listens"),
        ({"storage": 95, "max_storage": 100}, Status.FAIL, "95 B of 100 B"),
        ({}, Status.OK, "NATS writes to every bucket"),
        ({"problems": ("NATS does not write to sessions: no answer",)}, Status.FAIL, "sessions"),
        ({"problems": ("game arena 1: its servers do not start: exit 1",)}, Status.FAIL, "exit 1"),
    ],
)
def test_nats(changes: dict[str, object], expected: Status, says: str) -> None:
    """Reached, allowed, new enough, with room."""
    findings = rules_nats.judge_nats(dataclasses.replace(GOOD_NATS, **changes))  # type: ignore[arg-type]
    assert worst(findings) is expected
    assert any(says in finding.said for finding in findings)


@pytest.mark.row(76)
@pytest.mark.parametrize(("free", "expected"), [(10 * 2**30, Status.OK), (2**20, Status.FAIL)])
def test_the_disk_of_up(free: int, expected: Status) -> None:
    """Room for game servers and for NATS."""
    assert worst(rules_host.judge_disk(DiskSpace(Path("/state"), free, 100 * 2**30))) is expected


@pytest.mark.row(76)
def test_sizes_of_a_small_disk_are_those_that_count() -> None:
    """Its own threshold, which is lower, and room that is less than a GiB."""
    well = rules_host.judge_disk(DiskSpace(Path("/state"), 47 * 2**20, 48 * 2**20))
    assert (well.status, "47 MiB are free" in well.said) == (Status.OK, True)
    nearly_full = rules_host.judge_disk(DiskSpace(Path("/state"), 2**20, 60 * 2**20))
    assert (nearly_full.status, "Below 3 MiB" in nearly_full.todo) == (Status.FAIL, True)


@pytest.mark.parametrize(
    ("streams", "cluster", "expected", "says"),
    [
        ([StreamFacts("sessions", missing=True)], 1, Status.FAIL, "all buckets are missing"),
        ([StreamFacts("sessions"), StreamFacts("fleets", missing=True)], 1, Status.WARN, "fleets"),
        ([StreamFacts("sessions", replicas=3, current=2)], 3, Status.WARN, "2 of 3"),
        ([StreamFacts("sessions", replicas=3, current=3)], 3, Status.OK, "1 buckets"),
        ([StreamFacts("sessions")], 3, Status.WARN, "only one replica"),
        ([StreamFacts("cert_digests")], 3, Status.OK, "1 buckets"),  # bevygap's: one replica is right
        ([StreamFacts("sessions", bytes=90, max_bytes=100)], 1, Status.FAIL, "90%"),
        ([StreamFacts("sessions", error="denied")], 1, Status.OK, ""),
    ],
)
def test_buckets(streams: list[StreamFacts], cluster: int, expected: Status, says: str) -> None:
    """There, replicated as the cluster allows, with room."""
    facts = dataclasses.replace(GOOD_NATS, streams={one.name: one for one in streams}, cluster=cluster)
    findings = rules_nats.judge_nats(facts)
    assert worst(findings) is expected
    assert any(says in finding.said for finding in findings)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (MonitorFacts("u", sync_interval=0.0), Status.OK),
        (MonitorFacts("u", sync_interval=120.0), Status.WARN),
        (MonitorFacts("u", error="refused"), Status.SKIP),
        (MonitorFacts("u", sync_interval=0.0, store=99, max_store=100), Status.FAIL),
    ],
)
def test_the_disk(facts: MonitorFacts, expected: Status) -> None:
    """Acknowledged means written down."""
    assert worst(rules_nats.judge_monitor(facts)) is expected


@pytest.mark.parametrize(
    ("changes", "pull", "expected", "says"),
    [
        ({}, "missing", Status.OK, "27.1"),
        ({"error": "No such file or directory"}, "missing", Status.FAIL, "No such file"),
        (
            {"error": "permission denied", "denied": True, "group": 998},
            "missing",
            Status.FAIL,
            "may not use it",
        ),
        ({"api": "1.24"}, "missing", Status.FAIL, "too old"),
        ({"world": True}, "missing", Status.WARN, "every user"),
        ({"live_restore": False}, "missing", Status.WARN, "a restart of the engine"),
        ({"images": {"game:1": False}}, "missing", Status.WARN, "missing: game:1"),
        ({"images": {"game:1": False}}, "never", Status.FAIL, "never pulled"),
        ({"network": "games", "network_there": False}, "missing", Status.FAIL, "no network"),
    ],
)
def test_the_engine(changes: dict[str, object], pull: str, expected: Status, says: str) -> None:
    """There for us and for nobody else, with the images."""
    findings = rules_host.judge_engine(dataclasses.replace(GOOD_ENGINE, **changes), pull)  # type: ignore[arg-type]
    assert worst(findings) is expected
    assert any(says in finding.said for finding in findings)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Status.OK),
        ({"error": "games.toml:3: seats = 0"}, Status.FAIL),
        ({"key_error": "no private key"}, Status.FAIL),
        ({"open_keys": ("/x/arena.1.key",)}, Status.WARN),
        ({"shared_keys": ("arena 1", "chess 1")}, Status.WARN),
    ],
)
def test_games_and_keys(changes: dict[str, object], expected: Status) -> None:
    """Readable, and each key for one game and for few eyes."""
    facts = GamesFacts(Path("games.toml"), (Game("arena", "1"),))
    assert worst(rules_host.judge_games(dataclasses.replace(facts, **changes))) is expected  # type: ignore[arg-type]
