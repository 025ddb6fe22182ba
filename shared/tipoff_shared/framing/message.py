"""Says what a game may send as a message, in both SDKs and on every transport."""

from __future__ import annotations

from tipoff_shared.errors import EmptyMessage, MessageTooLarge

MAX_MESSAGE_BYTES = 1 << 16
"""Bytes of the longest message, either way."""


def message_bytes(message: object, limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """`message` as 1 to `limit` bytes. Raises `TypeError`, `EmptyMessage` or `MessageTooLarge`, each of the latter two
    a `ValueError`."""
    if isinstance(message, bytearray | memoryview):
        message = bytes(message)
    if not isinstance(message, bytes):
        hint = ": send text.encode()" if isinstance(message, str) else ""
        raise TypeError(f"a message is bytes, not {type(message).__name__}{hint}")
    if len(message) > limit:
        raise MessageTooLarge(len(message), limit)
    if not message:
        raise EmptyMessage(limit)
    return message
