"""`tipoff up`: the whole system on this machine, on embedded defaults, until Ctrl-C.

Each part is a process of its own: nats-server, launcher (or Edgegap's emulator), matchmaker, httpd. They start side by
side and wait for what they need. One that dies is started again. The order of stopping: httpd first, so that nobody new
comes in; the matchmaker, which answers whom it has; the launcher, which stops the game servers; nats-server last.
Should this process be killed outright, Linux ends the parts with it (PDEATHSIG), and the launcher's servers with the
launcher.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import ipaddress
import logging
import os
import secrets
import signal
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tipoff.embedded_nats import EmbeddedNats, embedded_nats
from tipoff.parts import Part
from tipoff.server_news import tell_of_crashes
from tipoff.state_dir import UpInfo, locked, remove_up_info, write_up_info
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games import Game
from tipoff_shared.games_toml import key_file, parse_games, read_games
from tipoff_shared.netcode.keys import PrivateKey
from tipoff_shared.subjects import Subjects

log = logging.getLogger(__name__)

READY_TIMEOUT = 30.0
BACKLOG = 2048
STOP_TIMEOUTS = {"httpd": 2.0, "matchmaker": 2.0, "launcher": 5.0}
"""Seconds each part has to end by itself; with nats-server's usual 0.1 s all are gone within 10 s."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """`host`: "127.0.0.1", an address of this machine, or "auto" (this machine and its LAN address).
    `port` 0 is any free one. `web`: directory of the page at `/`; None is the built-in one. `edgegap_emulator`: games
    with `orchestrator = "edgegap"` run at an Edgegap of this machine's own."""

    games: Path
    state_dir: Path
    port: int = 3000
    host: str = "127.0.0.1"
    namespace: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    web: Path | None = None
    matchmakers: int = 1
    httpds: int = 1
    edgegap_emulator: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """What the `ready` line tells."""

    urls: tuple[str, ...]
    nats_url: str
    took: float
    games: tuple[str, ...]


def lan_address() -> str | None:
    """The IPv4 address by which this machine would leave for elsewhere; sends nothing. None when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.1", 9)
            )  # TEST-NET-1: connecting a datagram socket only asks the routing table
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") or address == "0.0.0.0" else address  # noqa: S104 # compared, not bound


def public_hosts(host: str) -> tuple[list[str], str]:
    """(addresses players dial, the first one the main one; address to bind) for `--host`."""
    if host != "auto":
        return [host], host
    lan = lan_address()
    return ([lan, "127.0.0.1"], "0.0.0.0") if lan else (["127.0.0.1"], "127.0.0.1")  # noqa: S104 # asked for by --host auto


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `port` (0: any free one); raises `ConfigError` saying what to do otherwise.

    `up` holds it and every httpd accepts from it: connections wait in it while an httpd restarts, and one that
    hangs takes no new ones.
    """
    # IPPROTO_TCP by name: asyncio turns Nagle's algorithm off only then.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} is in use by another program; choose another with --port"
            ) from exc
        if exc.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host} is not an address of this machine; `--host auto` finds one") from exc
        raise ConfigError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    return sock


