"""The right token gets in, once, on any transport."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from tests.gameserver.players import (
    Recorder,
    UdpPlayer,
    by_udp,
    by_websocket,
    deaf_udp,
    expired_token_for,
    token_for,
    within_turns,
)
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, PrivateKey
from tipoff_gameserver.players.token_check import Foreign, Grant, LookUp, Refusal, TokenCheck
from tipoff_gameserver.presence.kv import KvPresence
from tipoff_gameserver.transports import udp
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import Admitted, Failed
from tipoff_shared.netcode import Address, ClientState, Dialect, UsedTokens
from tipoff_shared.settings import NatsSettings
from tipoff_shared.user_data import TokenUserData

KEY = PrivateKey.generate()


def token_check(foreign: Foreign = Foreign.REFUSE, used: UsedTokens | None = None) -> TokenCheck:
    """The rules of deployment d1, boot b1, whose context leads to `foreign`."""
    context = Context(
        "d1",
        "arena",
        "1",
        KEY,
        1,
        nats=None if foreign is Foreign.ACCEPT else NatsSettings(),
        bevygap=foreign is Foreign.LOOK_UP,
    )
    return TokenCheck(context, "b1", [Address("127.0.0.1", 1)], used)


@pytest.mark.parametrize(
    ("data", "admitted"),
    [
        (TokenUserData("s", "d1", "b1"), True),
        (TokenUserData("s", "d1", ""), True),
        (TokenUserData("s", "d2", "b1"), False),
        (TokenUserData("s", "d1", "b0"), False),
    ],
)
def test_a_token_must_be_for_this_deployment_and_this_boot(data: TokenUserData, admitted: bool) -> None:
    verdict = token_check().judge(7, data.encode())
    assert isinstance(verdict, Grant if admitted else Refusal)


def test_a_token_of_an_older_seat_is_refused() -> None:
    rules = token_check()
    newer = rules.judge(7, TokenUserData("s", "d1", "b1", generation=2).encode())
    assert isinstance(newer, Grant)
    assert isinstance(rules.judge(7, TokenUserData("s", "d1", "b1", generation=1).encode()), Grant)
    rules.admitted(newer)
    assert isinstance(rules.judge(7, TokenUserData("s", "d1", "b1", generation=1).encode()), Refusal)
    assert isinstance(rules.judge(7, TokenUserData("other", "d1", "b1", generation=1).encode()), Grant)


def test_foreign_tokens_are_taken_only_where_that_is_configured() -> None:
    assert isinstance(token_check().judge(7, bytes(256)), Refusal)
    assert token_check(Foreign.LOOK_UP).judge(7, bytes(256)) == LookUp(7)
    assert token_check(Foreign.ACCEPT).judge(7, bytes(256)) == Grant(7, "")
    assert token_check(Foreign.ACCEPT).judge(7, os.urandom(256)) == Grant(7, "")
    assert isinstance(token_check(Foreign.LOOK_UP).judge(7, b"\1" * 256), Refusal)


@given(st.binary(max_size=300))
def test_user_data_of_any_kind_raises_nothing(data: bytes) -> None:
    for foreign in Foreign:
        assert isinstance(token_check(foreign).judge(1, data), Grant | LookUp | Refusal)


@given(st.one_of(st.binary(max_size=64), st.binary(min_size=2048, max_size=2048)))
def test_stream_tokens_of_any_kind_raise_nothing(data: bytes) -> None:
    assert isinstance(token_check().open_stream(data, "holder", time.time()), Refusal)


async def test_a_used_token_is_refused_on_every_transport(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """UDP then WebSocket, WebSocket then UDP, WebSocket twice; also after the first one has left."""
    async with GameServer(game, context=deployment) as server:
        first = token_for(server, "s1")
        async with by_udp(first):
            pass
        await game.saw("leave", 1)
        async with by_websocket(server, first) as again:
            assert again.answer == Failed(403, "this token was used before; ask for a new one")
        second = token_for(server, "s2")
        async with by_websocket(server, second) as player:
            assert isinstance(player.answer, Admitted)
            async with by_websocket(server, second) as again:
                assert isinstance(again.answer, Failed)
        await game.saw("leave", 2)
        async with by_udp(second, wait=False) as late:
            await late.reaches(ClientState.SENDING_CONNECTION_REQUEST)
            token = token_for(server, "s3")
            async with by_udp(token):  # a whole handshake later the used one has still heard nothing
                assert late.state is ClientState.SENDING_CONNECTION_REQUEST
    assert len([event for event in game.happened if event[0] == "join"]) == 3


async def test_one_client_id_plays_once_whatever_the_transport(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    async with GameServer(game, context=deployment) as server:
        async with (
            by_udp(token_for(server, "s1", client_id=5)),
            by_websocket(server, token_for(server, "s1", client_id=5)) as second,
        ):
            assert isinstance(second.answer, Failed)
            assert second.answer.code == 409
        await game.saw("leave", 1)
        async with by_websocket(server, token_for(server, "s1", client_id=5)) as player:
            assert isinstance(player.answer, Admitted)
            async with (
                by_udp(token_for(server, "s1", client_id=5), wait=False) as second_udp,
                by_udp(token_for(server, "s2", client_id=6)),
            ):
                assert second_udp.state is ClientState.SENDING_CONNECTION_REQUEST


async def test_capacity_is_one_for_all_transports(deployment: Context, game: Recorder, kv: Buckets) -> None:
    """Four seats, two taken on each: the fifth is denied by UDP and refused by WebSocket, until one leaves."""
    async with (
        GameServer(game, context=deployment) as server,
        by_udp(token_for(server, "a")),
        by_websocket(server, token_for(server, "b")),
        by_websocket(server, token_for(server, "c")),
    ):
        async with by_udp(token_for(server, "d")):
            await game.saw("join", 4)
            async with by_websocket(server, token_for(server, "e")) as fifth:
                assert isinstance(fifth.answer, Failed)
                assert fifth.answer.code == 503
            async with by_udp(token_for(server, "f"), wait=False) as sixth:
                await sixth.reaches(ClientState.CONNECTION_DENIED)
        await game.saw("leave", 1)
        async with by_websocket(server, token_for(server, "g")) as next_one:
            assert isinstance(next_one.answer, Admitted)


@pytest.mark.parametrize("fault", ["deployment", "boot", "address", "expired", "key", "zeros"])
async def test_a_token_that_is_not_for_us_is_refused(
    deployment: Context, game: Recorder, kv: Buckets, fault: str
) -> None:
    async with GameServer(game, context=deployment) as server:
        token = {
            "deployment": lambda: token_for(server, deployment_id="arena-2"),
            "boot": lambda: token_for(server, boot_id="0123456789abcdef"),
            "address": lambda: token_for(server, address=Address("127.0.0.9", 9)),
            "expired": lambda: expired_token_for(server),
            "key": lambda: token_for(server, context=_with_other_key(deployment)),
            "zeros": lambda: token_for(server, user_data=bytes(256)),
        }[fault]()
        async with by_websocket(server, token) as player:
            assert isinstance(player.answer, Failed)
            assert player.answer.code == 403
            await player.ws.wait_closed()
            assert player.ws.close_code == 1008
        if fault != "address":  # it would be sent elsewhere
            async with by_udp(token, wait=False) as udp, by_udp(token_for(server, "good")):
                assert udp.state is not ClientState.CONNECTED
    assert len([event for event in game.happened if event[0] == "join"]) == (0 if fault == "address" else 1)


def _with_other_key(context: Context) -> Context:
    return Context(
        deployment_id=context.deployment_id,
        game=context.game,
        version=context.version,
        private_key=PrivateKey.generate(),
        protocol_id=context.protocol_id,
        nats=context.nats,
    )


async def test_a_bevygap_token_is_looked_up_before_the_challenge(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """Known clients come in with their session; unknown ones are denied and never challenged."""
    async with GameServer(game, context=replace(deployment, bevygap=True)) as server:
        await kv.sessions_ly2eg.put("42", "session-of-bevygap")
        await kv.sessions_ly2eg.put("43", "another-session")
        await eventually(lambda: kv.gameservers.get("arena-1"), "NATS is connected")
        async with by_udp(token_for(server, client_id=42, user_data=bytes(256))):
            ((_, player),) = await game.saw("join")
            assert player.session_id == "session-of-bevygap"
        async with by_websocket(server, token_for(server, client_id=43, user_data=bytes(256))) as ws:
            assert isinstance(ws.answer, Admitted)
        async with by_udp(token_for(server, client_id=44, user_data=bytes(256)), wait=False) as unknown:
            await unknown.reaches(ClientState.CONNECTION_DENIED)


async def test_a_player_whose_udp_answers_are_blocked_comes_in_by_websocket(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """With the same token, which UDP has claimed and not used. The challenge that it answers later is too late."""
    async with GameServer(game, context=deployment) as server:
        token = token_for(server, "s1")
        async with deaf_udp(token) as blocked:
            await blocked.was_challenged()
            async with by_websocket(server, token) as player:
                assert isinstance(player.answer, Admitted)
                blocked.answer_challenge()
                async with by_udp(
                    token_for(server, "s2")
                ) as other:  # a handshake later nothing has come of it
                    other.send(b"hello")
                    assert await other.receive() == b"hello"
                await player.send(b"still here")
                assert await player.receive() == b"still here"
    assert len([event for event in game.happened if event[0] == "join"]) == 2


@dataclass
class LookUps:
    """Look-ups of bevygap's sessions that are answered when the test says so."""

    asked: list[int] = field(default_factory=list)
    known: bool = True
    error: Exception | None = None
    """What the next one raises."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def look_up(self, client_id: int) -> str | None:
        self.asked.append(client_id)
        await self.answered.wait()
        if (error := self.error) is not None:
            self.error = None
            raise error
        return f"session-{client_id}" if self.known else None


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> LookUps:
    found = LookUps()
    monkeypatch.setattr(KvPresence, "look_up", lambda _, client_id: found.look_up(client_id))
    return found


def foreign(server: GameServer, client_id: int) -> bytes:
    """A token of bevygap's matchmaker."""
    return token_for(server, client_id=client_id, user_data=bytes(256))


