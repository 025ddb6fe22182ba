"""Holds the options of `tipoff up`, and checks them before anything starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from tipoff.up.state_dir import check_path
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.subjects import Subjects


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `tipoff up` is to run.

    `host` is "127.0.0.1", an address of this machine, or "auto" (this machine and its LAN address). `port` 0 is any
    free one. `web` is the directory of the page at `/`, None for the built-in one. With `edgegap_emulator`, games with
    `orchestrator = "edgegap"` run on an emulated Edgegap on this machine.
    """

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
    """Raise `ConfigError` when the emulator has no game to run."""
    if options.edgegap_emulator and not any(game.edgegap is not None for game in games):
        raise ConfigError(
            f'--edgegap-emulator: no game in {options.games} is at Edgegap; give it orchestrator = "edgegap" and '
            "[game.edgegap] with application and version"
        )
