"""Runs a matchmaker: opens what it needs, starts its parts (compose.py) in order, and stops them in order.

Any number of matchmakers may run on one NATS; they share requests by a queue group and everything else by
compare-and-set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from nats.aio.msg import Msg

from tipoff_matchmaker.compose import Parts, compose
from tipoff_matchmaker.errors import ShuttingDown
from tipoff_matchmaker.isolated.rules import check_games
from tipoff_matchmaker.requests.subscription import QUEUE
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import ServerDirectory
from tipoff_orchestrator_client.registry import known_orchestrators, open_orchestrators, orchestrator_names
from tipoff_shared.errors import ConfigError, Malformed, Unavailable
from tipoff_shared.games import Games
from tipoff_shared.games.revision import published
from tipoff_shared.games.toml import load_games
from tipoff_shared.games_follower import CURRENT
from tipoff_shared.health import HealthFile
from tipoff_shared.health_report import NOTHING, header_text
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import connect
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.service import load_settings, run_service, wait_until_stopped
from tipoff_shared.settings import NatsSettings
from tipoff_shared.subjects import DEAF_HEADER, HEALTH_HEADER

log = logging.getLogger("tipoff.matchmaker")


class Matchmaker:
    """A running matchmaker. `parts` are for those who look inside: tests and benchmarks."""

    def __init__(self, parts: Parts, loops: Tasks, failed: asyncio.Event) -> None:
        self.parts = parts
        self.failed = failed
        """Set when one of the loops that must not end has failed: start a new process."""
        self._loops = loops
        self._stopping = False

    async def start(self) -> None:
        """Learn what is written down, compare it with what runs, begin to follow it, then take requests."""
        parts = self.parts
        try:
            await parts.published.refresh()
        except Unavailable as exc:
            log.warning("the games are those of the file until NATS tells the published ones: %s", exc)
        await self.follow()
        self._loops.start(parts.delete_queue.run(), "delete queue")
        subjects, subscribe = parts.bus.subjects, parts.bus.subscribe
        await subscribe(subjects.contexts, self._context, queue=QUEUE)
        await subscribe(subjects.ping_matchmaker, self._ping, queue=QUEUE)
        await parts.requests.open()
        await parts.gensession.open()
        await parts.admin.open()
        await parts.bus.flush()

    async def follow(self) -> None:
        """Start everything that runs without requests."""
        parts, start = self.parts, self._loops.start
        if parts.event_secret is not None:
            await parts.event_secret.ensure()
        if parts.auth_callout is not None:
            await parts.auth_callout.open()
        await parts.deployments.refresh()
        await parts.liveness.refresh(at_start=True)
        parts.planner.run(self._loops)
        await parts.lease.seek()
        await parts.reconciler.once()
        start(parts.lease.run(parts.reconciler.soon), "reconciler lease")
        parts.bus.on_reconnect(self._nats_is_back)
        start(parts.reconciler.run(), "reconciler")
        start(parts.write_probe.run(), "write probe")
        start(parts.deadlines.run(), "deadlines")
        await parts.bans.open()
        start(parts.ban_follower.run(), "bans")
        start(parts.published.run(), "published games")
        start(parts.mappings.run(), "mappings")
        start(parts.presence_reader.connections(), "connections")
        start(parts.presence_reader.leases(), "leases")
        if parts.event_reader is not None:
            start(parts.event_reader.run(), "events")
        if parts.event_probe is not None:
            start(parts.event_probe.run(), "event probe")
        if parts.disconnector is not None:
            start(parts.disconnector.run(), "connections of ended servers")
        start(parts.deployments.follow(), "deployments")
        if parts.edgegap is not None:
            start(parts.edgegap.run(), "edgegap sessions")
        for name, orchestrator in parts.orchestrators.items():
            start(parts.liveness.follow(orchestrator), f"events of {name}")

    async def stop(self) -> None:
        """In this order: take no more requests; answer those without a server, so that they are repeated elsewhere;
        finish those in hand; then stop what answers others."""
        parts = self.parts
        self._stopping = True
        await parts.lease.give_up()
        await parts.requests.stop_taking()
        parts.router.close(ShuttingDown())
        await parts.requests.drain(parts.settings.drain_timeout)
        await parts.pending.settle(timeout=1)
        await parts.router.settle(timeout=3)
        await parts.gensession.stop()
        await parts.admin.stop()
        await parts.mappings.put_all_again()

    def _nats_is_back(self) -> None:
        self.parts.lease.soon()
        self.parts.reconciler.soon()
        self._loops.start(self._recreate_buckets(), "buckets")

    async def _recreate_buckets(self) -> None:
        """A NATS that comes back without its data has no buckets: create them. Tries until they exist, or NATS is away
        again; where they exist, nothing happens."""
        parts = self.parts
        tries = 0
        while parts.bus.connected:
            try:
                await create_buckets(parts.bus)
                if parts.event_secret is not None:
                    await parts.event_secret.ensure()
            except (Unavailable, LostRace) as exc:
                tries += 1
                log.info("%s; again soon", exc)
                await asyncio.sleep(backoff(tries, 0.2))
            else:
                return

    async def _ping(self, msg: Msg) -> None:
        if not msg.reply or self._stopping:
            return
        headers: dict[str, str] = {}
        if (report := self.parts.health.report()) != NOTHING:
            headers[HEALTH_HEADER] = header_text(report)
        if self.parts.hearing.deaf:
            headers[DEAF_HEADER] = "1"
        await self.parts.bus.publish(msg.reply, self.parts.settings.instance.encode(), headers or None)

    async def _context(self, msg: Msg) -> None:
        if not self.parts.handlers.submit(lambda: self.parts.contexts.received(msg.data)):
            log.warning("a game server's context is left to the reconciler: too much in hand")


@asynccontextmanager
async def run_matchmaker(
    settings: Settings,
    games: Games,
    nats_settings: NatsSettings,
    orchestrators: Mapping[str, ServerDirectory] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Matchmaker]:
    """A matchmaker that serves, for the time of the block. Leaving drains it (within `settings.drain_timeout`).

    `orchestrators`: name -> orchestrator, which stay the caller's; None opens those that the games name, on the
    matchmaker's own connection. Raises `Unavailable` when NATS cannot be reached or has no JetStream, `ConfigError`
    for a game whose orchestrator is unknown.
    """
    if settings.profile == "isolated":
        check_games(games.all())
    name = f"matchmaker {settings.instance}"
    failed = asyncio.Event()
    async with AsyncExitStack() as stack:
        # Left in reverse: first no more work is taken and what is in hand is finished (`stop`), then the background
        # tasks end, then the orchestrators' clients and the connection close.
        bus = await stack.enter_async_context(connect(nats_settings, name=name))
        buckets = await create_buckets(bus)
        if orchestrators is None:
            orchestrators = await stack.enter_async_context(
                open_orchestrators(await _orchestrators(games, buckets), bus, games)
            )
        tasks = await stack.enter_async_context(Tasks(name))
        loops = await stack.enter_async_context(Tasks(name, lambda exc: failed.set()))
        account_key = None
        if settings.profile == "isolated":
            account_key = await asyncio.to_thread(read_account_key, settings)
        parts = compose(settings, games, bus, buckets, orchestrators, tasks, clock, account_key)
        matchmaker = Matchmaker(parts, loops, failed)
        stack.enter_context(parts.metrics.serve(settings.metrics_host, settings.metrics_port))
        await stack.enter_async_context(parts.peers.listening(loops, parts.health.beat))
        stack.push_async_callback(matchmaker.stop)
        await matchmaker.start()
        log.info("matchmaker %s serves %d game(s)", settings.instance, len(games.all()))
        yield matchmaker


async def _orchestrators(games: Games, buckets: Buckets) -> list[str]:
    """The orchestrators of the games in the file, and those of the published games that are installed here."""
    names = orchestrator_names(games.all())
    with contextlib.suppress(Unavailable, Malformed):  # said when the games are followed
        if (entry := await buckets.games.get(CURRENT)) is not None:
            known = known_orchestrators()
            more = orchestrator_names(published(entry.value)[0].values())
            names += [name for name in more if name in known and name not in names]
    return names


def read_account_key(settings: Settings) -> AccountKey | None:
    """The key of `server_auth_seed_file`; None without one. Raises `ConfigError`."""
    file = settings.server_auth_seed_file
    if file is None:
        log.warning(
            "game servers share one NATS user, so one of them can keep the others from being heard; "
            "TIPOFF_MATCHMAKER_SERVER_AUTH_SEED_FILE gives each its own"
        )
        return None
    try:
        return AccountKey.parse(file.read_text())
    except OSError as exc:
        raise ConfigError(
            f"TIPOFF_MATCHMAKER_SERVER_AUTH_SEED_FILE={file}: {exc.strerror}; `tipoff secrets init` makes it"
        ) from exc
    except (Malformed, UnicodeError):
        raise ConfigError(
            f"TIPOFF_MATCHMAKER_SERVER_AUTH_SEED_FILE={file} holds no seed of an account (SA...); "
            "`tipoff secrets init` makes one as nats/server-auth.seed"
        ) from None


async def serve(stop: asyncio.Event) -> int:
    """Serve until `stop` (0), or until NATS is gone for good or a part has failed (1): a supervisor then starts a new
    process. Raises `ConfigError` and `Unavailable`."""
    settings = load_settings(Settings)
    async with (
        run_matchmaker(settings, load_games(settings.games), NatsSettings.from_environment()) as matchmaker,
        Tasks("matchmaker's health") as tasks,
    ):
        bus = matchmaker.parts.bus
        tasks.start(HealthFile().beat(lambda: bus.connected), "health file")
        return await wait_until_stopped(stop, bus.closed, matchmaker.failed)


def main() -> None:
    """`python -m tipoff_matchmaker`; the exit codes are those of `tipoff_shared.service`."""
    run_service("matchmaker", serve)
