"""A game that hangs gets nobody new, and ends; the lease follows the game, not the event loop."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.real_servers import active, real_world
from tests.gameserver.players import Recorder, by_udp, by_websocket, token_for
from tests.matchmaker.world import ARENA
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, Player
from tipoff_gameserver import patience as patience_module
from tipoff_gameserver.failures import GameFailed
from tipoff_gameserver.patience import Patience, Verdict, in_development
from tipoff_gameserver.players.dispatch import Dispatcher
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import Failed
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import LeaseState, SessionState
from tipoff_shared.settings import NatsSettings

pytestmark = pytest.mark.row(74)


class Hanging(Recorder):
    """The callback `where` waits until `go_on` is set."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.go_on = asyncio.Event()
        self.hangs = asyncio.Event()

    async def _at(self, where: str) -> None:
        if where == self.where:
            self.hangs.set()
            await self.go_on.wait()

    async def on_join(self, player: Player) -> None:  # type: ignore[override]  # a coroutine is allowed, too
        super().on_join(player)
        await self._at("on_join")

    async def on_message(self, player: Player, data: bytes) -> None:
        super().on_message(player, data)
        await self._at("on_message")

    async def tick(self, server: GameServer, dt: float) -> None:
        if server.players:
            await self._at("tick")

    async def on_leave(self, player: Player, reason: Any) -> None:  # type: ignore[override]  # see on_join
        super().on_leave(player, reason)
        await self._at("on_leave")


async def lease_says(kv: Buckets, state: LeaseState, reason: str) -> bool:
    """Whether the lease, if it has not expired on a slow machine, has this state and reason."""
    entry = await kv.gameservers.get("arena-1")
    return entry is not None and entry.value.state is state and reason in entry.value.reason


@pytest.mark.slow  # a lease and the time-out
@pytest.mark.parametrize("where", ["on_join", "on_message", "tick", "on_leave"])
async def test_after_one_lease_nobody_new_is_let_in_and_after_the_time_out_the_server_ends(
    deployment: Context, kv: Buckets, where: str
) -> None:
    """Whatever the callback is. The failure names it."""
    game = Hanging(where)
    context = replace(deployment, lease_ttl=1)
    server = GameServer(game, context=context, callback_timeout=3)
    await server.__aenter__()
    async with by_udp(token_for(server, "s1")):
        async with by_udp(token_for(server, "s2")) as player:
            player.send(b"hello")
            if where == "on_leave":
                await game.saw("join", 2)
        await asyncio.wait_for(game.hangs.wait(), 5)
        why = f"the game's {where} has not returned"
        await eventually(lambda: lease_says(kv, LeaseState.DRAINING, why), "the lease says draining, and why")
        async with by_websocket(server, token_for(server, "s3")) as late:
            assert isinstance(late.answer, Failed)
            assert "about to end" in late.answer.message
        async with asyncio.timeout(10):
            await server.wait_ended()
        assert server.state is LeaseState.ENDED
        await eventually(lambda: lease_says(kv, LeaseState.ENDED, why), "the lease says ended, and why")
    with pytest.raises(GameFailed, match=f"the game's {where} has not returned for [3-9] s"):
        await server.__aexit__(None, None, None)


async def test_a_game_that_comes_back_plays_on_with_those_who_are_there(
    deployment: Context, kv: Buckets
) -> None:
    """It stays draining: the matchmaker has sent nobody since, and starts another server."""
    game = Hanging("on_message")
    async with (
        GameServer(game, context=replace(deployment, lease_ttl=1)) as server,
        by_udp(token_for(server, "s1")) as player,
    ):
        player.send(b"hello")
        await eventually(lambda: server.state is LeaseState.DRAINING, "nobody new is let in")
        game.go_on.set()
        assert await player.receive() == b"hello"
        player.send(b"again")
        assert await player.receive() == b"again"
        assert server.state is LeaseState.DRAINING


async def test_a_server_whose_end_is_cut_short_leaves_no_socket_open(deployment: Context) -> None:
    """Its caller does not wait until the game's callback returns."""
    game = Hanging("on_message")
    server = GameServer(game, context=deployment)
    await server.__aenter__()
    assert server.transports.udp is not None
    port = server.transports.udp.port
    async with by_udp(token_for(server, "s1")) as player:
        player.send(b"hello")
        await asyncio.wait_for(game.hangs.wait(), 5)
        ending = asyncio.create_task(server.__aexit__(None, None, None))
        assert not (await asyncio.wait((ending,), timeout=0.2))[0], "it waits for the game"
        ending.cancel()
        await asyncio.wait((ending,))
        assert ending.cancelled()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))


