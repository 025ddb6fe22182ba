"""The commands `tipoff token issue` and `tipoff token inspect`.

A token is a secret: its holder can connect in the player's place. So only the owner can read the files, and session
keys are shown as fingerprints.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tipoff.interop.options import (
    AllowZeroKeyOption,
    DialectOption,
    KeyFileOption,
    KeyOption,
    ProtocolId,
    fail,
    parse_address,
    parse_number,
    read_private_key,
    require_private_key,
)
from tipoff.interop.token_files import TokenFormat, read_token, write_token
from tipoff_shared.netcode import (
    Address,
    ConnectToken,
    Dialect,
    InvalidToken,
    NetcodeError,
    PrivateKey,
    PrivateToken,
    TokenExpired,
    issue_token,
    open_private,
)
from tipoff_shared.netcode.constants import NEVER_EXPIRES
from tipoff_shared.user_data import decode_user_data

app = typer.Typer(no_args_is_help=True, help="Issue and inspect connect tokens.")


@app.command("issue")
def issue_command(
    protocol_id: ProtocolId,
    client_id: Annotated[
        int,
        typer.Option(parser=parse_number, metavar="N", help="Id of the player; two players never share one."),
    ],
    address: Annotated[
        list[Address],
        typer.Option(
            parser=parse_address, metavar="IP:PORT", help="Address that the client dials; repeatable."
        ),
    ],
    key: KeyOption = None,
    key_file: KeyFileOption = None,
    allow_zero_key: AllowZeroKeyOption = False,
    internal_address: Annotated[
        list[Address] | None,
        typer.Option(
            parser=parse_address,
            metavar="IP:PORT",
            help="Address that the server knows itself by, where that differs (NAT).",
            show_default="as --address",
        ),
    ] = None,
    lifetime: Annotated[
        int, typer.Option(help="Seconds within which to connect; -1 is for ever.", min=-1)
    ] = 30,
    timeout: Annotated[
        int, typer.Option(help="Seconds of silence after which a connection ends; -1 is never.")
    ] = 15,
    user_data: Annotated[
        str,
        typer.Option(
            metavar="HEX", help="Up to 256 bytes for the server, as hex digits.", show_default="zeros"
        ),
    ] = "",
    dialect: DialectOption = Dialect.STANDARD,
    out: Annotated[str, typer.Option(metavar="FILE|-", help="Output file, - for standard output.")] = "-",
    form: Annotated[
        TokenFormat, typer.Option("--format", help="Encoding of the output.")
    ] = TokenFormat.BASE64,
) -> None:
    """Issue a connect token like the matchmaker's."""
    private_key = require_private_key(key, key_file, allow_zero=allow_zero_key)
    try:
        data = bytes.fromhex(user_data)
    except ValueError:
        raise typer.BadParameter("--user-data: an even number of hex digits is expected") from None
    if out == "-" and form is TokenFormat.RAW and sys.stdout.isatty():
        raise typer.BadParameter(
            "2048 raw bytes would garble the terminal: use --out FILE, or another --format"
        )
    try:
        token = issue_token(
            private_key,
            protocol_id=protocol_id,
            client_id=client_id,
            public_addresses=address,
            internal_addresses=internal_address or None,
            user_data=data,
            lifetime=None if lifetime < 0 else lifetime,
            timeout=timeout,
            now=time.time(),
            dialect=dialect,
        )
    except NetcodeError as exc:
        fail(exc)
    write_token(token.encode(), out, form)


