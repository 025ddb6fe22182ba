"""Verifies, when a matchmaker starts, that Edgegap has what games.toml names and that it can be deployed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.api.answers import Version
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import Gone, Unauthorized
from tipoff_orchestrator_client.edgegap.naming import choose_port
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import EdgegapSpec, Game

log = logging.getLogger(__name__)


async def verify(client: EdgegapClient, games: Iterable[Game]) -> None:
    """Raises `ConfigError`, which says what is wrong and what to do. When Edgegap cannot be reached this is only
    logged, because a matchmaker that restarts must serve its players."""
    async with asyncio.TaskGroup() as group:
        checks = [
            group.create_task(check(client, game, game.edgegap)) for game in games if game.edgegap is not None
        ]
    problems = [problem for check in checks for problem in check.result()]
    if problems:
        raise ConfigError("\n".join(problems))


async def check(client: EdgegapClient, game: Game, spec: EdgegapSpec) -> list[str]:
    """What is wrong with one game, for people; [] for nothing, or when Edgegap cannot be reached."""
    who = f"game {game.name!r} version {game.version!r}"
    try:
        try:
            application = await client.application(spec.application)
        except Gone:
            return [
                f"{who}: Edgegap has no application {spec.application!r}; `tipoff edgegap check` lists what is wrong"
            ]
        if application.get("is_active") is False:
            return [f"{who}: the application {spec.application!r} is not active at Edgegap"]
        try:
            version = await client.version(spec.application, spec.version)
        except Gone:
            return [
                f"{who}: the application {spec.application!r} has no version {spec.version!r} at Edgegap; "
                "`tipoff edgegap configure-app` creates it"
            ]
    except Unauthorized as exc:
        return [str(exc)]
    except OrchestratorError as exc:
        log.warning("%s is not verified: %s", who, exc)
        return []
    return [f"{who}: {problem}" for problem in problems_of(version, game, spec)]


def problems_of(version: Version, game: Game, spec: EdgegapSpec) -> list[str]:
    """Why this version cannot be deployed for this game. Pure."""
    found: list[str] = []
    name = f"version {spec.version!r} of {spec.application!r}"
    if not version.active:
        found.append(f"{name} is not active at Edgegap; activate it, or name another one in games.toml")
    if version.image_tag.lower() == "latest":
        found.append(
            f"{name} has an image with the tag `latest`, which Edgegap caches, so that old images start; "
            "give each image its own tag"
        )
    if choose_port(version.ports, game) is None:
        there = ", ".join(f"{n} ({p})" for n, p in version.ports.items()) or "none"
        wanted = f"no port {spec.port!r}" if spec.port else f"no port that {game.primary} could use"
        found.append(f"{name} has {wanted}; it has {there}")
    if game.orchestrator == SESSIONS:
        if version.kind and version.kind != spec.kind:
            found.append(
                f"{name} makes sessions of kind {version.kind}; games.toml says kind = {spec.kind!r}"
            )
        if version.kind == "seat" and version.sockets is not None and version.sockets != game.seats:
            found.append(f"{name} has {version.sockets} sockets; games.toml says seats = {game.seats}")
    return found
