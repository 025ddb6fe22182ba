"""Follows every change of the KV buckets, for `tipoff watch`, and prints it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.kv.changes import Change
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.primitives.text import one_line


async def watch_changes(bus: Bus, show: Callable[[dict[str, Any]], None]) -> None:
    """Call `show` with every change of every bucket, present values first, until cancelled or `show` raises. A change
    is `{"time", "bucket", "key", "value" | None, "expired"}`.

    Connect tokens appear only as a fingerprint; heartbeats without news do not appear. After an outage of NATS, the
    changes made meanwhile appear.
    """
    kv = buckets(bus)
    seen: dict[tuple[str, str], Any] = {}

    def tell(item: dict[str, Any]) -> None:
        place = (item["bucket"], item["key"])
        news = _without_heartbeat(item["value"])
        if place in seen and seen[place] == news:
            return
        if news is None and seen.get(place) is None:
            return  # gone, and was never seen
        seen[place] = news
        show(item)

    # Operators may not read the tokens, which needs no message.
    tokens = [] if bus.settings.user in ("operator", "admin") else [kv.connect_tokens]
    followed: list[Bucket[Any]] = [*tokens]
    async with asyncio.TaskGroup() as group:
        for bucket in (
            *followed,
            kv.sessions,
            kv.deployments,
            kv.fleets,
            kv.gameservers,
            kv.active_connections,
            kv.unclaimed_sessions,
            kv.cert_digests,
            kv.sessions_ly2eg,
            kv.sessions_eg2ly,
        ):
            group.create_task(_follow(bucket, tell))


def _without_heartbeat(value: Any) -> Any:
    """A lease without what changes at every heartbeat."""
    return {k: v for k, v in value.items() if k != "tick_ms"} if isinstance(value, dict) else value


async def _follow(bucket: Bucket[Any], tell: Callable[[dict[str, Any]], None]) -> None:
    secret = bucket.stream.endswith("connect_tokens")
    while True:
        try:
            async with bucket.watch() as changes:
                while True:
                    for change, ack in await changes.fetch():
                        tell(_item(bucket.bucket, change, secret=secret))
                        await ack()
        except PermissionDenied:
            return  # the connection's log says so; another try would not help
        except Unavailable:
            await asyncio.sleep(1)  # NATS is away: nothing to show until it is back


def _item(bucket: str, change: Change[Any], *, secret: bool) -> dict[str, Any]:
    value: Any = None
    if change.value is not None:
        value = msgspec.to_builtins(change.value)
        if secret:
            value = "fingerprint " + hashlib.sha256(str(value).encode()).hexdigest()[:12]
    return {
        "time": round(time.time(), 3),
        "bucket": bucket,
        "key": change.key,
        "value": value,
        "expired": change.expired,
    }


def watch_printer() -> Callable[[dict[str, Any]], None]:
    """A function that prints one readable line for each change, with the record's previous state."""
    before: dict[tuple[str, str], Any] = {}

    def show(item: dict[str, Any]) -> None:
        place = (item["bucket"], item["key"])
        old, new = before.get(place), item["value"]
        before[place] = new
        if new is None:
            before.pop(place, None)
            text = "expired" if item["expired"] else "deleted"
        else:
            text = _describe(old, new)
        clock = time.strftime("%H:%M:%S") + f".{int(time.time() * 1000) % 1000:03d}"
        print(f"{clock}  {item['bucket']:<20} {item['key']:<30} {text}", flush=True)

    return show


def _describe(old: Any, new: Any) -> str:
    if not isinstance(new, dict):
        return str(new)
    words: list[str] = []
    if "state" in new:
        was = old.get("state") if isinstance(old, dict) else None
        words.append(f"{was} → {new['state']}" if was and was != new["state"] else str(new["state"]))
    if "seats" in new or "capacity" in new:
        words.append(f"{len(new.get('seats', ()))}/{new.get('capacity', '?')} seats")
    if "game" in new:
        words.append(f"{new['game']} {new.get('version', '')}".strip())
    words += [
        f"{name}={one_line(str(new[name]), 120)}"
        for name in ("deployment_id", "players", "reason")
        if new.get(name)
    ]
    if "deployments" in new:
        words.append(f"{len(new['deployments'])} deployments")
    return "  ".join(words)
