"""Runs each server as a child process with its own session and process group.

Its output goes through a named pipe to the log writer, which outlives the launcher (tipoff_shared/log_writer).

A new child waits in exec_gate.py until the launcher has recorded which process it is. The kernel reports the end of a
process through a pidfd, for children and for processes adopted from an earlier launcher; where there is no pidfd,
polling notices the end within half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakSet

from tipoff_launcher.backends.interface import (
    DEPLOYMENT_ID,
    BackendEnvironment,
    ExitStatus,
    PortSpec,
    StartRequest,
)
from tipoff_launcher.backends.ports import SDK_PORTS, port_is_free
from tipoff_launcher.backends.process.identity import LINUX, Identity, group_members, identify, lives
from tipoff_launcher.backends.process.process_tree import (
    MARKER,
    Children,
    Family,
    Table,
    become_subreaper,
    processes,
    send,
)
from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import NoCapacity, NotConfigured, OrchestratorUnavailable, Port
from tipoff_shared.games import Game
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "TIPOFF_LOG",
    "TIPOFF_LOG_LEVEL",
)
"""The variables that a server inherits from the launcher."""

_EXEC_GATE = Path(__file__).with_name("exec_gate.py")
_POLL_FIRST, _POLL_AT_MOST = 0.01, 0.5
_LOOK_EVERY = 5.0
"""Seconds between two looks at what servers have started."""
_KILL_AGAIN = 1.0
"""Seconds between two SIGKILLs."""


class ProcessBackend:
    """The `Backend` for processes. `base` is the directory of games.toml, `logs` writes their output, `listen_on` is
    the address that servers bind, `proxy_host` what a reverse proxy dials to reach them. `fixed_ports`: servers that
    would take any free ports get theirs from the range.

    With `die_with_parent`, Linux kills the servers when the thread that started them ends: the event loop's thread
    must live as long as the launcher.
    """

    def __init__(
        self,
        base: Path,
        logs: LogWriter,
        *,
        owner: str = "",
        die_with_parent: bool = False,
        nice: int = 0,
        listen_on: str = "127.0.0.1",
        proxy_host: str = "127.0.0.1",
        fixed_ports: bool = False,
    ) -> None:
        self._base = base
        self._logs = logs
        self._owner = owner
        self._servers: WeakSet[ProcessServer] = WeakSet()
        self._children: Children | None = None
        self._listen_on = listen_on
        self._proxy_host = proxy_host
        self._fixed_ports = fixed_ports
        self._die_with_parent = die_with_parent
        self._nice = nice

    @property
    def name(self) -> str:
        """`process`."""
        return "process"

    def proxy_address(self, deployment_id: str, ports: Mapping[str, Port]) -> str:
        """`proxy_host` and the port that was picked for the WebSocket listener; "" without one. A port that the server
        announces does not count: it may be that of another program on this host."""
        port = ports.get("websocket") or next(
            (port for port in ports.values() if port.protocol == "tcp"), None
        )
        return "" if port is None else f"{self._proxy_host}:{port.internal}"

    def check(self, game: Game) -> None:
        """Raises `NotConfigured` without a command that can be run."""
        self._command(game, os.environ.get("PATH", os.defpath))

    def ports(self, game: Game, *, proxied: bool = False) -> Mapping[str, PortSpec]:
        """The ports of `[game.process]`; a server listens on the port that players dial. With `proxied`, one of them is
        for the WebSocket listener."""
        wanted = game.process.ports if game.process is not None else {}
        if not wanted and self._fixed_ports and game.ready == "lease":
            return SDK_PORTS
        ports = {name: PortSpec(protocol) for name, protocol in wanted.items()}
        if proxied and "tcp" not in wanted.values():
            ports["websocket"] = PortSpec("tcp")
        return ports

    def port_is_free(self, port: int, protocol: str) -> bool:
        """Whether the port can be bound on `listen_on` now. Raises `OSError`."""
        return port_is_free(self._listen_on)(port, protocol)

    def environment(self, game: Game) -> BackendEnvironment:
        """The variables of `[game.process]`, and those named in `INHERITED`."""
        variables = game.process.env if game.process is not None else {}
        return BackendEnvironment(variables, INHERITED, self._listen_on)

    async def start(self, request: StartRequest, save_native_id: Callable[[str], None]) -> ProcessServer:
        """Start the process behind exec_gate.py, and release it once `save_native_id` has returned."""
        command, cwd = self._command(request.game, request.environment["PATH"])
        gate, release = os.pipe()
        try:
            identity = self._spawn(request, command, cwd, gate)
            try:
                save_native_id(str(identity))
                os.write(release, b"\n")
            except BaseException:
                os.close(release)  # which makes exec_gate.py exit
                release = -1
                _reap(identity.pid, wait=True)
                raise
        finally:
            os.close(gate)
            if release >= 0:
                os.close(release)
        return self._server(identity, request.deployment_id, request.log)

    async def find(self, native_id: str, deployment_id: str, log_file: Path) -> ProcessServer | None:
        """The process, if it still runs; a later process with the same pid does not count."""
        identity = Identity.parse(native_id)
        if identity is None or not lives(identity):
            return None
        return self._server(identity, deployment_id, log_file)

    async def clean_up(self, native_id: str, deployment_id: str) -> None:
        """Kill what is left of the process group, and what names the server."""
        identity = Identity.parse(native_id)
        if identity is not None:
            signal_group(identity, deployment_id, signal.SIGKILL)
            Family(identity, self._marker(deployment_id)).kill()

    async def find_unrecorded(self, known: Collection[str]) -> list[Record]:
        """Always empty."""
        return []  # a process that was not recorded never got past exec_gate.py

    @asynccontextmanager
    async def looking(self, *, own_process: bool) -> AsyncIterator[None]:
        """Look now and then at what servers have started, for the time of the block.

        With `own_process`, all other children of this process are of servers: it becomes a subreaper, kills what a
        crashed server has left, and reaps orphans, also as process 1 of a container.
        """
        if own_process and become_subreaper():
            self._children = Children(self._own_children)
        async with Tasks("processes") as tasks:
            if LINUX:
                tasks.start(self._look_forever(), "look")
            yield

    async def _look_forever(self) -> None:
        while True:
            table = await asyncio.to_thread(processes)
            for server in list(self._servers):
                server.look(table)
            if self._children is not None:
                self._children.look(processes())
            await asyncio.sleep(_LOOK_EVERY)

    def _own_children(self) -> set[int]:
        pids = {server.identity.pid for server in self._servers if not server.reaped}
        return pids | ({self._logs.pid} if self._logs.pid else set())

    def _server(self, identity: Identity, deployment_id: str, log_file: Path) -> ProcessServer:
        family = Family(identity, self._marker(deployment_id))
        server = ProcessServer(identity, deployment_id, self._logs, log_file, family, self._kill_inherited)
        self._servers.add(server)
        return server

    def _kill_inherited(self) -> None:
        if self._children is not None:
            self._children.kill_new()

    def _marker(self, deployment_id: str) -> str:
        return f"{MARKER}={self._owner}.{deployment_id}"

    def _command(self, game: Game, path: str) -> tuple[list[str], Path]:
        """The command with the path of its program, and its working directory. Raises `NotConfigured`."""
        where = f"game {game.name!r} version {game.version!r} in games.toml"
        if game.process is None:
            raise NotConfigured(f"{where} has no [game.process] with its command")
        cwd = self._base / game.process.cwd
        if not cwd.is_dir():
            raise NotConfigured(f"{where}: its cwd {cwd} is not a directory")
        program, *arguments = game.process.command
        if program == "python":
            return [sys.executable, *arguments], cwd
        found = str(cwd / program) if "/" in program else shutil.which(program, path=path)
        if found is None or not os.access(found, os.X_OK):
            raise NotConfigured(f"{where}: its command {program!r} is not found, or may not be executed")
        return [found, *arguments], cwd

    def _spawn(self, request: StartRequest, command: list[str], cwd: Path, gate: int) -> Identity:
        """Start exec_gate.py, waiting on `gate`. Never in a worker thread: PDEATHSIG reports the thread's end."""
        parent = str(os.getpid()) if self._die_with_parent else "0"
        output = self._logs.open(request.log)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_EXEC_GATE), parent, str(self._nice), *command],
                cwd=cwd,
                env={**request.environment, MARKER: f"{self._owner}.{request.deployment_id}"},
                stdin=gate,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except BlockingIOError as exc:  # EAGAIN: the limit of processes
            raise NoCapacity(
                f"this host cannot start more processes: {exc.strerror}", retryable=True
            ) from exc
        finally:
            os.close(output)
        process.returncode = 0  # this module waits for it by pid; Popen must neither warn nor reap
        identity = identify(process.pid)
        if identity is None:
            _reap(process.pid, wait=True)
            raise OrchestratorUnavailable("the new process ended before it began", retryable=True)
        return identity


