"""Reads facts about NATS and our buckets. Writes nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from tipoff.doctor.facts.network import ClockFacts
from tipoff.operate.status import ask_matchmakers
from tipoff_shared.admin import MatchmakerStatus
from tipoff_shared.errors import ConfigError, TipoffError, Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.errors import PermissionDenied, translated
from tipoff_shared.primitives.text import describe
from tipoff_shared.settings import NatsSettings

BUCKETS = (
    *("sessions", "deployments", "fleets", "gameservers", "matchmakers"),
    *("edgegap_orders", "edgegap_sessions"),
    *("active_connections", "unclaimed_sessions", "cert_digests", "sessions_ly2eg", "sessions_eg2ly"),
)
"""The buckets that an operator may read: all but `connect_tokens`, which only matchmakers may."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One bucket. `error`: why it could not be read; `missing`: it does not exist."""

    name: str
    missing: bool = False
    error: str = ""
    replicas: int = 1
    current: int = 1
    """Replicas that are up to date, the leader included."""
    messages: int = 0
    bytes: int = 0
    max_bytes: int = -1


@dataclass(frozen=True, slots=True)
class NatsFacts:
    """What NATS reported. `error` says why there is no connection. A limit of -1 means none. `matchmakers`: those that
    answer."""

    server: str
    error: str = ""
    denied: str = ""
    version: str = ""
    secure: bool = False
    jetstream: bool = True
    cluster: int = 1
    storage: int = 0
    max_storage: int = -1
    streams: Mapping[str, StreamFacts] = field(default_factory=dict)
    matchmakers: tuple[str, ...] = ()
    orchestrators: Mapping[str, str] = field(default_factory=dict)
    """Name -> what fails there, by a matchmaker's report; "" where it works."""
    problems: tuple[str, ...] = ()
    """What else keeps matchmakers from serving players, by their reports."""
    clock: ClockFacts | None = None
    rtt: float = 0.0


@dataclass(frozen=True, slots=True)
class MonitorFacts:
    """What the monitoring port reported. `sync_interval`: seconds between writes to disk, 0 for always, None for
    unknown. `store` and `max_store` are in bytes."""

    url: str
    error: str = ""
    sync_interval: float | None = None
    store: int = 0
    max_store: int = 0


async def look_at_nats(settings: NatsSettings, timeout: float) -> NatsFacts:
    """Connect within `timeout` seconds, and read the state of server, buckets and matchmakers."""
    server = ", ".join(settings.servers)
    secure = not settings.insecure
    try:
        async with connect(settings, name="doctor", timeout=timeout) as bus:
            return await _look(bus, server, secure)
    except PermissionDenied as exc:
        return NatsFacts(server, denied=str(exc), secure=secure)
    except (TipoffError, ConfigError) as exc:
        return NatsFacts(server, error=str(exc), secure=secure)


async def _look(bus: Bus, server: str, secure: bool) -> NatsFacts:
    began = time.monotonic()
    with translated():
        await bus.nc.flush(timeout=5)
    rtt = time.monotonic() - began
    info = bus.nc.server_info
    denied: list[str] = []
    storage, max_storage, jetstream = 0, -1, bool(info.get("jetstream"))
    try:
        with translated():
            account = await bus.js.account_info()
        storage, max_storage = account.storage, account.limits.max_storage
    except PermissionDenied as exc:
        denied.append(str(exc))
    except Unavailable:
        jetstream = False
    streams: dict[str, StreamFacts] = {}
    clock: ClockFacts | None = None
    every = buckets(bus)
    for bucket in BUCKETS:
        stream = getattr(every, bucket).stream
        asked = time.time()
        facts, at = await _stream(bus, bucket, stream)
        answered = time.time()
        if facts.error:
            denied.append(facts.error)
        streams[bucket] = facts
        if at is not None:
            clock = ClockFacts(f"NATS {server}", at - (asked + answered) / 2, (answered - asked) / 2)
    try:
        matchmakers = await ask_matchmakers(bus)
    except TipoffError as exc:
        denied.append(str(exc))
        matchmakers = []
    return NatsFacts(
        server,
        denied=denied[0] if denied else "",
        version=str(info.get("version", "?")),
        secure=secure,
        jetstream=jetstream,
        cluster=max(1, len(info.get("connect_urls") or ())),
        storage=storage,
        max_storage=max_storage,
        streams=streams,
        matchmakers=tuple(one.instance for one in matchmakers),
        orchestrators=orchestrators_of(matchmakers),
        problems=tuple(dict.fromkeys(problem for one in matchmakers for problem in one.problems)),
        clock=clock,
        rtt=rtt,
    )


