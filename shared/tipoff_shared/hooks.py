"""Unguessable names of webhooks: `POST /hook/{name}.{token}`.

Edgegap does not sign its webhooks, so the URL is the credential: its last part is a MAC of the name, which httpd checks
without a look-up. The part that makes a URL and the part that checks it share one key.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from pathlib import Path

from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret

TOKEN_LENGTH = 32
"""Hex digits: 128 bits of the MAC."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_LEAST_KEY = 16


class HookKey:
    """Makes and checks the names of webhooks within one namespace. Never reveals its key."""

    def __init__(self, key: str, namespace: str = "") -> None:
        """Raises `ConfigError` for a key under 16 characters, which could be guessed."""
        if len(key) < _LEAST_KEY:
            raise ConfigError(
                f"the hook key has {len(key)} characters; at least {_LEAST_KEY} are expected "
                "(`openssl rand -hex 32` makes one)"
            )
        self._key = Secret(key)
        self._namespace = namespace

    def path_name(self, name: str) -> str:
        """`name` with its token, for the path of a URL."""
        return f"{name}.{self._token(name)}"

    def check(self, path_name: str) -> str | None:
        """The name in the path of a request; None when its token is wrong."""
        name, _, token = path_name.rpartition(".")
        if not _NAME.fullmatch(name) or not token.isascii():
            return None
        return name if hmac.compare_digest(self._token(name), token) else None

    def _token(self, name: str) -> str:
        message = f"tipoff hook\0{self._namespace}\0{name}".encode()
        return hmac.new(self._key.reveal().encode(), message, sha256).hexdigest()[:TOKEN_LENGTH]


def load_hook_key(key: str, file: Path | None, namespace: str) -> HookKey | None:
    """The key from a file or, without one, from a setting; None without both. Raises `ConfigError`."""
    if file is not None:
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeError) as exc:
            raise ConfigError(f"the hook key: {exc}") from exc
    return HookKey(key, namespace) if key else None
