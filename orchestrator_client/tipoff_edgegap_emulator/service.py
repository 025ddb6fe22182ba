"""Runs the emulator as a service: `tipoff edgegap-emulator`, `python -m tipoff_edgegap_emulator`."""

from __future__ import annotations

import importlib.util
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tipoff_edgegap_emulator.emulator import Emulator, running_emulator
from tipoff_edgegap_emulator.options import RATES, Options
from tipoff_edgegap_emulator.settings import EmulatorSettings
from tipoff_edgegap_emulator.state import Rules
from tipoff_launcher.backends.interface import Backend
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_launcher.settings import Settings as LauncherSettings
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.environment import Environment
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.games.toml import load_games, parse_games, read_games
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.service import load_settings
from tipoff_shared.settings import NatsSettings


@asynccontextmanager
async def run_emulator(settings: EmulatorSettings) -> AsyncIterator[Emulator]:
    """A running emulator, during the block. Raises `ConfigError` for an unusable games.toml, port or game."""
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigError("the emulator needs uvicorn: pip install 'tipoff[all]'")
    parsed = parse_games(read_games(settings.games), str(settings.games))
    # A deployment carries its game's key; servers that sessions start read it from the version's environment.
    keys_needed = any(game.orchestrator == SESSIONS for game in parsed)
    games = load_games(settings.games, missing_keys="refuse" if keys_needed else "random")
    if not any(game.edgegap is not None for game in games.all()):
        raise ConfigError(
            f"{settings.games}: no game has [game.edgegap] with application and version, so there is nothing "
            "to emulate"
        )
    emulated = Options(
        host=settings.host,
        port=settings.port,
        fd=settings.listen_fd,
        token=settings.token.get_secret_value().removeprefix("token ").strip(),
        public_ip=settings.public_host,
        rules=Rules(
            start_delay=settings.start_delay,
            ready_delay=settings.ready_delay,
            capacity=settings.capacity or None,
        ),
        rates=RATES if settings.limits else {},
        ports=settings.ports,
        environment=_environment(games),
        url=settings.url,
        empty=settings.empty,
        die_with_parent=settings.die_with_parent,
    )
    async with AsyncExitStack() as stack:
        logs = settings.logs or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tipoff-edgegap-"))
        )
        backend = await stack.enter_async_context(_backend(settings, games, logs))
        try:
            yield await stack.enter_async_context(
                running_emulator(games, emulated, backend=backend, logs=logs)
            )
        except OSError as exc:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc}; --listen names another"
            ) from exc


@asynccontextmanager
async def _backend(settings: EmulatorSettings, games: Games, logs: Path) -> AsyncIterator[Backend]:
    """What runs the servers. The launcher's own variables, TIPOFF_LAUNCHER_DOCKER_..., configure containers."""
    local = settings.public_host.startswith("127.")
    if settings.backend == "process":
        everywhere = "0.0.0.0"  # noqa: S104 # players come from other hosts
        async with LogWriter(logs) as writer:
            yield ProcessBackend(
                games.base,
                writer,
                die_with_parent=settings.die_with_parent,
                listen_on="127.0.0.1" if local else everywhere,
            )
        return
    from tipoff_launcher.backends.docker.backend import docker_backend  # aiohttp takes 200 ms to import

    with tempfile.TemporaryDirectory(prefix="tipoff-edgegap-") as directory:
        # Labels the containers, so that an emulator finds those that an earlier one on the same port left behind.
        name = settings.port or secrets.token_hex(4)
        launcher = LauncherSettings(
            host=f"edgegap-{name}", public_host=settings.public_host, state_dir=Path(directory)
        )
        async with docker_backend(launcher, games, "edgegap") as backend:
            for left in await backend.find_unrecorded(()):  # by an emulator that was killed
                await backend.clean_up(left.native_id, left.deployment_id)
            yield backend


def _environment(games: Games) -> Callable[[Game], Mapping[str, str]] | None:
    """The variables of a game's version, which is all that servers get where Edgegap itself starts them."""
    if not any(game.orchestrator == SESSIONS for game in games.all()):
        return None
    edgegap = Environment(load_settings(Settings), NatsSettings.from_environment(), games)

    def of(game: Game) -> dict[str, str]:
        if game.orchestrator != SESSIONS:
            return {}
        return {name: value for name, value, _ in edgegap.of_version(game)}

    return of
