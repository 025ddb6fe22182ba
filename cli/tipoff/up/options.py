"""Holds the options of `tipoff up`, and checks them before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tipoff.dashboard.access import parse_networks
from tipoff.port_range import parse_ports
from tipoff.up.addresses import Reach
from tipoff.up.state_dir import check_path
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.subjects import Subjects

_LEAST_FILES = 128
"""Each part has about 30 files open before the first player comes."""
_ENOUGH_FILES = 1024
_RAISE_FILES = "raise that limit with `ulimit -n 65536`, or LimitNOFILE= in a unit of systemd"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `tipoff up` is to run.

    `host` is an address of this machine, a DNS name, or "auto" (this machine and its LAN address). `port` 0 is any
    free one, None the one of the last time, else 3000, else the next free one. `web` is the directory of the page at
    `/`, None for the built-in one. With `edgegap_emulator`, games with `orchestrator = "edgegap"` run on an emulated
    Edgegap on this machine. Game servers listen on `ports` (FIRST-LAST), by default on any free ones. With `reload`,
    a game's servers are restarted when its files change; `reload_include` has patterns of file names beside `*.py`.
    The dashboard is for this machine and the networks `dashboard_from`; None is no dashboard.
    """

    games: Path
    state_dir: Path
    port: int | None = 3000
    host: str = "127.0.0.1"
    namespace: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    web: Path | None = None
    matchmakers: int = 1
    httpds: int = 1
    edgegap_emulator: bool = False
    ports: str = ""
    reload: bool = False
    reload_include: tuple[str, ...] = ()
    dashboard_from: str | None = ""


def check(options: UpOptions) -> None:
    """Check what needs no other process. Raises `ConfigError`."""
    paths = {
        "--games": options.games,
        "--state-dir": options.state_dir,
        "--tls-cert": options.tls_cert,
        "--tls-key": options.tls_key,
        "--web": options.web,
    }
    for name, path in paths.items():
        if path is not None:
            check_path(name, path)
    if bool(options.tls_cert) != bool(options.tls_key):
        raise ConfigError("--tls-cert and --tls-key belong together")
    if options.ports:
        parse_ports(options.ports, least=1024)
    parse_networks(options.dashboard_from or "")
    Subjects(options.namespace)
    for name, path in (("--tls-cert", options.tls_cert), ("--tls-key", options.tls_key)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{name} {path}: no such file")
    if options.web is not None and not (options.web / "index.html").is_file():
        raise ConfigError(f"--web {options.web}: no index.html in it")


def check_open_files(limit: int | None) -> None:
    """Raise `ConfigError` when each part may open so few files (None: any number) that none of them could work."""
    if limit is not None and limit < _LEAST_FILES:
        raise ConfigError(
            f"each process may have {limit} files open, and {_LEAST_FILES} are the least; {_RAISE_FILES}"
        )


def few_open_files(limit: int | None) -> str:
    """What to tell the operator when each part may open few files; "" when they are enough for a small system."""
    if limit is None or limit >= _ENOUGH_FILES:
        return ""
    return (
        f"each process may have {limit} files open, so few players can be connected and few servers run "
        f"(httpd.log and launcher.log say how many); {_RAISE_FILES}"
    )


def check_games(options: UpOptions, games: list[Game], reach: Reach) -> None:
    """Raise `ConfigError` when the emulator has no game to run, or a game cannot be played at these addresses."""
    if options.edgegap_emulator and not any(game.edgegap is not None for game in games):
        raise ConfigError(
            f'--edgegap-emulator: no game in {options.games} is at Edgegap; give it orchestrator = "edgegap" and '
            "[game.edgegap] with application and version"
        )
    if reach.ipv4 is not None:
        return
    if options.edgegap_emulator:
        raise ConfigError(
            f"--host {options.host}: Edgegap tells players IPv4 addresses; give an IPv4 address"
        )
    for game in games:
        if game.bevygap:
            raise ConfigError(
                f"--host {options.host}: the players of game {game.name!r} are bevygap's clients, which know only "
                "IPv4; give an IPv4 address, or a name that has one"
            )
