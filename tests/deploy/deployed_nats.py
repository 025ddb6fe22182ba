"""A nats-server on the configuration files of deploy/nats, outside of a container: other paths, a free port."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.polling import eventually_sync
from tipoff.secrets.directory import SecretsDirectory
from tipoff.up.embedded_nats import dies_with_parent, find_nats_server
from tipoff_shared.settings import NatsSettings


def nats_server_version() -> tuple[int, ...]:
    """Of the binary that tests run."""
    said = subprocess.run(
        [find_nats_server(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return tuple(map(int, said.strip().rpartition("v")[2].partition("-")[0].split(".")))


class DeployedNats:
    """`secrets` is the directory of its secrets; `log` its log. `more` is added to the configuration."""

    def __init__(
        self, directory: Path, source_tree: Path, configuration: str, *, namespace: str = "", more: str = ""
    ) -> None:
        self.directory = directory
        self.secrets = directory / "secrets"
        self.namespace = namespace
        self.log = directory / "nats.log"
        self.tls = configuration == "nats.conf"
        self.port = -1
        self._template = (source_tree / "deploy" / "nats" / configuration).read_text() + more
        self._process: subprocess.Popen[bytes] | None = None
        SecretsDirectory(self.secrets).initialise(["nats.example.org"], namespace)

    def start(self, timeout: float = 15.0) -> None:
        """Raises `AssertionError` with its log when it does not listen in time. Again after `stop`: same port."""
        text = self._template
        for there, here in (
            ('"0.0.0.0:4222"', f'"127.0.0.1:{self.port}"'),
            ('http: "nats-monitor:8222"', f'http: "127.0.0.1:-1"\nports_file_dir: "{self.directory}"'),
            ("/etc/nats", str(self.secrets / "nats")),
            ("./users.conf", f"{self.secrets}/nats/users.conf"),
            ('"/data"', f'"{self.directory}/data"'),
        ):
            assert there in text or there == "/etc/nats", there
            text = text.replace(there, here)
        # `include` is relative to the file it stands in.
        text = text.replace(f"include {self.secrets}/nats/users.conf", "include ./secrets/nats/users.conf")
        config = self.directory / "nats.conf"
        config.write_text(text)
        for stale in self.directory.glob("*.ports"):
            stale.unlink()
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [find_nats_server(), "-c", str(config)],
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        ports = self.directory / f"nats-server_{self._process.pid}.ports"
        process = self._process

        def announced() -> str:  # nats-server announces its port only in a file
            assert process.poll() is None, self.log.read_text()
            return ports.read_text() if ports.exists() else ""

        told = json.loads(eventually_sync(announced, f"nats-server's ports (log: {self.log})", timeout))
        url: str = (told.get("tls") or told["nats"])[0]
        self.port = int(url.rsplit(":", 1)[1])
        self.monitoring: str = told["monitoring"][0]

    async def stored(self) -> dict[str, Any]:
        """All that is stored, as the server itself says: each stream's configuration, state and lasting consumers."""
        found = await asyncio.to_thread(_read, f"{self.monitoring}/jsz?streams=1&consumers=1&config=1")
        return {
            stream["name"]: {
                "config": stream["config"],
                "state": {k: v for k, v in stream["state"].items() if k != "consumer_count"},
                "consumers": sorted(
                    (consumer["name"], consumer["delivered"], consumer["ack_floor"])
                    for consumer in stream.get("consumer_detail") or []
                    if consumer["config"].get("durable_name")
                ),
            }
            for account in found.get("account_details") or []
            for stream in account.get("stream_detail") or []
        }

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)

    def password_file(self, role: str) -> Path:
        return self.secrets / "nats" / f"{role}.password"

    def settings(self, role: str) -> NatsSettings:
        return NatsSettings.from_environment(self.environment(role))

    def environment(self, role: str) -> dict[str, str]:
        """What a part of that role is started with."""
        environment = {
            "NATS_HOST": f"127.0.0.1:{self.port}",
            "NATS_USER": role,
            "NATS_PASSWORD_FILE": str(self.password_file(role)),
            "TIPOFF_NAMESPACE": self.namespace,
        }
        if self.tls:
            return environment | {"NATS_CA": str(self.secrets / "nats" / "ca.pem")}
        return environment | {"NATS_INSECURE": "1"}


def _read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)
