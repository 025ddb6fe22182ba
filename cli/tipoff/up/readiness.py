"""Finds out whether the system of `tipoff up` is ready, and says so in the terminal, at the start and later."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from tipoff.up.child_process import ChildProcess
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Game
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentState

READY_TIMEOUT = 30.0
PLAYABLE_WITHIN = 5.0
"""Seconds from then on in which the servers kept ready (`min_ready`) should have announced themselves."""
_LOOK_EVERY = 2.0
_GAME = "game "
"""What a problem of one game's servers begins with: they are the developer's, and `up` goes on without them."""


class Readiness(msgspec.Struct, frozen=True):
    """httpd's answer: what is missing to serve players, and what does not work for some of them."""

    ready: bool = False
    missing: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """What is wrong with parts of the system, not with a game's servers."""
        return tuple(text for text in (*self.missing, *self.degraded) if not text.startswith(_GAME))


@dataclass(frozen=True, slots=True)
class Door:
    """Where httpd listens: `host` may stand for all addresses."""

    host: str
    port: int
    tls: bool

    def ask(self) -> Readiness:
        """httpd's readiness. Blocks for up to 3 s, raises nothing."""
        address = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 # compared, not bound
        if self.tls:
            context = ssl.create_default_context()
            # The server is ours; the question is only whether it is up.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address, self.port, timeout=3, context=context
            )
        else:
            connection = http.client.HTTPConnection(address, self.port, timeout=3)
        try:
            connection.request("GET", "/readyz")
            return msgspec.json.decode(connection.getresponse().read(65536), type=Readiness)
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as exc:
            return Readiness(missing=(f"httpd: {exc}",))
        finally:
            connection.close()


async def wait_until_ready(
    door: Door, launcher: LauncherOrchestrator | None, children: Sequence[ChildProcess], stop: asyncio.Event
) -> bool:
    """True when httpd is ready, every process runs and the launcher answers; False when `stop` came first. Raises
    `Unavailable` with the reason when a process does not start or `READY_TIMEOUT` is over."""
    deadline = time.monotonic() + READY_TIMEOUT
    why: tuple[str, ...] = ()
    while time.monotonic() < deadline and not stop.is_set():
        for child in children:
            if child.fails_to_start:
                raise Unavailable(f"{child.name} does not start: {child.last_words()}")
        why = (await asyncio.to_thread(door.ask)).parts or await _not_up(launcher, children)
        if not why:
            return True
        await asyncio.sleep(0.02)  # before any player; nothing announces its readiness in another way
    if stop.is_set():
        return False
    logs = children[0].spec.log_path.parent
    raise Unavailable(f"not ready after {READY_TIMEOUT:.0f} s: {'; '.join(why)}; the logs are in {logs}")


async def wait_until_playable(bus: Bus, games: Sequence[Game], stop: asyncio.Event) -> list[Game]:
    """Wait until each game with `min_ready` has a server that has announced itself; the games that have none when
    `PLAYABLE_WITHIN` is over or `stop` is set."""
    deadline = time.monotonic() + PLAYABLE_WITHIN
    while True:
        missing = await _without_server(bus, games)
        if not missing or stop.is_set() or time.monotonic() >= deadline:
            return missing
        await asyncio.sleep(0.05)  # before any player


async def tell_playable(bus: Bus, games: Sequence[Game], say: Callable[[str], None]) -> None:
    """Say of each of these games when it has a server, until all have one."""
    left = list(games)
    while left:
        await asyncio.sleep(_LOOK_EVERY)
        missing = await _without_server(bus, left)
        for game in left:
            if game not in missing:
                say(f"{game.name} {game.version} has a server now")
        left = missing
    say("ready: every game has a server")


async def _without_server(bus: Bus, games: Sequence[Game]) -> list[Game]:
    wanted = [game for game in games if game.min_ready]
    if not wanted:
        return []
    try:
        records = [entry.value for entry in (await buckets(bus).deployments.list()).values()]
    except Unavailable:
        return wanted
    ready = {(record.game, record.version) for record in records if record.state is DeploymentState.READY}
    return [game for game in wanted if game.key not in ready]


async def _not_up(launcher: LauncherOrchestrator | None, children: Sequence[ChildProcess]) -> tuple[str, ...]:
    """The parts that `/readyz` does not know to be down: it sees only what a matchmaker asks."""
    found = [f"{child.name}: {child.last_words()}" for child in children if not child.well]
    if not found and launcher is not None:
        try:
            await launcher.list()
        except OrchestratorError as exc:
            found.append(f"launcher: {exc}")
    return tuple(found)


async def tell_readiness(door: Door, children: Sequence[ChildProcess], say: Callable[[str], None]) -> None:
    """Say when the system is not ready any more, why, and when it is again, until cancelled."""
    told: tuple[str, ...] = ()
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        found = await asyncio.to_thread(door.ask)
        loops = tuple(f"{child.name} is in a restart loop" for child in children if child.loops)
        problems = (*loops, *found.missing, *found.degraded)
        for problem in problems:
            if _kind(problem) not in map(_kind, told):
                say(f"{'not ready' if loops or found.missing else 'ready, but'}: {problem}")
        if told and not problems:
            say("ready again")
        told = problems


def _kind(problem: str) -> str:
    """What a problem is about: a text with other details is no news."""
    return problem.partition(":")[0]
