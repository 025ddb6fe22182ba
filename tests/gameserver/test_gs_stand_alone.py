"""A stand-alone server answers players itself, so that clients never change."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gameserver.players import Recorder, ask, by_udp, by_websocket, ready, token_of
from tipoff_gameserver import ConfigError, Game, GameServer, LeaveReason
from tipoff_shared.messages import Acknowledged, Admitted, Failed, SessionReady, SessionRequestAccepted


async def test_it_answers_as_a_matchmaker_would(alone: GameServer) -> None:
    """Acknowledged, the session, then the way in, all transports named."""
    answers = await ask(alone.url)
    assert [type(answer) for answer in answers] == [Acknowledged, SessionRequestAccepted, SessionReady]
    last = answers[-1]
    assert isinstance(last, SessionReady)
    assert last.ip == "127.0.0.1"
    assert last.transports.udp is not None
    assert last.transports.udp.port == last.port
    assert last.transports.websocket is not None
    assert last.transports.websocket.url == alone.url.removesuffix("matchmaker/ws")


async def test_a_websocket_player_joins_talks_and_leaves(alone: GameServer, game: Recorder) -> None:
    token = token_of(await ready(alone))
    async with by_websocket(alone, token) as player:
        assert isinstance(player.answer, Admitted)
        assert player.answer.tick_rate == 100
        await player.send(b"hello")
        assert await player.receive() == b"hello"
        (_, seen) = game.happened[0]
        assert seen.transport == "websocket"
        assert list(alone.players) == [seen]
    (leave,) = await game.saw("leave")
    assert leave[2] == LeaveReason.LEFT
    assert len(alone.players) == 0


async def test_a_udp_player_joins_talks_and_leaves(alone: GameServer, game: Recorder) -> None:
    async with by_udp(token_of(await ready(alone))) as player:
        player.send(b"hello")
        assert await player.receive() == b"hello"
        assert game.happened[0][1].transport == "udp"
        player.leave()
        (leave,) = await game.saw("leave")
    assert leave[2] == LeaveReason.LEFT


async def test_a_repeated_request_id_gets_the_same_client_id(alone: GameServer) -> None:
    request = json.dumps({"game": "g", "version": "1", "request_id": "0123456789abcdef0123456789"})
    first, second = await ready(alone, request), await ready(alone, request)
    assert (first.client_id, first.session_id) == (second.client_id, second.session_id)
    assert first.token != second.token


@pytest.mark.parametrize("request_", ["", "{}", '{"game": "*", "version": "1"}', "[" * 1000, '{"game": 1}'])
async def test_a_malformed_request_is_answered_and_closed(alone: GameServer, request_: str) -> None:
    async with connect(alone.url) as ws:
        await ws.send(request_)
        assert json.loads(await ws.recv())["Error"][0] == 400
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_a_full_server_says_so(alone: GameServer) -> None:
    """Capacity is shared by the transports: one by UDP and one by WebSocket fill two seats."""
    first, second = await ready(alone), await ready(alone)
    third = await ready(alone)
    async with by_udp(token_of(first)), by_websocket(alone, token_of(second)):
        answer = (await ask(alone.url))[-1]
        assert isinstance(answer, Failed)
        assert answer.code == 503
        async with by_websocket(alone, token_of(third)) as late:
            assert isinstance(late.answer, Failed)
            assert late.answer.code == 503


@pytest.mark.row(91)
async def test_a_locked_server_gives_out_no_seat_and_keeps_those_it_has_given(
    alone: GameServer, game: Recorder
) -> None:
    """Whoever was promised one is expected, and comes in."""
    seat = await ready(alone)
    assert [player.session_id for player in alone.expected] == [seat.session_id]
    await alone.lock()
    refused = (await ask(alone.url))[-1]
    assert isinstance(refused, Failed)
    assert (refused.code, "closed to new players" in refused.message) == (503, True)
    async with by_udp(token_of(seat)):
        await game.saw("join")
        assert alone.expected == ()
    await alone.unlock()
    assert isinstance((await ask(alone.url))[-1], SessionReady)


async def test_another_path_is_not_found(alone: GameServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(alone.url.replace("/matchmaker/ws", "/elsewhere"))
    assert refused.value.response.status_code == 404


async def test_a_busy_port_is_said_clearly(alone: GameServer, game: Recorder) -> None:
    port = alone.transports.udp.port  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=f"port {port} .*Is another server running there"):
        async with GameServer(game, stand_alone=True, listen=f"127.0.0.1:{port}"):
            pass


async def test_without_an_environment_it_stands_alone_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TIPOFF_DEPLOYMENT_ID", raising=False)
    async with GameServer(Game(), listen="127.0.0.1:0") as server:
        assert server.context.stand_alone
        assert server.url.startswith("ws://127.0.0.1:")
    assert "this is a stand-alone server" in caplog.text


async def test_a_game_of_ones_own_name_is_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIPOFF_GAME", "chess")
    async with GameServer(Game(), stand_alone=True, listen="127.0.0.1:0") as server:
        answer = (await ask(server.url))[-1]
        assert isinstance(answer, Failed)
        assert answer.code == 404
        assert isinstance((await ask(server.url, '{"game": "chess", "version": "1"}'))[-1], SessionReady)


async def test_ipv6_works(game: Recorder) -> None:
    try:
        server = GameServer(game, stand_alone=True, listen="[::1]:0")
        async with asyncio.timeout(10), server:
            answer = await ready(server)
            async with by_udp(token_of(answer), local="::1") as player:
                player.send(b"six")
                assert await player.receive() == b"six"
    except ConfigError as exc:
        pytest.skip(f"no IPv6 here: {exc}")


def test_it_imports_without_posix_modules_and_without_nats() -> None:
    """What Windows lacks, and what a stand-alone server does not need."""
    code = """
        import sys
        for name in ("fcntl", "resource", "pwd", "grp", "termios", "uvloop", "nats", "structlog"):
            sys.modules[name] = None
        import asyncio
        from tipoff_gameserver import Game, GameServer
        async def main():
            async with GameServer(Game(), stand_alone=True, listen="127.0.0.1:0") as server:
                print(server.url)
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ws://127.0.0.1:")
