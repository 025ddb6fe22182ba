"""The command `tipoff play`: its options."""

from __future__ import annotations

from typing import Annotated

import typer

from tipoff_shared.service import run


def play_command(
    url: Annotated[
        str, typer.Option(help="URL of httpd, or of a stand-alone game server.")
    ] = "http://127.0.0.1:3000",
    game: Annotated[str, typer.Option(help="Name of the game.")] = "arena",
    version: Annotated[str, typer.Option(help="Version of the game.")] = "1",
    seconds: Annotated[float, typer.Option(help="How long to play.")] = 10.0,
    bots: Annotated[int, typer.Option(help="Number of players at once.", min=1, max=1000)] = 1,
    transport: Annotated[
        str, typer.Option(help="udp, websocket, or both: the first that works.")
    ] = "udp,websocket",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the connection.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Play for a while without a screen, as one player or many. Exit code 0 when every player was connected."""
    from tipoff.play.players import PlayOptions, parse_transports, play_many

    for name, value in (("--timeout", timeout), ("--seconds", seconds)):
        if not 0 < value < 1e6:
            raise typer.BadParameter(f"{name} {value}: a number of seconds above 0 is expected")
    options = PlayOptions(url, game, version, seconds, parse_transports(transport), timeout)
    run(play_many(options, bots=bots, as_json=as_json))
