"""The command `tipoff up`: its options, and what it prints."""

from __future__ import annotations

import asyncio
import os
import shlex
import webbrowser
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tipoff.projects import GAMES_FILE, find_project, state_dir_of
from tipoff_shared.primitives.orphans import reap_as_process_1
from tipoff_shared.service import run, signals


def up_command(
    games: Annotated[
        Path | None,
        typer.Option(
            help="The games file. Default: games.toml here or in a directory above, else that of the arena demo."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of the page and the API; 0 is any free one.",
            min=0,
            max=65535,
            show_default="that of the last time, else 3000, else the next free one",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address or DNS name at which players reach this machine; `auto` finds the one in the local network."
        ),
    ] = "127.0.0.1",
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory for data and logs.",
            envvar="TIPOFF_STATE_DIR",
            show_default="one for each project, below ~/.local/state/tipoff",
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Prefix of every NATS subject, bucket and stream.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM), for https and wss.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    web: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the page at /. Default: web/ beside the games file, else the demo's page."
        ),
    ] = None,
    matchmakers: Annotated[int, typer.Option(help="Number of matchmakers.", min=1, max=16)] = 1,
    httpds: Annotated[int, typer.Option(help="Number of httpds, all behind one port.", min=1, max=16)] = 1,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not show what game servers print; `tipoff logs` has it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each event, to standard output.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    ports: Annotated[
        str,
        typer.Option(
            metavar="FIRST-LAST",
            help="UDP and TCP ports of game servers, for a firewall: 30000-30199 are 100 servers.",
            show_default="any free ones",
            envvar="TIPOFF_LAUNCHER_PORT_RANGE",
        ),
    ] = "",
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart a game's servers when its Python files change.")
    ] = False,
    reload_include: Annotated[
        list[str] | None,
        typer.Option(
            help="With --reload: further files, like '*.json'.", metavar="PATTERN", show_default=False
        ),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option(help="Serve the developer's dashboard at /_tipoff, to this machine.")
    ] = True,
    dashboard_from: Annotated[
        str,
        typer.Option(
            metavar="NETWORKS",
            help="Also serve it to these networks, like 192.168.1.0/24: whoever is there can end your games.",
            show_default=False,
        ),
    ] = "",
    edgegap_emulator: Annotated[
        bool,
        typer.Option(
            "--edgegap-emulator",
            help='Run games with orchestrator = "edgegap" on this machine, by Edgegap\'s API.',
        ),
    ] = False,
) -> None:
    """Run the whole system on this machine: nats-server, launcher, matchmaker and httpd. Ctrl-C stops everything."""
    from tipoff.up.options import UpOptions
    from tipoff.up.output import JsonLines, Output, Terminal
    from tipoff.up.run import Running, run_up

    console = Console(stderr=True)
    if games is not None:
        project: Path | None = games.absolute().parent
    elif (project := find_project(Path.cwd())) is not None:
        here = Path(GAMES_FILE)
        games = here if here.exists() else project / GAMES_FILE
    else:
        demo = "games.edgegap.toml" if edgegap_emulator else GAMES_FILE
        games = Path(str(files("tipoff_arena") / demo))
    beside = games.absolute().parent / "web"
    elsewhere = state_dir is not None and str(state_dir) != os.environ.get("TIPOFF_STATE_DIR")
    options = UpOptions(
        games=games,
        state_dir=state_dir or state_dir_of(project),
        port=port,
        host=host,
        namespace=namespace,
        tls_cert=tls_cert,
        tls_key=tls_key,
        matchmakers=matchmakers,
        httpds=httpds,
        edgegap_emulator=edgegap_emulator,
        ports=ports,
        reload=reload,
        reload_include=tuple(reload_include or ()),
        dashboard_from=dashboard_from if dashboard else None,
        web=web or (beside if (beside / "index.html").exists() else None),
    )

    where = f" --state-dir {shlex.quote(str(options.state_dir))}" if elsewhere else ""
    output: Output = JsonLines(_print_line) if as_json else Terminal(console, where)

    def ready(running: Running) -> None:
        output.ready(running)
        if open_:
            webbrowser.open(running.urls[0])

    async def work() -> None:
        stop = asyncio.Event()
        reap_as_process_1()
        show_line = None if quiet else output.show_line
        with signals(lambda _: stop.set()):
            await run_up(options, say=output.say, show_line=show_line, on_ready=ready, stop=stop)
        output.stopped()

    run(work())


def _print_line(line: str) -> None:
    print(line, flush=True)
