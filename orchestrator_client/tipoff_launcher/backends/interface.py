"""The interface of a back end: it starts, finds and stops the game servers of this host.

The supervisor decides whether a server may exist and what is recorded about it (supervisor.py, recovery.py); a back
end carries that out, as processes (process/) or as containers (docker/).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import NoCapacity, Port
from tipoff_shared.games import Game

DEPLOYMENT_ID = "TIPOFF_DEPLOYMENT_ID"
"""The environment variable that names a server's deployment; processes of a dead server are found by it."""


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A port that a server needs. `internal` 0: the server listens on the port that players dial."""

    protocol: str
    internal: int = 0


@dataclass(frozen=True, slots=True)
class BackendEnvironment:
    """What a back end contributes to the environment of a game's servers.

    `variables` come from games.toml, `inherited` names the launcher's own variables that are passed on, and
    `bind_host` is the address that servers listen on.
    """

    variables: Mapping[str, str]
    inherited: tuple[str, ...]
    bind_host: str


@dataclass(frozen=True, slots=True)
class StartRequest:
    """One server to start. `environment` holds secrets and has no repr; the files it names are this host's. The
    server's output goes to `log`. `progress(text)` tells waiting players what a slow start is doing."""

    record: Record
    game: Game
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    progress: Callable[[str], None]

    @property
    def deployment_id(self) -> str:
        """The deployment to start."""
        return self.record.deployment_id


class PortInUse(NoCapacity):
    """Another program has one of the server's ports, which only the attempt showed; another port may be free."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a server ended. `code` as in `subprocess`: negative is a signal, None is unknown. `note`: the reason, where
    the back end knows it."""

    code: int | None
    note: str = ""


class RunningServer(Protocol):
    """A running server, started by this launcher or by an earlier one."""

    @property
    def native_id(self) -> str:
        """The back end's name for it; `Backend.find` finds the server again by this."""
        ...

    async def wait(self) -> ExitStatus:
        """Return when the server has ended, its remaining child processes are killed, and its log is complete. Carries
        out `terminate`, so one task must await it at all times. Cancelling leaves the server as it is."""
        ...

    def terminate(self, grace: float) -> None:
        """Ask the server to end; after `grace` seconds it is killed with all it has started. Repeating the call
        changes nothing."""
        ...

    async def kill(self) -> None:
        """Kill the server's own process at once, as a crash would. Raises `OrchestratorError`."""
        ...


class Backend(Protocol):
    """Runs game servers on this host. Every error it raises is an `OrchestratorError`, or `OSError` where noted."""

    @property
    def name(self) -> str:
        """`process` or `docker`, as in the records and in TIPOFF_LAUNCHER_BACKEND."""
        ...

    def check(self, game: Game) -> None:
        """Raises `NotConfigured` when this game cannot be started here; the message says what to do."""
        ...

    def ports(self, game: Game, *, proxied: bool = False) -> Mapping[str, PortSpec]:
        """The host ports that a server of the game needs, by name. `proxied`: browsers reach its WebSocket listener
        through a reverse proxy. Call it after `check`."""
        ...

    def port_is_free(self, port: int, protocol: str) -> bool:
        """Whether no program on this host uses the port, as far as can be told without starting the server."""
        ...

    def environment(self, game: Game) -> BackendEnvironment:
        """This back end's part of the environment of the game's servers."""
        ...

    async def start(self, request: StartRequest, save_native_id: Callable[[str], None]) -> RunningServer:
        """Start a server. `save_native_id` is called before the first line of the server runs.

        When `save_native_id` raises, when the launcher dies in it, or when this call is cancelled or fails, no server
        is left running. Raises `PortInUse`, another `OrchestratorError`, or `OSError`.
        """
        ...

    def proxy_address(self, deployment_id: str, ports: Mapping[str, Port]) -> str:
        """Where a reverse proxy beside this launcher reaches the server's WebSocket listener: `host:port`, "" where it
        does not. It never contains anything that a server says."""
        ...

    async def find(self, native_id: str, deployment_id: str, log_file: Path) -> RunningServer | None:
        """The recorded server, if that very server still runs or its exit status is still available; its output goes to
        `log_file`. Raises `OrchestratorError` when this cannot be determined now."""
        ...

    async def clean_up(self, native_id: str, deployment_id: str) -> None:
        """Stop what a dead server has left running."""
        ...

    async def find_unrecorded(self, known: Collection[str]) -> list[Record]:
        """The lost records of servers that run here, carry this launcher's labels and are not among the `known`
        deployment ids. Removes servers that never ran. Raises `OrchestratorError`."""
        ...
