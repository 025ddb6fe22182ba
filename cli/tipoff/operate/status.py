"""Reads and prints the present state, for `tipoff status`: servers, sessions, connections, orchestrators."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tipoff_shared.admin import MatchmakerStatus, decode_reply
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.text import one_line
from tipoff_shared.records import DeploymentState, SessionState

MAX_MATCHMAKERS = 100
MAX_ENDED = 10
"""Sessions that have ended and are shown."""
_FIRST_ANSWER = 1.0
_NEXT_ANSWER = 0.1


async def read_status(bus: Bus) -> dict[str, list[dict[str, Any]]]:
    """`{"deployments": [...], "sessions": [...], "ended": [...], "connections": [...], "orchestrators": [...],
    "problems": [...], "matchmakers": [...]}` as plain JSON values. Raises `Unavailable` while NATS is away.

    What is gone is left out, but for `ended`: the sessions that ended last, the latest first, as long as their records
    stay; `cause` and `reason` say why.

    A deployment is `locked` while its game has closed it to new players. Its `seats` are the sessions that hold one;
    `connected` is how many players of its sessions are connected now; `players` is the number its game server reported
    with its last heartbeat, a few seconds ago. Each orchestrator has one item for each matchmaker that answers: `state`
    is closed (it works), half-open or open (no calls for a while), `failing` holds the calls that fail, and why. A
    problem is what else keeps a matchmaker from serving players. A matchmaker's `claim_limit` counts how often it has
    kept an address to its share of unclaimed seats. A session of a player who has logged in has `user_id`, one of a
    player with a name `name`.
    """
    kv = buckets(bus)
    deployments, sessions, leases, connections, matchmakers = await asyncio.gather(
        kv.deployments.list(),
        kv.sessions.list(),
        kv.gameservers.list(),
        kv.active_connections.list(),
        ask_matchmakers(bus),
    )
    server_of = {entry.key: entry.value.deployment_id for entry in sessions.values()}
    connected = Counter(server_of.get(session_id) for session_id in connections)
    shown = []
    for entry in sorted(deployments.values(), key=lambda e: e.value.created_at):
        record = entry.value
        if record.state is DeploymentState.GONE:
            continue
        lease = leases.get(record.id)
        item = msgspec.to_builtins(record)
        item["seats"] = sorted(record.seats)
        item["connected"] = connected[record.id]
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
        "ended": [
            msgspec.to_builtins(record)
            for record in sorted(
                (entry.value for entry in sessions.values() if entry.value.cause),
                key=lambda record: record.ended_at,
                reverse=True,
            )[:MAX_ENDED]
        ],
        "connections": [
            {"session_id": entry.key, "client_id": entry.value} for entry in connections.values()
        ],
        "orchestrators": [
            {"matchmaker": matchmaker.instance, **msgspec.to_builtins(orchestrator)}
            for matchmaker in matchmakers
            for orchestrator in matchmaker.orchestrators
        ],
        "problems": [
            {"matchmaker": matchmaker.instance, "problem": problem}
            for matchmaker in matchmakers
            for problem in matchmaker.problems
        ],
        "matchmakers": [
            {
                "matchmaker": matchmaker.instance,
                "in_flight": matchmaker.in_flight,
                "claim_limit": msgspec.to_builtins(matchmaker.claim_limit),
            }
            for matchmaker in matchmakers
        ],
    }


async def ask_matchmakers(bus: Bus) -> list[MatchmakerStatus]:
    """The state of every matchmaker that answers, by name. Waits one second for the first answer and 0.1 s for each
    further one. Raises `Unavailable` while NATS is away."""
    found: dict[str, MatchmakerStatus] = {}
    answers = await bus.request_all(
        bus.subjects.admin("status"), b"{}", first=_FIRST_ANSWER, each=_NEXT_ANSWER, most=MAX_MATCHMAKERS
    )
    for msg in answers:
        with contextlib.suppress(TipoffError):  # it cannot answer now
            status = decode_reply(msg.data, MatchmakerStatus)
            found[status.instance] = status
    return [found[name] for name in sorted(found)]


def print_status(status: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print what `read_status` returned, for people."""
    servers = Table("server", "game", "state", "seats", "players", "address", title="Game servers")
    for item in status["deployments"]:
        udp = item.get("transports", {}).get("udp")
        web = item.get("transports", {}).get("websocket")
        address = f"{udp['host']}:{udp['port']}" if udp else web["url"] if web else "-"
        servers.add_row(
            item["id"],
            f"{item['game']} {item['version']}",
            f"{item['state']}, locked" if item.get("locked") else item["state"],
            f"{len(item['seats'])}/{item['capacity']}",
            _players(item),
            address,
        )
    known = any(_who(item) for item in status["sessions"])
    ids = (
        Column("session", no_wrap=True),
        Column("server", no_wrap=True),
    )  # for `kick` and `logs`: never cut
    columns = (ids[0], *(("player",) if known else ()), "game", "state", ids[1], "since")
    players = Table(*columns, title="Sessions")
    now = time.time()
    for item in status["sessions"]:
        players.add_row(
            item["id"],
            *((Text(_who(item) or "-"),) if known else ()),
            f"{item['game']} {item['version']}",
            item["state"],
            item.get("deployment_id", "-"),
            f"{now - item['created_at']:.0f} s",
        )
    console.print(servers)
    console.print(players)
    if ended := status.get("ended"):
        print_ended(ended, console)
    console.print(f"{len(status['connections'])} connected")
    if status["deployments"]:
        console.print("`tipoff logs SERVER` shows what a server prints.", style="dim", highlight=False)
    print_orchestrators(status["orchestrators"], console)
    for problem in dict.fromkeys(item["problem"] for item in status["problems"]):
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    print_claim_limits(status["matchmakers"], console)


