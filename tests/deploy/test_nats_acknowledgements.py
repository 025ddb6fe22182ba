"""The reply subjects of stored messages in both of NATS's forms: each reader reads them, and its role may answer."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NotJSMessageError

from tests.deploy.deployed_nats import DeployedNats
from tipoff_matchmaker import presence_reader
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import connect
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.nats.wire import is_readable, reply_fields

pytestmark = pytest.mark.row(84)

WORD = st.text(st.characters(exclude_characters=". \t\r\n", codec="utf-8"), min_size=1, max_size=12)
NUMBERS = st.lists(st.integers(0, 2**63 - 1), min_size=5, max_size=5)


def stored(reply: str) -> Msg:
    """A message from a stream."""
    return Msg(Client(), "s", reply)


@given(WORD, WORD, NUMBERS, st.none() | st.tuples(WORD, WORD, st.sampled_from(["", ".random"])))
def test_both_forms_say_the_same(
    stream: str, consumer: str, numbers: list[int], second: tuple[str, str, str] | None
) -> None:
    """Stream, consumer, sequences and what is pending."""
    tail = ".".join((stream, consumer, *map(str, [*numbers[:3], numbers[3] % 2**60, numbers[4]])))
    reply = f"$JS.ACK.{tail}"
    if second is not None:
        reply = f"$JS.ACK.{second[0]}.{second[1]}.{tail}{second[2]}"
    found = stored(reply).metadata
    assert (found.stream, found.consumer) == (stream, consumer)
    assert (found.num_delivered, found.sequence.stream, found.sequence.consumer) == tuple(numbers[:3])
    assert found.num_pending == numbers[4]
    assert is_readable(b"s", reply.encode(), None)


@given(st.text(max_size=60) | st.lists(WORD, max_size=14).map(".".join))
def test_a_forged_reply_is_dropped_or_can_be_read(text: str) -> None:
    """A publisher chooses the reply of a message; nats-py's reader would end for good where it expects numbers."""
    reply = f"$JS.ACK.{text}"
    if is_readable(b"s", reply.encode(errors="surrogatepass"), None):
        with contextlib.suppress(NotJSMessageError, OverflowError, ValueError):  # a time that is none
            assert stored(reply).metadata
        fields = reply_fields(reply)  # which nats-py's ordered consumers read
        assert all(int(field) >= 0 for field in fields[4:9])


async def test_a_matchmaker_s_durables_listings_and_watches_work(roles: DeployedNats) -> None:
    """What it has acknowledged does not come again."""
    async with connect(roles.settings("matchmaker"), name="reader") as bus:
        denied: list[PermissionDenied] = []
        bus.on_denied(denied.append)
        store = (await create_buckets(bus)).active_connections
        for key in ("a", "b"):
            await store.put(key, "17")
        assert {"a", "b"} <= set(await store.list())
        async with store.watch() as changes:
            assert {change.key for change, _ in await changes.fetch(timeout=0.5)} >= {"a", "b"}
        for expected in (True, False):
            async with store.durable(presence_reader.CONNECTIONS, ack_wait=1.0) as changes:
                found = await changes.fetch(timeout=0.5)
                for _, ack in found:
                    await ack()
                assert bool({change.key for change, _ in found} & {"a", "b"}) is expected
        await bus.flush()
        assert denied == []


async def test_an_ordered_consumer_of_nats_py_works(roles: DeployedNats) -> None:
    """Of the tools that operators write; under load, so that NATS asks for flow control."""
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        store = (await create_buckets(owner)).cert_digests
        await asyncio.gather(*(store.put(f"flow.{number}", "x" * 400) for number in range(300)))
        async with connect(roles.settings("operator"), name="operator") as bus:
            denied: list[PermissionDenied] = []
            bus.on_denied(denied.append)
            bucket = await bus.js.key_value(bus.subjects.bucket("cert_digests"))
            watcher = await bucket.watch("flow.*")
            seen: set[str] = set()
            async with asyncio.timeout(10):
                while len(seen) < 300:
                    if (entry := await watcher.updates()) is not None:
                        seen.add(entry.key)
            await watcher.stop()
            await bus.flush()
            assert denied == []
