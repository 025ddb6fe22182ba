"""`tipoff up`: the whole system on this machine, on embedded defaults, until Ctrl-C.

Each part is a process of its own: nats-server, launcher (or Edgegap's emulator), matchmaker, httpd. They start side by
side and wait for what they need. One that dies is started again. The order of stopping: httpd first, so that nobody new
comes in; the matchmaker, which answers whom it has; the launcher, which stops the game servers; nats-server last.
Should this process be killed outright, Linux ends the parts with it (PDEATHSIG), and the launcher's servers with the
launcher.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from tipoff.embedded_nats import EmbeddedNats, embedded_nats
from tipoff.state_dir import UpInfo, locked, remove_up_info, write_up_info
from tipoff.up.addresses import listen, public_hosts
from tipoff.up.child_process import Part
from tipoff.up.options import UpOptions, check, check_orchestrators
from tipoff.up.readiness import wait_until_ready
from tipoff.up.server_news import tell_of_crashes
from tipoff.up.wiring import parts_of, write_missing_keys
from tipoff_shared.games.toml import parse_games, read_games

STOP_TIMEOUTS = {"httpd": 2.0, "matchmaker": 2.0, "launcher": 5.0}
"""Seconds each part has to end by itself; with nats-server's usual 0.1 s all are gone within 10 s."""


@dataclass(frozen=True, slots=True)
class Running:
    """What the `ready` line tells."""

    urls: tuple[str, ...]
    nats_url: str
    took: float
    games: tuple[str, ...]


async def run_up(
    options: UpOptions,
    *,
    say: Callable[[str], None],
    on_ready: Callable[[Running], None],
    stop: asyncio.Event,
) -> None:
    """Run until `stop` is set. Raises `ConfigError` or `Unavailable` when it cannot start; nothing is left then."""
    began = time.monotonic()
    games = parse_games(read_games(options.games), str(options.games))
    check(options)
    check_orchestrators(options, games)
    hosts, bind = public_hosts(options.host)
    if not options.tls_cert and not all(ipaddress.ip_address(host).is_private for host in hosts):
        say(
            "without --tls-cert and --tls-key game servers open no WebSocket on a public address: "
            "programs can play by UDP, browsers cannot"
        )
    with (
        locked(options.state_dir),
        listen(bind, options.port) as door,
        listen(bind, 0) if options.edgegap_emulator else nullcontext() as api,
    ):
        port: int = door.getsockname()[1]
        logs = options.state_dir / "logs"
        logs.mkdir(exist_ok=True, mode=0o700)
        write_missing_keys(games, options.state_dir / "keys")
        say("starting nats-server")
        async with embedded_nats(options.state_dir / "nats", log_file=logs / "nats.log") as nats:
            parts = parts_of(options, games, nats, hosts, door, logs, api)
            scheme = "https" if options.tls_cert else "http"
            urls = tuple(f"{scheme}://{host}:{port}/" for host in hosts)
            try:
                say(f"starting {', '.join(part.name for part in parts)}")
                for part in parts:
                    await part.start()
                async with asyncio.TaskGroup() as group:
                    keepers = [group.create_task(part.keep(say)) for part in parts]
                    keepers.append(group.create_task(_keep_nats(nats, say)))
                    keepers.append(group.create_task(tell_of_crashes(nats.settings(options.namespace), say)))
                    if await wait_until_ready(bind, port, bool(options.tls_cert), parts, stop):
                        settings = nats.settings()
                        write_up_info(
                            options.state_dir,
                            UpInfo(
                                os.getpid(),
                                urls[0],
                                settings.servers[0],
                                settings.user,
                                settings.password.reveal(),
                                options.namespace,
                            ),
                        )
                        names = tuple(f"{game.name} {game.version}" for game in games)
                        on_ready(Running(urls, settings.servers[0], time.monotonic() - began, names))
                        await stop.wait()
                        say("stopping")
                    for keeper in keepers:
                        keeper.cancel()
            finally:
                remove_up_info(options.state_dir)
                for role in STOP_TIMEOUTS:  # the order above; all of one role together
                    alike = [part for part in parts if _role(part) == role]
                    await asyncio.gather(*(part.stop(STOP_TIMEOUTS[role]) for part in alike))


def _role(part: Part) -> str:
    """Of whom it is stopped like: the emulator, too, ends its game servers."""
    name = part.name.split("-")[0]
    return "launcher" if name == "edgegap" else name


async def _keep_nats(nats: EmbeddedNats, say: Callable[[str], None]) -> None:
    while True:
        code = await nats.process.wait()
        say(f"nats-server ended ({_ending(code)}); starting it again")
        await nats.start()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
