"""Runs `tipoff up`: starts the whole system on this machine, says when it is ready, stops it in order.

Each part is a process: nats-server, launcher (or Edgegap's emulator), matchmaker, httpd. They start side by side and
wait for what they need; one that dies is started again. They stop in the order of a play request: httpd first, so that
no new player comes in; the matchmaker, which answers its pending requests; the launcher, which stops the game servers;
nats-server last. When this process is killed, Linux kills the others with it (PDEATHSIG), and the launcher's game
servers with the launcher.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from tipoff.operate.game_reports import report_games
from tipoff.operate.logs import LogLine
from tipoff.up.addresses import AUTO, Reach, find_reach, is_free, listen, listen_on_first, url_host
from tipoff.up.certificate import check_certificate
from tipoff.up.child_process import ChildProcess
from tipoff.up.compose import compose, write_missing_keys
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff.up.games_file import GamesFile
from tipoff.up.nats_keeper import NatsKeeper
from tipoff.up.options import UpOptions, check, check_games, check_open_files, few_open_files
from tipoff.up.readiness import Door, tell_playable, tell_readiness, wait_until_playable, wait_until_ready
from tipoff.up.reload import SourceFiles, keep_reloading
from tipoff.up.state_dir import (
    Ports,
    UpInfo,
    locked,
    read_ports,
    remove_up_info,
    usable,
    write_ports,
    write_up_info,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.file_limit import hard_file_limit
from tipoff_shared.games import Game, Games
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.nats.connection import connect

STOP_TIMEOUTS = {"httpd": 2.0, "matchmaker": 2.0, "launcher": 5.0}
"""Role -> seconds its processes have to stop, in the order in which they stop. nats-server takes 0.1 s, so that all
are gone within 10 s."""

USUAL_PORT = 3000
_NATS_BESIDE = 1222
_NEIGHBOURS = 100
"""So many ports from the usual one are tried before any free one is taken."""


@dataclass(frozen=True, slots=True)
class Running:
    """What the `ready` line shows; `took` is in seconds. `without_server`: the games that nobody can play yet, although
    a server of them should be kept ready."""

    urls: tuple[str, ...]
    nats_url: str
    took: float
    games: tuple[str, ...]
    without_server: tuple[str, ...]
    dashboard: str = ""
    """Its URL; "" where there is none."""


async def run_up(
    options: UpOptions,
    *,
    say: Callable[[str], None],
    show_line: Callable[[LogLine], None] | None = None,
    on_ready: Callable[[Running], None],
    stop: asyncio.Event,
) -> None:
    """Run until `stop` is set. `show_line` hears of every line that a game server writes. Raises `ConfigError` or
    `Unavailable` when it cannot start; then nothing is left."""
    began = time.monotonic()
    check(options)
    check_open_files(hard_file_limit())
    games = parse_games(read_games(options.games), str(options.games))
    current = Games({game.key: game for game in games}, {}, options.games.resolve().parent)
    secure = bool(options.tls_cert and options.tls_key)
    reach = await asyncio.to_thread(find_reach, options.host, secure=secure)
    check_games(options, games, reach)
    sources = SourceFiles(options.games, games, options.reload_include) if options.reload else None
    for warning in _warnings(options, reach):
        say(warning)
    with (
        usable(options.state_dir),
        locked(options.state_dir),
        ExitStack() as sockets,
    ):
        before = read_ports(options.state_dir) if options.port is None else Ports()
        door = [sockets.enter_context(sock) for sock in _listen(reach, options.port, before)]
        api = None
        if options.edgegap_emulator:
            api = sockets.enter_context(listen(reach.bind[:1], 0)[0])
        port: int = door[0].getsockname()[1]
        if options.port is None and port not in (before.page, USUAL_PORT):
            taken = before.page or USUAL_PORT
            say(f"port {taken} is in use by another program; the page is at port {port}, also the next time")
        logs = options.state_dir / "logs"
        logs.mkdir(exist_ok=True, mode=0o700)
        write_missing_keys(games, options.state_dir / "keys")
        say("starting nats-server")
        async with (
            LogWriter(logs) as writer,
            embedded_nats(
                options.state_dir / "nats",
                port=-1 if options.port is not None else _nats_port(port, before),
                log_file=logs / "nats.log",
                logs=writer,
            ) as nats,
            connect(nats.settings(options.namespace), name="tipoff up") as bus,
        ):
            if options.port is None:
                write_ports(options.state_dir, Ports(port, nats.port))
            await create_buckets(bus)
            games_file = GamesFile(options, current, reach, bus, say)
            await games_file.publish_first()
            specs = compose(options, games, nats, reach, door, api)
            scheme = "https" if secure else "http"
            urls = tuple(f"{scheme}://{url_host(host)}:{port}/" for host in reach.pages)
            children: list[ChildProcess] = []
            try:
                say(f"starting {', '.join(spec.name for spec in specs)}")
                for spec in specs:
                    children.append(await ChildProcess.start(spec, writer))  # noqa: PERF401 # stopped below, also when one fails
                async with asyncio.TaskGroup() as group:
                    launcher, httpd = LauncherOrchestrator(bus), Door(reach.bind[0], port, secure)
                    has_launcher = any(spec.name == "launcher" for spec in specs)
                    nats_keeper = NatsKeeper(nats, options.state_dir, say)
                    keepers = [group.create_task(child.keep(say)) for child in children]
                    keepers.append(group.create_task(nats_keeper.keep()))
                    if has_launcher:
                        reports = report_games(bus, launcher, current, say, show_line)
                        keepers.append(group.create_task(reports))
                    if await wait_until_ready(httpd, launcher if has_launcher else None, children, stop):
                        keepers.append(group.create_task(nats_keeper.watch_writes(bus)))
                        keepers.append(group.create_task(tell_readiness(httpd, children, say)))
                        keepers.append(group.create_task(games_file.follow(stop)))
                        write_up_info(options.state_dir, _up_info(options, nats, urls[0], reach))
                        missing = await wait_until_playable(bus, games, stop)
                        nats_url = nats.settings().servers[0]
                        took = time.monotonic() - began
                        on_ready(
                            Running(
                                urls,
                                nats_url,
                                took,
                                _names(games),
                                _names(missing),
                                "" if options.dashboard_from is None else urls[-1] + "_tipoff",
                            )
                        )
                        if missing:
                            keepers.append(group.create_task(tell_playable(bus, missing, say)))
                        if sources is not None:
                            reloading = keep_reloading(bus, sources, current, options, say, stop)
                            keepers.append(group.create_task(reloading))
                        await stop.wait()
                        say("stopping")
                    for keeper in keepers:
                        keeper.cancel()
            finally:
                remove_up_info(options.state_dir)
                for role, timeout in STOP_TIMEOUTS.items():
                    alike = [child for child in children if child.spec.role == role]
                    await asyncio.gather(*(child.stop(timeout) for child in alike))


def _listen(reach: Reach, port: int | None, before: Ports) -> list[socket.socket]:
    """The sockets of the page and the API. Raises `ConfigError`."""
    if port is not None:
        return listen(reach.bind, port)
    usual = range(USUAL_PORT, USUAL_PORT + _NEIGHBOURS)
    return listen_on_first(reach.bind, ((before.page, *usual) if before.page else usual))


def _nats_port(page: int, before: Ports) -> int:
    """That of the last time, else one that goes with the page's, which nobody else has: 4222 with 3000."""
    wanted = (before.nats, page + _NATS_BESIDE)
    return next((port for port in wanted if 0 < port < 65536 and is_free(port)), -1)


