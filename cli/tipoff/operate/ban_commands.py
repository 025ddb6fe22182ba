"""The commands `tipoff ban add`, `list` and `remove`: their options and output."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tipoff.operate.commands import AsJson, parse_duration
from tipoff.running_system import Namespace, NatsUrl, StateDir, open_bus
from tipoff_shared.admin import Banned
from tipoff_shared.ban_list import new_ban
from tipoff_shared.errors import Malformed
from tipoff_shared.records import Ban
from tipoff_shared.service import run

app = typer.Typer(help="Keep players out: by address, network, user or client id.", no_args_is_help=True)

Address = Annotated[
    str | None,
    typer.Option("--address", help="IP address or network, like 203.0.113.7 or 2001:db8::/64."),
]
User = Annotated[
    str | None,
    typer.Option("--user", help="User id that your login put into the connect token. Game servers check it."),
]
Client = Annotated[
    str | None,
    typer.Option(
        "--client", help="Client id in the connect token, where your program gives each player one."
    ),
]


def _chosen(
    address: str | None, user: str | None, client: str | None, *, seconds: float = 0.0, reason: str = ""
) -> Ban:
    given = [(k, v) for k, v in (("address", address), ("user", user), ("client", client)) if v is not None]
    if len(given) != 1:
        raise typer.BadParameter("one of --address, --user and --client is expected")
    try:
        return new_ban(*given[0], until=time.time() + seconds if seconds else 0.0, reason=reason)
    except Malformed as exc:
        raise typer.BadParameter(str(exc)) from exc


@app.command("add")
def add_command(
    address: Address = None,
    user: User = None,
    client: Client = None,
    duration: Annotated[
        str | None,
        typer.Option("--for", help="How long: 30m, 12h, 7d, 4w.", show_default="until it is removed"),
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason that the player is told.", show_default=False)] = "",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Ban a player: it gets no seat, no game server lets it in, and its present games end."""
    new = _chosen(address, user, client, seconds=parse_duration(duration) if duration else 0.0, reason=reason)

    from tipoff.operate.admin import ban

    async def work() -> None:
        async with open_bus("ban", state_dir, nats, namespace) as bus:
            done = await ban(bus, new)
        if as_json:
            print(json.dumps(msgspec.to_builtins(done)))
        else:
            again = ", as before" if done.existed else ""
            print(f"{done.kind} {done.subject} is banned {_until(done.until)}{again}")

    run(work())


@app.command("remove")
def remove_command(
    address: Address = None,
    user: User = None,
    client: Client = None,
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Let a player in again. The address or network must be the one that was banned."""
    old = _chosen(address, user, client)

    from tipoff.operate.admin import ban

    async def work() -> None:
        async with open_bus("ban", state_dir, nats, namespace) as bus:
            done = await ban(bus, old, lift=True)
        if as_json:
            print(json.dumps(msgspec.to_builtins(done)))
        else:
            print(_lifted(done))
        if not done.existed:
            raise typer.Exit(1)

    run(work())


def _lifted(done: Banned) -> str:
    if done.existed:
        return f"{done.kind} {done.subject} is no longer banned"
    return f"{done.kind} {done.subject} was not banned; `tipoff ban list` shows the bans"


@app.command("list")
def list_command(
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Show the bans in force."""

    from tipoff.operate.admin import list_bans

    async def work() -> None:
        async with open_bus("ban", state_dir, nats, namespace) as bus:
            bans = await list_bans(bus, time.time())
        if as_json:
            print(json.dumps([shown(one) for one in bans]))
            return
        table = Table("kind", "who", "banned", "reason", title="Bans")
        for one in bans:
            table.add_row(one.kind, one.subject, _until(one.until), one.reason)
        Console().print(table)

    run(work())


def shown(one: Ban) -> dict[str, Any]:
    """A ban as `--json` prints it: every member, also those of their usual value."""
    return {field: getattr(one, field) for field in one.__struct_fields__}


def _until(until: float) -> str:
    return (
        f"until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC" if until else "until it is removed"
    )