def write_missing_keys(games: list[Game], directory: Path) -> None:
    """A new random key for every game that has none configured; only the owner can read them."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in directory.glob("*.key"):
        old.unlink()
    for game in games:
        if game.private_key_file or (game.private_key_env and os.environ.get(game.private_key_env)):
            continue
        descriptor = os.open(key_file(directory, game), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(PrivateKey.generate().reveal().hex())


def check(options: UpOptions) -> None:
    """What can be told before anything is started; raises `ConfigError`."""
    if bool(options.tls_cert) != bool(options.tls_key):
        raise ConfigError("--tls-cert and --tls-key belong together")
    Subjects(options.namespace)
    for name, path in (("--tls-cert", options.tls_cert), ("--tls-key", options.tls_key)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{name} {path}: no such file")
    if options.web is not None and not (options.web / "index.html").is_file():
        raise ConfigError(f"--web {options.web}: no index.html in it")
    if options.host != "auto":
        try:
            ipaddress.IPv4Address(options.host)
        except ValueError:
            raise ConfigError(f"--host {options.host}: an IPv4 address or `auto` is expected") from None


def check_orchestrators(options: UpOptions, games: list[Game]) -> None:
    """Raises `ConfigError` where the emulator would stand about without a game."""
    if options.edgegap_emulator and not any(game.edgegap is not None for game in games):
        raise ConfigError(
            f'--edgegap-emulator: no game in {options.games} is at Edgegap; give it orchestrator = "edgegap" and '
            "[game.edgegap] with application and version"
        )


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
            parts = _parts(options, games, nats, hosts, door, logs, api)
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
                    if await _wait_until_ready(bind, port, bool(options.tls_cert), parts, stop):
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


def _parts(
    options: UpOptions,
    games: list[Game],
    nats: EmbeddedNats,
    hosts: list[str],
    door: socket.socket,
    logs: Path,
    api: socket.socket | None,
) -> list[Part]:
    """`api`: where the emulator of Edgegap listens, if there is one."""
    common = os.environ | nats.settings(options.namespace).to_environment()
    common |= {
        "TIPOFF_GAMES": str(options.games.resolve()),
        "TIPOFF_KEYS_DIR": str((options.state_dir / "keys").resolve()),
    }
    launcher = {
        "TIPOFF_LAUNCHER_STATE_DIR": str((options.state_dir / "launcher").resolve()),
        "TIPOFF_LAUNCHER_PUBLIC_HOST": ",".join(hosts),
        "TIPOFF_LAUNCHER_DOCKER_OWNER": str((options.state_dir / "launcher").resolve()),
        "TIPOFF_LAUNCHER_DIE_WITH_PARENT": "true",
        "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": "true",
        "TIPOFF_LAUNCHER_STOP_GRACE": "3",  # within the launcher's own STOP_TIMEOUTS
        "TIPOFF_LAUNCHER_DEMO": "true",
    }
    matchmaker = {"TIPOFF_MATCHMAKER_TELL_REASONS": "true"}  # whoever plays here also develops the game
    httpd = {
        "TIPOFF_HTTPD_LISTEN_FD": str(door.fileno()),
        "TIPOFF_HTTPD_DEMO": "true",
    }
    if options.tls_cert and options.tls_key:
        files = {"CERT": str(options.tls_cert.resolve()), "KEY": str(options.tls_key.resolve())}
        httpd |= {f"TIPOFF_HTTPD_TLS_{name}": path for name, path in files.items()}
        launcher |= {f"TIPOFF_LAUNCHER_TLS_{name}": path for name, path in files.items()}
    if options.web:
        httpd["TIPOFF_HTTPD_WEB_DIR"] = str(options.web.resolve())
    starters: list[Part] = []
    if any(game.orchestrator == "launcher" for game in games):
        starters.append(Part("launcher", "tipoff_launcher", common | launcher, logs))
    if api is not None:
        edgegap = _edgegap(options, nats, door, api)
        matchmaker |= edgegap
        httpd |= {"TIPOFF_HOOK_KEY": edgegap["TIPOFF_HOOK_KEY"]}
        emulator = {
            "TIPOFF_EDGEGAP_EMULATOR_LISTEN_FD": str(api.fileno()),
            "TIPOFF_EDGEGAP_EMULATOR_HOST": "127.0.0.1" if hosts == ["127.0.0.1"] else "0.0.0.0",  # noqa: S104
            "TIPOFF_EDGEGAP_EMULATOR_PUBLIC_HOST": hosts[0],
            "TIPOFF_EDGEGAP_EMULATOR_LOGS": str((options.state_dir / "edgegap").resolve()),
        }
        module = "tipoff_orchestrator_client.edgegap.emulator"
        starters.append(
            Part("edgegap-emulator", module, common | edgegap | emulator, logs, pass_fds=(api.fileno(),))
        )
    return [
        *starters,
        *(
            Part(name, "tipoff_matchmaker", common | matchmaker, logs)
            for name in numbered("matchmaker", options.matchmakers)
        ),
        *(
            Part(name, "tipoff_matchmaker_httpd", common | httpd, logs, pass_fds=(door.fileno(),))
            for name in numbered("httpd", options.httpds)
        ),
    ]


def _edgegap(
    options: UpOptions, nats: EmbeddedNats, door: socket.socket, api: socket.socket
) -> dict[str, str]:
    """What the matchmaker and the emulator are told of each other. Holds secrets, made at random for this run."""
    settings = nats.settings()
    told = {
        "TIPOFF_EDGEGAP_URL": f"http://127.0.0.1:{api.getsockname()[1]}",
        "TIPOFF_EDGEGAP_TOKEN": str(uuid.uuid4()),
        "TIPOFF_HOOK_KEY": secrets.token_hex(32),
        "TIPOFF_EDGEGAP_NATS_USER": settings.user,
        "TIPOFF_EDGEGAP_NATS_PASSWORD": settings.password.reveal(),
    }
    if not options.tls_cert:  # the emulator would not take a certificate of one's own
        told["TIPOFF_EDGEGAP_HOOK_URL"] = f"http://127.0.0.1:{door.getsockname()[1]}"
    return told


def _role(part: Part) -> str:
    """Of whom it is stopped like: the emulator, too, ends its game servers."""
    name = part.name.split("-")[0]
    return "launcher" if name == "edgegap" else name


def numbered(name: str, count: int) -> list[str]:
    """`httpd`, or `httpd-1`, `httpd-2`, ... where there are several."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


async def _keep_nats(nats: EmbeddedNats, say: Callable[[str], None]) -> None:
    while True:
        code = await nats.process.wait()
        say(f"nats-server ended ({_ending(code)}); starting it again")
        await nats.start()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


async def _wait_until_ready(host: str, port: int, tls: bool, parts: list[Part], stop: asyncio.Event) -> bool:
    """True when `/readyz` is good, False when `stop` came first; raises `Unavailable` with the reason."""
    deadline = time.monotonic() + READY_TIMEOUT
    reason = "no answer yet"
    while time.monotonic() < deadline and not stop.is_set():
        for part in parts:
            if part.failed_to_start:
                raise Unavailable(f"{part.name} does not start: {part.last_words()}")
        good, reason = await asyncio.to_thread(_ask_ready, host, port, tls)
        if good:
            return True
        await asyncio.sleep(0.02)  # start-up, before any player: httpd has no other way to tell
    if stop.is_set():
        return False
    raise Unavailable(
        f"not ready after {READY_TIMEOUT:.0f} s: {reason}; the logs are in {parts[0].log_path.parent}"
    )


def _ask_ready(host: str, port: int, tls: bool) -> tuple[bool, str]:
    import ssl

    address = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 # compared, not bound
    try:
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = (
                False,
                ssl.CERT_NONE,
            )  # our own server, asked if it is up
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address, port, timeout=3, context=context
            )
        else:
            connection = http.client.HTTPConnection(address, port, timeout=3)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return answer.status == 200, answer.read(300).decode(errors="replace")
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        return False, f"httpd: {exc}"
