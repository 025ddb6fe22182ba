"""Checks for `tipoff edgegap check` whether account, application, version and settings fit the games, and says what to
fix. It only reads, and costs nothing."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import httpx

from tipoff_orchestrator_client.base import DeploySpec, OrchestratorError
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.api.answers import protocol
from tipoff_orchestrator_client.edgegap.api.errors import Unauthorized
from tipoff_orchestrator_client.edgegap.environment import Environment
from tipoff_orchestrator_client.edgegap.naming import choose_port
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.account import AccountApi
from tipoff_orchestrator_client.edgegap.setup.app_version import (
    MAX_PORT,
    is_port,
    objects,
    port_name,
    too_long,
)
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.settings import NatsSettings

_HOOK_TIMEOUT = 10.0
"""Seconds that Edgegap waits for the answer to a webhook."""
_HOOK_PROBE = "edgegap-check"


class Verdict(StrEnum):
    """`GOOD`: all right. `NOTE`: it works, but could be better. `BAD`: it must be fixed."""

    GOOD = "good"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `fix` says what to do, if anything."""

    verdict: Verdict
    subject: str
    text: str
    fix: str = ""


def good(subject: str, text: str) -> Finding:
    """A finding that needs no action."""
    return Finding(Verdict.GOOD, subject, text)


def note(subject: str, text: str, fix: str = "") -> Finding:
    """A finding that may be improved."""
    return Finding(Verdict.NOTE, subject, text, fix)


def bad(subject: str, text: str, fix: str) -> Finding:
    """A finding that must be fixed."""
    return Finding(Verdict.BAD, subject, text, fix)


async def check_games(settings: Settings, nats: NatsSettings, games: Games) -> list[Finding]:
    """All findings about the games at Edgegap, in the order in which to fix them. Raises nothing."""
    ours = [game for game in games.all() if game.edgegap is not None]
    if not ours:
        return [
            bad(
                "games.toml",
                "no game has [game.edgegap]",
                "add it, with the application and version at Edgegap",
            )
        ]
    findings: list[Finding] = []
    try:
        token = settings.api_token()
    except ConfigError as exc:
        findings.append(bad("token", str(exc), "https://app.edgegap.com/user-settings?tab=tokens"))
    else:
        async with AccountApi(settings.url, token) as account:
            findings += await _account(account, settings, ours)
    findings += environment(settings, nats, games, ours)
    findings += await webhooks(settings, nats.namespace)
    return findings


async def _account(account: AccountApi, settings: Settings, games: list[Game]) -> list[Finding]:
    try:
        total = await account.deployments_total()
    except Unauthorized as exc:
        return [bad("token", str(exc), "make a new one: https://app.edgegap.com/user-settings?tab=tokens")]
    except OrchestratorError as exc:
        return [bad("API", str(exc), f"is {settings.url} right, and is it reachable from here?")]
    findings = [good("token", f"{settings.url} accepts it; {total} deployment(s) run now")]
    for game in games:
        try:
            findings += await _game(account, game)
        except OrchestratorError as exc:
            findings.append(bad(_name(game), str(exc), "try again"))
    return findings


async def _game(account: AccountApi, game: Game) -> list[Finding]:
    assert game.edgegap is not None
    name = game.edgegap.application
    application = await account.application(name)
    if application is None:
        return [
            bad(
                f"application {name}",
                "it does not exist",
                f"tipoff edgegap configure-app {game.name!r} --create --image REGISTRY/NAME:TAG creates it",
            )
        ]
    findings: list[Finding] = []
    if application.get("is_active") is False:
        findings.append(bad(f"application {name}", "is switched off", "switch it on in the dashboard"))
    version = await account.version(name, game.edgegap.version)
    where = _name(game)
    if version is None:
        return [
            *findings,
            bad(
                where,
                "it does not exist",
                f"tipoff edgegap configure-app {game.name!r} --create --image REGISTRY/NAME:TAG creates it",
            ),
        ]
    found = list(version_findings(game, version))
    if not any(one.verdict is Verdict.BAD for one in found):
        found.insert(0, good(where, f"is active, image {_image(version)}, ports {_ports(version)}"))
    return findings + found


