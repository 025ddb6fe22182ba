"""`tipoff status`: what runs now, who sits where, and whether orchestrators work.

`tipoff watch`: every change of the KV buckets, as it happens.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import nats.errors
from rich.console import Console
from rich.table import Table

from tipoff_shared.admin import MatchmakerStatus, decode_reply
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.kv.changes import Change
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.records import DeploymentState, SessionState

MAX_MATCHMAKERS = 100
_FIRST_ANSWER = 1.0
_NEXT_ANSWER = 0.1


async def read_status(bus: Bus) -> dict[str, list[dict[str, Any]]]:
    """`{"deployments": [...], "sessions": [...], "connections": [...], "orchestrators": [...]}`: what is not gone,
    as plain JSON values.

    A deployment's `seats` is the list of sessions that hold one; `players` is what its game server last said. Of each
    orchestrator there is one item for each matchmaker that answers: `state` is closed (it works), half-open or open
    (calls are left out for a while), `failing` says which calls fail and why.
    """
    kv = buckets(bus)
    deployments, sessions, leases, connections, matchmakers = await asyncio.gather(
        kv.deployments.list(),
        kv.sessions.list(),
        kv.gameservers.list(),
        kv.active_connections.list(),
        ask_matchmakers(bus),
    )
    shown = []
    for entry in sorted(deployments.values(), key=lambda e: e.value.created_at):
        record = entry.value
        if record.state is DeploymentState.GONE:
            continue
        lease = leases.get(record.id)
        item = msgspec.to_builtins(record)
        item["seats"] = sorted(record.seats)
        item["players"] = lease.value.players if lease else 0
        item["lease"] = lease is not None
        shown.append(item)
    return {
        "deployments": shown,
        "sessions": [
            msgspec.to_builtins(entry.value)
            for entry in sorted(sessions.values(), key=lambda e: e.value.created_at)
            if entry.value.state is not SessionState.GONE
        ],
        "connections": [
            {"session_id": entry.key, "client_id": entry.value} for entry in connections.values()
        ],
        "orchestrators": [
            {"matchmaker": matchmaker.instance, **msgspec.to_builtins(orchestrator)}
            for matchmaker in matchmakers
            for orchestrator in matchmaker.orchestrators
        ],
    }


async def ask_matchmakers(bus: Bus) -> list[MatchmakerStatus]:
    """What every matchmaker says of itself, by name: those that answer within a second, and soon after the first."""
    found: dict[str, MatchmakerStatus] = {}
    inbox = bus.nc.new_inbox()
    try:
        answers = await bus.nc.subscribe(inbox)
        await bus.nc.publish(bus.subjects.admin("status"), b"{}", reply=inbox)
        try:
            for _ in range(MAX_MATCHMAKERS):
                msg = await answers.next_msg(timeout=_NEXT_ANSWER if found else _FIRST_ANSWER)
                if msg.headers and msg.headers.get("Status") == "503":
                    break  # there is no matchmaker
                try:
                    status = decode_reply(msg.data, MatchmakerStatus)
                except TipoffError:
                    continue  # it cannot answer now
                found[status.instance] = status
        except nats.errors.TimeoutError:
            pass
        finally:
            await answers.unsubscribe()
    except nats.errors.Error as exc:
        raise Unavailable(f"NATS is away: {str(exc) or type(exc).__name__}") from exc
    return [found[name] for name in sorted(found)]


def print_status(status: dict[str, list[dict[str, Any]]], console: Console) -> None:
    servers = Table("server", "game", "state", "seats", "players", "address", title="Game servers")
    for item in status["deployments"]:
        udp = item.get("transports", {}).get("udp")
        web = item.get("transports", {}).get("websocket")
        address = f"{udp['host']}:{udp['port']}" if udp else web["url"] if web else "-"
        servers.add_row(
            item["id"],
            f"{item['game']} {item['version']}",
            item["state"],
            f"{len(item['seats'])}/{item['capacity']}",
            str(item["players"]),
            address,
        )
    players = Table("session", "game", "state", "server", "since", title="Sessions")
    now = time.time()
    for item in status["sessions"]:
        players.add_row(
            item["id"],
            f"{item['game']} {item['version']}",
            item["state"],
            item.get("deployment_id", "-"),
            f"{now - item['created_at']:.0f} s",
        )
    console.print(servers)
    console.print(players)
    console.print(f"{len(status['connections'])} connected")
    print_orchestrators(status["orchestrators"], console)


def print_orchestrators(orchestrators: list[dict[str, Any]], console: Console) -> None:
    """One line for each that works; what fails, why, and when it is tried again, for each that does not."""
    if not orchestrators:
        console.print("no matchmaker answers", style="red")
    several = len({item["matchmaker"] for item in orchestrators}) > 1
    for item in orchestrators:
        seen_by = f" (as {item['matchmaker']} sees it)" if several else ""
        if not item["failing"]:
            console.print(f"orchestrator {item['name']}: works{seen_by}", highlight=False)
        for failing in item["failing"]:
            again = f", again in {failing['retry_in']:.0f} s" if failing["state"] == "open" else ""
            console.print(
                f"orchestrator {item['name']}: {failing['operation']} failed {failing['failures']} times in a row, "
                f"breaker {failing['state']}{again}: {failing['error']}{seen_by}",
                style="red" if failing["state"] == "open" else "yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


async def watch_changes(bus: Bus, show: Callable[[dict[str, Any]], None]) -> None:
    """`show` every change of every bucket, present values first, until cancelled (or `show` raises):
    `{"time", "bucket", "key", "value" | None, "expired"}`.

    Connect tokens show as a fingerprint only; heartbeats that tell nothing new do not show. After an outage of NATS
    what has changed meanwhile shows.
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

    # The roles of operators may not read the tokens: nothing is to be said of that.
    tokens = [] if bus.settings.user in ("operator", "admin") else [kv.connect_tokens]
    followed: list[Bucket[Any]] = [*tokens]
    async with asyncio.TaskGroup() as group:
        for store in (
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
            group.create_task(_follow(store, tell))


def _without_heartbeat(value: Any) -> Any:
    """A lease without what changes at every heartbeat."""
    return {k: v for k, v in value.items() if k != "tick_ms"} if isinstance(value, dict) else value


async def _follow(store: Bucket[Any], tell: Callable[[dict[str, Any]], None]) -> None:
    secret = store.stream.endswith("connect_tokens")
    while True:
        try:
            async with store.watch() as changes:
                while True:
                    for change, ack in await changes.fetch():
                        tell(_item(store.bucket, change, secret=secret))
                        await ack()
        except PermissionDenied:
            return  # the connection's log says so; trying again will not help
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
    """Prints one readable line per change, with what a record was before."""
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
        f"{name}={_short(new[name])}" for name in ("deployment_id", "players", "reason") if new.get(name)
    ]
    if "deployments" in new:
        words.append(f"{len(new['deployments'])} deployments")
    return "  ".join(words)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"