async def _stream(bus: Bus, bucket: str, stream: str) -> tuple[StreamFacts, float | None]:
    """The facts of one bucket, and the server's time, which the answer holds."""
    try:
        msg = await bus.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=3)
    except PermissionDenied as exc:
        return StreamFacts(bucket, error=str(exc)), None
    except TipoffError as exc:
        return StreamFacts(bucket, error=f"{stream}: {exc}"), None
    return read_stream(bucket, msg.data)


def read_stream(bucket: str, data: bytes) -> tuple[StreamFacts, float | None]:
    """Decode JetStream's answer about a stream; any other answer becomes an `error` in the facts."""
    try:
        answer: Any = msgspec.json.decode(data)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        at = datetime.fromisoformat(answer["ts"]).timestamp() if "ts" in answer else None
        if error := answer.get("error"):
            missing = error.get("err_code") == 10059
            return StreamFacts(
                bucket, missing=missing, error="" if missing else str(error.get("description"))
            ), at
        config, state = answer["config"], answer["state"]
        peers = (answer.get("cluster") or {}).get("replicas") or []
        return (
            StreamFacts(
                bucket,
                replicas=int(config.get("num_replicas", 1)),
                current=1 + sum(bool(peer.get("current")) and not peer.get("offline") for peer in peers),
                messages=int(state["messages"]),
                bytes=int(state["bytes"]),
                max_bytes=int(config.get("max_bytes", -1)),
            ),
            at,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        return StreamFacts(bucket, error=f"unreadable answer: {exc}"), None


def orchestrators_of(matchmakers: Iterable[MatchmakerStatus]) -> dict[str, str]:
    """Name of each orchestrator -> its present failures, by any matchmaker's report; "" for none."""
    found: dict[str, str] = {}
    for matchmaker in matchmakers:
        for orchestrator in matchmaker.orchestrators:
            failing = [f"{failing.operation}: {failing.error}" for failing in orchestrator.failing]
            said = "; ".join([*failing, *orchestrator.problems])
            found[orchestrator.name] = found.get(orchestrator.name) or said
    return found


async def look_at_monitor(url: str) -> MonitorFacts:
    """Read `/varz` of nats-server's monitoring port."""
    import httpx

    try:
        async with httpx.AsyncClient(trust_env=False, timeout=3) as client:
            answer = await client.get(f"{url}/varz")
    except httpx.HTTPError as exc:
        return MonitorFacts(url, error=describe(exc))
    return read_varz(url, answer.content)


def read_varz(url: str, data: bytes) -> MonitorFacts:
    """Decode the answer of `/varz`; any other answer becomes an `error` in the facts."""
    try:
        jetstream: Any = json.loads(data)["jetstream"]
        config, stats = jetstream.get("config") or {}, jetstream.get("stats") or {}
        interval = config.get("sync_interval")
        always = bool(config.get("sync_always"))
        return MonitorFacts(
            url,
            sync_interval=0.0 if always else None if interval is None else interval / 1e9,
            store=int(stats.get("storage", 0)),
            max_store=int(config.get("max_storage", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        return MonitorFacts(url, error=f"unreadable answer: {exc}")


async def look_at_monitors(urls: Sequence[str]) -> MonitorFacts:
    """The facts of the first URL that answers, else those of the first one."""
    found = await asyncio.gather(*map(look_at_monitor, urls))
    return next((facts for facts in found if not facts.error), found[0])
