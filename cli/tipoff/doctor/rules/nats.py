"""What NATS's state means: pure judgement."""

from __future__ import annotations

from tipoff.doctor.facts.nats import MonitorFacts, NatsFacts, StreamFacts
from tipoff.doctor.findings import Finding, fail, ok, skip, warn
from tipoff.doctor.target import is_local

NEARLY_FULL = 0.8
OLDEST = (2, 11)
"""The first nats-server with a time to live for each key, which leases need."""
SLOW = 0.1
"""Seconds for one round trip, from where `doctor` runs: every play waits for a few."""
POWER_CUT = "README.md of deploy/nats/ has the setting; after a power cut everything of the last minutes would be lost."


def judge_nats(facts: NatsFacts) -> list[Finding]:
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
                f"nats-server {facts.version} knows no time to live of keys",
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
                f"{facts.server} is spoken to without TLS: passwords and tokens travel in clear",
                "Fine within one host's own networks; else use deploy/nats/nats.conf, and NATS_CA.",
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
    else:
        findings.append(
            fail(
                "matchmaker",
                "no matchmaker answers",
                "Start one; its log says why it does not run. (Or TIPOFF_NAMESPACE is another one.)",
            )
        )
    return findings


def _orchestrator(name: str, error: str) -> Finding:
    if not error:
        return ok("orchestrator", f"{name} works")
    todo = "No game server can be started while this lasts. Is it running? Its log, or the service's page, says more."
    return fail("orchestrator", f"{name} fails: {error}", todo)


def judge_streams(facts: NatsFacts) -> list[Finding]:
    check = "jetstream"
    findings: list[Finding] = []
    readable = [stream for stream in facts.streams.values() if not stream.error]
    missing = sorted(stream.name for stream in readable if stream.missing)
    there = [stream for stream in readable if not stream.missing]
    if missing and there:
        findings.append(
            warn(
                check,
                f"buckets that are not there: {', '.join(missing)}",
                "A matchmaker makes them at its start: restart one. Is another version running beside?",
            )
        )
    elif missing:
        findings.append(
            fail(
                check,
                "none of the buckets is there",
                "No matchmaker has run here yet, or TIPOFF_NAMESPACE is another one.",
            )
        )
    behind = [stream for stream in there if stream.current < stream.replicas]
    if behind:
        names = ", ".join(f"{s.name} ({s.current} of {s.replicas})" for s in behind)
        findings.append(
            warn(
                check,
                f"replicas are missing or behind: {names}",
                "A node of the cluster is down or catching up; with one more lost, nothing can be written.",
            )
        )
    if facts.cluster > 1 and (single := [s.name for s in there if s.replicas == 1 and s.name in _OURS]):
        findings.append(
            warn(
                check,
                f"a cluster of {facts.cluster}, but one replica only: {', '.join(single)}",
                "Set TIPOFF_NATS_REPLICAS=3 before the buckets are made, or `nats stream edit KV_NAME --replicas 3`.",
            )
        )
    full = [stream for stream in there if _share(stream) > NEARLY_FULL]
    if full:
        names = ", ".join(f"{s.name} ({_share(s):.0%})" for s in full)
        findings.append(
            fail(
                check,
                f"nearly full: {names}",
                "Raise max_bytes (`nats stream edit`): a full bucket lets nobody in.",
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
    check = "sync_interval"
    if facts.error:
        return [
            skip(
                check,
                f"{facts.url} does not tell ({facts.error})",
                "--monitor names nats-server's monitoring port; on its own host `doctor` finds the compose stack's.",
            )
        ]
    if facts.sync_interval == 0:
        findings = [ok(check, "every acknowledged write is on the disk (sync_interval: always)")]
    elif facts.sync_interval is None:
        findings = [skip(check, "this nats-server does not tell how often it writes to the disk")]
    else:
        findings = [
            warn(
                check,
                f"writes reach the disk every {facts.sync_interval:g} s",
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
            "User or password is not right: NATS_USER and NATS_PASSWORD_FILE. After `tipoff secrets rotate` NATS must "
            "reload."
        )
    if "certificate" in text or "ssl" in text or "tls" in text or "secure" in text:
        return (
            "TLS does not come about: NATS_CA must name the authority (secrets/nats/ca.pem), its certificate this "
            "host; NATS_INSECURE=1 where NATS has no TLS."
        )
    return "Is nats-server running, is NATS_HOST right, is the port published? `docker compose ps nats`, then its log."


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return (99, 0)  # a build of somebody's own


def _share(stream: StreamFacts) -> float:
    return stream.bytes / stream.max_bytes if stream.max_bytes > 0 else 0.0


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
