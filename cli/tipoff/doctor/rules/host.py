"""Judges the facts about Docker engine, games.toml, keys and the disk."""

from __future__ import annotations

from tipoff.doctor.facts.engine import EngineFacts
from tipoff.doctor.facts.games import GamesFacts
from tipoff.doctor.findings import Finding, fail, ok, warn
from tipoff_shared.disk_space import DiskSpace

OLDEST_API = (1, 40)
"""Docker 19.03."""


def judge_disk(space: DiskSpace) -> Finding:
    """Whether the disk of a `tipoff up` has room."""
    if problem := space.problem():
        return fail(
            "disk",
            problem,
            f"Below {_size(space.least)} (TIPOFF_LAUNCHER_MIN_FREE_DISK) no game server starts; on a full disk NATS "
            "writes nothing.",
        )
    return ok("disk", f"{_size(space.free)} are free on the disk of {space.path}")


def _size(number: int) -> str:
    """Bytes, for people."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def judge_engine(facts: EngineFacts, pull: str) -> list[Finding]:
    """Findings about the engine and the games' images; `pull` is the launcher's pull policy."""
    check = "engine"
    if facts.denied:
        return [
            fail(
                check,
                f"{facts.socket} exists, but this user may not use it",
                f"Run doctor as root or in group {facts.group}. For the launcher: DOCKER_GID={facts.group}.",
            )
        ]
    if facts.error:
        return [
            fail(
                check,
                f"{facts.socket}: {facts.error}",
                "Is the engine running (`systemctl status docker`)? DOCKER_SOCKET or DOCKER_HOST says where it is.",
            )
        ]
    findings: list[Finding] = []
    if _version(facts.api) < OLDEST_API:
        findings.append(
            fail(
                check,
                f"Docker {facts.version} (API {facts.api}) is too old",
                "Docker 19.03 (API 1.40) is the oldest that works.",
            )
        )
    if facts.world:
        findings.append(
            warn(
                check,
                f"every user of this host may use {facts.socket}, which makes them root",
                f"`chmod o-rw {facts.socket}`; a group is enough.",
            )
        )
    if not facts.live_restore:
        findings.append(
            warn(
                check,
                "a restart of the engine ends every container, and with it every game",
                'Put {"live-restore": true} into /etc/docker/daemon.json and `systemctl reload docker`.',
            )
        )
    missing = sorted(image for image, there in facts.images.items() if not there)
    if missing and pull == "never":
        findings.append(
            fail(
                "images",
                f"missing, and never pulled: {', '.join(missing)}",
                "Build or `docker pull` them, or set TIPOFF_PULL=missing.",
            )
        )
    elif missing:
        findings.append(
            warn(
                "images",
                f"missing: {', '.join(missing)}",
                "The first server pulls them while players wait: `docker pull` or build them now.",
            )
        )
    elif facts.images:
        findings.append(ok("images", f"present: {', '.join(sorted(facts.images))}"))
    if not facts.network_there:
        findings.append(
            fail(
                check,
                f"there is no network {facts.network}",
                "`docker compose up` creates it; or correct TIPOFF_LAUNCHER_DOCKER_NETWORK.",
            )
        )
    if not any(finding.check == check for finding in findings):
        findings.insert(0, ok(check, f"Docker {facts.version} (API {facts.api})"))
    return findings


def judge_games(facts: GamesFacts) -> list[Finding]:
    """Findings about games.toml and the games' keys."""
    check = "games"
    if facts.error:
        return [fail(check, facts.error, "Correct that line; docs/games-toml.md explains every field.")]
    findings = [
        ok(check, f"{facts.path}: {', '.join(f'{game.name} {game.version}' for game in facts.games)}")
    ]
    if facts.key_error:
        findings.append(
            fail(
                "keys",
                facts.key_error,
                "`tipoff secrets init` makes missing keys. Matchmaker and launcher need the same keys.",
            )
        )
        return findings
    if facts.open_keys:
        findings.append(
            warn(
                "keys",
                f"every user of this host can read {', '.join(facts.open_keys)}",
                "chmod 700 the directory: a game's key is all it takes to make tokens.",
            )
        )
    if facts.shared_keys:
        findings.append(
            warn(
                "keys",
                f"equal keys: {', '.join(facts.shared_keys)}",
                "Give each game and version its own key: `tipoff secrets rotate`.",
            )
        )
    if not facts.open_keys and not facts.shared_keys:
        findings.append(ok("keys", "each game has its own key"))
    return findings


def _version(text: str) -> tuple[int, int]:
    try:
        major, minor = text.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        return (99, 0)