def _names(games: Iterable[Game]) -> tuple[str, ...]:
    return tuple(f"{game.name} {game.version}" for game in games)


def _warnings(options: UpOptions, reach: Reach) -> Iterator[str]:
    """What players will trip over. Raises `ConfigError` for a certificate that nobody could use."""
    if few := few_open_files(hard_file_limit()):
        yield few
    if options.host in AUTO and options.host != "auto":
        yield f"--host {options.host} means every address of this machine; players are told {reach.hosts[0]}"
    if options.tls_cert and options.tls_key:
        now = datetime.datetime.now(datetime.UTC)
        hosts = (*reach.pages, *reach.hosts)
        if warning := check_certificate(options.tls_cert, options.tls_key, hosts, now):
            yield warning
    elif not all(address.is_private for address in reach.addresses):
        yield (
            "without --tls-cert and --tls-key game servers open no WebSocket on a public address: "
            "programs can play by UDP, browsers cannot"
        )
    if reach.only_here and reach.name not in (None, "localhost"):
        yield f"{reach.name} is {reach.hosts[-1]} here (/etc/hosts?), so only players on this machine can play"


def _up_info(options: UpOptions, nats: EmbeddedNats, url: str, reach: Reach) -> UpInfo:
    settings = nats.settings()
    return UpInfo(
        os.getpid(),
        url,
        settings.servers[0],
        settings.user,
        settings.password.reveal(),
        options.namespace,
        games=str(options.games.resolve()),
        ports=options.ports,
        public_hosts=tuple(reach.hosts),
    )
