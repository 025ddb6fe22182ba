"""Names of games, versions, sessions and deployments, and how they are escaped in subjects and keys.

A game or version has at most 30 letters, digits, `_`, `-`, spaces and `.`. NATS subjects split at dots and forbid
spaces, and KV keys forbid `%`, so there are two escapes.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from tipoff_shared.errors import Malformed

NAME = re.compile(r"[a-zA-Z0-9 ._-]{1,30}", re.ASCII)
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)
"""22 characters of base64url are 132 bits: a request id is a secret of its player."""
DEPLOYMENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
"""Valid as DNS label, container name, directory, KV key and subject token."""


def check_name(value: object, what: str) -> str:
    """`value` if it is a valid game or version name; raises `Malformed` naming `what` otherwise."""
    if not isinstance(value, str) or not NAME.fullmatch(value) or not value.strip(" ."):
        raise Malformed(f"{what}: 1 to 30 of the characters a-z A-Z 0-9 space . _ - are allowed")
    return value


def check_request_id(value: object) -> str:
    """`value` if it is a request id, which is long enough to be unguessable; raises `Malformed` otherwise."""
    if not isinstance(value, str) or not REQUEST_ID.fullmatch(value):
        raise Malformed("request_id: 22 to 64 of the characters a-z A-Z 0-9 _ - are allowed")
    return value


def new_request_id() -> str:
    """A random request id: 32 hex digits."""
    return secrets.token_hex(16)


def new_deployment_id(game: str) -> str:
    """A random deployment id that begins with the game's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", game.lower()).strip("-")[:16] or "game"
    return f"{slug}-{secrets.token_hex(5)}"


def new_boot_id() -> str:
    """A random id for one start of one game server process: 16 hex digits."""
    return secrets.token_hex(8)


def session_id(request_id: str) -> str:
    """The session id of a request id. One-way, because a session id is public and a request id is not."""
    return "s" + hashlib.blake2b(request_id.encode(), digest_size=13, person=b"tipoff session").hexdigest()


def subject_token(name: str) -> str:
    """`name` as one NATS subject token: `v0.0.1` -> `v0%2E0%2E1`, a space -> `%20`."""
    return name.replace(".", "%2E").replace(" ", "%20")


def key_token(name: str) -> str:
    """`name` as part of a KV key (`[-/_=.a-zA-Z0-9]`): `.` -> `=2E`, space -> `=20`."""
    return name.replace(".", "=2E").replace(" ", "=20")


def from_subject_tokens(tokens: list[str]) -> str:
    """The name that these subject tokens spell, escaped or with bare dots."""
    return ".".join(tokens).replace("%2E", ".").replace("%2e", ".").replace("%20", " ")
