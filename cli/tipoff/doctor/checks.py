"""Lists the checks of a target: each reads facts and has them judged."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from tipoff.doctor.facts import engine, games, nats, network, udp
from tipoff.doctor.findings import Check, Finding, fail, skip
from tipoff.doctor.rules import host as host_rules
from tipoff.doctor.rules import nats as nats_rules
from tipoff.doctor.rules import network as network_rules
from tipoff.doctor.rules import udp as udp_rules
from tipoff.doctor.target import Target
from tipoff_shared.disk_space import disk_space
from tipoff_shared.settings import NatsSettings

_CADDYS_OWN = (
    "Right for localhost: name Caddy's own authority with --ca (docker compose exec -T caddy cat /data/caddy/pki/"
    "authorities/local/root.crt). For players, TIPOFF_HOST and TIPOFF_TLS get a certificate that browsers trust."
)


def checks_of(target: Target, timeout: float) -> Mapping[str, Check]:
    """Name -> check, in the order of the output. `timeout` is what each may take, in seconds."""
    return {
        "dns": lambda: _dns(target),
        "https": lambda: _https(target),
        "httpd": lambda: _httpd(target),
        "nats-tls": lambda: _nats_tls(target),
        "nats": lambda: _nats(target, timeout),
        "disk": lambda: _disk(target),
        "games": lambda: _games(target),
        "engine": lambda: _engine(target),
        "ports": lambda: _ports(target, timeout),
    }


async def _dns(target: Target) -> Sequence[Finding]:
    if not target.host:
        return [skip("dns", "no public name is known", "Give --host NAME, or --env-file .env.local.")]
    return [network_rules.judge_dns(await network.look_up(target.host), target.public_hosts)]


async def _https(target: Target) -> Sequence[Finding]:
    if not target.url.startswith("https:"):
        said = f"{target.url} has no TLS" if target.url else "no https is known"
        return [skip("https", said, "Give the URL for players: --url https://NAME.")]
    host, port = network.host_and_port(target.url)
    facts = await network.look_at_https(host, port, target.ca)
    own = _CADDYS_OWN if "Caddy Local" in facts.issuer else ""
    return [network_rules.judge_tls("https", facts, network.now_utc(), own_authority=own)]


async def _httpd(target: Target) -> Sequence[Finding]:
    if not target.url:
        return [skip("httpd", "no address of httpd is known", "Give it with --url.")]
    facts = await network.ask_http(target.url, "/readyz")
    findings = [network_rules.judge_ready(facts)]
    if facts.status:
        findings.append(network_rules.judge_clock(facts.clock(), target.url))
    return findings


async def _nats_tls(target: Target) -> Sequence[Finding]:
    if target.nats is None or target.nats.insecure:
        return []
    context = target.nats.tls_context()
    if context is None:
        return []
    own = (
        "NATS_CA must name the authority that signed it (secrets/nats/ca.pem). Where it lacks the host's name, run "
        "`tipoff secrets init --host NAME` and `tipoff secrets rotate nats-tls`."
    )
    found = await asyncio.gather(*(_one_nats_tls(server, context, own) for server in target.nats.servers))
    return list(found)


async def _one_nats_tls(server: str, context: ssl.SSLContext, own: str) -> Finding:
    parts = urlsplit(server)
    facts = await network.look_at_nats_tls(parts.hostname or "", parts.port or 4222, context)
    return network_rules.judge_tls("nats-tls", facts, network.now_utc(), own_authority=own)


async def _nats(target: Target, timeout: float) -> Sequence[Finding]:
    if target.nats is None:
        why = target.nats_problem or "no NATS is known"
        todo = "Give --nats or --env-file, or set NATS_HOST."
        return [fail("nats", why, todo) if target.named else skip("nats", why, todo)]
    settings: NatsSettings = target.nats
    facts, monitor = await asyncio.gather(nats.look_at_nats(settings, 0.6 * timeout), _monitor(target))
    findings = nats_rules.judge_nats(facts)
    if not facts.error:
        findings += nats_rules.judge_monitor(monitor)
        findings.append(network_rules.judge_clock(facts.clock, "NATS"))
    return findings


async def _monitor(target: Target) -> nats.MonitorFacts:
    """The monitoring port's facts, from its usual port; a compose stack opens that only to the host's own networks."""
    urls = [target.monitor]
    if target.project and target.engine is not None:
        there = await engine.addresses_of(target.engine, target.project, "nats")
        urls += [
            f"http://[{address}]:8222" if ":" in address else f"http://{address}:8222" for address in there
        ]
    return await nats.look_at_monitors(urls)


async def _disk(target: Target) -> Sequence[Finding]:
    if target.state_dir is None:
        return []
    return [host_rules.judge_disk(await disk_space(target.state_dir))]


async def _games(target: Target) -> Sequence[Finding]:
    if target.games is None:
        return [skip("games", "no games.toml is known", "Give --games, or set TIPOFF_GAMES.")]
    return host_rules.judge_games(games.look_at_games(target.games, target.keys_dir, os.environ))


async def _engine(target: Target) -> Sequence[Finding]:
    if target.engine is None:
        return []
    images: list[str] = []
    if target.games is not None:
        known = games.look_at_games(target.games, target.keys_dir, os.environ).games
        images = sorted({game.docker.image for game in known if game.docker is not None})
    facts = await engine.look_at_engine(target.engine, images, target.network)
    return host_rules.judge_engine(facts, target.pull)


async def _ports(target: Target, timeout: float) -> Sequence[Finding]:
    if not target.servers_here or not len(target.ports):
        return []
    if target.any_ports:
        return [udp_rules.judge_any_ports(target.public_hosts), udp_rules.judge_buffer(udp.receive_buffer())]
    facts = await asyncio.to_thread(udp.look_at_ports, target.ports)
    findings = [*udp_rules.judge_ports(facts), udp_rules.judge_buffer(udp.receive_buffer())]
    if facts.denied:
        return findings
    host = target.public_hosts[0] if target.public_hosts else target.host
    if not host:
        return [
            *findings,
            skip("udp", "no public address is known", "Give --host, or set TIPOFF_PUBLIC_HOST."),
        ]
    loop = await udp.send_to_self(host, target.ports, facts.busy, min(2.0, timeout / 2))
    return [*findings, udp_rules.judge_loop(loop)]
