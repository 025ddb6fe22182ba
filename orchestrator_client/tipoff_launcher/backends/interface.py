"""What can run servers on this host, seen from the launcher: one interface for processes (and containers).

A back end starts, finds and ends; whether a server may exist, and what is written down about it, is decided in
`servers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import NoCapacity, Port
from tipoff_shared.games import Game


@dataclass(frozen=True, slots=True)
class PortWish:
    """A port that a server needs. `internal` 0: where it listens is to be the very port that players dial."""

    protocol: str
    internal: int = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a server of one game finds where this back end starts it. `own` are the variables that games.toml gives
    it, `passed_on` the names of those it gets from the launcher's own environment, `bind_host` is where it listens."""

    own: Mapping[str, str]
    passed_on: tuple[str, ...]
    bind_host: str


@dataclass(frozen=True, slots=True)
class StartOrder:
    """One server to start. `environment` holds secrets and has no repr; files it names are this host's. `log` is
    where its output goes. `progress(text)` tells people what a start that takes long is busy with."""

    record: Record
    game: Game
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    progress: Callable[[str], None]

    @property
    def deployment_id(self) -> str:
        return self.record.deployment_id


class PortInUse(NoCapacity):
    """Somebody else has one of the server's ports, which only the attempt could show: another one may be free."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a server ended. `code` as of `subprocess`: negative is a signal, None is not known. `note`: what its back
    end knows of why."""

    code: int | None
    note: str = ""


class RunningServer(Protocol):
    """One server that runs, started by this launcher or by an earlier one."""

    @property
    def native_id(self) -> str: ...

    async def ended(self) -> Exit:
        """Returns when the server has ended and nothing of it is left (what outlives it is killed). Carries out
        `terminate`, so somebody must await it all the time. Cancelling leaves the server as it is."""
        ...

    def terminate(self, grace: float) -> None:
        """Ask it to end; `grace` seconds later it and all it has started is killed. Asking again changes
        nothing."""
        ...

    async def kill(self) -> None:
        """End the server's own process at once, as a crash would. Raises `OrchestratorError`."""
        ...


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    def check(self, game: Game) -> None:
        """Raises `NotConfigured` when this game cannot be started here, with what to do about it."""
        ...

    def ports(self, game: Game) -> Mapping[str, PortWish]:
        """Host ports that a server of the game needs, by name; `check` has passed."""
        ...

    def port_is_free(self, port: int, protocol: str) -> bool:
        """Whether nobody on this host has it, as far as one can tell without trying."""
        ...

    def surroundings(self, game: Game) -> Surroundings: ...

    async def start(self, order: StartOrder, write_down: Callable[[str], None]) -> RunningServer:
        """Start it. `write_down(native_id)` is called before the first line of the server runs; if it raises, or
        we die in it, nothing runs. Raises `PortInUse`, other `OrchestratorError`s or `OSError`; nothing runs then.
        Nothing runs after a cancellation either."""
        ...

    def proxy(self, deployment_id: str, ports: Mapping[str, Port]) -> str:
        """Where a reverse proxy beside this launcher reaches the server's WebSocket listener: `host:port`, or `host`
        where `ports` does not tell and the server announces it. Never anything that a server says."""
        ...

    async def find(self, native_id: str, deployment_id: str) -> RunningServer | None:
        """The server that an earlier launcher wrote down, if that very one still runs (or can still say how it
        ended). Raises `OrchestratorError` where that cannot be known now."""
        ...

    async def clean_up(self, native_id: str, deployment_id: str) -> None:
        """End whatever a dead server has left running."""
        ...

    async def unrecorded(self, known: Collection[str]) -> list[Record]:
        """Servers that run here, carry this launcher's mark and are not among the `known` deployment ids, as the
        records that were lost. What never ran is removed. Raises `OrchestratorError`."""
        ...
