"""The WebSocket opening handshake, server side (RFC 6455 §4.2), on headers that are parsed already. Pure.

uvicorn hands an upgrade to the `websockets` library as text, which parses it a second time: a fifth of what a player
costs. The headers are here, and few of them matter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from tipoff_shared.errors import Malformed, TipoffError

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WrongMethod(TipoffError):
    code = 405


class WrongVersion(TipoffError):
    """Answered with the version that is spoken here, §4.4."""

    code = 426


def accept_key(method: str, http_version: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The Sec-WebSocket-Accept for a handshake; header names are lower case. Extensions are not negotiated.

    Raises `Malformed`, `WrongMethod` or `WrongVersion`. That it is an upgrade to a WebSocket is known already.
    """
    if method != "GET":
        raise WrongMethod("a WebSocket handshake is a GET")
    if http_version != "1.1":
        raise Malformed("a WebSocket handshake is HTTP/1.1")
    key = version = None
    for name, value in headers:
        if name == b"sec-websocket-key":
            if key is not None:
                raise Malformed("Sec-WebSocket-Key stands there twice")
            key = value.strip()
        elif name == b"sec-websocket-version":
            version = value.strip()
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            raise Malformed("a WebSocket handshake has no body")
    if version != b"13":
        raise WrongVersion("Sec-WebSocket-Version: 13 is spoken here")
    try:
        if key is None or len(base64.b64decode(key, validate=True)) != 16:
            raise Malformed("Sec-WebSocket-Key: 16 bytes in base64 are expected")
    except binascii.Error as exc:
        raise Malformed("Sec-WebSocket-Key: 16 bytes in base64 are expected") from exc
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
