"""The `tipoff` command: the list of its subcommands, in the order in which the help shows them.

Each group of commands has a folder whose `commands.py` holds the options, help and output; what needs heavy imports is
imported when the command runs, so that the help and shell completion stay quick.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from tipoff import __version__
from tipoff.doctor.commands import doctor_command
from tipoff.edgegap.commands import app as edgegap_app
from tipoff.edgegap.commands import emulator_command
from tipoff.interop.echo_commands import connect_command, gameserver_command
from tipoff.interop.token_commands import app as token_app
from tipoff.new.commands import new_command
from tipoff.operate.ban_commands import app as ban_app
from tipoff.operate.commands import (
    drain_command,
    kick_command,
    logs_command,
    reload_command,
    restart_command,
    rollout_command,
    status_command,
    watch_command,
)
from tipoff.play.commands import play_command
from tipoff.secrets.commands import app as secrets_app
from tipoff.turn_relay.commands import bench_app, relay_command
from tipoff.up.commands import up_command

ROLES = {
    "httpd": "tipoff_matchmaker_httpd.__main__",
    "matchmaker": "tipoff_matchmaker.__main__",
    "launcher": "tipoff_launcher.__main__",
}
"""Role -> module whose `main` runs it."""

app = typer.Typer(
    name="tipoff",
    help="Puts players into running game servers. Begin with [bold]tipoff up[/bold] and [bold]tipoff play[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tipoff {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def serve_command(
    role: Annotated[str, typer.Argument(help="httpd, matchmaker or launcher.")],
    games: Annotated[
        Path | None, typer.Option(help="games.toml (matchmaker and launcher).", envvar="TIPOFF_GAMES")
    ] = None,
) -> None:
    """Run one role by itself. Its settings are environment variables; docs/settings.md lists them."""
    if role not in ROLES:
        raise typer.BadParameter(f"{role!r}; httpd, matchmaker or launcher is expected")
    if games is not None:
        os.environ["TIPOFF_GAMES"] = str(games)
    importlib.import_module(ROLES[role]).main()


app.command("up")(up_command)
app.command("serve")(serve_command)
app.command("new")(new_command)
app.command("play")(play_command)
app.command("status")(status_command)
app.command("watch")(watch_command)
app.command("logs")(logs_command)
app.command("kick")(kick_command)
app.command("drain")(drain_command)
app.command("restart")(restart_command)
app.command("rollout")(rollout_command)
app.command("reload")(reload_command)
app.add_typer(ban_app, name="ban")
app.command("doctor")(doctor_command)
app.command("relay")(relay_command)
app.add_typer(bench_app, name="bench")
app.add_typer(secrets_app, name="secrets")
app.add_typer(edgegap_app, name="edgegap")
app.command("edgegap-emulator")(emulator_command)
# Tokens and bare netcode are for interoperability: last in the help.
app.add_typer(token_app, name="token")
app.command("gameserver")(gameserver_command)
app.command("connect")(connect_command)
