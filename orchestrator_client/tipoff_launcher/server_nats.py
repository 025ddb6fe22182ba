"""How servers get into NATS."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from urllib.parse import urlsplit

from tipoff_launcher.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)


def nats_of_servers(settings: Settings, ours: NatsSettings) -> NatsSettings:
    """As a user of their own where there is one. Raises `ConfigError`."""
    user, file = settings.server_nats_user, settings.server_nats_password_file
    if not user:
        return ours
    try:
        password = Path(file).read_text().strip() if file else ""
    except OSError as exc:
        raise ConfigError(f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file}: {exc.strerror}") from exc
    except UnicodeError:
        raise ConfigError(f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file}: not a line of text") from None
    if file and not password:
        raise ConfigError(
            f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file} is empty; no server would get in"
        )
    return dataclasses.replace(ours, user=user, password=Secret(password), inbox_prefix=f"_INBOX_{user}")


def warn_of_loopback(nats_settings: NatsSettings) -> None:
    """Where servers are containers with a network of their own."""
    for server in nats_settings.servers:
        if (host := urlsplit(server).hostname) in ("127.0.0.1", "localhost", "::1"):
            log.warning(
                "NATS_HOST=%s is this host, which is another one for a container: servers will not find NATS. Set "
                "TIPOFF_LAUNCHER_DOCKER_NATS_HOST, to host.docker.internal:4222 for example",
                host,
            )