@pytest.mark.slow  # three leases and the time that the server gets
async def test_the_session_ends_with_the_reason(settings: NatsSettings) -> None:
    """The matchmaker tells it to whoever asks for the session; the next player gets another server."""
    async with real_world(settings) as (world, servers), world.matchmaker(ARENA):
        game = Hanging("on_message")
        servers.make_game = lambda: game
        servers.options = {"callback_timeout": 2}
        async with active(world) as (ready, player):
            servers.make_game, servers.options = Recorder, {}
            player.send(b"hello")
            session = await world.session_becomes(ready.session_id, SessionState.GONE, timeout=15)
            assert "the game's on_message has not returned for" in session.reason
            assert (await world.play()).deployment_id != ready.deployment_id


class Looks:
    """The server's looks at its game, one a second, seen by the health file that it touches at each; and its clock,
    which `jump` puts forward."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._ahead = 0.0
        monkeypatch.setenv("TIPOFF_HEALTH_FILE", str(path))
        clock = time.perf_counter
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + self._ahead)

    async def jump(self, seconds: float) -> None:
        """Let so many seconds pass at once, and wait until the server has looked at its game."""
        await eventually(self._path.exists, "the first look")
        before = self._path.stat().st_mtime_ns
        self._ahead += seconds
        await eventually(lambda: self._path.stat().st_mtime_ns > before, "the next look")


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(tmp_path / "health", monkeypatch)


@pytest.mark.parametrize("debugged", [True, False])
async def test_in_a_debugger_a_game_may_wait(
    deployment: Context, looks: Looks, monkeypatch: pytest.MonkeyPatch, debugged: bool
) -> None:
    """Longer than the time-out, after which it is ended elsewhere."""
    monkeypatch.setattr("tipoff_gameserver.running.in_development", lambda: debugged)
    game = Hanging("on_message")
    with nullcontext() if debugged else pytest.raises(GameFailed):
        async with (
            GameServer(game, context=replace(deployment, lease_ttl=1), callback_timeout=1) as server,
            by_udp(token_for(server, "s1")) as player,
        ):
            player.send(b"hello")
            await asyncio.wait_for(game.hangs.wait(), 5)
            await looks.jump(1.5)
            assert server.state is (LeaseState.READY if debugged else LeaseState.ENDED)
            game.go_on.set()
            assert await player.receive() == b"hello"


def test_a_debugger_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    for name in ("pydevd", "debugpy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert in_development() is bool(sys.flags.dev_mode)
    monkeypatch.setitem(sys.modules, "debugpy", patience_module)
    assert in_development()


@pytest.mark.parametrize(
    ("seconds", "end_after", "verdict"),
    [
        (9.9, 60, Verdict.FINE),
        (10, 60, Verdict.DRAIN),
        (60, 60, Verdict.END),
        (1e6, None, Verdict.DRAIN),
        (3, 2, Verdict.END),
    ],
)
def test_how_long_a_game_may_keep_all_waiting(
    seconds: float, end_after: float | None, verdict: Verdict
) -> None:
    assert Patience(10, end_after).judge(seconds) is verdict


async def test_a_game_that_returns_but_falls_behind_hangs_too() -> None:
    """Each call takes four seconds, and each waits for all before it."""
    now = 0.0
    returns: list[asyncio.Event] = []

    async def slow() -> None:
        returns.append(asyncio.Event())
        await returns[-1].wait()

    async with Tasks("test") as tasks:
        dispatcher = Dispatcher(tasks, lambda *_: None, lambda: now)
        for _ in range(4):
            dispatcher.post("on_message", slow)
        behind = []
        for number in range(4):
            await eventually(lambda: len(returns) == number + 1, "the next is called")  # noqa: B023  # awaited here
            now += 4.0
            late = dispatcher.late()
            assert late is not None
            behind.append((late.awaited, late.behind))
            returns[number].set()
        assert behind == [(4.0, 4.0), (4.0, 8.0), (4.0, 12.0), (4.0, 4.0)]


async def test_a_process_that_was_stopped_is_no_game_that_hangs(deployment: Context, looks: Looks) -> None:
    """SIGSTOP, or a machine that was suspended: the time in which nothing ran does not count."""
    game = Hanging("on_message")
    async with (
        GameServer(game, context=replace(deployment, lease_ttl=5), callback_timeout=20) as server,
        by_udp(token_for(server, "s1")) as player,
    ):
        player.send(b"hello")
        await asyncio.wait_for(game.hangs.wait(), 5)
        await looks.jump(1000)
        assert server.state is LeaseState.READY
        game.go_on.set()


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_time_out_that_cannot_work_is_told_at_once(timeout: float) -> None:
    with pytest.raises(ValueError, match="callback_timeout"):
        GameServer(Recorder(), callback_timeout=timeout)
