"""Starts and stops a real game server for each of the emulator's deployments, by the launcher's back end."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tipoff_edgegap_emulator.deployment import Deployment, Port
from tipoff_launcher.backends.interface import Backend, PortSpec, RunningServer, StartRequest
from tipoff_launcher.backends.ports import PortPicker, port_is_free
from tipoff_launcher.records import Record
from tipoff_orchestrator_client import base
from tipoff_orchestrator_client.base import RunState
from tipoff_shared.games import Game
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_LAST_GRACE = 3.0
"""Seconds that servers get to end when the emulator ends."""


class Fleet:
    """The running servers. `on_end(request_id, exit code)` is called at every end. `logs`: directory of their output.
    `namespace` labels this emulator's containers.

    A process shares the host's ports, so its server listens on the port that players dial: `internal` in
    ARBITRIUM_PORTS_MAPPING is then not the version's number.
    """

    def __init__(
        self,
        backend: Backend,
        logs: Path,
        tasks: Tasks,
        *,
        ports: range,
        host: str = "127.0.0.1",
        namespace: str = "edgegap",
        on_end: Callable[[str, int | None], None],
    ) -> None:
        self._backend = backend
        self._logs = logs
        self._tasks = tasks
        self._picker = PortPicker(ports, port_is_free(host))
        self._namespace = namespace
        self._on_end = on_end
        self._running: dict[str, RunningServer] = {}
        self._held: dict[str, set[int]] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._asked: set[str] = set()

    def pick_ports(self, one: Deployment, wanted: Sequence[Mapping[str, Any]], game: Game) -> dict[str, Port]:
        """A port for each of the version's; a restart keeps its ports. Raises `NoCapacity`."""
        if one.ports:
            return one.ports
        own = self._backend.ports(game)
        named = {str(port.get("name") or port["port"]): port for port in wanted}
        wishes: dict[str, PortSpec] = {}
        for name, port in named.items():
            protocol = "udp" if "UDP" in port["protocol"] else "tcp"
            wishes[name] = PortSpec(protocol, own[name].internal if name in own else 0)
        held = {number for numbers in self._held.values() for number in numbers}
        picked = self._picker.pick(wishes, held)
        self._held[one.request_id] = {port.external for port in picked.values()}
        return {
            name: Port(
                name,
                picked[name].internal,
                picked[name].external,
                port["protocol"],
                False,  # the emulator speaks no TLS, whatever the version asks for
            )
            for name, port in named.items()
        }

    async def start(
        self, one: Deployment, game: Game, environment: Mapping[str, str], arguments: str | None
    ) -> None:
        """Start the deployment's server. Raises `OrchestratorError` or `OSError`."""
        game = _with_arguments(game, arguments)
        self._backend.check(game)
        around = self._backend.environment(game)
        variables = {name: os.environ[name] for name in around.inherited if name in os.environ}
        if "PATH" in around.inherited:
            variables.setdefault("PATH", os.defpath)
        # The emulator says where it listens: at Edgegap each server has its own address.
        variables |= {"PYTHONUNBUFFERED": "1", "TIPOFF_BIND_HOST": around.bind_host}
        variables |= dict(around.variables) | dict(environment)
        request_id = one.request_id
        record = Record(
            request_id,
            self._namespace,
            game.name,
            game.version,
            RunState.STARTING,
            self._backend.name,
            created_at=one.created_at,
            host=one.public_ip,
            ports={
                name: base.Port(port.internal, port.external, "udp" if "UDP" in port.protocol else "tcp")
                for name, port in one.ports.items()
            },
        )
        key_file = self._logs / f"{request_id}.key"
        try:
            if self._backend.name == "docker" and (key := variables.pop("TIPOFF_PRIVATE_KEY", "")):
                # As the launcher does: the back end puts this file where the image reads it.
                key_file.touch(0o600)
                key_file.write_text(key)
                variables["TIPOFF_PRIVATE_KEY_FILE"] = str(key_file)
            request = StartRequest(
                record, game, variables, self._logs / f"{request_id}.log", lambda text: None
            )
            server = await self._backend.start(request, lambda native_id: None)
        finally:
            key_file.unlink(missing_ok=True)
        self._running[request_id] = server
        self._watchers[request_id] = self._tasks.start(self._watch(request_id, server), request_id)

    async def _watch(self, request_id: str, server: RunningServer) -> None:
        ended = await server.wait()
        self._running.pop(request_id, None)
        self._watchers.pop(request_id, None)
        if request_id in self._asked:
            self._asked.discard(request_id)
            self._held.pop(request_id, None)
        self._on_end(request_id, ended.code)

    def stop(self, request_id: str, grace: float = 5.0) -> None:
        """SIGTERM, and SIGKILL `grace` seconds later; idempotent."""
        if (server := self._running.get(request_id)) is not None:
            self._asked.add(request_id)
            server.terminate(grace)
        else:
            self._held.pop(request_id, None)

    async def kill(self, request_id: str) -> None:
        """SIGKILL, as a crash would be."""
        if (server := self._running.get(request_id)) is not None:
            await server.kill()

    @property
    def running(self) -> list[str]:
        """Request ids of the deployments whose server runs."""
        return list(self._running)

    async def stop_all(self) -> None:
        """Stop every server and wait for their ends."""
        for request_id in list(self._running):
            self.stop(request_id, _LAST_GRACE)
        if watchers := set(self._watchers.values()):
            _, left = await asyncio.wait(watchers, timeout=_LAST_GRACE + 5)
            if left:
                log.error("servers that did not end: %s", ", ".join(self._running))


def _with_arguments(game: Game, arguments: str | None) -> Game:
    """The game with the version's `arguments` after its command, as they follow an image's entry point."""
    if not arguments:
        return game
    words = shlex.split(arguments)
    if game.process is not None:
        process = msgspec.structs.replace(game.process, command=[*game.process.command, *words])
        game = msgspec.structs.replace(game, process=process)
    if game.docker is not None:
        docker = msgspec.structs.replace(game.docker, command=[*game.docker.command, *words])
        game = msgspec.structs.replace(game, docker=docker)
    return game
