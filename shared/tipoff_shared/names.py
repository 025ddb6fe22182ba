"""Names of games, versions, sessions, deployments and players, and how they are escaped in subjects and keys.

A game or version has at most 30 letters, digits, `_`, `-`, spaces and `.`. NATS subjects split at dots and forbid
spaces, and KV keys forbid `%`, so there are two escapes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata

from tipoff_shared.errors import Malformed

NAME = re.compile(r"[a-zA-Z0-9 ._-]{1,30}", re.ASCII)
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)
"""22 characters of base64url are 132 bits: a request id is a secret of its player."""
SESSION_ID = re.compile(r"s[0-9a-f]{26}", re.ASCII)
RESUME_KEY = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)
DEPLOYMENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
"""Valid as DNS label, container name, directory, KV key and subject token."""
MAX_USER_ID = 64
"""Bytes of the longest user id: what fits into a connect token beside the name."""
MAX_PLAYER_NAME = 48
"""Bytes of the longest name of a player."""
_JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts and emoji need between two others."""


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


def check_resume(session: object, key: object) -> tuple[str, str]:
    """A session id and its resume key, if both are there and may be some; raises `Malformed` otherwise."""
    if not isinstance(session, str) or not isinstance(key, str):
        raise Malformed(
            "session and resume_key belong together: both are in the SessionReady of the first request"
        )
    if not SESSION_ID.fullmatch(session) or not RESUME_KEY.fullmatch(key):
        raise Malformed("session or resume_key: not as they are in a SessionReady")
    return session, key


def check_user_id(value: object) -> str:
    """`value` if it is a user id: 1 to 64 bytes of printable text, the same wherever the user logs in; raises
    `Malformed` otherwise."""
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise Malformed("user id: printable text is expected")
    if (size := len(value.encode())) > MAX_USER_ID:
        raise Malformed(f"user id: at most {MAX_USER_ID} bytes are allowed, not {size}")
    return value


def clean_player_name(text: str) -> str:
    """A name that every game can show, made of what a player or a login calls itself: in NFC, on one line, without
    control characters and marks that turn the direction of writing, cut to 48 bytes of UTF-8 between two characters. ""
    when nothing visible is left. Never raises."""
    kept: list[str] = []
    for char in text[: 4 * MAX_PLAYER_NAME]:
        kind = unicodedata.category(char)[0]
        if kind == "Z" or char in "\t\r\n":
            kept.append(" ")
        elif kind != "C" or char in _JOINERS:
            kept.append(char)
    line = " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
    line = line.encode()[:MAX_PLAYER_NAME].decode(errors="ignore").rstrip(f" {_JOINERS}")
    return line if any(unicodedata.category(char)[0] in "LNPS" for char in line) else ""


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
