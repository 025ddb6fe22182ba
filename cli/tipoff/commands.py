"""The commands of `tipoff`: their options and help. What they do lives in the modules they call."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shlex
import signal
import sys
import webbrowser
from collections.abc import Coroutine
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tipoff import __version__
from tipoff.doctor.command import doctor_command
from tipoff.edgegap.commands import app as edgegap_app
from tipoff.edgegap.commands import emulator_command
from tipoff.netcode.echo_commands import connect_command, gameserver_command
from tipoff.netcode.token_commands import app as token_app
from tipoff.operate import drain_command, kick_command
from tipoff.secrets_directory.commands import app as secrets_app
from tipoff.state_dir import DEFAULT_STATE_DIR, default_state_dir
from tipoff.turn_relay.commands import bench_app, relay_command
from tipoff.where import Namespace, NatsUrl, StateDir, nats_settings

app = typer.Typer(
    name="tipoff",
    help="Puts players into running game servers. Begin with [bold]tipoff up[/bold] and [bold]tipoff play[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
)


def run(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run` on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


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


@app.command()
def up(
    games: Annotated[
        Path | None,
        typer.Option(
            help="Which games there are. Default: ./games.toml if there is one, else the arena demo."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port of the page and the API; 0 is any free one.", min=0, max=65535)
    ] = 3000,
    host: Annotated[
        str,
        typer.Option(
            help="Address players reach this machine at; `auto` finds the one in the local network."
        ),
    ] = "127.0.0.1",
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where data and logs go.", envvar="TIPOFF_STATE_DIR", show_default=DEFAULT_STATE_DIR
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Prefix of every NATS subject, bucket and stream.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): https and wss.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    web: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the page at /. Default: web/ beside the games file, else the demo's."
        ),
    ] = None,
    matchmakers: Annotated[int, typer.Option(help="How many matchmakers.", min=1, max=16)] = 1,
    httpds: Annotated[int, typer.Option(help="How many httpds, all behind the one port.", min=1, max=16)] = 1,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    edgegap_emulator: Annotated[
        bool,
        typer.Option(
            "--edgegap-emulator",
            help='Run what is at Edgegap (orchestrator = "edgegap") on this machine, by Edgegap\'s API.',
        ),
    ] = False,
) -> None:
    """Run the whole system on this machine: nats-server, launcher, matchmaker and httpd. Ctrl-C stops all of it."""
    from tipoff.up.options import UpOptions
    from tipoff.up.run import Running, run_up

    console = Console(stderr=True)
    if games is None:
        local = Path("games.toml")
        demo = "games.edgegap.toml" if edgegap_emulator else "games.toml"
        games = local if local.exists() else Path(str(files("tipoff_arena") / demo))
    beside = games.resolve().parent / "web"
    options = UpOptions(
        games=games,
        state_dir=state_dir or default_state_dir(),
        port=port,
        host=host,
        namespace=namespace,
        tls_cert=tls_cert,
        tls_key=tls_key,
        matchmakers=matchmakers,
        httpds=httpds,
        edgegap_emulator=edgegap_emulator,
        web=web or (beside if (beside / "index.html").exists() else None),
    )

    def say(text: str) -> None:
        console.print(text, style="dim", soft_wrap=True)

    def ready(running: Running) -> None:
        others = "".join(f"  {url}" for url in running.urls[1:])
        print(
            f"ready  {running.urls[0]}{others}  nats {running.nats_url}  ({running.took:.1f} s)", flush=True
        )
        where = (
            ""
            if options.state_dir == default_state_dir()
            else f" --state-dir {shlex.quote(str(options.state_dir))}"
        )
        say(f"games: {', '.join(running.games)}")
        say(f"`tipoff status{where}` and `tipoff watch{where}` show what goes on. Ctrl-C stops everything.")
        if open_:
            webbrowser.open(running.urls[0])

    async def work() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await run_up(options, say=say, on_ready=ready, stop=stop)
        console.print("[dim]stopped[/dim]")

    run(_flat(work()))


async def _flat(work: Coroutine[Any, Any, None]) -> None:
    """A task group's only failure as itself, so that its message reaches the user."""
    try:
        await work
    except BaseExceptionGroup as group:
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from group


ROLES = {
    "httpd": "tipoff_matchmaker_httpd.__main__",
    "matchmaker": "tipoff_matchmaker.__main__",
    "launcher": "tipoff_launcher.__main__",
}


