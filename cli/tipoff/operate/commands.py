"""The commands `tipoff status`, `watch`, `kick`, `drain` and `restart`: their options and output."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from tipoff.running_system import Namespace, NatsUrl, StateDir, games_file, open_bus
from tipoff_shared.admin import Drained
from tipoff_shared.records import DeploymentRecord, DeploymentState
from tipoff_shared.service import run

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option(help="Reason that players and records show.", show_default=False)]

_OVER = ("closing", "gone")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhdw])", re.ASCII)


def parse_duration(text: str) -> float:
    """The seconds in `30m`, `12h`, `7d`. Raises `typer.BadParameter`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r}: a number and one of {', '.join(_UNITS)} are expected, like 30m or 7d"
        )
    return float(found[1]) * _UNITS[found[2]]


def status_command(
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Show game servers with their seats, sessions, connections and orchestrators, as they are now."""
    from tipoff.operate.status import print_status, read_status

    async def work() -> None:
        async with open_bus("status", state_dir, nats, namespace) as bus:
            found = await read_status(bus)
        if as_json:
            print(json.dumps(found))
        else:
            print_status(found, Console())

    run(work())


def watch_command(
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each change.")] = False,
) -> None:
    """Show every change of the shared state as it happens: sessions, servers, leases, connections. Ctrl-C ends it."""
    from tipoff.operate.watch import watch_changes, watch_printer

    def show_json(item: dict[str, Any]) -> None:
        print(json.dumps(item), flush=True)

    async def work() -> None:
        async with (
            open_bus("watch", state_dir, nats, namespace) as bus,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(_until_output_is_closed())
            group.create_task(watch_changes(bus, show_json if as_json else watch_printer()))

    try:
        run(work())
    except* BrokenPipeError:  # `tipoff watch | head`: the reader has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _until_output_is_closed() -> None:
    """Raise `BrokenPipeError` soon after the reader of standard output has closed it, also while there is nothing to
    write, so that `tipoff watch | head` ends."""
    if not hasattr(select, "poll") or sys.stdout.isatty():
        return
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always reported
    while not poller.poll(0):  # noqa: ASYNC110 # no event loop reports this for a terminal, a file and a pipe alike
        await asyncio.sleep(0.3)
    raise BrokenPipeError


def logs_command(
    select: Annotated[
        str,
        typer.Argument(
            metavar="[GAME | SERVER]", help="A game, or the id of one server.", show_default="all"
        ),
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new lines as they come. Ctrl-C ends it.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(help="Only lines of the last 30s, 10m, 2h, 1d.", show_default="the last lines"),
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Last lines of each server.", min=0)] = 100,
    host: Annotated[
        str, typer.Option(help="The launcher's name (TIPOFF_LAUNCHER_HOST).", envvar="TIPOFF_LAUNCHER_HOST")
    ] = "local",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each line.")] = False,
) -> None:
    """Show the output of game servers: what they print, and the tracebacks of your game. Also of servers that ended
    lately."""
    from tipoff.operate.logs import LogLine, LogPrinter, as_json_line, follow_logs
    from tipoff_orchestrator_client.base import OrchestratorError
    from tipoff_orchestrator_client.launcher import LauncherOrchestrator

    begin = time.time() - parse_duration(since) if since else 0.0
    console = Console()
    printed = LogPrinter(console)

    def show(line: LogLine) -> None:
        if as_json:
            print(as_json_line(line), flush=True)
        else:
            printed(line)

    async def work() -> None:
        failed = ""
        servers = 0
        async with (
            open_bus("logs", state_dir, nats, namespace) as bus,
            asyncio.TaskGroup() as group,
        ):
            reader = group.create_task(_until_output_is_closed())
            try:
                servers = await follow_logs(
                    LauncherOrchestrator(bus, host),
                    show,
                    select=select,
                    tail=-1 if since else lines,
                    since=begin,
                    follow=follow,
                    on_failure=lambda text: typer.echo(f"{text}; trying again", err=True),
                )
            except OrchestratorError as exc:
                failed = str(exc)
            reader.cancel()
        if failed:
            typer.echo(failed, err=True)
            raise typer.Exit(1)
        if not servers:
            typer.echo(
                f"no server of {select!r} is known here; `tipoff status` shows the servers"
                if select
                else "no server has run here yet",
                err=True,
            )
            raise typer.Exit(1 if select else 0)

    try:
        run(work())
    except* BrokenPipeError:  # `tipoff logs | head`: the reader has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def kick_command(
    session: Annotated[str, typer.Argument(help="Id of the session, as `tipoff status` shows it.")],
    reason: Reason = "",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """End one player's session: the connection ends, the seat becomes free."""

    from tipoff.operate.admin import kick

    async def work() -> None:
        async with open_bus("kick", state_dir, nats, namespace) as bus:
            done = await kick(bus, session, reason)
        if as_json:
            print(json.dumps(msgspec.to_builtins(done)))
        elif done.state in _OVER:
            print(f"session {session} had ended already: {done.reason}")
        else:
            where = f" on {done.deployment_id}" if done.deployment_id else ""
            print(f"session {session} was {done.state}{where} and is ended: {done.reason}")

    run(work())


def drain_command(
    deployment: Annotated[str, typer.Argument(help="Id of the game server, as `tipoff status` shows it.")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when the game server has ended.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(help="With --wait: the longest wait, in seconds.", min=0, show_default="no limit"),
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="End the game server at once, with its players.")
    ] = False,
    reason: Reason = "",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Let no new players onto a game server, and end it when its last player has left."""

    from tipoff.operate.admin import drain, until_gone

    async def work() -> None:
        began = time.monotonic()
        async with open_bus("drain", state_dir, nats, namespace) as bus:
            done = await drain(bus, deployment, reason, now=now)
            if as_json:
                if wait:
                    await until_gone(bus, deployment, timeout=timeout, on_change=lambda record: None)
                    done = Drained(deployment, DeploymentState.GONE.value, 0, done.reason)
                print(json.dumps(msgspec.to_builtins(done)))
            elif wait:
                await until_gone(bus, deployment, timeout=timeout, on_change=_say)
                print(f"{deployment} has ended ({time.monotonic() - began:.1f} s)")
            else:
                print(_server_text(deployment, done.state, done.seats))

    run(work())


def restart_command(
    game: Annotated[str, typer.Argument(help="Name of the game.")],
    version: Annotated[str, typer.Argument(help="One version.", show_default="all versions")] = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """End all servers of a game at once, with their players, and start new ones. Failed starts are forgotten."""

    from tipoff.operate.admin import restart

    async def work() -> None:
        async with open_bus("restart", state_dir, nats, namespace) as bus:
            done = await restart(bus, game, version, reason)
        if as_json:
            print(json.dumps(msgspec.to_builtins(done)))
            return
        for server in done.servers:
            print(f"{server} is stopping")
        again = "those that are kept ready start again" if done.servers else "none ran"
        print(f"{len(done.servers)} server(s) of {game} {', '.join(done.versions)}: {again}")

    run(work())


def rollout_command(
    game: Annotated[str, typer.Argument(help="Name of the game.")],
    version: Annotated[
        str, typer.Argument(help="One version.", show_default="all versions, one after another")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the old servers have ended, with their last players.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Longest time for each version, in seconds.", min=1)] = 600.0,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Replace every server there is now, also those of a rollout that is not over."
        ),
    ] = False,
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Replace the servers of a game one after another without dropping a player: a new one is ready first, then an old
    one accepts no new players and ends with its last one. Run again, it goes on where it was interrupted."""
    from tipoff.operate.rollout import RolledOut, roll_out, versions_of

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    async def work() -> list[RolledOut]:
        async with open_bus("rollout", state_dir, nats, namespace) as bus:
            done: list[RolledOut] = []
            for each in [version] if version else await versions_of(bus, game):
                say(f"replacing the servers of {game} {each}")
                one = await roll_out(bus, game, each, again=again, wait=wait, timeout=timeout, say=say)
                done.append(one)
                if one.problem:
                    break
            return done

    done = run(work())
    if as_json:
        print(json.dumps(msgspec.to_builtins(done)))
    elif not done:
        print(f"no server of {game} runs, so there is none to replace")
    for one in done if not as_json else ():
        print(f"{one.game} {one.version}: {one.replaced} server(s) replaced")
        for server, seats in one.draining.items():
            print(f"{server} ends with the last of {seats} seat(s)")
        for server in one.left:
            print(f"{server} is not replaced")
        if one.problem:
            typer.echo(one.problem, err=True)
    if any(one.problem for one in done):
        raise typer.Exit(1)


def reload_command(
    games: Annotated[
        Path | None,
        typer.Option(
            help="The games file.", show_default="that of the running `tipoff up`, else ./games.toml"
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until all parts follow.", min=0)] = 10.0,
    state_dir: StateDir = None,
    nats: NatsUrl = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Check games.toml and publish it: new games and versions can be played, removed ones take no new players, changed
    limits apply. Nothing restarts. Commands and keys are not published: each part reads its own file again."""
    from tipoff.operate.reload import publish, unfollowed
    from tipoff_shared.games.toml import parse_games, read_games

    path = games or games_file(state_dir, nats)
    found = parse_games(read_games(path), str(path))

    async def work() -> list[str]:
        async with open_bus("reload", state_dir, nats, namespace) as bus:
            done = await publish(bus, found, str(path))
            if not as_json:
                print(done.text, flush=True)
            left = await unfollowed(bus, done.revision, found, timeout)
        if as_json:
            print(json.dumps({**msgspec.to_builtins(done), "problems": left}))
        return left

    left = run(work())
    if not as_json:
        for problem in left:
            typer.echo(problem, err=True)
        if not left:
            print("every part follows it")
    if left:
        raise typer.Exit(1)


def _say(record: DeploymentRecord) -> None:
    print(_server_text(record.id, record.state, len(record.seats)), flush=True)


def _server_text(deployment_id: str, state: str, seats: int) -> str:
    if state == DeploymentState.DRAINING and seats:
        return f"{deployment_id} accepts no new players and ends with the last of {seats} seat(s)"
    return f"{deployment_id} is {state}" + (f", {seats} seat(s) are taken" if seats else "")