class ProcessServer:
    """The `RunningServer` of a process, a child or adopted, of its process group, whose number is its pid, and of its
    `family`. `kill_inherited` is called when all of that has ended."""

    def __init__(
        self,
        identity: Identity,
        deployment_id: str,
        logs: LogWriter,
        log_file: Path,
        family: Family,
        kill_inherited: Callable[[], None],
    ) -> None:
        self.identity = identity
        self.reaped = False
        self._family = family
        self._kill_inherited = kill_inherited
        self._deployment_id = deployment_id
        self._logs = logs
        self._log_file = log_file
        self._kill_at: float | None = None
        self._wake = asyncio.Event()

    @property
    def native_id(self) -> str:
        """The process's identity as text."""
        return str(self.identity)

    def terminate(self, grace: float) -> None:
        """Send SIGTERM to the process group; `wait` sends SIGKILL after `grace` seconds."""
        if self._kill_at is None:
            self._kill_at = asyncio.get_running_loop().time() + grace
            table = processes()
            self.look(table)
            self._signal_group(signal.SIGTERM)
            for pid in self._family.outside(self.identity.pid, table):
                send(pid, signal.SIGTERM)
            self._wake.set()

    async def kill(self) -> None:
        """Send SIGKILL to the process itself, not to its group."""
        if lives(self.identity):
            send(self.identity.pid, signal.SIGKILL)

    async def wait(self) -> ExitStatus:
        """Wait for the process, then kill its group. The exit code is None for an adopted process."""
        loop = asyncio.get_running_loop()
        with _ExitNotice(self.identity, self._wake) as notice:
            delay = _POLL_FIRST
            while not notice.has_ended():
                self._wake.clear()
                timeout = None if notice.pushed else delay
                delay = min(delay * 2, _POLL_AT_MOST)
                if self._kill_at is not None:
                    left = self._kill_at - loop.time()
                    if left <= 0:
                        self._signal_group(signal.SIGKILL)
                        left = _KILL_AGAIN
                    timeout = left if timeout is None else min(timeout, left)
                await wait_for_event(self._wake, timeout)
        # Its child processes may still be shutting down, if it was asked to end.
        delay = _POLL_FIRST
        while self._kill_at is not None and loop.time() < self._kill_at and self._members():
            await asyncio.sleep(delay)
            delay = min(delay * 2, _POLL_AT_MOST)
        self._signal_group(signal.SIGKILL)
        self._family.kill()
        self._kill_inherited()
        if not await self._logs.finished(self._log_file):
            log.warning("the last output of %s is not in its log yet", self._deployment_id)
        if notice.code is None and identify(self.identity.pid) == self.identity:
            notice.code = _reap(self.identity.pid)
        self.reaped = True
        return ExitStatus(notice.code)

    def look(self, table: Table) -> None:
        """Take in what the server has started."""
        self._family.look(table)

    def _members(self) -> list[int]:
        members = _members_of(self.identity, self._deployment_id)
        return members or self._family.outside(self.identity.pid, processes())

    def _signal_group(self, number: signal.Signals) -> None:
        signal_group(self.identity, self._deployment_id, number)


