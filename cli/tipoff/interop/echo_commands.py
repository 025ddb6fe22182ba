"""The commands `tipoff gameserver` and `tipoff connect`: the two ends of a bare netcode connection.

`tipoff gameserver --stand-alone --echo` sends every payload back; `tipoff connect` counts the echoes and measures
round trips. Neither needs NATS or a matchmaker, only a token from `tipoff token issue`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tipoff.interop.echo_client import ConnectFailed, Report, connect_and_echo
from tipoff.interop.options import (
    AllowZeroKeyOption,
    DialectOption,
    KeyFileOption,
    KeyOption,
    ProtocolId,
    fail,
    parse_address,
    require_private_key,
)
from tipoff.interop.token_files import read_token
from tipoff.interop.udp_driver import UdpDriver, bind_udp
from tipoff_shared.netcode import (
    MAX_PAYLOAD_BYTES,
    Address,
    Connected,
    ConnectToken,
    Dialect,
    Disconnected,
    InvalidToken,
    Payload,
    Server,
)
from tipoff_shared.primitives import udp_socket
from tipoff_shared.service import signals


def gameserver_command(
    protocol_id: ProtocolId,
    stand_alone: Annotated[
        bool, typer.Option("--stand-alone", help="Run without NATS and matchmaker.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Send every payload back.")] = False,
    listen: Annotated[
        Address,
        typer.Option(
            parser=parse_address, metavar="IP:PORT", help="Address to listen on; port 0 is any free one."
        ),
    ] = "127.0.0.1:40000",  # type: ignore[assignment]  # the parser makes an Address of it
    address: Annotated[
        list[Address] | None,
        typer.Option(
            parser=parse_address,
            metavar="IP:PORT",
            help="Address of this server in tokens, where it differs from --listen; repeatable.",
        ),
    ] = None,
    key: KeyOption = None,
    key_file: KeyFileOption = None,
    allow_zero_key: AllowZeroKeyOption = False,
    dialect: DialectOption = Dialect.STANDARD,
    max_clients: Annotated[int, typer.Option(help="Number of slots.", min=1, max=65536)] = 64,
) -> None:
    """Run a bare netcode server that echoes, to test clients and networks. Ctrl-C stops it.

    For a game server of your own, see `tipoff new`.
    """
    if not (stand_alone and echo):
        raise typer.BadParameter(
            "this command runs only an echo server: give it --stand-alone --echo;"
            " for a game server of your own see `tipoff new`"
        )
    private_key = require_private_key(key, key_file, allow_zero=allow_zero_key)
    named = tuple(address or ())

    def server_at(bound: Address) -> Server:
        """The server at the bound address. Tokens never name a wildcard address, so without --address the server
        then accepts tokens for any address."""
        own = named or (() if bound.ip.is_unspecified else (bound,))
        if not own:
            typer.echo("accepting tokens for any address; --address names ours", err=True)
        return Server(
            private_key=private_key,
            protocol_id=protocol_id,
            addresses=own,
            check_address=bool(own) and dialect is Dialect.STANDARD,
            max_clients=max_clients,
            dialect=dialect,
            answer_keep_alives=True,
        )

    async def work() -> None:
        stop = asyncio.Event()
        with signals(lambda _: stop.set()):
            await serve_echo(server_at, listen, stop)

    try:
        asyncio.run(work())
    except OSError as exc:
        fail(f"cannot listen on {listen}: {exc.strerror or exc}")


async def serve_echo(server_at: Callable[[Address], Server], listen: Address, stop: asyncio.Event) -> None:
    """Echo until `stop` is set. `server_at` makes the server for the address that was bound. Raises `OSError`.

    Shutdown: send every client ten disconnect packets, then close the socket.
    """
    loop = asyncio.get_running_loop()
    sock = bind_udp(listen)
    if wrong := udp_socket.shortage(udp_socket.granted(sock)):
        typer.echo(wrong, err=True)
    bound = Address.from_socket(sock.getsockname())
    server = server_at(bound)

    def handle(event: Any) -> None:
        if isinstance(event, Payload):
            server.send(event.index, event.data, loop.time())
        elif isinstance(event, Connected):
            typer.echo(
                f"connected: client {event.client_id} from {event.address} in slot {event.index}", err=True
            )
        elif isinstance(event, Disconnected):
            typer.echo(f"gone: client {event.client_id} from slot {event.index}, {event.reason}", err=True)

    driver = UdpDriver(server, handle)
    await driver.open([sock])
    try:
        print(f"listening {bound}", flush=True)
        await stop.wait()
    finally:
        server.stop(loop.time())
        await driver.close()
        if server.ignored:
            why = ", ".join(
                f"{count} {reason.replace('_', ' ')}" for reason, count in server.ignored.most_common()
            )
            typer.echo(f"requests without an answer: {why}", err=True)


def connect_command(
    token: Annotated[str, typer.Option(metavar="FILE|-", help="File with the token: raw, hex or base64.")],
    count: Annotated[int, typer.Option(help="Number of payloads to send.", min=0)] = 10,
    size: Annotated[
        int, typer.Option(help="Size of a payload in bytes.", min=8, max=MAX_PAYLOAD_BYTES)
    ] = 100,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the connection.", min=0.1)] = 15.0,
    dialect: DialectOption = Dialect.STANDARD,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Connect with a token by bare netcode, send payloads and check that they come back.

    Exit code 0 when connected and every payload was echoed, else 1 with the reason.
    """
    report = Report()
    reason: str | None = None
    try:
        opened = ConnectToken.decode(read_token(token), dialect)
        asyncio.run(connect_and_echo(opened, report, count=count, size=size, timeout=timeout))
    except (InvalidToken, ConnectFailed) as exc:
        reason = str(exc)
    result = {"ok": reason is None, "reason": reason, **report.as_dict()}
    if as_json:
        typer.echo(json.dumps(result))
    elif report.connected_after is not None:
        typer.echo(report.text())
    if reason is not None:
        fail(reason)
