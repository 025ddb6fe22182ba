"""Names that travel: games, versions, sessions, deployments; and how they are spelled in subjects and keys.

A game or version may hold letters, digits, `_`, `-`, space and `.` (at most 30 characters). NATS subjects
split at dots and know no spaces, KV keys know no `%`; so there are two escapes.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from tipoff_shared.errors import Malformed

NAME = re.compile(r"[a-zA-Z0-9 ._-]{1,30}", re.ASCII)
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)
"""22 characters of base64url are 132 bits: a request id is a secret that its player alone knows."""
DEPLOYMENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
"""A DNS label, a container's name, a directory, a KV key and a subject token at once."""


def check_name(value: object, what: str) -> str:
    """`value` if it is a valid game or version name; raises `Malformed` naming `what` otherwise."""
    if not isinstance(value, str) or not NAME.fullmatch(value) or not value.strip(" ."):
        raise Malformed(f"{what}: 1 to 30 of the characters a-z A-Z 0-9 space . _ - are allowed")
    return value


def check_request_id(value: object) -> str:
    """A request id given by a player: long enough that nobody else guesses it."""
    if not isinstance(value, str) or not REQUEST_ID.fullmatch(value):
        raise Malformed("request_id: 22 to 64 of the characters a-z A-Z 0-9 _ - are allowed")
    return value


def new_request_id() -> str:
    return secrets.token_hex(16)


def new_deployment_id(game: str) -> str:
    """Unique, readable, and valid as DNS label, container name, KV key and subject token."""
    slug = re.sub(r"[^a-z0-9]+", "-", game.lower()).strip("-")[:16] or "game"
    return f"{slug}-{secrets.token_hex(5)}"


def new_boot_id() -> str:
    """Names one start of one game server process: 16 hex digits."""
    return secrets.token_hex(8)


def session_id(request_id: str) -> str:
    """The session that a request id leads to. One-way: a session id is public, a request id is not."""
    return "s" + hashlib.blake2b(request_id.encode(), digest_size=13, person=b"tipoff session").hexdigest()


def subject_token(name: str) -> str:
    """One NATS subject token for a name: `v0.0.1` -> `v0%2E0%2E1`, a space -> `%20`."""
    return name.replace(".", "%2E").replace(" ", "%20")


def key_token(name: str) -> str:
    """A name as part of a KV key (`[-/_=.a-zA-Z0-9]`): `.` -> `=2E`, space -> `=20`."""
    return name.replace(".", "=2E").replace(" ", "=20")


def from_subject_tokens(tokens: list[str]) -> str:
    """The version (or game) that was published as these subject tokens, escaped or with bare dots."""
    return ".".join(tokens).replace("%2E", ".").replace("%2e", ".").replace("%20", " ")
