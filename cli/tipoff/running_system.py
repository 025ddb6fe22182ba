"""Finds the running system that a command addresses: by NATS URL, by `NATS_HOST`, else a `tipoff up` (projects.py)."""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from tipoff.projects import GAMES_FILE, find_project, find_up
from tipoff_shared.errors import ConfigError
from tipoff_shared.settings import NatsSettings

if TYPE_CHECKING:
    from tipoff_shared.nats.connection import Bus

StateDir = Annotated[
    Path | None,
    typer.Option(
        help="State directory of the `tipoff up` to look at.",
        envvar="TIPOFF_STATE_DIR",
        show_default="that of the project, else of the one that runs",
    ),
]
NatsUrl = Annotated[
    str | None,
    typer.Option(
        "--nats",
        help="Use this NATS instead: nats://HOST:PORT or tls://HOST:PORT, with the credentials in NATS_USER, "
        "NATS_PASSWORD_FILE and NATS_CA. Without this option NATS_HOST names the host, where it is set.",
    ),
]
Namespace = Annotated[str | None, typer.Option(help="Namespace, where it differs from the running system's.")]


def nats_settings(state_dir: Path | None, nats_url: str | None, namespace: str | None) -> NatsSettings:
    """How to connect to the system that the options name. Raises `ConfigError`."""
    if nats_url is not None:
        parts = urlsplit(nats_url)
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ConfigError(f"--nats {nats_url}: nats://HOST:PORT or tls://HOST:PORT is expected")
        if parts.password:
            raise ConfigError(
                "--nats: other users can read a password on the command line; set NATS_PASSWORD"
            )
        settings = dataclasses.replace(
            NatsSettings.from_environment(),
            servers=(nats_url,),
            insecure=parts.scheme == "nats",
        )
    elif state_dir is None and os.environ.get("NATS_HOST"):
        settings = NatsSettings.from_environment()
    else:
        settings = find_up(state_dir).info.nats_settings()
    if namespace is not None:
        settings = dataclasses.replace(settings, namespace=namespace)
    return settings


def open_bus(
    command: str, state_dir: Path | None, nats_url: str | None, namespace: str | None
) -> AbstractAsyncContextManager[Bus]:
    """The connection of `tipoff COMMAND` to the system that the options name. Raises `ConfigError`; entering it raises
    `Unavailable`."""
    from tipoff_shared.nats.connection import connect

    return connect(nats_settings(state_dir, nats_url, namespace), name=f"tipoff {command}")


def games_file(state_dir: Path | None, nats_url: str | None) -> Path:
    """The games.toml of the system that the options name: that of a running `tipoff up`, else ./games.toml. Raises
    `ConfigError`."""
    of_up = nats_url is None and (state_dir is not None or not os.environ.get("NATS_HOST"))
    if of_up and (found := find_up(state_dir).info.games):
        return Path(found)
    return (find_project(Path.cwd()) or Path()) / GAMES_FILE
