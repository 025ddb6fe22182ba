"""Plays without a screen, as one player or many, the arena or any other game.

In the arena players walk about and read the snapshots. In another game, whose messages are unknown, they connect, count
messages, and leave when the time is up.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import typer
from rich.console import Console

from tipoff_arena.client import Joined, Lost
from tipoff_arena.client import play as play_arena
from tipoff_client_sdk import Progress, connect
from tipoff_shared.errors import ConfigError, TipoffError
from tipoff_shared.secret import Secret

Transports = tuple[Literal["udp", "websocket"], ...]


@dataclass(frozen=True, slots=True)
class PlayOptions:
    """What to play. `seconds` count from the connection; `timeout` is the longest wait for it, in seconds."""

    url: str
    game: str
    version: str
    seconds: float
    transports: Transports
    timeout: float
    auth: Secret | None = None
    """The player's login token."""
    player_name: str = ""

    @property
    def token(self) -> str | None:
        """The login token as `connect` takes it."""
        return None if self.auth is None else self.auth.reveal()


def parse_transports(text: str) -> Transports:
    """Parse `udp`, `websocket`, or both separated by commas. Raises `ConfigError`."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts or any(part not in ("udp", "websocket") for part in parts):
        raise ConfigError(f"--transport {text}: udp, websocket, or udp,websocket is expected")
    return cast(Transports, parts)


async def play_many(options: PlayOptions, *, bots: int, as_json: bool) -> None:
    """Let `bots` players play at once and print the result. Raises `typer.Exit(1)` when one was not connected."""
    console = Console(stderr=True)
    alone = bots == 1
    tell: Callable[[object], None] = _teller(console) if alone and not as_json else _silent
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_play_one(options, tell)) for _ in range(bots)]
    reports = [task.result() for task in tasks]
    connected = sum(report["connected"] for report in reports)
    result = reports[0] if alone else _summary(reports, time.monotonic() - began)
    if as_json:
        print(json.dumps(result))
    elif alone:
        _print_one(result)
    else:
        print(
            f"{connected} of {bots} players were connected, to {len(result['deployments'])} servers, "
            f"{result['messages']} messages"
        )
        for error, count in result["errors"].items():
            print(f"{count} x {error}", file=sys.stderr)
    if connected < bots:
        raise typer.Exit(1)


async def _play_one(options: PlayOptions, tell: Callable[[object], None]) -> dict[str, Any]:
    began = time.monotonic()
    joined_after: list[float] = []

    def on_event(event: object) -> None:
        if isinstance(event, Joined):
            joined_after.append(time.monotonic() - began)
        tell(event)

    if options.game != "arena":
        return await _play_any(options, on_event)
    report = await play_arena(
        options.url,
        options.game,
        options.version,
        options.seconds,
        on_event,
        transports=options.transports,
        timeout=options.timeout,
        auth=options.token,
        name=options.player_name,
        rejoin=True,
    )
    result: dict[str, Any] = {
        "connected": report.connected,
        "transport": report.transport,
        "server": report.server,
        "session_id": report.session_id,
        "deployment_id": report.deployment_id,
        "games": report.games,
        "waited": round(joined_after[0], 4) if joined_after else None,
        "ticks": [report.first_tick, report.last_tick],
        "messages": report.messages,
        "rtt_ms": round(report.rtt * 1000, 3) if report.rtt is not None else None,
        "distance": round(report.distance, 1),
    }
    if report.error:
        result |= {"error": report.error, "code": report.error_code}
    return result


async def _play_any(options: PlayOptions, on_event: Callable[[object], None]) -> dict[str, Any]:
    result: dict[str, Any] = {"connected": False, "messages": 0}
    began = time.monotonic()
    try:
        async with connect(
            options.url,
            game=options.game,
            version=options.version,
            transports=options.transports,
            timeout=options.timeout,
            auth=options.token,
            name=options.player_name,
            progress=on_event,
        ) as player:
            result |= {
                "connected": True,
                "transport": player.transport,
                "server": player.server,
                "session_id": player.session_id,
                "deployment_id": player.deployment_id,
                "waited": round(time.monotonic() - began, 4),
            }
            try:
                async with asyncio.timeout(options.seconds):
                    async for _ in player:
                        result["messages"] += 1
                result |= {"ended": player.end_reason, "close_code": player.end_code}
            except TimeoutError:
                pass  # time is up
            result["rtt_ms"] = round(player.rtt * 1000, 3) if player.rtt is not None else None
    except TipoffError as exc:
        result |= {"error": str(exc), "code": exc.code}
    return result


def _summary(reports: list[dict[str, Any]], took: float) -> dict[str, Any]:
    errors: dict[str, int] = {}
    for report in reports:
        if error := report.get("error") or report.get("ended"):
            errors[error] = errors.get(error, 0) + 1
    waited = sorted(report["waited"] for report in reports if report.get("waited") is not None)
    return {
        "connected": all(report["connected"] for report in reports),
        "bots": len(reports),
        "bots_connected": sum(report["connected"] for report in reports),
        "deployments": sorted({report["deployment_id"] for report in reports if report.get("deployment_id")}),
        "messages": sum(report["messages"] for report in reports),
        "games": sum(report.get("games", 1) for report in reports if report["connected"]),
        "waited_p50": waited[len(waited) // 2] if waited else None,
        "waited_max": waited[-1] if waited else None,
        "took": round(took, 3),
        "errors": errors,
        "players": reports,
    }


def _print_one(result: dict[str, Any]) -> None:
    if not result["connected"]:
        print(f"not connected: {result.get('error', 'no reason was given')}", file=sys.stderr)
        return
    ticks = result.get("ticks") or [None, None]
    span = f", ticks {ticks[0]} to {ticks[1]}" if ticks[0] is not None else ""
    rtt = f", round trip {result['rtt_ms']} ms" if result.get("rtt_ms") is not None else ""
    print(f"played by {result['transport']} on {result['server']}: {result['messages']} messages{span}{rtt}")
    if result.get("error"):
        print(f"it ended with: {result['error']}", file=sys.stderr)
    elif result.get("ended"):
        print(f"the server ended it: {result['ended']}", file=sys.stderr)


def _teller(console: Console) -> Callable[[object], None]:
    def tell(event: object) -> None:
        if isinstance(event, Progress):
            console.print(f"[dim]{event.text}[/dim]", highlight=False)
        elif isinstance(event, Joined):
            console.print(f"in the game: {event.session_id} on {event.deployment_id}", highlight=False)
        elif isinstance(event, Lost):
            console.print(f"[yellow]{event.reason}; asking for a new game[/yellow]", highlight=False)

    return tell


def _silent(event: object) -> None:
    """For a crowd, and for machines."""