def print_ended(ended: list[dict[str, Any]], console: Console) -> None:
    """The sessions that ended last, and why."""
    columns = (Column("session", no_wrap=True), "game", Column("server", no_wrap=True), "why", "ago")
    table = Table(*columns, title="Ended lately")
    now = time.time()
    for item in ended:
        table.add_row(
            item["id"],
            f"{item['game']} {item['version']}",
            item.get("deployment_id", "-"),
            Text(one_line(item.get("reason", ""), 300)),
            f"{now - item['ended_at']:.0f} s",
        )
    console.print(table)


def print_claim_limits(matchmakers: list[dict[str, Any]], console: Console) -> None:
    """One line when addresses were kept to their share of unclaimed seats."""
    acted: Counter[str] = Counter()
    for item in matchmakers:
        acted.update(item["claim_limit"])
    if acted.total():
        console.print(
            f"unclaimed seats: an address reached its share {acted['limited']} times, {acted['refused']} requests were "
            f"refused for it, {acted['shortened']} seats were held for a shorter time",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _players(server: dict[str, Any]) -> str:
    """Who is connected now; beside it what the game server said with its last heartbeat, where that differs."""
    connected, said = server["connected"], server["players"]
    return (
        str(connected) if connected == said or not server["lease"] else f"{connected} (last report: {said})"
    )


def _who(session: dict[str, Any]) -> str:
    """A player's name and user id, as far as they are known; "" where neither is."""
    user_id, name = session.get("user_id", ""), session.get("name", "")
    return f"{name} ({user_id})" if name and user_id else name or user_id


def _again(failing: dict[str, Any]) -> str:
    """When the next call to the orchestrator is made, where calls are held back."""
    match failing["state"]:
        case "open":
            return f", again in {math.ceil(failing['retry_in']) or 1} s"
        case "half-open":
            return ", the next call tries it again"
        case _:
            return ""


def print_orchestrators(orchestrators: list[dict[str, Any]], console: Console) -> None:
    """One line for each that works; for each that does not: what fails, why, and when the next try comes."""
    if not orchestrators:
        console.print("no matchmaker answers", style="red")
    several = len({item["matchmaker"] for item in orchestrators}) > 1
    for item in orchestrators:
        seen_by = f" (as {item['matchmaker']} sees it)" if several else ""
        for problem in item.get("problems", ()):
            text = f"orchestrator {item['name']}: starts no servers: {problem}{seen_by}"
            console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        if not item["failing"] and not item.get("problems"):
            console.print(f"orchestrator {item['name']}: works{seen_by}", highlight=False)
        for failing in item["failing"]:
            again = _again(failing)
            console.print(
                f"orchestrator {item['name']}: {failing['operation']} failed {failing['failures']} times in a row, "
                f"breaker {failing['state']}{again}: {failing['error']}{seen_by}",
                style="red" if failing["state"] == "open" else "yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
