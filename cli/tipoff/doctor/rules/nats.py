"""Judges the facts about NATS, buckets and matchmakers."""

from __future__ import annotations

from tipoff.doctor.facts.nats import MonitorFacts, NatsFacts, StreamFacts
from tipoff.doctor.findings import Finding, fail, ok, skip, warn
from tipoff.doctor.target import is_local

NEARLY_FULL = 0.8
OLDEST = (2, 11)
"""The first nats-server with a TTL for each key, which leases need."""
SLOW = 0.1
"""Seconds for one round trip from where `doctor` runs; every play waits for a few."""
POWER_CUT = "deploy/nats/README.md shows the setting; without it a power cut loses the last minutes."


def judge_nats(facts: NatsFacts) -> list[Finding]:
    """Findings about the connection, the server, its buckets, matchmakers and orchestrators."""
    check = "nats"
    if facts.error:
        return [fail(check, f"{facts.server}: {facts.error}", _why_unreachable(facts.error))]
    findings: list[Finding] = []
    if facts.denied:
        findings.append(
            fail(
                check,
                facts.denied,
                "Use the role operator. After an upgrade run `tipoff secrets init` again, and let NATS reload.",
            )
        )
    if not facts.version:
        return findings
    if _version(facts.version) < OLDEST:
        findings.append(
            fail(
                check,
                f"nats-server {facts.version} has no TTL for keys",
                "Run nats-server 2.11 or later: leases depend on it.",
            )
        )
    if not facts.jetstream:
        findings.append(
            fail(
                check,
                f"{facts.server} has no JetStream for this user",
                "Configure `jetstream { store_dir: ... }`; all shared state lives in it.",
            )
        )
        return findings
    host = facts.server.partition("://")[2].rpartition(":")[0]
    if not facts.secure and not is_local(host):
        findings.append(
            warn(
                check,
                f"no TLS to {facts.server}: passwords and tokens travel in clear",
                "Fine within one host; else use deploy/nats/nats.conf and NATS_CA.",
            )
        )
    if facts.rtt > SLOW:
        findings.append(
            warn(
                check,
                f"a round trip to NATS takes {facts.rtt * 1000:.0f} ms",
                "Put matchmakers and httpds near NATS: every play waits for several round trips.",
            )
        )
    if not facts.denied and not findings:
        findings.append(ok(check, f"{facts.server}: nats-server {facts.version}, {facts.rtt * 1000:.1f} ms"))
    findings += judge_streams(facts)
    if facts.matchmakers:
        findings.append(
            ok("matchmaker", f"{len(facts.matchmakers)} answer: {', '.join(sorted(facts.matchmakers))}")
        )
        findings += [_orchestrator(name, error) for name, error in sorted(facts.orchestrators.items())]
        findings += [_problem(problem) for problem in facts.problems] or [
            ok("writes", "NATS writes to every bucket: a matchmaker tries each every five seconds")
        ]
    else:
        findings.append(
            fail(
                "matchmaker",
                "no matchmaker answers",
                "Start one; its log says why it does not run. Or TIPOFF_NAMESPACE is wrong.",
            )
        )
    return findings


def _problem(problem: str) -> Finding:
    if problem.startswith("NATS"):
        return fail(
            "writes",
            problem,
            "No player gets a seat while this lasts. Is NATS's disk full (`df`)? Where there is room again and this "
            "stays, restart nats-server: some versions write nothing after their disk was full once.",
        )
    check = problem.partition(" ")[0]  # `game`, `orchestrator`
    return fail(
        check, problem, "Its last words say why; the logs of the launcher and of its servers say more."
    )


def _orchestrator(name: str, error: str) -> Finding:
    if not error:
        return ok("orchestrator", f"{name} works")
    todo = (
        "No game server can start while this lasts. Is it running? See its log or the service's status page."
    )
    return fail("orchestrator", f"{name} fails: {error}", todo)


