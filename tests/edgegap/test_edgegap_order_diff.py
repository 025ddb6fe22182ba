"""What Edgegap's list says of our orders, decided without asking anybody."""

from __future__ import annotations

import pytest

from tests.edgegap.edgegap_world import sleeper
from tipoff_orchestrator_client.base import RunState
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.naming import tags_of
from tipoff_orchestrator_client.edgegap.orders.order_diff import COMING, OrderDiff, compare, suspects
from tipoff_orchestrator_client.edgegap.orders.stop_requests import STOPPING
from tipoff_shared.records import EdgegapOrder, OrderState

GAME = sleeper()
NOW = 1000.0


def server(
    request_id: str, deployment_id: str = "arena-1", namespace: str = "ours", *, ended: bool = False
) -> Server:
    tags = tuple(tags_of(namespace, deployment_id, GAME.key))
    return Server(request_id, running=not ended, ended=ended, tags=tags)


def order(state: OrderState, request_id: str = "", tried_at: float = 0.0) -> EdgegapOrder:
    return EdgegapOrder("arena-1", state, "arena", "1", request_id, tried_at=tried_at, tries=1)


def compared(
    *servers: Server, order: EdgegapOrder | None = None, told: dict[str, float] | None = None
) -> OrderDiff:
    orders = {} if order is None else {order.deployment_id: order}
    return compare(servers, orders, told or {}, namespace="ours", games=[GAME], now=NOW)


def test_what_runs_as_it_was_ordered_is_ours() -> None:
    """Nothing is to be done."""
    found = compared(server("a"), order=order(OrderState.ORDERED, "a"))
    assert found.ours["arena-1"].state is RunState.RUNNING
    assert found.as_ordered == [found.ours["arena-1"]]
    assert (found.to_adopt, found.to_stop) == ([], [])


def test_what_is_not_ours_is_left_alone() -> None:
    """Other namespaces, and whatever has no tags of ours."""
    assert compared(server("a", namespace="theirs"), Server("b", running=True)) == OrderDiff()


def test_a_second_one_of_the_same_name_is_stopped() -> None:
    """The one that the book knows stays, in whatever order they are listed."""
    for servers in ((server("a"), server("b")), (server("b"), server("a"))):
        found = compared(*servers, order=order(OrderState.ORDERED, "a"))
        assert found.ours["arena-1"].native_id == "a"
        assert [request_id for request_id, _ in found.to_stop] == ["b"]


def test_what_came_of_an_order_of_unknown_outcome_is_adopted() -> None:
    """The first in the list, unless it has ended."""
    found = compared(server("a"), server("b"), order=order(OrderState.ORDERING))
    assert found.to_adopt == [("arena-1", "a")]
    assert found.ours["arena-1"].native_id == "a"
    ended = compared(server("a", ended=True), order=order(OrderState.ORDERING))
    assert ended.to_adopt == []


def test_one_that_ended_hides_none_that_runs() -> None:
    """Of two tries of one order, in whatever order they are listed."""
    for servers in ((server("a", ended=True), server("b")), (server("b"), server("a", ended=True))):
        found = compared(*servers, order=order(OrderState.ORDERING))
        assert found.to_adopt == [("arena-1", "b")]
        assert found.ours["arena-1"].native_id == "b"


def test_one_of_a_lost_book_is_ours_and_neither_adopted_nor_stopped() -> None:
    """Its tags say so; the reconciler decides."""
    found = compared(server("a"))
    assert list(found.ours) == ["arena-1"]
    assert (found.as_ordered, found.to_adopt, found.to_stop) == ([], [], [])


@pytest.mark.parametrize(("told_ago", "counts"), [(None, False), (STOPPING - 1, False), (STOPPING + 1, True)])
def test_one_that_was_stopped_counts_again_when_it_does_not_end(told_ago: float | None, counts: bool) -> None:
    """It is told to stop again, however long ago the first request was."""
    told = {} if told_ago is None else {"a": NOW - told_ago}
    found = compared(server("a"), order=order(OrderState.STOPPED, "a"), told=told)
    assert [request_id for request_id, _ in found.to_stop] == ["a"]
    assert ("arena-1" in found.ours) is counts


@pytest.mark.parametrize(
    ("state", "listed", "asked_ago", "age", "ran", "suspect"),
    [
        (OrderState.ORDERED, False, 5.0, COMING + 1, False, True),
        (OrderState.ORDERED, False, 5.0, 1.0, True, True),
        (OrderState.ORDERED, False, 5.0, 1.0, False, False),  # it may still appear
        (OrderState.ORDERED, True, 5.0, COMING + 1, True, False),
        (OrderState.ORDERED, False, 0.5, COMING + 1, True, False),  # somebody has just asked
        (OrderState.ORDERING, False, 5.0, COMING + 1, True, False),
        (OrderState.STOPPED, False, 5.0, COMING + 1, True, False),
    ],
)
def test_what_is_missing_from_the_list_is_suspected(
    state: OrderState, listed: bool, asked_ago: float, age: float, ran: bool, suspect: bool
) -> None:
    """Where it was there before, or should be there by now."""
    found = suspects(
        {"arena-1": order(state, "a", tried_at=5000.0 - age)},
        ["arena-1"] if listed else [],
        {"arena-1": NOW - asked_ago},
        lambda _: ran,
        now=NOW,
        wall=5000.0,
    )
    assert found == (["arena-1"] if suspect else [])


def test_one_that_nobody_has_asked_about_is_suspected_on_a_machine_that_has_just_started_too() -> None:
    """Its clock begins at 0."""
    orders = {"arena-1": order(OrderState.ORDERED, "a")}
    assert suspects(orders, [], {}, lambda _: False, now=0.0, wall=5000.0) == ["arena-1"]


def test_a_few_are_asked_about_at_a_time_those_not_asked_for_longest_first() -> None:
    """Statuses are few at Edgegap."""
    orders = {id: order(OrderState.ORDERED, id) for id in ("a", "b", "c")}
    asked_at = {"a": NOW - 2, "b": NOW - 9}
    found = suspects(orders, [], asked_at, lambda _: True, now=NOW, wall=5000.0)
    assert found == ["c", "b"]
