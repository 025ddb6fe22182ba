"""Encodes and decodes the body of a denied packet: empty in the standard, a reason in lightyear's dialect."""

from __future__ import annotations

from .constants import Dialect
from .events import Denial, DenyReason

_MAX_TEXT = 255


def encode_denial(denial: Denial, dialect: Dialect) -> bytes:
    """A standard client would drop a denied packet with a body, so the standard's stays empty."""
    if dialect is Dialect.STANDARD:
        return b""
    if denial.reason is not DenyReason.CUSTOM:
        return bytes((denial.reason,))
    # Cut at a character's edge: the reader demands valid UTF-8.
    text = denial.text.encode()[:_MAX_TEXT].decode(errors="ignore").encode()
    return bytes((DenyReason.CUSTOM, len(text))) + text


def decode_denial(body: bytes) -> Denial | None:
    """The reason in an authentic denied packet; None for an empty or unreadable one."""
    if not body or body[0] > DenyReason.CUSTOM:
        return None
    reason = DenyReason(body[0])
    if reason is DenyReason.CUSTOM and len(body) >= 2:
        return Denial(reason, body[2 : 2 + body[1]].decode(errors="replace"))
    return Denial(reason)
