"""An order is written only as long as it is what its writer takes it for."""

from __future__ import annotations

import msgspec
import pytest

from tests.edgegap.account import WALL, spec
from tipoff_orchestrator_client.base import OrchestratorUnavailable
from tipoff_orchestrator_client.edgegap.orders.store import OrderStore
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState

ORDERING = EdgegapOrder("arena-1", OrderState.ORDERING, "arena", "1", tried_at=WALL, tries=1)
ORDERED = msgspec.structs.replace(ORDERING, state=OrderState.ORDERED, request_id="r1")
STOPPED = msgspec.structs.replace(ORDERED, state=OrderState.STOPPED, reason="it ended")
UNDECIDED = msgspec.structs.replace(ORDERING, request_id="r1")
"""Written by nobody; what it leads to is known all the same."""


@pytest.fixture
async def kv(nats: Bus) -> Buckets:
    return await create_buckets(nats)


@pytest.fixture
def store(kv: Buckets, nats: Bus) -> OrderStore:
    return OrderStore(nats)


async def written(kv: Buckets, order: EdgegapOrder | None) -> int:
    return 0 if order is None else await kv.edgegap_orders.put("arena-1", order)


async def read(kv: Buckets) -> tuple[EdgegapOrder | None, int]:
    entry = await kv.edgegap_orders.get("arena-1")
    return (None, 0) if entry is None else (entry.value, entry.revision)


@pytest.mark.parametrize("before", [None, ORDERED, STOPPED, UNDECIDED])
async def test_only_an_order_without_an_outcome_gets_one_from_the_list(
    store: OrderStore, kv: Buckets, before: EdgegapOrder | None
) -> None:
    revision = await written(kv, before)
    await store.adopt("arena-1", "r2")
    assert await read(kv) == (before, revision)


async def test_an_order_without_an_outcome_gets_the_one_of_the_list(store: OrderStore, kv: Buckets) -> None:
    await written(kv, ORDERING)
    await store.adopt("arena-1", "r2")
    assert (await read(kv))[0] == msgspec.structs.replace(ORDERED, request_id="r2")


@pytest.mark.parametrize("before", [ORDERED, STOPPED, UNDECIDED])
async def test_an_outcome_that_was_written_meanwhile_stays(
    store: OrderStore, kv: Buckets, before: EdgegapOrder
) -> None:
    """Whoever comes second hears of the first one's."""
    claim = await store.claim(spec(), None, WALL)
    assert claim is not None
    assert claim.value == (await read(kv))[0] == ORDERING
    revision = await written(kv, before)
    assert await store.note(claim, "r2") == before
    assert await read(kv) == (before, revision)


async def test_a_claim_that_another_matchmaker_was_quicker_with_is_none(
    store: OrderStore, kv: Buckets
) -> None:
    first = await store.claim(spec(), None, WALL)
    assert first is not None
    assert await store.claim(spec(), None, WALL + 1) is None
    second = await store.claim(spec(), first, WALL + 2)
    assert second is not None
    assert (
        second.value == (await read(kv))[0] == msgspec.structs.replace(ORDERING, tries=2, tried_at=WALL + 2)
    )
    assert await store.claim(spec(), first, WALL + 3) is None


@pytest.mark.parametrize("before", [None, STOPPED, msgspec.structs.replace(ORDERED, request_id="r2")])
async def test_an_end_is_written_only_to_the_order_that_ended(
    store: OrderStore, kv: Buckets, before: EdgegapOrder | None
) -> None:
    revision = await written(kv, before)
    await store.note_ended(ORDERED, "it is gone")
    assert await read(kv) == (before, revision)


async def test_what_has_ended_is_kept_with_its_reason(store: OrderStore, kv: Buckets) -> None:
    """Also when it is stopped afterwards."""
    await written(kv, ORDERED)
    await store.note_ended(ORDERED, "it ended")
    assert (await read(kv))[0] == STOPPED
    assert await store.stop("arena-1") == STOPPED
    assert await store.all() == {"arena-1": STOPPED}


@pytest.mark.parametrize("before", [ORDERING, ORDERED, None])
async def test_a_stop_is_written_whatever_there_was(
    store: OrderStore, kv: Buckets, before: EdgegapOrder | None
) -> None:
    await written(kv, before)
    base = before or EdgegapOrder("arena-1", OrderState.ORDERING)
    stopped = msgspec.structs.replace(base, state=OrderState.STOPPED, reason="stopped")
    assert await store.stop("arena-1") == stopped
    assert (await read(kv))[0] == stopped


async def test_orders_that_cannot_be_written_say_when_to_try_again(
    store: OrderStore, kv: Buckets, nats: Bus
) -> None:
    await nats.js.delete_stream(kv.edgegap_orders.stream)
    for call in (
        store.claim(spec(), None, WALL),
        store.adopt("arena-1", "r1"),
        store.note_ended(ORDERED, "it is gone"),
        store.get("arena-1"),
        store.all(),
    ):
        with pytest.raises(
            OrchestratorUnavailable, match="orders at Edgegap cannot be read or written"
        ) as raised:
            await call
        assert raised.value.retryable
        assert raised.value.may_have_started