def version_findings(game: Game, version: Mapping[str, Any]) -> Iterator[Finding]:
    """The findings about a version, as Edgegap shows it, for `game`. Pure."""
    where = _name(game)
    again = f"tipoff edgegap configure-app {game.name!r}"
    if version.get("is_active") is not True:
        yield bad(where, "is not active: nothing can be deployed", again)
    tag = version.get("docker_tag")
    if tag == "latest" or not tag:
        yield bad(
            where,
            f"its image has the tag {tag!r}: Edgegap's locations keep the first image of a tag",
            f"push the build under its own tag and run {again} --image REGISTRY/NAME:TAG",
        )
    if version.get("docker_repository") == "registry.edgegap.com" and not version.get("private_username"):
        yield note(
            where,
            "no registry login, which Edgegap's own registry requires",
            f"{again} --registry-user NAME --registry-token-file FILE",
        )
    yield from _port_findings(game, version, where, again)
    if names := too_long(version.get("envs")):
        yield bad(where, f"over 255 bytes: {', '.join(names)}", "shorten them, or put them into the image")
    if version.get("restart_policy", "always") != "never":
        yield note(
            where,
            f"restart_policy is {version.get('restart_policy', 'always')!r}: a server that crashes is started again "
            "as the same deployment, and its players' tokens no longer fit",
            again,
        )
    if version.get("force_cache") is False:
        yield note(where, "its image is not cached: deployments start slower", f"{again} --cache")
    minutes = version.get("max_duration")
    if isinstance(minutes, int) and 0 < minutes < 60:
        yield note(
            where, f"servers end after {minutes} minutes, even with players", f"{again} --max-duration 1440"
        )
    if game.orchestrator == SESSIONS:
        yield from _session_findings(game, version, where, again)


def _port_findings(game: Game, version: Mapping[str, Any], where: str, again: str) -> Iterator[Finding]:
    named = {port_name(port): port for port in objects(version.get("ports"))}
    protocols = {name: protocol(port.get("protocol")) for name, port in named.items()}
    chosen = choose_port(protocols, game)
    if chosen is None:
        wanted = game.edgegap.port if game.edgegap is not None and game.edgegap.port else game.primary
        yield bad(
            where,
            f"has no port {wanted!r} for players; it has {', '.join(named) or 'none'}",
            f"{again}, or name one of these as `port` in [game.edgegap]",
        )
    for name, port in named.items():
        number = port.get("port")
        if not is_port(number):
            yield bad(where, f"port {name!r} is {number}; 1 to {MAX_PORT} is possible", again)
    web = [port for name, port in named.items() if protocols[name] in ("ws", "http")]
    if not web and game.primary != "udp":
        return
    if not web:
        yield note(where, "no WebSocket port: browsers cannot play", again)
    elif not any(port.get("tls_upgrade") for port in web):
        yield note(where, "its WebSocket port has no TLS: a page loaded by https cannot use it", again)


def _session_findings(game: Game, version: Mapping[str, Any], where: str, again: str) -> Iterator[Finding]:
    assert game.edgegap is not None
    config = version.get("session_config")
    if not isinstance(config, dict):
        yield note(where, "the API does not show its session configuration", f"{again} writes it")
        return
    kind, wanted = str(config.get("kind", "")).lower(), game.edgegap.kind
    if kind != wanted:
        yield bad(where, f"its sessions are of kind {kind or 'default'}, games.toml says {wanted}", again)
    if wanted == "seat" and config.get("sockets") != game.seats:
        yield bad(where, f"has {config.get('sockets')} sockets, games.toml says seats = {game.seats}", again)
    if config.get("autodeploy") is False:
        yield bad(where, "autodeploy is off: sessions never start a server", again)


