"""A whole tipoff on an emulated Edgegap: emulator, httpd for its webhooks, matchmaker, and players that ask."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.matchmaker.world import FAST, KEY, World
from tipoff_edgegap_emulator import Deployment, Emulator, Options, Rules, running_emulator
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_matchmaker.settings import Settings as MatchmakerSettings
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings as HttpdSettings
from tipoff_orchestrator_client.edgegap.orchestrator import EdgegapOrchestrator
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.registry import open_edgegap
from tipoff_shared.games import EdgegapSpec, Game, Games, ProcessSpec
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import SessionState
from tipoff_shared.settings import NatsSettings

HOOK_KEY = "nobody can guess this key"


def sleeper(**more: Any) -> Game:
    """A game whose server is nothing but a process that runs: ready as soon as Edgegap says so."""
    return Game(
        "arena",
        "1",
        **{
            "seats": 4,
            "max_deployments": 10,
            "empty_ttl": 0.3,
            "orchestrator": "edgegap",
            "ready": "running",
            "request_timeout": 10.0,
            "start_timeout": 5.0,
            "edgegap": EdgegapSpec("arena-app", "v1", port="game"),
            "process": ProcessSpec(["./server.sh"]),
        }
        | more,
    )


def with_sessions(game: Game, kind: str = "seat", **more: Any) -> Game:
    """The same game, its seats counted by Edgegap."""
    spec = msgspec.structs.replace(game.edgegap or EdgegapSpec("arena-app", "v1"), kind=kind)  # type: ignore[arg-type] # by test
    return msgspec.structs.replace(game, orchestrator="edgegap-sessions", edgegap=spec, **more)


class EdgegapWorld(World):
    """Made by `running`. `players` ask as in `matchmaker_world`."""

    emulator: Emulator
    games: Games
    edgegap_settings: Settings
    matchmakers: list[Matchmaker]

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        nats: NatsSettings,
        tmp_path: Path,
        *games: Game,
        hooks: bool = False,
        matchmaker: bool = True,
        rules: Rules | None = None,
        changes: dict[str, Any] | None = None,
        httpd_settings: dict[str, Any] | None = None,
        **edgegap: Any,
    ) -> AsyncIterator[EdgegapWorld]:
        """`hooks`: Edgegap can call; else polling. `changes` are the matchmaker's settings, `edgegap` those of
        `TIPOFF_EDGEGAP_...`."""
        (tmp_path / "server.sh").write_text("#!/bin/sh\nexec sleep 300\n")
        (tmp_path / "server.sh").chmod(stat.S_IRWXU)
        all_games = games or (sleeper(),)
        known = Games({game.key: game for game in all_games}, {game.key: KEY for game in all_games}, tmp_path)
        async with AsyncExitStack() as stack:
            options = Options(rules=rules or Rules(start_delay=0.2))
            emulator = await stack.enter_async_context(
                running_emulator(known, options, logs=tmp_path / "logs")
            )
            bus = await stack.enter_async_context(connect(nats, name="world"))
            world = await stack.enter_async_context(cls(bus, nats))
            world.emulator, world.games, world.matchmakers = emulator, known, []
            hook_url = ""
            if hooks:
                httpd = await stack.enter_async_context(
                    run_httpd(HttpdSettings.load(port=0, hook_key=HOOK_KEY, **(httpd_settings or {})), nats)
                )
                stack.push_async_callback(world.hang_up)
                hook_url = f"http://127.0.0.1:{httpd.port}"
            given: dict[str, Any] = {
                "url": emulator.url,
                "token": emulator.token,
                "hook_url": hook_url,
                "hook_key": HOOK_KEY,
                "poll_first": 0.1,
                "poll_slowest": 0.5,
                "nats_user": nats.user,
                "nats_password": nats.password.reveal(),
            }
            world.edgegap_settings = Settings(**(given | edgegap))
            if matchmaker:
                await stack.enter_async_context(world.another_matchmaker(**(changes or {})))
            yield world

    @asynccontextmanager
    async def another_matchmaker(self, **changes: Any) -> AsyncIterator[Matchmaker]:
        """With orchestrators of its own, as every process has."""
        settings = MatchmakerSettings(**(FAST | changes))
        names = {game.orchestrator for game in self.games.all()}
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect(self.nats_settings, name="edgegap"))
            await create_buckets(bus)
            opened = await stack.enter_async_context(
                open_edgegap(names, bus, self.games, self.edgegap_settings)
            )
            running = await stack.enter_async_context(
                run_matchmaker(settings, self.games, self.nats_settings, opened)
            )
            self.matchmakers.append(running)
            yield running

    @asynccontextmanager
    async def orchestrator(self, **changes: Any) -> AsyncIterator[EdgegapOrchestrator]:
        """One by itself, without a matchmaker."""
        settings = self.edgegap_settings.model_copy(update=changes)
        async with open_edgegap(["edgegap"], self.bus, self.games, settings) as opened:
            found = opened["edgegap"]
            assert isinstance(found, EdgegapOrchestrator)
            yield found

    @asynccontextmanager
    async def session_servers(self) -> AsyncIterator[SessionServers]:
        async with open_edgegap(["edgegap-sessions"], self.bus, self.games, self.edgegap_settings) as opened:
            found = opened["edgegap-sessions"]
            assert isinstance(found, SessionServers)
            yield found

    async def hang_up(self) -> None:
        """Close Edgegap's connections to httpd before httpd ends: asyncio's transports do not like to be reset while
        nobody reads them."""
        await self.emulator.close_webhook_connections()

    @property
    def alive(self) -> list[Deployment]:
        """What runs, or is about to, at Edgegap."""
        return self.emulator.state.living()

    async def living(self, count: int) -> bool:
        return len(self.alive) == count

    async def all_are_told_to_stop(self) -> bool:
        return bool(self.emulator.count("stop")) and all(one.stop_wanted for one in self.alive)

    async def no_session_is_left(self) -> None:
        """Neither here nor at Edgegap."""

        async def clean() -> bool:
            sessions = (await self.buckets.sessions.list()).values()
            return (
                not self.emulator.sessions
                and not await self.buckets.edgegap_sessions.list()
                and all(entry.value.state is SessionState.GONE for entry in sessions)
            )

        await self.eventually(clean, "no session is left")

    async def _leftovers(self, servers: int) -> list[str]:
        sessions = [entry.value for entry in (await self.buckets.sessions.list()).values()]
        left = [f"session {s.state}: {s.reason}" for s in sessions if s.state is not SessionState.GONE]
        live = await self.deployments()
        left += [f"seat {seat} on {record.id}" for record in live for seat in record.seats]
        if len(live) != servers:
            left.append(f"deployments {[(r.id, r.state.value) for r in live]}, not {servers}")
        if len(self.alive) != servers:
            left.append(f"at Edgegap {[one.request_id for one in self.alive]}")
        if self.emulator.sessions:
            left.append(f"sessions at Edgegap {[one.session_id for one in self.emulator.sessions]}")
        left += [f"part in a session {key}" for key in await self.buckets.edgegap_sessions.list()]
        return left


async def leave(world: World, bus: Bus, session_id: str) -> None:
    """What a game server writes when a player came and left."""
    await world.buckets.active_connections.put(session_id, "1")
    await world.session_becomes(session_id, SessionState.ACTIVE)
    await world.buckets.active_connections.delete(session_id)
