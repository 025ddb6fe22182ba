"""A session's record says why it ended: in both profiles, on both transports, by real game servers."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from tests.faults.real_servers import RealServers, real_world
from tests.gameserver.players import Recorder, UdpPlayer, WebSocketPlayer, by_udp, by_websocket
from tests.isolated.world import IsolatedNats
from tests.matchmaker.world import ARENA, World
from tests.polling import eventually
from tipoff_gameserver import Player
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.sessions.state_machine import Ended
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionRecord, SessionState
from tipoff_shared.session_end import EndCause
from tipoff_shared.settings import NatsSettings

LASTING = msgspec.structs.replace(ARENA, empty_ttl=60, max_deployments=1, token_timeout=1, resume_ttl=0)


class Faulty(Recorder):
    """Fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails = fails

    def on_join(self, player: Player) -> None:
        super().on_join(player)
        if self.fails == "join":
            raise ValueError("no\nsuch map")

    def tick(self, server: object, dt: float) -> None:
        if self.fails == "tick" and self.happened:
            raise ZeroDivisionError("no time")


@dataclass(frozen=True, slots=True)
class Place:
    """A world, its real servers, and the profile of its matchmakers."""

    world: World
    servers: RealServers
    profile: Literal["trusted", "isolated"]

    @asynccontextmanager
    async def matchmaker(
        self, game: Callable[[], Recorder] = Faulty, resume_ttl: int = 0
    ) -> AsyncIterator[Matchmaker]:
        self.servers.make_game = game
        self.servers.options = {"max_tick_failures": 2}
        ours = msgspec.structs.replace(LASTING, resume_ttl=resume_ttl)
        async with self.world.matchmaker(ours, profile=self.profile) as matchmaker:
            yield matchmaker

    async def over(self, ready: SessionReady) -> SessionRecord:
        return await self.world.session_becomes(ready.session_id, SessionState.GONE, timeout=30)


@pytest.fixture(params=["trusted", "isolated"])
async def place(
    request: pytest.FixtureRequest, settings: NatsSettings, tmp_path: Path
) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        if request.param == "trusted":
            yield Place(*await stack.enter_async_context(real_world(settings)), "trusted")
            return
        nats = IsolatedNats(tmp_path / "isolated", "iso")
        await nats.server.start()
        stack.push_async_callback(nats.server.stop)
        eyes = await stack.enter_async_context(connect(nats.settings("eyes"), name="eyes"))
        world = await stack.enter_async_context(World(eyes, nats.settings("matchmaker")))
        servers = RealServers(world, nats.settings("gameserver"), lease_ttl=1)
        stack.push_async_callback(servers.close)
        yield Place(world, servers, "isolated")


AnyPlayer = UdpPlayer | WebSocketPlayer


@asynccontextmanager
async def in_the_game(place: Place, transport: str) -> AsyncIterator[tuple[SessionReady, AnyPlayer]]:
    ready = await place.world.play()
    if transport == "udp":
        # The game may end it before the client has been seen connected.
        async with by_udp(base64.b64decode(ready.token), wait=False) as player:
            yield ready, player
    else:
        async with by_websocket(place.servers.of(ready), base64.b64decode(ready.token)) as other:
            yield ready, other


async def seen(place: Place, ready: SessionReady) -> Player:
    """The game's player, once the game has it."""
    server = place.servers.of(ready)

    async def there() -> bool:
        return any(player.session_id == ready.session_id for player in server.players)

    await eventually(there, "the game has its player", 20)
    return next(player for player in server.players if player.session_id == ready.session_id)


@pytest.mark.row(101)
@pytest.mark.parametrize("transport", ["udp", "websocket"])
@pytest.mark.parametrize(
    ("fails", "cause", "reason"),
    [
        ("join", EndCause.GAME_FAILED, "the game failed: its on_join raised ValueError: no such map"),
        ("tick", EndCause.GAME_FAILED, "the game failed: the game's tick failed 2 times in a row, the last"),
    ],
)
async def test_a_session_that_a_game_s_exception_ended_says_so(
    place: Place, transport: str, fails: str, cause: EndCause, reason: str
) -> None:
    """With the exception, in one line: the record is the operator's."""
    async with place.matchmaker(lambda: Faulty(fails)) as matchmaker:
        async with in_the_game(place, transport) as (ready, _):
            session = await place.over(ready)
        assert (session.cause, session.reason[: len(reason)]) == (cause, reason)
        assert 0 < session.created_at <= session.ended_at
        assert counted(matchmaker, cause) == 1