def signal_group(identity: Identity, deployment_id: str, number: signal.Signals) -> None:
    """Signal the process and all it has started. While the process exists, even as a zombie, the group's number is its
    own; afterwards only processes count whose environment holds its deployment id."""
    if identify(identity.pid) == identity:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(identity.pid, number)
    else:
        for pid in _members_of(identity, deployment_id):
            send(pid, number)


def _members_of(identity: Identity, deployment_id: str) -> list[int]:
    return group_members(identity.pid, f"{DEPLOYMENT_ID}={deployment_id}")


class _ExitNotice:
    """Sets `wake` when the process ends, where the kernel reports it (`pushed`); otherwise poll `has_ended`."""

    def __init__(self, identity: Identity, wake: asyncio.Event) -> None:
        self._identity = identity
        self._wake = wake
        self._pidfd: int | None = None
        self._loop = asyncio.get_running_loop()
        self.code: int | None = None

    @property
    def pushed(self) -> bool:
        return self._pidfd is not None

    def has_ended(self) -> bool:
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(0))
        if not LINUX and self.code is None:  # `ps` does not show that a child is a zombie, so reap it
            self.code = _reap(self._identity.pid)
        return self.code is not None or not lives(self._identity)

    def __enter__(self) -> _ExitNotice:
        if LINUX and lives(self._identity):
            with contextlib.suppress(OSError):  # an old kernel, or it has just ended
                self._pidfd = os.pidfd_open(self._identity.pid)
        if self._pidfd is not None:
            if identify(self._identity.pid) != self._identity:  # the pid was reused between the two lines
                os.close(self._pidfd)
                self._pidfd = None
            else:
                self._loop.add_reader(self._pidfd, self._on_end)
        return self

    def _on_end(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)  # it stays readable for ever
        self._wake.set()

    def __exit__(self, *_: object) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)


def _reap(pid: int, *, wait: bool = False) -> int | None:
    """Reap a child that has ended and return its exit code; None for other processes."""
    try:
        done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if done else None
