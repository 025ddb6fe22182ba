"""Messages that wait: bounded, in order, and the end comes last."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tipoff_client_sdk import Ending, ServerLost
from tipoff_client_sdk.inbox import Inbox


async def test_a_full_inbox_drops_the_oldest() -> None:
    """And counts."""
    inbox = Inbox(2)
    for message in (b"1", b"2", b"3"):
        inbox.put(message)
    assert inbox.take_all() == [b"2", b"3"]
    assert (inbox.dropped, inbox.received) == (1, 3)


async def test_what_came_before_the_end_is_read_first() -> None:
    """Then the orderly end is None, for everybody who asks."""
    inbox = Inbox(4)
    inbox.put(b"last words")
    inbox.end(Ending("over"))
    inbox.put(b"too late")
    assert await inbox.get() == b"last words"
    assert await inbox.get() is None
    assert await inbox.get() is None


async def test_a_lost_server_is_raised_after_the_last_message() -> None:
    inbox = Inbox(4)
    inbox.put(b"last words")
    inbox.end(Ending("gone", ServerLost("gone")))
    assert await inbox.get() == b"last words"
    with pytest.raises(ServerLost):
        await inbox.get()


async def test_only_the_first_end_counts() -> None:
    """A close after a loss does not make it orderly."""
    inbox = Inbox(4)
    inbox.end(Ending("gone", ServerLost("gone")))
    inbox.end(Ending("closed by this side"))
    assert (await inbox.ended()).reason == "gone"


async def test_a_cancelled_reader_loses_nothing() -> None:
    """As in `asyncio.timeout` around a receive."""
    inbox = Inbox(4)
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(b"1")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await inbox.get() == b"1"


async def test_room_comes_when_something_was_read_and_at_the_end() -> None:
    """For the transport that drops nothing."""
    inbox = Inbox(1)
    inbox.put(b"1")
    waiting = asyncio.create_task(inbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await inbox.get() == b"1"
    async with asyncio.timeout(1):
        await waiting
    inbox.put(b"2")
    waiting = asyncio.create_task(inbox.room())
    await asyncio.sleep(0)
    inbox.end(Ending("over"))
    async with asyncio.timeout(1):
        await waiting


async def test_another_thread_gets_every_message_once_and_in_order() -> None:
    """The frame loop empties what the network fills, with a bound that is reached all the time."""
    inbox, total = Inbox(8), 3000
    taken: list[bytes] = []

    def frames() -> None:
        while len(taken) < total:
            taken.extend(inbox.take_all())

    thread = threading.Thread(target=frames)
    thread.start()
    async with asyncio.timeout(20):
        for number in range(total):
            await inbox.room()
            inbox.put(number.to_bytes(4, "big"))
        await asyncio.to_thread(thread.join)
    assert taken == [number.to_bytes(4, "big") for number in range(total)]
    assert inbox.dropped == 0


async def test_an_inbox_without_room_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Inbox(0)
