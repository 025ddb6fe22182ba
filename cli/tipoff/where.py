"""Which system a command looks at: the one behind a NATS URL or `NATS_HOST`, else that of a state directory."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from tipoff.state_dir import DEFAULT_STATE_DIR, default_state_dir, read_up_info
from tipoff_shared.errors import ConfigError
from tipoff_shared.settings import NatsSettings

StateDir = Annotated[
    Path | None,
    typer.Option(
        help="State directory of the `tipoff up` to look at.",
        envvar="TIPOFF_STATE_DIR",
        show_default=DEFAULT_STATE_DIR,
    ),
]
NatsUrl = Annotated[
    str | None,
    typer.Option(
        "--nats",
        help="Look at this NATS instead: nats://HOST:PORT, or tls://HOST:PORT; who asks is said by NATS_USER, "
        "NATS_PASSWORD_FILE, NATS_CA. Without this option NATS_HOST says where, if it is set.",
    ),
]
Namespace = Annotated[str | None, typer.Option(help="Namespace, where it is not the running system's.")]


def nats_settings(state_dir: Path | None, nats_url: str | None, namespace: str | None) -> NatsSettings:
    """Settings for the system that the options name; raises `ConfigError`."""
    if nats_url is not None:
        parts = urlsplit(nats_url)
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ConfigError(f"--nats {nats_url}: nats://HOST:PORT or tls://HOST:PORT is expected")
        if parts.password:
            raise ConfigError(
                "--nats: a password on the command line can be seen by others; set NATS_PASSWORD"
            )
        settings = dataclasses.replace(
            NatsSettings.from_environment(),
            servers=(nats_url,),
            insecure=parts.scheme == "nats",
        )
    elif state_dir is None and os.environ.get("NATS_HOST"):
        settings = NatsSettings.from_environment()
    else:
        settings = read_up_info(state_dir or default_state_dir()).nats_settings()
    if namespace is not None:
        settings = dataclasses.replace(settings, namespace=namespace)
    return settings