@asynccontextmanager
async def connecting(tokens: list[bytes]) -> AsyncIterator[list[UdpPlayer]]:
    """Players who ask by UDP, and may not be in."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(by_udp(token, wait=False)) for token in tokens]


async def test_who_finds_no_place_in_the_line_for_look_ups_is_denied(
    deployment: Context,
    game: Recorder,
    kv: Buckets,
    look_ups: LookUps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is looked up and one waits; the third hears so, and both others come in."""
    monkeypatch.setattr(udp, "MAX_LOOK_UPS", 1)
    monkeypatch.setattr(udp, "MAX_WAITING", 1)
    async with (
        GameServer(game, context=replace(deployment, bevygap=True)) as server,
        connecting([foreign(server, number) for number in (1, 2, 3)]) as players,
    ):
        await eventually(
            lambda: any(player.state is ClientState.CONNECTION_DENIED for player in players), "one is denied"
        )
        look_ups.answered.set()
        for player in players:
            if player.state is not ClientState.CONNECTION_DENIED:
                await player.reaches(ClientState.CONNECTED)
        assert len(await game.saw("join", 2)) == 2


async def test_look_ups_are_bounded_and_each_client_is_looked_up_once(
    deployment: Context,
    game: Recorder,
    kv: Buckets,
    look_ups: LookUps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two may be under way: the third waits, however often all of them repeat their requests, and all come in."""
    monkeypatch.setattr(udp, "MAX_LOOK_UPS", 2)
    async with GameServer(game, context=replace(deployment, bevygap=True)) as server:
        async with connecting([foreign(server, number) for number in (1, 2, 3)]) as players:
            await eventually(lambda: players[0].requests >= 4, "they have repeated their requests")
            assert len(look_ups.asked) == 2
            look_ups.answered.set()
            for player in players:
                await player.reaches(ClientState.CONNECTED)
        assert sorted(look_ups.asked) == [1, 2, 3]
        joins = await game.saw("join", 3)
        assert {event[1].session_id for event in joins} == {"session-1", "session-2", "session-3"}


async def test_a_client_whose_dialect_has_reasons_is_told_why_it_is_denied(
    deployment: Context,
    game: Recorder,
    kv: Buckets,
    look_ups: LookUps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Bevy game's: what its token is, or that there is no room, before a look-up and after it."""
    dialect = Dialect.LIGHTYEAR
    look_ups.answered.set()
    context = replace(deployment, bevygap=True, capacity=1, dialect=dialect)
    async with GameServer(game, context=context) as server:

        async def why(token: bytes) -> str:
            async with by_udp(token, wait=False, dialect=dialect) as player:
                await player.reaches(ClientState.CONNECTION_DENIED)
                return str(player.client.failure)

        look_ups.known = False
        assert "invalid token" in await why(foreign(server, 1))
        assert "invalid token" in await why(token_for(server, boot_id="0123456789abcdef"))
        look_ups.known = True
        async with by_udp(foreign(server, 2), dialect=dialect):
            await game.saw("join")
            assert ": full" in await why(foreign(server, 3))
        await game.saw("leave")
        monkeypatch.setattr(udp, "MAX_LOOK_UPS", 0)
        monkeypatch.setattr(udp, "MAX_WAITING", 0)
        assert "internal error" in await why(foreign(server, 4))


@pytest.mark.parametrize("known", [True, False])
async def test_what_a_look_up_found_is_answered_at_once(
    deployment: Context, game: Recorder, kv: Buckets, look_ups: LookUps, known: bool
) -> None:
    """Not when the client asks again, nor with the next timer."""
    look_ups.known = known
    async with (
        GameServer(game, context=replace(deployment, bevygap=True)) as server,
        deaf_udp(foreign(server, 1)) as player,
    ):
        await eventually(lambda: look_ups.asked == [1], "it is looked up")
        look_ups.answered.set()
        assert await within_turns(player.has_heard)


async def test_a_client_whose_session_was_forgotten_is_refused_and_the_next_one_comes_in(
    deployment: Context,
    game: Recorder,
    kv: Buckets,
    look_ups: LookUps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More clients were looked up than may be remembered until they answer their challenge."""
    monkeypatch.setattr(udp, "MAX_GRANTS", 1)
    look_ups.answered.set()
    async with (
        GameServer(game, context=replace(deployment, bevygap=True)) as server,
        deaf_udp(foreign(server, 1)) as forgotten,
        deaf_udp(foreign(server, 2)) as remembered,
    ):
        for player in (forgotten, remembered):
            await player.was_challenged()
        forgotten.answer_challenge()
        await forgotten.hears()  # a goodbye
        remembered.answer_challenge()
        ((_, joined),) = await game.saw("join")
        assert joined.session_id == "session-2"


@pytest.mark.parametrize("known", [True, False])
async def test_any_number_of_look_ups_may_follow_one_another(
    deployment: Context,
    game: Recorder,
    kv: Buckets,
    look_ups: LookUps,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """One that is over, well or not, makes room for the next."""
    monkeypatch.setattr(udp, "MAX_LOOK_UPS", 1)
    look_ups.answered.set()
    look_ups.known = known
    expected = ClientState.CONNECTED if known else ClientState.CONNECTION_DENIED
    async with GameServer(game, context=replace(deployment, bevygap=True)) as server:
        for number in (1, 2, 3):
            async with by_udp(foreign(server, number), wait=False) as player:
                await player.reaches(expected)


async def test_of_two_connections_with_one_token_one_gets_the_seat(
    deployment: Context, game: Recorder, kv: Buckets, look_ups: LookUps
) -> None:
    """Both wait for the look-up: the later one has the token, the other one hears so."""
    async with GameServer(game, context=replace(deployment, bevygap=True)) as server:
        token = foreign(server, 7)

        async def come() -> Admitted | Failed:
            async with by_websocket(server, token) as player:
                return player.answer

        both: list[asyncio.Future[Admitted | Failed]] = []
        for _ in range(2):
            both.append(asyncio.ensure_future(come()))
            await eventually(lambda: len(look_ups.asked) == len(both), "it is looked up")
        look_ups.answered.set()
        answers = await asyncio.gather(*both)
    assert answers[0] == Failed(403, "this token was used before; ask for a new one")
    assert isinstance(answers[1], Admitted)


async def test_a_seat_that_was_taken_during_the_look_up_is_not_given_twice(
    deployment: Context, game: Recorder, kv: Buckets, look_ups: LookUps
) -> None:
    """The last one goes to a player whose token says everything; the other one hears that the server is full."""
    async with GameServer(game, context=replace(deployment, bevygap=True, capacity=1)) as server:

        async def late() -> Admitted | Failed:
            async with by_websocket(server, foreign(server, 7)) as player:
                return player.answer

        waiting = asyncio.ensure_future(late())
        async with connecting([foreign(server, 8)]) as (by_packets,):
            await eventually(lambda: len(look_ups.asked) == 2, "both are looked up")
            async with by_websocket(server, token_for(server, "s1")) as player:
                assert isinstance(player.answer, Admitted)
                look_ups.answered.set()
                answer = await waiting
                assert isinstance(answer, Failed)
                assert answer.code == 503
                await by_packets.reaches(ClientState.CONNECTION_DENIED)


async def test_who_answers_the_challenge_of_a_server_that_drains_by_now_stays_out(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """Time has passed since its request was judged."""
    async with (
        GameServer(game, context=deployment) as server,
        by_websocket(server, token_for(server, "s1")) as first,
        deaf_udp(token_for(server, "s2")) as late,
    ):
        await late.was_challenged()
        server.drain()
        late.answer_challenge()
        await late.hears()
        await first.send(b"hello")
        assert await first.receive() == b"hello"
        assert len([event for event in game.happened if event[0] == "join"]) == 1


async def test_a_look_up_that_fails_for_a_reason_of_ours_keeps_out_nobody_else(
    deployment: Context,
    game: Recorder,
    kv: Buckets,
    look_ups: LookUps,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By WebSocket the player hears 1011 at once; over UDP the next one is looked up, one at a time as before."""
    monkeypatch.setattr(udp, "MAX_LOOK_UPS", 1)
    look_ups.answered.set()
    async with GameServer(game, context=replace(deployment, bevygap=True)) as server:
        look_ups.error = ZeroDivisionError("ours")
        assert server.transports.websocket is not None
        async with connect(server.transports.websocket.url) as ws:
            await ws.send(foreign(server, 1))
            await ws.wait_closed()
            assert ws.close_code == 1011
        assert "ours" in caplog.text
        look_ups.error = ZeroDivisionError("ours, too")
        async with connecting([foreign(server, 2)]):
            await eventually(lambda: "ours, too" in caplog.text, "it has failed")
        async with by_udp(foreign(server, 3)):
            look_ups.answered.clear()
            async with connecting([foreign(server, 4), foreign(server, 5)]) as players:
                await eventually(
                    lambda: all(player.requests >= 3 for player in players), "both repeat theirs"
                )
                assert look_ups.asked == [1, 2, 3, 4]
                look_ups.answered.set()
                for player in players:
                    await player.reaches(ClientState.CONNECTED)
