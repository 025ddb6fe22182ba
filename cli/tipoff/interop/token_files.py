"""Reads and writes connect tokens in files and pipes: 2048 raw bytes, hex, or base64 like the matchmaker's."""

from __future__ import annotations

import base64
import binascii
import os
import sys
from enum import StrEnum
from pathlib import Path

import typer

from tipoff_shared.netcode import InvalidToken
from tipoff_shared.netcode.constants import CONNECT_TOKEN_BYTES


class TokenFormat(StrEnum):
    """The encoding of the 2048 bytes."""

    RAW = "raw"
    HEX = "hex"
    BASE64 = "base64"


def read_token(file: str) -> bytes:
    """The bytes of the token in a file, `-` for standard input, whatever its encoding.

    Raises `InvalidToken`; an unreadable file is a usage error.
    """
    limit = 4 * CONNECT_TOKEN_BYTES  # more than any form takes
    try:
        if file == "-":
            data = sys.stdin.buffer.read(limit)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(limit)
    except OSError as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror}") from None
    if len(data) == CONNECT_TOKEN_BYTES:
        return data
    compact = b"".join(data.split())
    try:
        if len(compact) == 2 * CONNECT_TOKEN_BYTES:
            return binascii.unhexlify(compact)
        return base64.b64decode(compact, validate=True)
    except binascii.Error:
        raise InvalidToken(
            f"{len(data)} bytes that are neither a raw token ({CONNECT_TOKEN_BYTES} bytes) nor its hex or base64 form"
        ) from None


def write_token(data: bytes, out: str, form: TokenFormat) -> None:
    """Write a token to `out`, `-` for standard output. Only the owner can read a new file."""
    if form is TokenFormat.HEX:
        data = data.hex().encode() + b"\n"
    elif form is TokenFormat.BASE64:
        data = base64.b64encode(data) + b"\n"
    if out == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
    except OSError as exc:
        raise typer.BadParameter(f"--out {out}: {exc.strerror}") from None
