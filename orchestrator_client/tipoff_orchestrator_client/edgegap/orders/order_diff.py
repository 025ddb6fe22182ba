"""Compares Edgegap's list with our orders: what is ours, what should not run, what may have ended. Pure.

Times are seconds: `now` of a monotonic clock, `wall` of Unix time, in which orders are dated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.naming import as_deployment, deployment_id_in, game_in
from tipoff_orchestrator_client.edgegap.orders.stop_requests import STOPPING
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import BY_STATUS
from tipoff_shared.games import Game
from tipoff_shared.records import EdgegapOrder, OrderState

COMING = 60.0
"""Seconds after a create of unknown outcome in which the deployment may still appear."""
_AGAIN = 1.0
"""Seconds between two polls of a deployment that is missing from the list."""


@dataclass(slots=True)
class OrderDiff:
    """`ours` is by deployment id; the other ids are Edgegap's request ids."""

    ours: dict[str, Deployment] = field(default_factory=dict)
    as_ordered: list[Deployment] = field(default_factory=list)
    """Those of `ours` whose order has the same request id."""
    to_adopt: list[tuple[str, str]] = field(default_factory=list)
    """(deployment id, request id): the outcome of an order that has none yet."""
    to_stop: list[tuple[str, str]] = field(default_factory=list)
    """(request id, why): deployments that should not run."""


def compare(
    servers: Iterable[Server],
    orders: Mapping[str, EdgegapOrder],
    stop_sent: Mapping[str, float],
    *,
    namespace: str,
    games: Collection[Game],
    now: float,
) -> OrderDiff:
    """The listed `servers` of our namespace against its `orders`. `stop_sent`: request id -> when it was told to stop.

    A stopped deployment counts as ours again when it is still listed long after it was told to stop.
    """
    diff = OrderDiff()
    for server in servers:
        deployment_id = deployment_id_in(server.tags, namespace)
        if deployment_id is None:
            continue
        order = orders.get(deployment_id)
        game = game_in(server.tags, games)
        key = game.key if game is not None else (order.game, order.version) if order else ("", "")
        deployment = as_deployment(server, deployment_id, key, game)
        if order is None or order.state is OrderState.ORDERING:
            known = diff.ours.get(deployment_id)
            # One that has ended says nothing of another try, which may run.
            if known is None or (known.state is RunState.STOPPED and not server.ended):
                if order is not None and not server.ended:
                    diff.to_adopt.append((deployment_id, server.request_id))
                diff.ours[deployment_id] = deployment
        elif order.state is OrderState.STOPPED:
            diff.to_stop.append((server.request_id, f"{deployment_id} was stopped"))
            sent = stop_sent.get(server.request_id)
            if sent is not None and now - sent > STOPPING:
                diff.ours.setdefault(deployment_id, deployment)
        elif order.request_id == server.request_id:
            diff.ours[deployment_id] = deployment
            diff.as_ordered.append(deployment)
        else:
            diff.to_stop.append((server.request_id, f"{deployment_id} runs as {order.request_id}"))
    return diff


def suspects(
    orders: Mapping[str, EdgegapOrder],
    listed: Collection[str],
    polled_at: Mapping[str, float],
    was_running: Callable[[str], bool],
    *,
    now: float,
    wall: float,
) -> list[str]:
    """Ids of a few deployments that were ordered and are not in the list. The list proves nothing: poll their status.

    `polled_at`: when the status of each was last read.
    """
    missing = [
        id
        for id, order in orders.items()
        if order.state is OrderState.ORDERED
        and id not in listed
        and now - polled_at.get(id, -_AGAIN) >= _AGAIN
        and (wall - order.tried_at > COMING or was_running(id))
    ]
    return sorted(missing, key=lambda id: polled_at.get(id, 0.0))[:BY_STATUS]
