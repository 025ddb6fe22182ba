"""How a command is given a private key: by environment or file, and only if need be on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tipoff_shared.netcode import InvalidKey, PrivateKey

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="Private key: 64 hex digits, or 32 decimal numbers. Others can see command lines: prefer --key-file.",
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
    typer.Option("--allow-zero-key", help="Take a key of zeros too, lightyear's default; never in public."),
]


def read_private_key(
    key: str | None, key_file: Path | None, *, allow_zero: bool = False
) -> PrivateKey | None:
    """The key, or None when neither is given; a file wins.

    Ends the command with a usage error if it is no key.
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
    """As ``read_private_key``, but a missing key is a usage error too."""
    found = read_private_key(key, key_file, allow_zero=allow_zero)
    if found is None:
        raise typer.BadParameter("a private key is needed: --key-file, TIPOFF_PRIVATE_KEY or --key")
    return found
