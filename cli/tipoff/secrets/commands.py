"""The commands `tipoff secrets init`, `show-paths` and `rotate`.

They print places, states and dates, never the content of a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tipoff_shared.games import Game
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.settings import ROLES

app = typer.Typer(
    name="secrets",
    help="Passwords, keys and certificates of an installation.",
    no_args_is_help=True,
)

Directory = Annotated[Path, typer.Argument(help="Directory of the secrets.", metavar="DIR")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        help="Name or address at which clients on other hosts reach NATS, for its certificate; repeatable.",
        show_default=False,
    ),
]
GamesFile = Annotated[
    Path | None,
    typer.Option(
        help="The games that need netcode keys. Default: ./games.toml where it exists.",
        envvar="TIPOFF_GAMES",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DEFAULT = Path("secrets")


@app.command("init")
def init_command(
    directory: Directory = _DEFAULT,
    host: Hosts = None,
    games: GamesFile = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            help="Prefix of every NATS subject and bucket. Default: the namespace that DIR was made for.",
            envvar="TIPOFF_NAMESPACE",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make missing secrets and keep existing ones. Run it after each upgrade, because permissions may change."""
    from tipoff.secrets.directory import SecretsDirectory

    found = _games(games)
    report = SecretsDirectory(directory, found).initialise(host or (), namespace)
    if not found and not any(item.path.parent.name == "netcode" for item in report.items):
        report.next.append("no netcode keys were made: name the games with --games FILE")
    _print(report, as_json=as_json)


@app.command("show-paths")
def show_command(directory: Directory = _DEFAULT, games: GamesFile = None, as_json: AsJson = False) -> None:
    """Show where each secret is, who needs it, whether to back it up, and when certificates expire."""
    from tipoff.secrets.directory import SecretsDirectory

    _print(SecretsDirectory(directory, _games(games)).show(), as_json=as_json)


@app.command("rotate")
def rotate_command(
    name: Annotated[
        str,
        typer.Argument(
            help=f"A role (its password: {', '.join(ROLES)}), `nats-tls` (the server's certificate), "
            "`nats-ca` (its authority, too), "
            "`users` (nats-server's users files), `server-auth` (the matchmakers' nkey in the "
            "isolated profile), `hook` (the key of webhook URLs), or GAME.VERSION (a netcode key)."
        ),
    ],
    directory: Directory = _DEFAULT,
    host: Hosts = None,
    as_json: AsJson = False,
) -> None:
    """Replace one secret, and say what to reload or restart."""
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
    title = Text(f"{report.directory}{namespace}")  # a path is no markup
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
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
        "back up the files marked yes, and ca.key, which signs new certificates, in another place; "
        "init and rotate make the others again",
        soft_wrap=True,
        highlight=False,
    )
    for line in report.next:
        console.print(f"• {line}", soft_wrap=True, highlight=False, markup=False)