def environment(settings: Settings, nats: NatsSettings, games: Games, ours: list[Game]) -> list[Finding]:
    """Whether servers get all variables they need, and can reach NATS. Reads only the files that the settings name."""
    findings: list[Finding] = []
    try:
        told = Environment(settings, nats, games)
        for game in ours:
            spec = DeploySpec("check", game.name, game.version, game.seats)
            variables = told.of(spec, game)
            findings.append(
                good("environment", f"{game.name}: {len(variables)} variables, each below 255 bytes")
            )
    except ConfigError as exc:
        return [*findings, bad("environment", str(exc), "see docs/edgegap.md, settings")]
    if settings.pass_nats:
        hosts = settings.nats_host or ",".join(nats.servers)
        away = [host for host in hosts.split(",") if not reachable_from_outside(host)]
        if away and at_edgegap(settings):
            findings.append(
                bad(
                    "NATS",
                    f"servers at Edgegap cannot reach {', '.join(away)}",
                    "TIPOFF_EDGEGAP_NATS_HOST names the public address",
                )
            )
        if nats.insecure and at_edgegap(settings):
            findings.append(
                bad("NATS", "no TLS, through the internet", "give NATS a certificate and unset NATS_INSECURE")
            )
    return findings


async def webhooks(settings: Settings, namespace: str) -> list[Finding]:
    """Whether httpd answers at the URL that Edgegap posts to. The request comes from this machine, so a firewall
    between Edgegap and httpd goes unnoticed."""
    if not settings.hook_url:
        return [
            note(
                "webhooks",
                f"none: players wait up to {settings.poll_slowest:g} s longer for a server",
                "set TIPOFF_EDGEGAP_HOOK_URL and TIPOFF_HOOK_KEY_FILE",
            )
        ]
    try:
        webhook_url = settings.webhook_urls(namespace)
    except ConfigError as exc:
        return [bad("webhooks", str(exc), "`openssl rand -hex 32` makes a key")]
    if not reachable_from_outside(settings.hook_url) and at_edgegap(settings):
        return [
            bad("webhooks", f"Edgegap cannot reach {settings.hook_url}", "name httpd's public https address")
        ]
    forged = f"{settings.hook_url}/hook/{_HOOK_PROBE}.{'0' * 32}"
    try:
        async with httpx.AsyncClient(timeout=_HOOK_TIMEOUT, trust_env=False) as client:
            status = (await client.post(webhook_url(_HOOK_PROBE), json={})).status_code
            refused = (await client.post(forged, json={})).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return [
            bad(
                "webhooks", f"{settings.hook_url} does not answer: {type(exc).__name__}", "is httpd up there?"
            )
        ]
    if not 200 <= status < 300:
        fix = (
            "has httpd the same TIPOFF_HOOK_KEY and TIPOFF_NAMESPACE?"
            if status in (403, 404)
            else "see httpd's log"
        )
        return [bad("webhooks", f"httpd answers {status} to a good webhook", fix)]
    if 200 <= refused < 300:
        return [bad("webhooks", "httpd accepts a forged webhook", "set TIPOFF_HOOK_KEY for httpd")]
    return [
        good("webhooks", f"{settings.hook_url} accepts ours and refuses others (tried from this machine)")
    ]


def at_edgegap(settings: Settings) -> bool:
    """Whether the URL is the real Edgegap's, whose servers run elsewhere."""
    host = urlsplit(settings.url).hostname or ""
    return host == "edgegap.com" or host.endswith(".edgegap.com")


def reachable_from_outside(address: str) -> bool:
    """False for an address that only this machine or its network can reach. `address`: `host[:port]` or a URL."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return bool(re.search(r"\.[a-z]", host)) and not host.endswith((".local", ".internal", ".localhost"))


def _name(game: Game) -> str:
    assert game.edgegap is not None
    return f"version {game.edgegap.version} of {game.edgegap.application}"


def _image(version: Mapping[str, Any]) -> str:
    return f"{version.get('docker_repository')}/{version.get('docker_image')}:{version.get('docker_tag')}"


def _ports(version: Mapping[str, Any]) -> str:
    shown = [f"{port_name(port)} ({port.get('protocol')})" for port in objects(version.get("ports"))]
    return ", ".join(shown) or "none"
