"""Tells waiting players, in one line, what they wait for. Pure.

A start's own texts (an image being fetched) come from the orchestrator; Edgegap's seats have their texts in
`allocators/edgegap/allocator.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tipoff_matchmaker.deployments.state_machine import is_coming, is_live
from tipoff_matchmaker.fleet.start_backoff import StartBackoff
from tipoff_shared.games import Game
from tipoff_shared.records import DeploymentRecord


def explain(
    game: Game,
    fleet: Iterable[DeploymentRecord],
    backoff: StartBackoff,
    *,
    waited: float,
    position: int,
    start_failed: str,
    progress: str = "",
    blocked: float = 0.0,
) -> str:
    """Why a player waits who has been at `position` in the line for `waited` seconds.

    `start_failed`: why the last server did not start, "" if none failed. `progress`: what the start of a server is
    doing, where that is known. `blocked`: seconds until the orchestrator may be called again, 0 if it may be now.
    """
    records = list(fleet)
    coming = any(map(is_coming, records))
    if blocked > 0 and not coming:
        return f"No server can be started just now, trying again in {math.ceil(blocked)} s"
    if start_failed:
        why = "A server did not start, trying another one"
    elif coming:
        why = progress or "Starting a server"
    elif backoff.no_room:
        why = "There is no room for another server now, waiting for a seat"
    elif sum(map(is_live, records)) >= game.max_deployments:
        closed = any(record.locked for record in records if is_live(record))
        why = f"All servers are full{' or closed to new players' if closed else ''}, waiting for a seat"
    else:
        why = "Starting a server"
    place = f", you are number {position} in line" if position > 1 else ""
    so_far = f" ({waited:.0f} s so far)" if waited >= 1 else ""
    return why + place + so_far
