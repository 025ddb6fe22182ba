"""A player who waits and leaves: nothing is held for nobody, and nobody else's request ends with it."""

from __future__ import annotations

import asyncio

import msgspec

from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.requests.reply_interest import ReplyInterest
from tipoff_shared import names
from tipoff_shared.messages import PlayRequest, ProgressReport, SessionReady, encode_request
from tipoff_shared.records import SessionState
from tipoff_shared.subjects import REQUEST_ID_HEADER

SMALL = msgspec.structs.replace(ARENA, seats=1, max_deployments=1)


class Attempt:
    """One attempt at a request, with an inbox as httpd has it: of the asker, and of the attempt."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asker = world.bus.nc.new_inbox()
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    async def ask(self, request_id: str) -> None:
        bus = self.world.bus

        async def heard(msg: object) -> None:
            self.got.put_nowait(msg.data)  # type: ignore[attr-defined] # nats-py's Msg

        await bus.nc.subscribe(f"{self.asker}.*", cb=heard)
        await bus.nc.publish(
            bus.subjects.request("arena", "1"),
            encode_request(PlayRequest("arena", "1")),
            reply=f"{self.asker}.1",
            headers={REQUEST_ID_HEADER: request_id},
        )

    async def until(self, begin: bytes) -> bytes:
        async with asyncio.timeout(8):
            while not (data := await self.got.get()).startswith(begin):
                pass
        return data

    async def leave(self) -> None:
        await self.world.bus.publish(self.world.bus.subjects.left, self.asker.encode())


async def test_no_seat_is_given_to_a_player_who_left(world: World) -> None:
    """The one behind him in the line is next."""
    async with world.matchmaker(SMALL):
        first = await world.play()
        await world.server_of(first).connect(first)
        leaver, request_id = Attempt(world), names.new_request_id()
        await leaver.ask(request_id)
        await leaver.until(b'{"ProgressReport"')
        patient = await world.ask()
        await patient.until(ProgressReport)
        await leaver.leave()

        async def let_go() -> bool:
            entry = await world.buckets.sessions.get(names.session_id(request_id))
            return entry is not None and entry.value.owner == ""

        await world.eventually(let_go, "the request is let go")
        await world.server_of(first).disconnect(first)
        assert isinstance(await patient.end(), SessionReady)
        entry = await world.buckets.sessions.get(names.session_id(request_id))
        assert entry is not None
        assert entry.value.state is SessionState.REQUESTED


async def test_who_asks_again_elsewhere_is_not_sent_away_with_the_former_socket(world: World) -> None:
    """The same request id by two interest; the first one's end is not the second one's."""
    async with world.matchmaker(SMALL):
        first = await world.play()
        await world.server_of(first).connect(first)
        request_id = names.new_request_id()
        before, after = Attempt(world), Attempt(world)
        for attempt in (before, after):
            await attempt.ask(request_id)
            await attempt.until(b'{"ProgressReport"')
        await before.leave()
        await world.server_of(first).disconnect(first)
        await after.until(b'{"SessionReady"')


async def test_who_left_may_come_back(world: World) -> None:
    """With the same request id, while its record waits."""
    async with world.matchmaker(SMALL):
        first = await world.play()
        await world.server_of(first).connect(first)
        request_id = names.new_request_id()
        before, after = Attempt(world), Attempt(world)
        await before.ask(request_id)
        await before.until(b'{"ProgressReport"')
        await before.leave()
        await after.ask(request_id)
        await after.until(b'{"ProgressReport"')
        await world.server_of(first).disconnect(first)
        await after.until(b'{"SessionReady"')


async def test_a_stopping_matchmaker_says_that_the_next_one_may_be_asked_at_once(world: World) -> None:
    """In a header, and only to those who know it."""
    async with world.matchmaker(SMALL) as matchmaker:
        first = await world.play()
        await world.server_of(first).connect(first)
        ours, foreign = await world.ask(timeout=9), await world.ask()
        for answers in (ours, foreign):
            await answers.until(ProgressReport)
        await matchmaker.stop()
        for answers in (ours, foreign):
            await answers.end()
        assert "Tipoff-Ask-Again" in ours.headers
        assert "Tipoff-Ask-Again" not in foreign.headers


async def test_the_table_forgets_who_went() -> None:
    """Also those with the same inbox prefix, as bevygap's inboxes may have."""
    interest = ReplyInterest()
    tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    interest.add("_INBOX.a", "s1", tasks[0])
    interest.add("_INBOX.b", "s2", tasks[1])
    interest.add("h.1.1", "s2", tasks[2])
    interest.lost("h.1")
    interest.lost("h.1")
    assert not any(task.cancelling() for task in tasks)
    interest.remove("h.1.1", "s2", tasks[2])
    interest.remove("_INBOX.a", "s1", tasks[0])
    interest.remove("_INBOX.b", "s2", tasks[1])
    assert len(interest) == 0  # neither a session nor a client
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
