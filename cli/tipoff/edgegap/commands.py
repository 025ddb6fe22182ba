"""The commands `tipoff edgegap configure-app`, `tipoff edgegap check` and `tipoff edgegap-emulator`.

pydantic and the Edgegap client are imported when a command runs, because every other command would wait for them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.games.toml import load_games
from tipoff_shared.service import DONE, FAILED, INTERRUPTED, exit_code_of, load_settings, run, signals
from tipoff_shared.settings import NatsSettings

app = typer.Typer(
    name="edgegap",
    help="Game servers at Edgegap: set up the application, check the setup.",
    no_args_is_help=True,
)

GamesFile = Annotated[
    Path,
    typer.Option(help="The games file, with \\[game.edgegap].", envvar="TIPOFF_GAMES", show_default=True),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_GAMES = Path("games.toml")
_LEFT = 3
"""Exit code of `check --live` when something is still at Edgegap."""


@app.command("configure-app")
def configure_command(
    game: Annotated[
        str | None, typer.Argument(help="Name of the game; needed where several are at Edgegap.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of the game, where it has several.")] = None,
    games: GamesFile = _GAMES,
    image: Annotated[
        str | None, typer.Option(help="REGISTRY/NAME:TAG; needed for a new version.", show_default=False)
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the application and the version where they are missing.")
    ] = False,
    cpu: Annotated[
        float | None, typer.Option(help="vCPUs of a server; a new version has 0.5.", show_default=False)
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Memory of a server in MB; a new version has 1024.", show_default=False)
    ] = None,
    max_duration: Annotated[
        int | None,
        typer.Option(help="Minutes after which Edgegap ends a server, at most 1440.", show_default=False),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Cache the image at all locations.", show_default=False),
    ] = None,
    tls_upgrade: Annotated[
        bool, typer.Option("--tls/--no-tls", help="Let Edgegap terminate TLS in front of the WebSocket port.")
    ] = True,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of the authority that signed the certificate of NATS.", show_default=False
        ),
    ] = None,
    environment: Annotated[
        bool | None,
        typer.Option(
            "--environment/--no-environment",
            help="Write the environment of servers into the version. Default: where deployments do not carry it.",
            show_default=False,
        ),
    ] = None,
    registry_user: Annotated[
        str, typer.Option(help="Login for the image's registry.", show_default=False)
    ] = "",
    registry_token_file: Annotated[
        Path | None, typer.Option(help="File with the password of that login.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Set up a version at Edgegap as the game needs it: ports, environment, arguments, limits.

    Repeating the command is safe: it changes only what differs.
    """
    from tipoff_orchestrator_client.edgegap.settings import Settings
    from tipoff_orchestrator_client.edgegap.setup.app_version import Image, Wishes

    settings = load_settings(Settings)
    everything = load_games(games)
    chosen = _choose(everything, game, version)
    wishes = Wishes(
        image=None if image is None else Image.parse(image),
        cpu=None if cpu is None else round(cpu * 1024),
        memory=memory,
        max_duration=max_duration,
        force_cache=cache,
        tls_upgrade=tls_upgrade,
        registry_user=registry_user,
        registry_token=_read(registry_token_file, "--registry-token-file"),
        ca=_authority(settings, chosen, ca),
        environment=_environment(settings, everything, chosen, environment, ca),
    )
    done = run(_configure(settings, chosen, wishes, create=create, dry_run=dry_run))
    if as_json:
        print(json.dumps(done))
        return
    where = f"{done['application']} version {done['version']}"
    for change in done["changes"]:
        print(f"  {change['member']}: {change['now']} -> {change['wanted']}")
    if not done["changes"]:
        print(f"{where} needs no change")
    elif dry_run:
        print(f"{where}: {len(done['changes'])} change(s), nothing was written")
    else:
        print(f"{where}: {len(done['changes'])} change(s) written; new deployments have them")


async def _configure(
    settings: Any, game: Game, wishes: Any, *, create: bool, dry_run: bool
) -> dict[str, Any]:
    from tipoff_orchestrator_client.base import OrchestratorError
    from tipoff_orchestrator_client.edgegap.setup.account import AccountApi
    from tipoff_orchestrator_client.edgegap.setup.configure import configure

    try:
        async with AccountApi(settings.url, settings.api_token()) as account:
            return asdict(await configure(account, game, wishes, create=create, dry_run=dry_run))
    except OrchestratorError as exc:
        raise ConfigError(str(exc)) from exc