@app.command()
def serve(
    role: Annotated[str, typer.Argument(help="httpd, matchmaker or launcher.")],
    games: Annotated[
        Path | None, typer.Option(help="games.toml (matchmaker and launcher).", envvar="TIPOFF_GAMES")
    ] = None,
) -> None:
    """Run one part by itself. Its settings are environment variables; docs/settings.md lists them."""
    import importlib

    if role not in ROLES:
        raise typer.BadParameter(f"{role!r}; httpd, matchmaker or launcher is expected")
    if games is not None:
        os.environ["TIPOFF_GAMES"] = str(games)
    importlib.import_module(ROLES[role]).main()


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the game and of the directory that is made.")],
    directory: Annotated[
        Path | None, typer.Option("--in", help="Where to make it.", show_default="here")
    ] = None,
) -> None:
    """Write a small game of your own: server, client, web page, games.toml and a test."""
    from tipoff.new import write_game

    target = write_game(name, directory or Path.cwd())
    typer.echo(f"{target}: server.py, client.py, web/index.html, games.toml, test_game.py")
    typer.echo(
        f"next: cd {shlex.quote(str(target))} && tipoff up        then, in another terminal: python client.py"
    )


@app.command()
def play(
    url: Annotated[
        str, typer.Option(help="Where httpd (or a stand-alone game server) is.")
    ] = "http://127.0.0.1:3000",
    game: Annotated[str, typer.Option(help="Which game.")] = "arena",
    version: Annotated[str, typer.Option(help="Which version.")] = "1",
    seconds: Annotated[float, typer.Option(help="How long to play.")] = 10.0,
    bots: Annotated[int, typer.Option(help="How many players at once.", min=1, max=1000)] = 1,
    transport: Annotated[
        str, typer.Option(help="udp, websocket, or both: the first that works.")
    ] = "udp,websocket",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a way in.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Play for a while without a screen, alone or as many. Exit code 0 when everybody was connected."""
    from tipoff.play import PlayOptions, parse_transports, play_many

    for name, value in (("--timeout", timeout), ("--seconds", seconds)):
        if not 0 < value < 1e6:
            raise typer.BadParameter(f"{name} {value}: a number of seconds above 0 is expected")
    options = PlayOptions(url, game, version, seconds, parse_transports(transport), timeout)
    run(_flat(play_many(options, bots=bots, as_json=as_json)))


@app.command()
def status(
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Game servers with their seats, sessions, connections and orchestrators, as they are now."""
    from tipoff.status import print_status, read_status
    from tipoff_shared.nats.connection import connect

    async def work() -> None:
        async with connect(nats_settings(state_dir, nats, namespace), name="tipoff status") as bus:
            found = await read_status(bus)
        if as_json:
            print(json.dumps(found))
        else:
            print_status(found, Console())

    run(_flat(work()))


async def _until_nobody_reads() -> None:
    """Raises `BrokenPipeError` soon after the other end of standard output is closed, even when there is nothing to
    write: `tipoff watch | head` shall end."""
    if not hasattr(select, "poll") or sys.stdout.isatty():
        return
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
    while not poller.poll(0):  # noqa: ASYNC110 # no event loop tells this of a terminal, a file and a pipe alike
        await asyncio.sleep(0.3)
    raise BrokenPipeError


@app.command()
def watch(
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Every change of the shared state as it happens: sessions, servers, leases, connections. Ctrl-C ends it."""
    from tipoff.status import watch_changes, watch_printer
    from tipoff_shared.nats.connection import connect

    def show_json(item: dict[str, Any]) -> None:
        print(json.dumps(item), flush=True)

    async def work() -> None:
        async with (
            connect(nats_settings(state_dir, nats, namespace), name="tipoff watch") as bus,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(_until_nobody_reads())
            group.create_task(watch_changes(bus, show_json if as_json else watch_printer()))

    try:
        run(_flat(work()))
    except BrokenPipeError:  # `tipoff watch | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app.command("kick")(kick_command)
app.command("drain")(drain_command)
app.command("doctor")(doctor_command)
app.command("relay")(relay_command)
app.add_typer(bench_app, name="bench")
app.add_typer(secrets_app, name="secrets")
app.add_typer(edgegap_app, name="edgegap")
app.command("edgegap-emulator")(emulator_command)
# The tools for tokens and bare netcode come last in the help.
app.add_typer(token_app, name="token")
app.command("gameserver")(gameserver_command)
app.command("connect")(connect_command)
