"""Defines the options that the commands of this folder share: numbers, addresses, dialect, private key.

A private key comes from the environment or a file; the command line, which other users can read, is the last resort.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tipoff_shared.netcode import Address, Dialect, InvalidAddress, InvalidKey, PrivateKey


def parse_number(text: str) -> int:
    """An unsigned 64-bit number in decimal, or in hex after 0x. Ends the command with a usage error for other texts."""
    try:
        number = int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None
    if not 0 <= number < 2**64:
        raise typer.BadParameter(f"{text} is outside 0..2^64-1")
    return number


def parse_address(text: str) -> Address:
    """An address like ``1.2.3.4:5`` or ``[::1]:5``. Ends the command with a usage error for other texts."""
    try:
        return Address.parse(text)
    except InvalidAddress as exc:
        raise typer.BadParameter(str(exc)) from None


ProtocolId = Annotated[
    int,
    typer.Option("--protocol-id", parser=parse_number, metavar="N", help="Number of game and version."),
]
DialectOption = Annotated[
    Dialect, typer.Option(help="standard, or lightyear up to 0.19 (bevygap).", case_sensitive=False)
]


def fail(reason: object) -> NoReturn:
    """End the command with exit code 1."""
    typer.echo(f"tipoff: {reason}", err=True)
    raise typer.Exit(1)


KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="Private key: 64 hex digits, or 32 decimal numbers. Others can read command lines: prefer --key-file.",
        envvar="TIPOFF_PRIVATE_KEY",
        show_envvar=True,
        show_default=False,
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the private key.",
        envvar="TIPOFF_PRIVATE_KEY_FILE",
        show_envvar=True,
        show_default=False,
    ),
]
AllowZeroKeyOption = Annotated[
    bool,
    typer.Option("--allow-zero-key", help="Accept a key of zeros, lightyear's default; never in public."),
]


def read_private_key(
    key: str | None, key_file: Path | None, *, allow_zero: bool = False
) -> PrivateKey | None:
    """The key, with precedence for the file; None when neither is given.

    Ends the command with a usage error for an invalid key.
    """
    if key_file is not None:
        try:
            key = key_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as exc:
            raise typer.BadParameter(f"{key_file}: {getattr(exc, 'strerror', None) or 'not text'}") from None
    if key is None:
        return None
    try:
        return PrivateKey.parse(key, allow_zero=allow_zero)
    except InvalidKey as exc:
        raise typer.BadParameter(f"{key_file or '--key'}: {exc}") from None


def require_private_key(key: str | None, key_file: Path | None, *, allow_zero: bool = False) -> PrivateKey:
    """Like `read_private_key`, but a missing key is a usage error, too."""
    found = read_private_key(key, key_file, allow_zero=allow_zero)
    if found is None:
        raise typer.BadParameter("a private key is needed: --key-file, TIPOFF_PRIVATE_KEY or --key")
    return found
