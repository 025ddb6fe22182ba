"""Judges the facts about DNS, TLS, clocks and httpd's readiness."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from tipoff.doctor.facts.network import ClockFacts, DnsFacts, HttpFacts, TlsFacts
from tipoff.doctor.findings import Finding, Status, fail, ok, skip, warn
from tipoff.doctor.target import is_local

EXPIRES_SOON = timedelta(days=21)
EXPIRES_AT_ONCE = timedelta(days=3)
SHORT_LIVED = timedelta(days=10)
"""A certificate with a shorter lifetime is renewed often: Caddy's own authority signs for twelve hours."""
RENEWED_WITH = 0.3
"""Automatic renewal happens when a third of the lifetime is left; with less than this share it has failed."""
CLOCK_WARN = 1.0
CLOCK_FAIL = 5.0
"""Seconds. Claim deadlines have 1 s of slack, tokens live 15 s."""


def judge_dns(facts: DnsFacts, public_hosts: Sequence[str]) -> Finding:
    """Whether players reach the name; `public_hosts` are the addresses in their tokens."""
    check = "dns"
    if facts.error:
        return fail(
            check,
            f"{facts.name} does not resolve: {facts.error}",
            f"Make an A record for {facts.name} with this host's public IPv4 address.",
        )
    if not facts.ipv4:
        return fail(
            check,
            f"{facts.name} has no IPv4 address, only {', '.join(facts.ipv6)}",
            "Add an A record: tokens hold IPv4 addresses, which bevygap's clients need.",
        )
    listed = ", ".join((*facts.ipv4, *facts.ipv6))
    private = [address for address in facts.ipv4 if not ipaddress.ip_address(address).is_global]
    if private and not is_local(facts.name):
        return warn(
            check,
            f"{facts.name} is {listed}; {', '.join(private)} can be reached only from here, not from the internet",
            "Right in a local network. Else give the name this host's public address (see /etc/hosts, too).",
        )
    literal = [host for host in public_hosts if _is_address(host)]
    if literal and not set(literal) & set(facts.ipv4):
        return warn(
            check,
            f"{facts.name} is {listed}, but players are sent to {', '.join(literal)}",
            "Right when game servers run on another host. Else correct the A record, or TIPOFF_PUBLIC_HOST.",
        )
    return ok(check, f"{facts.name} is {listed}")


def judge_tls(check: str, facts: TlsFacts, now: datetime, *, own_authority: str = "") -> Finding:
    """Whether clients trust the certificate at the time `now`. `own_authority`: what to do about a certificate of an
    authority that only this installation knows; on this machine that is only a warning."""
    where = facts.where
    if not facts.connected:
        return fail(
            check,
            f"{where} cannot be reached: {facts.problem}",
            "Is it running, is the port published, is a firewall in between?",
        )
    if facts.not_after is None:
        return fail(
            check,
            f"{where} shows no certificate: {facts.problem}",
            "TLS is expected there. See the log of the program that listens.",
        )
    until = f"valid until {facts.not_after:%Y-%m-%d}, for {', '.join(facts.names) or 'no name'}"
    left = facts.not_after - now
    if left <= timedelta(0):
        return fail(
            check,
            f"{where}: the certificate has expired on {facts.not_after:%Y-%m-%d}",
            "Renew it; where that is automatic, its log says why it failed (ports 80 and 443 must be reachable).",
        )
    if facts.not_before is not None and facts.not_before > now:
        return fail(
            check,
            f"{where}: the certificate is not valid before {facts.not_before:%Y-%m-%d %H:%M} UTC",
            "Check this machine's clock first, then the certificate.",
        )
    if facts.problem:
        if "ostname mismatch" in facts.problem or "IP address mismatch" in facts.problem:
            return fail(
                check,
                f"{where}: the certificate is for {', '.join(facts.names) or 'no name'}",
                "Use one of these names, or get a certificate for this one.",
            )
        todo = (
            own_authority
            or "Players need one of a public authority (a domain in TIPOFF_HOST, an e-mail address in TIPOFF_TLS)."
        )
        said = f"{where}: not trusted: {facts.problem}; issued by {facts.issuer}"
        return Finding(
            check, Status.WARN if own_authority and is_local(_host(where)) else Status.FAIL, said, todo
        )
    lifetime = facts.not_after - (facts.not_before or now)
    late = left < RENEWED_WITH * lifetime
    if left < EXPIRES_AT_ONCE and lifetime > SHORT_LIVED:
        return fail(
            check,
            f"{where}: {until}: {left.days} day(s) left",
            "Renew it now; where that is automatic, its log says why it failed.",
        )
    if late and (left < EXPIRES_SOON or lifetime <= SHORT_LIVED):
        return warn(
            check,
            f"{where}: {until}: {left.days} days left",
            "Renewal should have happened: see the log of the program that renews it.",
        )
    return ok(check, f"{where}: {until}")


def judge_clock(facts: ClockFacts | None, whose: str) -> Finding:
    """Whether two clocks agree as far as tokens and deadlines need."""
    check = "clocks"
    if facts is None:
        return skip(check, f"{whose} reports no time")
    certain = max(0.0, abs(facts.offset) - facts.within)
    direction = "ahead of" if facts.offset > 0 else "behind"
    said = f"the clock of {facts.whose} is {abs(facts.offset):.1f} s {direction} this machine's (±{facts.within:.1f} s)"
    todo = "Let chrony or systemd-timesyncd set both clocks (`timedatectl` shows it): tokens live 15 to 30 s."
    if certain > CLOCK_FAIL:
        return fail(check, said, todo)
    if certain > CLOCK_WARN:
        return warn(check, said, todo)
    return ok(
        check,
        f"the clock of {facts.whose} agrees with this machine's (±{max(facts.within, abs(facts.offset)):.1f} s)",
    )


def judge_ready(facts: HttpFacts) -> Finding:
    """Whether httpd can serve players."""
    check = "httpd"
    if not facts.status:
        return fail(
            check,
            f"{facts.url} does not answer: {facts.error}",
            "Is httpd running, and the proxy in front of it? `docker compose ps`, then their logs.",
        )
    if facts.status == 200:
        return ok(check, f"{facts.url}/readyz: ready for players")
    missing = facts.missing()
    if missing:
        return fail(check, f"{facts.url}/readyz: {'; '.join(missing)}", "The log of that service says why.")
    return fail(
        check,
        f"{facts.url}/readyz answers {facts.status}",
        "This is not httpd, or a proxy that does not reach it: its log says why.",
    )


def _host(where: str) -> str:
    return where.rpartition(":")[0]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
