"""The command `tipoff doctor`: options, output, exit code."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tipoff.doctor.facts import udp
from tipoff.doctor.findings import Finding, Status, run_checks
from tipoff.doctor.rules.udp import judge_probe, spans
from tipoff.doctor.target import Target, monitor_of, of_env_file, of_environment, of_up
from tipoff.port_range import DEFAULT_PORTS, parse_ports
from tipoff.projects import find_up
from tipoff.running_system import Namespace, NatsUrl, StateDir, nats_settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.settings import NatsSettings

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red", Status.SKIP: "dim"}
LISTEN_FOR = 600.0


def doctor_command(
    env_file: Annotated[
        Path | None,
        typer.Option(help="File with the compose stack's variables, like deploy/.env.local.", dir_okay=False),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Name that players dial.")] = None,
    url: Annotated[
        str | None, typer.Option(help="URL of page and API, like https://play.example.org.")
    ] = None,
    ports: Annotated[
        str | None, typer.Option(help=f"Ports of game servers, like {DEFAULT_PORTS}.", show_default=False)
    ] = None,
    games: Annotated[Path | None, typer.Option(help="The games file.", dir_okay=False)] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM file of an authority to trust for --url.", exists=True)
    ] = None,
    nats: NatsUrl = None,
    monitor: Annotated[
        str | None,
        typer.Option(help="URL of nats-server's monitoring port. Default: port 8222 of the same host."),
    ] = None,
    state_dir: StateDir = None,
    namespace: Namespace = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="PORTS", help="Only answer `--probe` on these UDP ports, for ten minutes."),
    ] = None,
    probe: Annotated[
        str | None, typer.Option(metavar="HOST", help="Only probe a `--listen` on HOST, on --ports.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds each check may take.", min=0.5, max=60)] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an installation and say what to fix. Changes nothing. Exit code 1 when a check fails.

    Without options it checks the `tipoff up` that runs here, else the installation that the services' variables name.
    """
    if listen is not None:
        asyncio.run(_listen(parse_ports(listen)))
        return
    if probe is not None:
        wanted = parse_ports(ports or DEFAULT_PORTS)
        if len(wanted) > udp.MAX_PORTS:
            raise ConfigError(f"--ports: at most {udp.MAX_PORTS} are probed")
        facts = asyncio.run(udp.probe(probe, wanted, timeout))
        show([judge_probe(facts)], as_json)
        return
    from tipoff.doctor.checks import checks_of  # a heavy import that only this command needs

    target = find_target(env_file, state_dir, nats, namespace)
    target = dataclasses.replace(
        target,
        host=host or target.host,
        url=(url or target.url).rstrip("/") or (f"https://{host}" if host else ""),
        ports=parse_ports(ports) if ports else target.ports,
        any_ports=target.any_ports and not ports,
        games=games or target.games,
        ca=ca or target.ca,
        monitor=(monitor or "").rstrip("/")
        or target.monitor
        or (monitor_of(target.nats) if target.nats else ""),
    )
    show(asyncio.run(run_checks(checks_of(target, timeout), timeout)), as_json)


def find_target(
    env_file: Path | None, state_dir: Path | None, nats_url: str | None, namespace: str | None
) -> Target:
    """The target in the .env file, else a running `tipoff up`, else the environment's. Raises `ConfigError`."""
    if env_file is not None:
        return of_env_file(env_file)
    settings: NatsSettings | None = None
    problem, up = "", None
    if nats_url is not None or not os.environ.get("NATS_HOST"):
        try:
            settings = nats_settings(state_dir, nats_url, namespace)
            if nats_url is None:
                up = find_up(state_dir)
        except ConfigError as exc:
            if nats_url is not None:
                raise
            problem = str(exc)
    else:
        settings = NatsSettings.from_environment()
        if namespace is not None:
            settings = dataclasses.replace(settings, namespace=namespace)
    target = of_environment(os.environ, nats=settings, problem=problem)
    target = dataclasses.replace(target, named=state_dir is not None)
    return target if up is None else of_up(target, up.info, up.state_dir)


def show(findings: Sequence[Finding], as_json: bool) -> None:
    """Print the findings. Raises `typer.Exit(1)` when a check failed."""
    counted = Counter(finding.status for finding in findings)
    if as_json:
        report = {
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "ok": counted[Status.OK],
            "warn": counted[Status.WARN],
            "fail": counted[Status.FAIL],
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        console = Console()
        width = max((len(finding.check) for finding in findings), default=0)
        for finding in findings:
            line = Text(f"{finding.status:<5}", _STYLES[finding.status])
            line.append(f"{finding.check:<{width}}  ", "bold").append(finding.said, "default")
            console.print(line, soft_wrap=True)
            if finding.todo:
                console.print(Text(f"{'':<{width + 7}}{finding.todo}", "dim"), soft_wrap=True)
        console.print(
            f"{counted[Status.OK]} ok, {counted[Status.WARN]} to look at, {counted[Status.FAIL]} failed",
            style="bold",
        )
    if counted[Status.FAIL]:
        raise typer.Exit(1)


async def _listen(ports: range) -> None:
    """Answer probes until Ctrl-C, for at most ten minutes, and print who sends them."""
    if len(ports) > udp.MAX_PORTS:
        raise ConfigError(f"--listen: at most {udp.MAX_PORTS} ports are opened")
    console = Console(stderr=True)
    seen: set[str] = set()
    async with udp.echo(list(ports)) as echo:
        if not echo.open:
            raise ConfigError(f"all ports of {spans(ports)} are in use")
        console.print(
            f"answering on UDP {spans(echo.open)} for {LISTEN_FOR / 60:.0f} minutes; Ctrl-C ends it"
        )
        if echo.busy:
            console.print(f"in use, not answering: {spans(echo.busy)}", style="yellow")
        loop = asyncio.get_running_loop()
        until = loop.time() + LISTEN_FOR
        while loop.time() < until:
            await asyncio.sleep(0.5)  # refreshes the display
            for address in echo.heard.keys() - seen:
                seen.add(address)
                console.print(f"probed by {address}")
