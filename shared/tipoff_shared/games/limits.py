"""The limits of a game's settings, and which settings exclude each other."""

from __future__ import annotations

import re
from typing import TypeAlias

from tipoff_shared.errors import Malformed
from tipoff_shared.games.model import DockerSpec, EdgegapSpec, Game
from tipoff_shared.names import check_name

Complaint: TypeAlias = tuple[str | None, str]
"""The field (None: the game as a whole), and what is wrong with it."""

_LIMITS: dict[str, tuple[float, float]] = {
    "seats": (1, 1000),  # a record of 1000 seats is 39 KiB, the most that is still quick to write
    "min_ready": (0, 1000),
    "max_deployments": (1, 10_000),
    "empty_ttl": (0, 86_400),
    "start_timeout": (1, 3600),
    "request_timeout": (1, 3600),
    "claim_time": (1, 3600),
    "token_timeout": (1, 3600),
    "resume_ttl": (0, 3600),
    "protocol_id": (0, 2**64 - 1),
}
_BEVYGAP_TIMEOUT = 25
"""A mapping lives 30 s (bevygap's configuration), and a token should live 5 s at least before its handshake begins."""


def complaint_about(game: Game) -> Complaint | None:
    """The first setting of `game` that is not allowed; None when all are."""
    return complaint_about_limits(game) or _about_its_start(game)


def complaint_about_limits(game: Game) -> Complaint | None:
    """As `complaint_about`, without how its servers are started."""
    try:
        check_name(game.name, "name")
        check_name(game.version, "version")
    except Malformed as exc:
        return str(exc).split(":", 1)[0], str(exc)
    for name, (low, high) in _LIMITS.items():
        value = getattr(game, name)
        if value is not None and not low <= value <= high:
            return name, f"{name} = {value:g}: {low:g} to {high:g} is allowed"
    if game.min_ready > game.max_deployments:
        return (
            "min_ready",
            f"min_ready = {game.min_ready} is more than max_deployments = {game.max_deployments}",
        )
    if game.bevygap and game.token_timeout > _BEVYGAP_TIMEOUT:
        return (
            "token_timeout",
            f"token_timeout = {game.token_timeout}: at most {_BEVYGAP_TIMEOUT} is allowed with bevygap = true, or a "
            "player might connect later than a mapping lives, which ends a bevygap server",
        )
    return None


def _about_its_start(game: Game) -> Complaint | None:
    if game.process is not None and not game.process.command:
        return "command", "command is empty"
    if game.docker is not None and (wrong := _wrong_in_docker(game.docker)):
        field, why = wrong
        return field, f"{field}: {why}"
    if game.orchestrator == "launcher" and game.process is None and game.docker is None:
        return (
            None,
            f"game {game.name!r} has no [game.process] with its command, like "
            'command = ["python", "server.py"], and no [game.docker] with its image',
        )
    if game.edgegap is not None and (wrong := _wrong_at_edgegap(game.edgegap)):
        field, why = wrong
        return field, f"{field}: {why}"
    if game.orchestrator in ("edgegap", "edgegap-sessions") and game.edgegap is None:
        return None, f"game {game.name!r} has no [game.edgegap] with its application and version"
    return None


EDGEGAP_VALUE_LIMIT = 255
"""Bytes of one environment variable's value at Edgegap."""
_EDGEGAP_NAME = re.compile(r"[a-zA-Z0-9 ._-]{1,64}", re.ASCII)


def _wrong_at_edgegap(spec: EdgegapSpec) -> tuple[str, str] | None:
    """The first wrong field of `[game.edgegap]`, and what is allowed."""
    for field in ("application", "version"):
        if not _EDGEGAP_NAME.fullmatch(getattr(spec, field)):
            return (
                field,
                f"{getattr(spec, field)!r}: 1 to 64 letters, digits, spaces, `.`, `_`, `-` are allowed",
            )
    for name, value in spec.env.items():
        if len(value.encode()) > EDGEGAP_VALUE_LIMIT:
            return "env", f"{name} has {len(value.encode())} bytes; Edgegap takes {EDGEGAP_VALUE_LIMIT}"
    return None


_DOCKER_LIMITS: dict[str, tuple[float, float]] = {
    "cpus": (0.01, 1024),
    "memory": (8, 1024 * 1024),
    "pids": (1, 100_000),
}
_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._/:@-]{0,254}", re.ASCII)
_PORT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,32}", re.ASCII)
_USER = re.compile(r"([a-zA-Z0-9._-]{1,32}(:[a-zA-Z0-9._-]{1,32})?)?", re.ASCII)


def _wrong_in_docker(spec: DockerSpec) -> tuple[str, str] | None:
    """The first wrong field of `[game.docker]`, and what is allowed."""
    if not _IMAGE.fullmatch(spec.image):
        return "image", f"{spec.image!r} is no image; NAME, NAME:TAG or NAME@DIGEST is expected"
    for name, (low, high) in _DOCKER_LIMITS.items():
        if not low <= getattr(spec, name) <= high:
            return name, f"{getattr(spec, name):g}: {low:g} to {high:g} is allowed"
    for name, port in spec.ports.items():
        if not _PORT_NAME.fullmatch(name):
            return "ports", f"{name!r}: names have 1 to 32 letters, digits, _ and -"
        if not 0 <= port.internal <= 65535:
            return "ports", f"{name}: internal = {port.internal}: 0 to 65535 is allowed"
    if len({(p.internal, p.protocol) for p in spec.ports.values() if p.internal}) != sum(
        p.internal > 0 for p in spec.ports.values()
    ):
        return "ports", "two of them have the same internal port"
    if not _USER.fullmatch(spec.user):
        return "user", f"{spec.user!r}: UID, UID:GID or a name is expected"
    for directory in spec.writable:
        if not re.fullmatch(r"(/[a-zA-Z0-9._-]+)+", directory) or {"..", "."} & set(directory.split("/")):
            return "writable", f"{directory!r}: directories like /var/cache/game are expected"
    return None
