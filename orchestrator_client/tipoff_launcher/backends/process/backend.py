"""The back end `process`: a server is a child process, alone in its session and process group.

A start passes the gate (gate.py): the child waits until the launcher has written down which process it is.
Ends are told by the kernel (pidfd), for children and for processes adopted from an earlier launcher alike; where
there is no pidfd they are noticed by looking, at most half a second later.
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
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tipoff_launcher.backends.interface import Exit, PortWish, StartOrder, Surroundings
from tipoff_launcher.backends.process.identity import LINUX, Identity, group_members, identify, lives
from tipoff_launcher.backends.server_log import open_log
from tipoff_launcher.child_environment import DEPLOYMENT_ID, PASSED_ON
from tipoff_launcher.ports import port_is_free
from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import NoCapacity, NotConfigured, OrchestratorUnavailable, Port
from tipoff_shared.games import Game

log = logging.getLogger(__name__)

_GATE = Path(__file__).with_name("gate.py")
_LOOK_FIRST, _LOOK_AT_MOST = 0.01, 0.5
_KILL_AGAIN = 1.0


class ProcessBackend:
    """`base` is the directory of games.toml. With `die_with_parent` Linux kills the servers when the thread that
    started them ends: use it from a loop whose thread lives as long as the launcher. `listen_on`: where servers
    listen; `proxy_host`: what a reverse proxy dials to reach them."""

    def __init__(
        self,
        base: Path,
        *,
        die_with_parent: bool = False,
        nice: int = 0,
        listen_on: str = "127.0.0.1",
        proxy_host: str = "127.0.0.1",
    ) -> None:
        self._base = base
        self._listen_on = listen_on
        self._proxy_host = proxy_host
        self._die_with_parent = die_with_parent
        self._nice = nice

    @property
    def name(self) -> str:
        return "process"

    def proxy(self, deployment_id: str, ports: Mapping[str, Port]) -> str:
        port = ports.get("websocket")
        return self._proxy_host if port is None else f"{self._proxy_host}:{port.internal}"

    def check(self, game: Game) -> None:
        self._command(game, os.environ.get("PATH", os.defpath))

    def ports(self, game: Game) -> Mapping[str, PortWish]:
        wanted = game.process.ports if game.process is not None else {}
        return {name: PortWish(protocol) for name, protocol in wanted.items()}

    def port_is_free(self, port: int, protocol: str) -> bool:
        return port_is_free(self._listen_on)(port, protocol)

    def surroundings(self, game: Game) -> Surroundings:
        own = game.process.env if game.process is not None else {}
        return Surroundings(own, PASSED_ON, self._listen_on)

    async def start(self, order: StartOrder, write_down: Callable[[str], None]) -> ProcessServer:
        command, cwd = self._command(order.game, order.environment["PATH"])
        gate, our_end = os.pipe()
        try:
            identity = self._spawn(order, command, cwd, gate)
            try:
                write_down(str(identity))
                os.write(our_end, b"\n")
            except BaseException:
                os.close(our_end)
                our_end = -1  # the gate goes home
                _reap(identity.pid, wait=True)
                raise
        finally:
            os.close(gate)
            if our_end >= 0:
                os.close(our_end)
        return ProcessServer(identity, order.deployment_id)

    async def find(self, native_id: str, deployment_id: str) -> ProcessServer | None:
        identity = Identity.parse(native_id)
        if identity is None or not lives(identity):
            return None
        return ProcessServer(identity, deployment_id)

    async def clean_up(self, native_id: str, deployment_id: str) -> None:
        identity = Identity.parse(native_id)
        if identity is not None:
            ProcessServer(identity, deployment_id).signal_group(signal.SIGKILL)

    async def unrecorded(self, known: Collection[str]) -> list[Record]:
        return []  # a process that was not written down never passed the gate

    def _command(self, game: Game, path: str) -> tuple[list[str], Path]:
        """The command with its program found, and where it runs; raises `NotConfigured`."""
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

    def _spawn(self, order: StartOrder, command: list[str], cwd: Path, gate: int) -> Identity:
        """A process that waits at the gate. Not in a worker thread: PDEATHSIG tells of the thread's end."""
        parent = str(os.getpid()) if self._die_with_parent else "0"
        output = open_log(order.log)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GATE), parent, str(self._nice), *command],
                cwd=cwd,
                env=dict(order.environment),
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
        process.returncode = 0  # from here on we wait for it ourselves, by pid; Popen must not warn or reap
        identity = identify(process.pid)
        if identity is None:
            _reap(process.pid, wait=True)
            raise OrchestratorUnavailable("the new process ended before it began", retryable=True)
        return identity


class ProcessServer:
    """One process and its group, whose number is the pid: a child of ours, or adopted."""

    def __init__(self, identity: Identity, deployment_id: str) -> None:
        self.identity = identity
        self._marker = f"{DEPLOYMENT_ID}={deployment_id}"
        self._kill_at: float | None = None
        self._wake = asyncio.Event()

    @property
    def native_id(self) -> str:
        return str(self.identity)

    def terminate(self, grace: float) -> None:
        if self._kill_at is None:
            self._kill_at = asyncio.get_running_loop().time() + grace
            self.signal_group(signal.SIGTERM)
            self._wake.set()

    async def kill(self) -> None:
        if lives(self.identity):
            _send(self.identity.pid, signal.SIGKILL)

    async def ended(self) -> Exit:
        loop = asyncio.get_running_loop()
        with _EndNotice(self.identity, self._wake) as notice:
            look = _LOOK_FIRST
            while not notice.has_ended():
                self._wake.clear()
                timeout = None if notice.pushed else look
                look = min(look * 2, _LOOK_AT_MOST)
                if self._kill_at is not None:
                    left = self._kill_at - loop.time()
                    if left <= 0:
                        self.signal_group(signal.SIGKILL)
                        left = _KILL_AGAIN
                    timeout = left if timeout is None else min(timeout, left)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await self._wake.wait()
        # What it started may still be ending in order, if it was asked to.
        look = _LOOK_FIRST
        while self._kill_at is not None and loop.time() < self._kill_at and self._members():
            await asyncio.sleep(look)
            look = min(look * 2, _LOOK_AT_MOST)
        self.signal_group(signal.SIGKILL)
        if notice.code is None and identify(self.identity.pid) == self.identity:
            return Exit(_reap(self.identity.pid))
        return Exit(notice.code)

    def _members(self) -> list[int]:
        return group_members(self.identity.pid, self._marker)

    def signal_group(self, number: signal.Signals) -> None:
        """To the process and all it has started. As long as the process is there, be it as a zombie, the group's
        number is its own; afterwards only those count that carry its deployment id."""
        if identify(self.identity.pid) == self.identity:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, number)
        else:
            for pid in self._members():
                _send(pid, number)


class _EndNotice:
    """Sets `wake` when the process ends, where the kernel tells of it (`pushed`); else one has to look."""

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
        if not LINUX and self.code is None:  # there `ps` cannot tell a child's zombie: ask by reaping
            self.code = _reap(self._identity.pid)
        return self.code is not None or not lives(self._identity)

    def __enter__(self) -> _EndNotice:
        if LINUX and lives(self._identity):
            with contextlib.suppress(OSError):  # an old kernel, or it has just ended
                self._pidfd = os.pidfd_open(self._identity.pid)
        if self._pidfd is not None:
            if (
                identify(self._identity.pid) != self._identity
            ):  # the pid went to another between the two lines
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


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int, *, wait: bool = False) -> int | None:
    """The exit code of a child that has ended (so that no zombie stays); None for others."""
    try:
        done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if done else None