@pytest.mark.row(101)
@pytest.mark.parametrize("transport", ["udp", "websocket"])
async def test_a_kick_and_a_goodbye_are_told_apart(place: Place, transport: str) -> None:
    """Both are deletions of the same key."""
    async with place.matchmaker() as matchmaker:
        async with in_the_game(place, transport) as (ready, _):
            (await seen(place, ready)).kick("no cheating, Zoë")
            session = await place.over(ready)
        assert (session.cause, session.reason) == (
            EndCause.KICKED,
            "the game kicked the player: no cheating, Zoë",
        )
        async with in_the_game(place, transport) as (ready, _):
            await seen(place, ready)
        session = await place.over(ready)
        assert (session.cause, session.reason) == (EndCause.LEFT, "the player left")
        assert counted(matchmaker, EndCause.KICKED) == counted(matchmaker, EndCause.LEFT) == 1


@pytest.mark.row(101)
async def test_a_connection_that_broke_is_no_goodbye(place: Place) -> None:
    """By UDP nothing comes for too long; by WebSocket the connection ends without a close."""
    async with place.matchmaker():
        async with in_the_game(place, "udp") as (silent, udp):
            assert isinstance(udp, UdpPlayer)
            await seen(place, silent)
            udp.silent = True
            session = await place.over(silent)
        assert (session.cause, session.reason) == (
            EndCause.TIMED_OUT,
            "the player's connection timed out",
        )
        async with in_the_game(place, "websocket") as (cut, web):
            assert isinstance(web, WebSocketPlayer)
            await seen(place, cut)
            web.ws.transport.abort()
            session = await place.over(cut)
        assert (session.cause, session.reason) == (EndCause.LOST, "the player's connection broke")


@pytest.mark.row(101)
async def test_a_seat_that_was_held_in_vain_ends_with_the_lost_connection(place: Place) -> None:
    """And says how long it waited."""
    async with place.matchmaker(resume_ttl=1):
        async with in_the_game(place, "websocket") as (cut, web):
            assert isinstance(web, WebSocketPlayer)
            await seen(place, cut)
            web.ws.transport.abort()
            session = await place.over(cut)
        assert (session.cause, session.reason) == (
            EndCause.TIMED_OUT,
            "the player's connection timed out: it did not come back within 1 s",
        )


@pytest.mark.row(101)
async def test_a_player_who_breaks_a_rule_is_said_to_have(place: Place) -> None:
    """The rule stands beside it."""
    async with place.matchmaker():
        async with in_the_game(place, "websocket") as (ready, web):
            assert isinstance(web, WebSocketPlayer)
            await web.ws.send("text")
            session = await place.over(ready)
        assert session.cause == EndCause.MISBEHAVED
        assert session.reason.startswith("the player broke a rule: messages are binary")


@pytest.mark.row(101)
@pytest.mark.parametrize(
    ("how", "cause", "text"),
    [
        ("crash", EndCause.SERVER_CRASHED, "the server crashed: exited with code 1; its last words: boom"),
        ("drain", EndCause.SERVER_STOPPED, "the server is wanted elsewhere"),
        ("match over", EndCause.SERVER_STOPPED, "blue won"),
        ("kick", EndCause.OPERATOR, "an operator said so"),
    ],
)
async def test_what_ends_a_whole_server_stands_in_its_sessions(
    place: Place, how: str, cause: EndCause, text: str
) -> None:
    """A crash, an operator, the end of the match."""
    world = place.world
    async with place.matchmaker() as matchmaker:
        async with in_the_game(place, "udp") as (ready, _):
            await seen(place, ready)
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            match how:
                case "crash":
                    reason = "exited with code 1; its last words: boom"
                    await world.fake.kill(ready.deployment_id, reason)
                case "drain":
                    matchmaker.parts.stopper.stop(ready.deployment_id, text)
                case "match over":
                    place.servers.of(ready).shutdown(text)
                case _:
                    await matchmaker.parts.sessions.apply(ready.session_id, Ended(text))
            session = await place.over(ready)
        assert (session.cause, session.reason) == (cause, text)
        assert counted(matchmaker, cause) == 1


def counted(matchmaker: Matchmaker, cause: EndCause) -> float:
    """How many ends with this cause its metrics show."""
    found = matchmaker.parts.metrics.registry.get_sample_value(
        "tipoff_matchmaker_sessions_ended_total", {"cause": cause}
    )
    return found or 0.0
