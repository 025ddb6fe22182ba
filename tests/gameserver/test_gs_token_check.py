"""The right token gets in, once, on any transport."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gameserver.players import (
    Recorder,
    by_udp,
    by_websocket,
    expired_token_for,
    token_for,
)
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, PrivateKey
from tipoff_gameserver.players.token_check import Foreign, Grant, LookUp, Refusal, TokenCheck
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import Admitted, Failed
from tipoff_shared.netcode import Address, ClientState, UsedTokens
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