@app.command("check")
def check_command(
    game: Annotated[
        str | None, typer.Argument(help="Name of the game for --live; needed where several are at Edgegap.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version of that game, where it has several.", show_default=False)
    ] = None,
    games: GamesFile = _GAMES,
    live: Annotated[
        bool,
        typer.Option("--live", help="Also check the assumptions about Edgegap there, which costs money."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --live: do not ask whether to go on.")] = False,
    timeout: Annotated[
        float,
        typer.Option(help="With --live: seconds, without the removal afterwards.", min=10, max=1800),
    ] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Check credentials, application, version, environment and webhooks, and say what to fix.

    Without --live it changes nothing and costs nothing. With --live it makes one deployment of the game and one
    session, says which assumptions about Edgegap hold, and removes both, also after Ctrl-C; the next --live removes
    what one that was killed has left. Run one at a time on an account.

    Exit codes: 0 all is right; 1 something is wrong, or an assumption does not hold; 2 a setting cannot be used; 3
    something was left at Edgegap, and is named; 130 Ctrl-C.
    """
    from tipoff_orchestrator_client.edgegap.settings import Settings
    from tipoff_orchestrator_client.edgegap.setup.check import Verdict, check_games

    if (game or version or yes) and not live:
        raise ConfigError("GAME, --version and --yes are for --live")
    settings = load_settings(Settings)
    nats = NatsSettings.from_environment()
    everything = load_games(games)
    chosen = _choose(everything, game, version) if live else None
    findings = run(check_games(settings, nats, everything))
    wrong = sum(finding.verdict is Verdict.BAD for finding in findings)
    if not as_json:
        _show_findings(findings)
        print("everything is right" if not wrong else f"{wrong} thing(s) to fix")
    told: dict[str, Any] = {"ok": not wrong, "findings": [asdict(finding) for finding in findings]}
    code = FAILED if wrong else DONE
    if chosen is not None and not wrong:
        _confirm(settings, chosen, timeout, yes=yes)
        report, interrupted = run(_live(settings, nats, chosen, timeout))
        told["live"] = _report_json(report, interrupted=interrupted)
        code = _live_exit_code(report, interrupted=interrupted)
        told["ok"] = code == DONE
        if not as_json:
            _show_report(report)
    elif chosen is not None and not as_json:
        print("nothing was made at Edgegap: --live needs a setup in which everything is right")
    if as_json:
        print(json.dumps(told))
    if code:
        raise typer.Exit(code)


def _show_findings(findings: list[Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    marks = {"good": "[green]ok  [/green]", "note": "[yellow]note[/yellow]", "bad": "[red]BAD [/red]"}
    for finding in findings:
        console.print(marks[finding.verdict], end=" ")
        console.print(f"{finding.subject}: {finding.text}", markup=False)
        if finding.fix:
            console.print(f"       -> {finding.fix}", markup=False)


def _confirm(settings: Any, game: Game, timeout: float, *, yes: bool) -> None:
    """Ask whether to spend money; raises `ConfigError` where nobody can be asked."""
    assert game.edgegap is not None
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("--live makes a deployment, which costs money: --yes confirms it")
    sys.stderr.write(
        f"This makes one deployment of {game.edgegap.application} version {game.edgegap.version} and one session at "
        f"{settings.url}, for at most {timeout:g} s, and removes them. Edgegap bills the deployment's time. If this "
        "application has players, Edgegap may put some of them on it.\n"
    )
    if not typer.confirm("Go on?", err=True):
        raise ConfigError("nothing was made at Edgegap")


async def _live(settings: Any, nats: NatsSettings, game: Game, timeout: float) -> tuple[Any, bool]:
    """The report, and whether the first SIGINT or SIGTERM ended the check, which then removed what it had made. The
    second one ends that, too."""
    from tipoff_orchestrator_client.edgegap.setup.live.check import Report, live_check

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    report = Report()
    interrupted = False
    work = asyncio.create_task(live_check(settings, nats, game, report, timeout=timeout, say=say))

    def interrupt(_: str) -> None:
        nonlocal interrupted
        say(
            "stopping; once more leaves the rest to the next check" if not interrupted else "leaving the rest"
        )
        interrupted = True
        work.cancel()

    with signals(interrupt):
        try:
            await work
        except asyncio.CancelledError:
            if not interrupted:
                raise
    return report, interrupted


def _live_exit_code(report: Any, *, interrupted: bool) -> int:
    from tipoff_orchestrator_client.edgegap.setup.live.judge import refuted

    if report.left:
        return _LEFT
    if interrupted:
        return INTERRUPTED
    return FAILED if report.failure or refuted(report.conclusions) else DONE


def _report_json(report: Any, *, interrupted: bool) -> dict[str, Any]:
    return {
        "interrupted": interrupted,
        "failure": report.failure,
        "assumptions": [asdict(one) for one in report.conclusions],
        "removed_before": report.before.removed,
        "removed": report.after.removed,
        "left": report.left,
    }


def _show_report(report: Any) -> None:
    console = Console(highlight=False, soft_wrap=True)
    marks = {
        "held": "[green]held    [/green]",
        "not held": "[red]NOT HELD[/red]",
        "not seen": "[yellow]not seen[/yellow]",
    }
    for one in report.conclusions:
        console.print(marks[one.outcome], end=" ")
        console.print(f"{one.step}: {one.assumed}", markup=False)
        console.print(f"           {one.seen}", markup=False)
    for what in report.after.removed:
        console.print(f"removed: {what}", markup=False)
    for what in report.left:
        console.print("[red]LEFT AT EDGEGAP[/red]", end=" ")
        console.print(what, markup=False)
    if report.failure:
        console.print(report.failure, markup=False)
    counts = Counter(one.outcome.value for one in report.conclusions)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in marks))


def emulator_command(
    listen: Annotated[str | None, typer.Option(help="HOST:PORT.", show_default="127.0.0.1:8099")] = None,
    games: GamesFile = _GAMES,
    start_delay: Annotated[
        float | None,
        typer.Option(help="Seconds between an order and the start of its server.", show_default="1", min=0),
    ] = None,
    ready_delay: Annotated[
        float | None,
        typer.Option(help="Seconds between the start of its server and `ready`.", show_default="0", min=0),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(help="Deployments at once; the free plan has 1.", show_default="no limit", min=0),
    ] = None,
    public_host: Annotated[
        str | None, typer.Option(help="IPv4 address that players dial.", show_default="127.0.0.1")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="How servers run: process or docker.", show_default="process")
    ] = None,
    limits: Annotated[
        bool | None,
        typer.Option("--limits/--no-limits", help="Enforce Edgegap's rate limits.", show_default="on"),
    ] = None,
    empty: Annotated[
        bool | None, typer.Option("--empty", help="Start without applications, like a new account.")
    ] = None,
    logs: Annotated[Path | None, typer.Option(help="Directory for the servers' output.")] = None,
) -> None:
    """Run an emulated Edgegap: its API on this machine, with real game servers. Needs no account."""
    from tipoff_edgegap_emulator.emulator import Emulator
    from tipoff_edgegap_emulator.service import run_emulator
    from tipoff_edgegap_emulator.settings import EmulatorSettings
    from tipoff_shared import log

    log.configure("edgegap-emulator")
    given: dict[str, Any] = {
        "start_delay": start_delay,
        "ready_delay": ready_delay,
        "capacity": capacity,
        "public_host": public_host,
        "backend": backend,
        "limits": limits,
        "empty": empty,
        "logs": logs,
    }
    if listen is not None:
        host, _, port = listen.rpartition(":")
        given |= {"host": host or "127.0.0.1", "port": port}

    def show(emulator: Emulator, token: bool) -> None:
        print(f"ready  {emulator.url}", flush=True)
        known = (
            ", ".join(f"{app} {version}" for app, version in emulator.state.catalogue.versions) or "none yet"
        )
        sys.stderr.write(f"applications: {known}\n")
        if token:
            sys.stderr.write(
                f"for the matchmaker: TIPOFF_EDGEGAP_URL={emulator.url} TIPOFF_EDGEGAP_TOKEN={emulator.token}\n"
            )

    async def work() -> None:
        settings = load_settings(
            EmulatorSettings,
            TIPOFF_GAMES=games,
            **{name: value for name, value in given.items() if value is not None},
        )
        stop = asyncio.Event()
        with signals(lambda _: stop.set()):
            async with run_emulator(settings) as emulator:
                show(emulator, token=not settings.token.get_secret_value())
                await stop.wait()

    raise typer.Exit(exit_code_of(work, prefix="tipoff edgegap-emulator: "))


def _choose(games: Games, name: str | None, version: str | None) -> Game:
    found = [
        game
        for game in games.all()
        if game.edgegap is not None and name in (None, game.name) and version in (None, game.version)
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{game.name} {game.version}" for game in games.all() if game.edgegap is not None)
    if not known:
        raise ConfigError("no game in games.toml has [game.edgegap] with its application and version")
    raise ConfigError(f"which game? At Edgegap are {known}: name one, with --version where it has several")


def _read(path: Path | None, option: str) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{option}: {exc}") from exc


def _authority(settings: Any, game: Game, ca: Path | None) -> str:
    """The certificate authority for bevygap's servers, which take it as an argument; ours read it from their
    environment."""
    if not game.bevygap:
        return ""
    if ca is not None:
        return _read(ca, "--ca")
    if settings.nats_ca_file is not None:
        return _read(settings.nats_ca_file, "TIPOFF_EDGEGAP_NATS_CA_FILE")
    nats = NatsSettings.from_environment()
    return (
        ""
        if nats.insecure
        else nats.ca_contents or _read(Path(nats.ca_file) if nats.ca_file else None, "NATS_CA")
    )


def _environment(
    settings: Any, games: Games, game: Game, wanted: bool | None, ca: Path | None
) -> tuple[Any, ...]:
    from tipoff_orchestrator_client.edgegap import SESSIONS
    from tipoff_orchestrator_client.edgegap.environment import Environment

    if wanted is None:  # deployments that Edgegap makes for sessions carry no environment
        wanted = (
            game.orchestrator == SESSIONS or not settings.pass_nats or (ca is not None and not game.bevygap)
        )
    if not wanted:
        return ()
    changes: dict[str, Any] = {"pass_nats": True}
    if ca is not None:
        changes["nats_ca_file"] = ca
    changed = settings.model_copy(update=changes)
    return tuple(Environment(changed, NatsSettings.from_environment(), games).of_version(game))
