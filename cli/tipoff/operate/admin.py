"""Asks a matchmaker to end a session, drain a server, restart a game or ban a player, for the commands of these names.

The matchmaker acts as on any other end of a session or server. A repeated request does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from tipoff_shared.admin import (
    Banned,
    BanPlayer,
    DrainDeployment,
    Drained,
    Kicked,
    KickSession,
    Restarted,
    RestartGame,
    RollingOut,
    RolloutGame,
    ServerStarted,
    StartServer,
    decode_reply,
    encode,
)
from tipoff_shared.ban_list import is_over
from tipoff_shared.errors import NoServerInTime, Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import NoListener
from tipoff_shared.records import Ban, DeploymentRecord, DeploymentState

T = TypeVar("T")

_ANSWER_TIMEOUT = 5.0


async def kick(bus: Bus, session_id: str, reason: str = "") -> Kicked:
    """End a session. Raises a `TipoffError`, with code 404 for an unknown session."""
    return await _ask(bus, "kick", KickSession(session_id, reason), Kicked)


async def drain(bus: Bus, deployment_id: str, reason: str = "", *, now: bool = False) -> Drained:
    """Let no new players onto a game server; it ends with its last player, with `now` at once. Raises a
    `TipoffError`, with code 404 for an unknown server."""
    return await _ask(bus, "drain", DrainDeployment(deployment_id, reason, now), Drained)


async def restart(bus: Bus, game: str, version: str = "", reason: str = "") -> Restarted:
    """End all servers of a game at once, with their players; new ones start, whatever failed before. Raises a
    `TipoffError`, with code 404 for an unknown game."""
    return await _ask(bus, "restart", RestartGame(game, version, reason), Restarted)


async def begin_rollout(bus: Bus, game: str, version: str, *, again: bool = False) -> RollingOut:
    """Since when servers of the game count as new: now, or since a rollout began of which old servers are left. Raises
    a `TipoffError`, with code 404 for an unknown game."""
    return await _ask(bus, "rollout", RolloutGame(game, version, again), RollingOut)


async def start_server(bus: Bus, game: str, version: str) -> str:
    """Start one server more; its id, "" where there are `max_deployments` already. Raises a `TipoffError`."""
    return (await _ask(bus, "start", StartServer(game, version), ServerStarted)).deployment_id


async def ban(bus: Bus, new: Ban, *, lift: bool = False) -> Banned:
    """Ban a player, or with `lift` let it in again. Raises a `TipoffError`."""
    asked = BanPlayer(new.kind, new.subject, new.until, new.reason, lift)
    return await _ask(bus, "ban", asked, Banned)


async def list_bans(bus: Bus, now: float) -> list[Ban]:
    """The bans in force, the oldest first. Raises `Unavailable`."""
    listed = await buckets(bus).bans.list()
    in_force = [entry.value for entry in listed.values() if not is_over(entry.value, now)]
    return sorted(in_force, key=lambda ban: (ban.created_at, ban.kind, ban.subject))


async def _ask(bus: Bus, operation: str, question: msgspec.Struct, kind: type[T]) -> T:
    try:
        msg = await bus.request(bus.subjects.admin(operation), encode(question), timeout=_ANSWER_TIMEOUT)
    except NoListener as exc:
        raise Unavailable(
            "no matchmaker runs here; `tipoff up` or `tipoff serve matchmaker` starts one"
        ) from exc
    return decode_reply(msg.data, kind)


async def until_gone(
    bus: Bus, deployment_id: str, *, timeout: float | None, on_change: Callable[[DeploymentRecord], None]
) -> None:
    """Wait until the game server has ended. Raises `NoServerInTime` after `timeout` seconds; an outage of NATS does not
    end the wait. `on_change` gets each record with another state or number of seats."""
    deployments = buckets(bus).deployments
    seen: tuple[DeploymentState, int] | None = None

    def gone(record: DeploymentRecord | None) -> bool:
        nonlocal seen
        if record is None or record.state is DeploymentState.GONE:
            return True
        now = (record.state, len(record.seats))
        if now != seen:
            seen = now
            on_change(record)
        return False

    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    async with deployments.watch(deployment_id) as changes:
                        entry = await deployments.get(deployment_id)
                        if gone(None if entry is None else entry.value):
                            return
                        while True:
                            for change, ack in await changes.fetch():
                                await ack()
                                if gone(change.value):
                                    return
                except Unavailable:
                    await asyncio.sleep(1)  # NATS is away
    except TimeoutError:
        state, seats = seen or ("unknown", 0)
        raise NoServerInTime(
            f"{deployment_id} has not ended within {timeout:g} s: it is {state}, {seats} seat(s) are taken; "
            "`--now` ends it with its players"
        ) from None
