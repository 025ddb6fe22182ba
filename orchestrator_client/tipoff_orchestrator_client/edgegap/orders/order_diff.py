"""What Edgegap's list says of our orders: what runs, what nobody has asked for, what may have ended. Pure.

Times are seconds: `now` of a monotonic clock, `wall` of Unix time, by which orders are dated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.naming import as_deployment, deployment_id_in, game_in
from tipoff_orchestrator_client.edgegap.orders.stops import STOPPING
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import BY_STATUS
from tipoff_shared.games import Game
from tipoff_shared.records import EdgegapOrder, OrderState

COMING = 60.0
"""Seconds after a create of unknown outcome in which the deployment may still appear."""
_AGAIN = 1.0
"""Seconds between two looks at one that is missing from the list."""


@dataclass(slots=True)
class Judgement:
    """`ours` is by deployment id; the other names are Edgegap's request ids."""

    ours: dict[str, Deployment] = field(default_factory=dict)
    as_ordered: list[Deployment] = field(default_factory=list)
    """Those of `ours` that the book knows by the same request id."""
    to_adopt: list[tuple[str, str]] = field(default_factory=list)
    """(deployment id, request id): ordered, and the book does not know yet what came of it."""
    to_stop: list[tuple[str, str]] = field(default_factory=list)
    """(request id, why): those that should not be."""


def judge(
    servers: Iterable[Server],
    orders: Mapping[str, EdgegapOrder],
    told_to_stop: Mapping[str, float],
    *,
    namespace: str,
    games: Collection[Game],
    now: float,
) -> Judgement:
    """Ours and only ours. One that was stopped counts again when it is still there long after it was told so."""
    result = Judgement()
    for server in servers:
        deployment_id = deployment_id_in(server.tags, namespace)
        if deployment_id is None:
            continue
        order = orders.get(deployment_id)
        game = game_in(server.tags, games)
        key = game.key if game is not None else (order.game, order.version) if order else ("", "")
        deployment = as_deployment(server, deployment_id, key, game)
        if order is None or order.state is OrderState.ORDERING:
            known = result.ours.get(deployment_id)
            # One that has ended says nothing of another try that may run.
            if known is None or (known.state is RunState.STOPPED and not server.ended):
                if order is not None and not server.ended:
                    result.to_adopt.append((deployment_id, server.request_id))
                result.ours[deployment_id] = deployment
        elif order.state is OrderState.STOPPED:
            result.to_stop.append((server.request_id, f"{deployment_id} was stopped"))
            told = told_to_stop.get(server.request_id)
            if told is not None and now - told > STOPPING:
                result.ours.setdefault(deployment_id, deployment)
        elif order.request_id == server.request_id:
            result.ours[deployment_id] = deployment
            result.as_ordered.append(deployment)
        else:
            result.to_stop.append((server.request_id, f"{deployment_id} runs as {order.request_id}"))
    return result


def suspects(
    orders: Mapping[str, EdgegapOrder],
    listed: Collection[str],
    asked_at: Mapping[str, float],
    was_running: Callable[[str], bool],
    *,
    now: float,
    wall: float,
) -> list[str]:
    """Ordered, and not in the list: they may have ended. A few statuses say so; the list alone proves nothing.
    `asked_at`: when the status of each was last asked for."""
    missing = [
        id
        for id, order in orders.items()
        if order.state is OrderState.ORDERED
        and id not in listed
        and now - asked_at.get(id, -_AGAIN) >= _AGAIN
        and (wall - order.tried_at > COMING or was_running(id))
    ]
    return sorted(missing, key=lambda id: asked_at.get(id, 0.0))[:BY_STATUS]
