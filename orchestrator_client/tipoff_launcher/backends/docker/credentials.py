"""Credentials for private registries, as `docker login` has written them."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from tipoff_shared.errors import ConfigError

_DOCKER_HUB = "https://index.docker.io/v1/"


def registry_of(image: str) -> str:
    """The host an image comes from: what stands before the first `/`, where that looks like a host."""
    first, slash, _ = image.partition("/")
    if first in ("docker.io", "index.docker.io"):
        return _DOCKER_HUB
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first
    return _DOCKER_HUB


def credentials(config: Path | None, image: str) -> dict[str, str] | None:
    """For `image`, from a `config.json`; None where it has none. Raises `ConfigError`."""
    if config is None:
        return None
    try:
        auths: Any = json.loads(config.read_text()).get("auths") or {}
        found = auths.get(registry_of(image))
        if found is None:
            return None
        if token := found.get("identitytoken"):
            return {"identitytoken": token}
        user, _, password = base64.b64decode(found["auth"], validate=True).decode().partition(":")
    except OSError as exc:
        raise ConfigError(f"TIPOFF_LAUNCHER_DOCKER_CONFIG={config}: {exc.strerror}") from exc
    except (ValueError, KeyError, AttributeError, TypeError, binascii.Error):
        raise ConfigError(  # without the cause: it may quote a password
            f"TIPOFF_LAUNCHER_DOCKER_CONFIG={config}: a config.json as `docker login` writes it is expected"
        ) from None
    return {"username": user, "password": password}
