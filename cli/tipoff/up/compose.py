"""Composes the processes of `tipoff up`: what each one runs, and its environment, sockets and random keys."""

from __future__ import annotations

import os
import secrets
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

from tipoff.dashboard.options import DashboardOptions
from tipoff.up.addresses import Reach
from tipoff.up.child_process import ProcessSpec
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff.up.options import UpOptions
from tipoff_shared.games import Game
from tipoff_shared.games.toml import key_file
from tipoff_shared.netcode.keys import PrivateKey


def write_missing_keys(games: list[Game], directory: Path, *, keep: bool = False) -> None:
    """Write a new random key for every game that configures none. Only the owner can read the files. `keep`: not for
    games that have one, whose servers run."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in directory.glob("*.key") if not keep else ():
        old.unlink()
    for game in games:
        if game.private_key_file or (game.private_key_env and os.environ.get(game.private_key_env)):
            continue
        if keep and key_file(directory, game).exists():
            continue
        descriptor = os.open(key_file(directory, game), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(PrivateKey.generate().reveal().hex())


def compose(
    options: UpOptions,
    games: list[Game],
    nats: EmbeddedNats,
    reach: Reach,
    door: Sequence[socket.socket],
    api: socket.socket | None,
) -> list[ProcessSpec]:
    """The processes, in the order in which they start.

    Every httpd accepts players from the sockets `door`. `api` is the socket of the Edgegap
    emulator, None without one.
    """
    logs = options.state_dir / "logs"
    launcher_dir = str((options.state_dir / "launcher").resolve())
    common = os.environ | nats.settings(options.namespace).to_environment()
    common |= {
        "TIPOFF_GAMES": str(options.games.resolve()),
        "TIPOFF_KEYS_DIR": str((options.state_dir / "keys").resolve()),
    }
    launcher = {
        "TIPOFF_LAUNCHER_STATE_DIR": launcher_dir,
        "TIPOFF_LAUNCHER_PUBLIC_HOST": ",".join(reach.hosts),
        "TIPOFF_LAUNCHER_DOCKER_OWNER": launcher_dir,
        "TIPOFF_LAUNCHER_DIE_WITH_PARENT": "true",
        "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": "true",
        "TIPOFF_LAUNCHER_STOP_GRACE": "3",  # less than `up` gives the launcher itself
        "TIPOFF_LAUNCHER_DEMO": "true",
    }
    matchmaker = {"TIPOFF_MATCHMAKER_TELL_REASONS": "true"}  # the player here is also the game's developer
    # All parts are of this release and end together, so nothing has to understand servers with the game's key.
    matchmaker |= {"TIPOFF_MATCHMAKER_SERVER_KEYS": os.environ.get("TIPOFF_MATCHMAKER_SERVER_KEYS", "own")}
    httpd = {
        "TIPOFF_HTTPD_LISTEN_FD": ",".join(str(sock.fileno()) for sock in door),
        "TIPOFF_HTTPD_DEMO": "true",
    }
    if options.ports:
        launcher["TIPOFF_LAUNCHER_PORT_RANGE"] = options.ports
    if options.tls_cert and options.tls_key:
        files = {"CERT": str(options.tls_cert.resolve()), "KEY": str(options.tls_key.resolve())}
        httpd |= {f"TIPOFF_HTTPD_TLS_{name}": path for name, path in files.items()}
        launcher |= {f"TIPOFF_LAUNCHER_TLS_{name}": path for name, path in files.items()}
    if options.web:
        httpd["TIPOFF_HTTPD_WEB_DIR"] = str(options.web.resolve())
    if options.dashboard_from is not None:
        httpd |= _dashboard(options, games, nats, reach).to_environment()
    specs: list[ProcessSpec] = []
    if any(game.orchestrator == "launcher" for game in games):
        specs.append(
            ProcessSpec("launcher", "launcher", "tipoff_launcher", common | launcher, logs / "launcher.log")
        )
    if api is not None:
        edgegap = _edgegap(options, nats, door[0], api)
        matchmaker |= edgegap
        httpd |= {"TIPOFF_HOOK_KEY": edgegap["TIPOFF_HOOK_KEY"]}
        emulator = {
            "TIPOFF_EDGEGAP_EMULATOR_LISTEN_FD": str(api.fileno()),
            "TIPOFF_EDGEGAP_EMULATOR_HOST": "127.0.0.1" if reach.only_here else "0.0.0.0",  # noqa: S104
            "TIPOFF_EDGEGAP_EMULATOR_PUBLIC_HOST": reach.ipv4 or "",
            "TIPOFF_EDGEGAP_EMULATOR_LOGS": str((options.state_dir / "edgegap").resolve()),
        }
        specs.append(
            ProcessSpec(
                "edgegap-emulator",
                "launcher",  # it, too, stops its game servers when it ends
                "tipoff_edgegap_emulator",
                common | edgegap | emulator,
                logs / "edgegap-emulator.log",
                (api.fileno(),),
            )
        )
    specs += [
        ProcessSpec(name, "matchmaker", "tipoff_matchmaker", common | matchmaker, logs / f"{name}.log")
        for name in _numbered("matchmaker", options.matchmakers)
    ]
    specs += [
        ProcessSpec(
            name,
            "httpd",
            "tipoff.up.httpd",
            common | httpd,
            logs / f"{name}.log",
            tuple(sock.fileno() for sock in door),
        )
        for name in _numbered("httpd", options.httpds)
    ]
    return specs


def _dashboard(options: UpOptions, games: list[Game], nats: EmbeddedNats, reach: Reach) -> DashboardOptions:
    """Its page is at `/`, too, where neither the games bring one nor httpd's own page can play one of them."""
    return DashboardOptions(
        token=secrets.token_urlsafe(24),
        hosts=tuple(dict.fromkeys((*reach.hosts, *reach.pages))),
        networks=options.dashboard_from or "",
        project=str(options.games.resolve().parent),
        nats=nats.settings().servers[0],
        at_root=options.web is None and not any(game.name == "arena" for game in games),
        has_launcher=any(game.orchestrator == "launcher" for game in games),
    )


def _edgegap(
    options: UpOptions, nats: EmbeddedNats, door: socket.socket, api: socket.socket
) -> dict[str, str]:
    """The variables that matchmaker and emulator share. They hold secrets, random for this run."""
    settings = nats.settings()
    variables = {
        "TIPOFF_EDGEGAP_URL": f"http://127.0.0.1:{api.getsockname()[1]}",
        "TIPOFF_EDGEGAP_TOKEN": str(uuid.uuid4()),
        "TIPOFF_HOOK_KEY": secrets.token_hex(32),
        "TIPOFF_EDGEGAP_NATS_USER": settings.user,
        "TIPOFF_EDGEGAP_NATS_PASSWORD": settings.password.reveal(),
    }
    if not options.tls_cert:  # the emulator does not trust your own certificate
        variables["TIPOFF_EDGEGAP_HOOK_URL"] = f"http://127.0.0.1:{door.getsockname()[1]}"
    return variables


def _numbered(name: str, count: int) -> list[str]:
    """`httpd`, or `httpd-1`, `httpd-2`, ... where there are several."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
