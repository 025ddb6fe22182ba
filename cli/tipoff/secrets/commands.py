"""`tipoff secrets init | show-paths | rotate`: an installation's passwords, keys and certificates.

What is printed are places, states and dates; never what a file holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tipoff_shared.games import Game
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.settings import ROLES

app = typer.Typer(
    name="secrets",
    help="Passwords, keys and certificates of an installation: made once, shown, replaced.",
    no_args_is_help=True,
)

Directory = Annotated[Path, typer.Argument(help="The directory of the secrets.", metavar="DIR")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        help="A name or address by which clients elsewhere reach NATS, for its certificate; may be repeated.",
        show_default=False,
    ),
]
GamesFile = Annotated[
    Path | None,
    typer.Option(
        help="The games whose netcode keys are made. Default: ./games.toml if there is one.",
        envvar="TIPOFF_GAMES",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
_DEFAULT = Path("secrets")


@app.command("init")
def init_command(
    directory: Directory = _DEFAULT,
    host: Hosts = None,
    games: GamesFile = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            help="Prefix of every NATS subject and bucket. Default: the one DIR is for, if any.",
            envvar="TIPOFF_NAMESPACE",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make what is missing; what is there stays. Run it again after each upgrade: permissions may be new."""
    from tipoff.secrets.directory import SecretsDirectory

    found = _games(games)
    report = SecretsDirectory(directory, found).initialise(host or (), namespace)
    if not found and not any(item.path.parent.name == "netcode" for item in report.items):
        report.next.append("no netcode keys were made: --games FILE says for which games")
    _print(report, as_json=as_json)


@app.command("show-paths")
def show_command(directory: Directory = _DEFAULT, games: GamesFile = None, as_json: AsJson = False) -> None:
    """What lies where, who needs it, what to back up, and until when certificates hold."""
    from tipoff.secrets.directory import SecretsDirectory

    _print(SecretsDirectory(directory, _games(games)).show(), as_json=as_json)


@app.command("rotate")
def rotate_command(
    name: Annotated[
        str,
        typer.Argument(
            help=f"A role (its password: {', '.join(ROLES)}), `nats-tls` (the server's certificate), "
            "`nats-ca` (with its authority), "
            "`users` (nats-server's files anew), `hook` (of webhooks' addresses), or GAME.VERSION (a netcode key)."
        ),
    ],
    directory: Directory = _DEFAULT,
    host: Hosts = None,
    as_json: AsJson = False,
) -> None:
    """Replace one secret, and say what must be reloaded or restarted."""
    from tipoff.secrets.directory import SecretsDirectory

    _print(SecretsDirectory(directory).rotate(name, host or ()), as_json=as_json)


def _games(path: Path | None) -> list[Game]:
    if path is None:
        path = Path("games.toml")
        if not path.exists():
            return []
    return parse_games(read_games(path), str(path))


def _print(report: Any, *, as_json: bool) -> None:
    if as_json:
        items = [
            {
                "name": item.name,
                "path": str(item.path.absolute()),
                "state": item.state,
                "for": item.readers,
                "back_up": item.back_up,
                **({"expires": item.expires.isoformat()} if item.expires else {}),
            }
            for item in report.items
        ]
        print(
            json.dumps(
                {
                    "directory": str(report.directory),
                    "namespace": report.namespace,
                    "items": items,
                    "next": report.next,
                }
            )
        )
        return
    namespace = f", namespace {report.namespace}" if report.namespace else ""
    table = Table(title=f"{report.directory}{namespace}", title_justify="left", box=None, pad_edge=False)
    for column in ("name", "file", "state", "for", "back up"):
        table.add_column(column, no_wrap=column in ("name", "file"), overflow="fold")
    for item in report.items:
        state = item.state + (f", until {item.expires:%Y-%m-%d}" if item.expires else "")
        table.add_row(
            item.name,
            str(item.path.absolute().relative_to(report.directory)),
            state,
            item.readers,
            item.back_up,
        )
    console = Console()
    console.print(table)
    console.print(
        "back up what says yes, ca.key (it signs new certificates) apart from the rest; "
        "init and rotate make the others again",
        soft_wrap=True,
        highlight=False,
    )
    for line in report.next:
        console.print(f"• {line}", soft_wrap=True, highlight=False, markup=False)