def judge_streams(facts: NatsFacts) -> list[Finding]:
    """Findings about the buckets: missing, without replicas, nearly full."""
    check = "jetstream"
    findings: list[Finding] = []
    readable = [stream for stream in facts.streams.values() if not stream.error]
    missing = sorted(stream.name for stream in readable if stream.missing)
    there = [stream for stream in readable if not stream.missing]
    if missing and there:
        findings.append(
            warn(
                check,
                f"missing buckets: {', '.join(missing)}",
                "A matchmaker creates them at its start: restart one. Does another version run beside it?",
            )
        )
    elif missing:
        findings.append(
            fail(
                check,
                "all buckets are missing",
                "No matchmaker has run here yet, or TIPOFF_NAMESPACE is wrong.",
            )
        )
    behind = [stream for stream in there if stream.current < stream.replicas]
    if behind:
        names = ", ".join(f"{s.name} ({s.current} of {s.replicas})" for s in behind)
        findings.append(
            warn(
                check,
                f"replicas are missing or behind: {names}",
                "A node of the cluster is down or catching up; if one more is lost, no write succeeds.",
            )
        )
    if facts.cluster > 1 and (single := [s.name for s in there if s.replicas == 1 and s.name in _OURS]):
        findings.append(
            warn(
                check,
                f"a cluster of {facts.cluster}, but only one replica of {', '.join(single)}",
                "Set TIPOFF_NATS_REPLICAS=3 before the first start, or `nats stream edit KV_NAME --replicas 3`.",
            )
        )
    full = [stream for stream in there if _share(stream) > NEARLY_FULL]
    if full:
        names = ", ".join(f"{s.name} ({_share(s):.0%})" for s in full)
        findings.append(
            fail(
                check,
                f"nearly full: {names}",
                "Raise max_bytes (`nats stream edit`): with a full bucket no player gets in.",
            )
        )
    if facts.max_storage > 0 and facts.storage > NEARLY_FULL * facts.max_storage:
        findings.append(
            fail(
                check,
                f"{_size(facts.storage)} of {_size(facts.max_storage)} are used",
                "Raise max_file_store, or find the stream that grows: `nats stream list`.",
            )
        )
    if not findings and there:
        limit = f" of {_size(facts.max_storage)}" if facts.max_storage > 0 else ""
        keys = sum(stream.messages for stream in there)
        findings.append(
            ok(check, f"{len(there)} buckets with {keys} keys, {_size(facts.storage)}{limit} on disk")
        )
    return findings


def judge_monitor(facts: MonitorFacts) -> list[Finding]:
    """Findings about durability and the size of the server's store."""
    check = "sync_interval"
    if facts.error:
        return [
            skip(
                check,
                f"{facts.url} does not answer ({facts.error})",
                "--monitor names nats-server's monitoring port; on the host of a compose stack `doctor` finds it.",
            )
        ]
    if facts.sync_interval == 0:
        findings = [ok(check, "every acknowledged write is on disk (sync_interval: always)")]
    elif facts.sync_interval is None:
        findings = [skip(check, "this nats-server does not report how often it writes to disk")]
    else:
        findings = [
            warn(
                check,
                f"writes reach the disk only every {facts.sync_interval:g} s",
                f"Set `sync_interval: always`: {POWER_CUT}",
            )
        ]
    if facts.max_store and facts.store > NEARLY_FULL * facts.max_store:
        findings.append(
            fail(
                "jetstream",
                f"the server's store is nearly full: {_size(facts.store)} of {_size(facts.max_store)}",
                "Raise max_file_store, or give it a larger disk.",
            )
        )
    return findings


_OURS = ("sessions", "deployments", "fleets", "gameservers", "matchmakers")


def _why_unreachable(error: str) -> str:
    text = error.lower()
    if any(word in text for word in ("authorization", "authentication", "nats_user")):
        return (
            "User or password is wrong: NATS_USER and NATS_PASSWORD_FILE. After `tipoff secrets rotate` NATS must "
            "reload."
        )
    if "certificate" in text or "ssl" in text or "tls" in text or "secure" in text:
        return (
            "TLS failed: NATS_CA must name the authority (secrets/nats/ca.pem), and the certificate must name this "
            "host; set NATS_INSECURE=1 where NATS has no TLS."
        )
    return "Is nats-server running, is NATS_HOST right, is the port published? `docker compose ps nats`, then its log."


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return (99, 0)  # a custom build


def _share(stream: StreamFacts) -> float:
    return stream.bytes / stream.max_bytes if stream.max_bytes > 0 else 0.0


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