@app.command("inspect")
def inspect_command(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="File with the token: raw, hex or base64.")],
    key: KeyOption = None,
    key_file: KeyFileOption = None,
    protocol_id: Annotated[
        int | None,
        typer.Option(
            parser=parse_number,
            metavar="N",
            help="Number that the token must have.",
            show_default="the token's",
        ),
    ] = None,
    dialect: DialectOption = Dialect.STANDARD,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the content of a connect token; with the private key, the part for the server, too.

    Exit code 1, with the reason, when the token is invalid or has expired.
    """
    private_key = read_private_key(key, key_file, allow_zero=True)
    found: dict[str, Any] = {}
    try:
        examine(read_token(file), private_key, protocol_id, dialect, time.time(), found)
        reason = None
    except InvalidToken as exc:
        reason = str(exc)
    found = {"valid": reason is None, "reason": reason, **found}
    if as_json:
        typer.echo(json.dumps(found))
    else:
        show(found)
    if reason is not None:
        fail(reason)


def examine(
    data: bytes,
    key: PrivateKey | None,
    protocol_id: int | None,
    dialect: Dialect,
    unix_now: float,
    found: dict[str, Any],
) -> None:
    """Put the readable fields of a token into `found`. Raises `InvalidToken` afterwards when it is unusable.

    64-bit numbers become decimal strings, as in our other JSON, because JavaScript cannot hold them.
    """
    token = ConnectToken.decode(data, dialect)
    found |= {
        "fingerprint": token.fingerprint,
        "dialect": dialect.value,
        "protocol_id": str(token.protocol_id),
        "created": moment(token.create_timestamp),
        "expires": moment(token.expire_timestamp),
        "seconds_left": seconds_left(token.expire_timestamp, unix_now),
        "timeout_seconds": token.timeout_seconds,
        "addresses": [str(address) for address in token.addresses],
        "client_to_server_key": fingerprint(token.client_to_server_key),
        "server_to_client_key": fingerprint(token.server_to_client_key),
    }
    if key is not None:
        expected = token.protocol_id if protocol_id is None else protocol_id
        found["private"] = private_part(open_private(token, key, protocol_id=expected, dialect=dialect))
    elif protocol_id not in (None, token.protocol_id):
        raise InvalidToken(f"the token is for protocol id {token.protocol_id}, not for {protocol_id}")
    if token.expire_timestamp <= unix_now:
        raise TokenExpired(token.expire_timestamp, unix_now)


def private_part(private: PrivateToken) -> dict[str, Any]:
    """The fields of the private part, with our own user data decoded."""
    try:
        ours = decode_user_data(private.user_data)
    except ValueError:
        ours = None
    return {
        "client_id": str(private.client_id),
        "timeout_seconds": private.timeout_seconds,
        "addresses": [str(address) for address in private.addresses],
        "user_data": private.user_data.rstrip(b"\0").hex(),
        "session_id": ours and ours.session_id,
        "deployment_id": ours and ours.deployment_id,
        "boot_id": ours and ours.boot_id,
        "generation": ours and ours.generation,
    }


def show(found: dict[str, Any]) -> None:
    """Print the fields for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in found.items():
        if name in ("valid", "reason", "private"):
            continue
        shown = f"fingerprint {value}" if name.endswith("_key") else value
        table.add_row(name.replace("_", " "), text(shown))
    for name, value in found.get("private", {}).items():
        if value is not None:
            table.add_row("private: " + name.replace("_", " "), text(value))
    if table.row_count:
        Console(soft_wrap=True).print(table)


def text(value: object) -> str:
    """A field for people; None is "never"."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "never" if value is None else str(value) or "empty"


def moment(timestamp: int) -> str | None:
    """A time in ISO 8601, UTC; the number where it is out of the calendar's range; None for never."""
    if timestamp == NEVER_EXPIRES:
        return None
    try:
        return datetime.fromtimestamp(timestamp, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return str(timestamp)


def seconds_left(expire: int, unix_now: float) -> int | None:
    """Seconds until the time `expire`, None for never."""
    return None if expire == NEVER_EXPIRES else int(expire - unix_now)


def fingerprint(secret: bytes) -> str:
    """Twelve hex digits that tell two session keys apart and reveal neither."""
    return hashlib.sha256(secret).hexdigest()[:12]
