"""Makes the eight ARBITRIUM_* variables and the context that Edgegap gives its servers, and their tokens.

A server with bevygap's plugin requires all eight at its start and fetches the context. The context of such a game
names a synthetic `public_ip` (`bevygap.synthetic_ip`); players get the host's own address.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tipoff_launcher.edgegap_compat.host_info import HostInfo
from tipoff_orchestrator_client.base import Port
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game

CONTEXT_PATH = "/v1/context"
STOP_PATH = "/v1/self/stop"

SECRET_FILE = "servers.secret"  # noqa: S105  # a file's name
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class ServerTokens:
    """The tokens by which servers identify themselves at the context endpoint.

    They are derived from one secret and stored nowhere, so a restarted launcher knows those of the servers it adopts.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, state_dir: Path) -> ServerTokens:
        """The tokens of a state directory, whose secret is made at its first use. Raises `ConfigError`."""
        path = state_dir / SECRET_FILE
        try:
            secret = path.read_bytes() if path.exists() else b""
            if len(secret) != _SECRET_BYTES:
                secret = secrets.token_bytes(_SECRET_BYTES)
                new = path.with_name(path.name + ".new")
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secret)
                new.replace(path)
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror}; the launcher keeps a secret there") from exc
        return cls(secret)

    def context_token(self, deployment_id: str) -> str:
        """The token for fetching the server's context."""
        return self._token("context", deployment_id)

    def delete_token(self, deployment_id: str) -> str:
        """The token for stopping the server."""
        return self._token("delete", deployment_id)

    def number(self, deployment_id: str) -> int:
        """The last part of the URLs: a positive 32-bit integer as at Edgegap, not a secret."""
        return int.from_bytes(self._derive("number", deployment_id)[:4], "big") >> 1

    def _token(self, purpose: str, deployment_id: str) -> str:
        return base64.urlsafe_b64encode(self._derive(purpose, deployment_id)).rstrip(b"=").decode()

    def _derive(self, purpose: str, deployment_id: str) -> bytes:
        return hmac.digest(self.secret, f"{purpose}\0{deployment_id}".encode(), "sha256")


@dataclass(frozen=True, slots=True)
class Arbitrium:
    """Makes what one launcher tells its servers."""

    host: HostInfo
    tokens: ServerTokens

    def variables(self, deployment_id: str, ports: Mapping[str, Port]) -> dict[str, str]:
        """All eight variables, tokens included; each has under 255 bytes unless a server has many ports."""
        tail = f"{deployment_id}/{self.tokens.number(deployment_id)}"
        return {
            "ARBITRIUM_REQUEST_ID": deployment_id,
            "ARBITRIUM_PUBLIC_IP": self.host.public_ip,
            "ARBITRIUM_PORTS_MAPPING": msgspec.json.encode({"ports": _ports(ports)}).decode(),
            "ARBITRIUM_DEPLOYMENT_LOCATION": msgspec.json.encode(self.host.location).decode(),
            "ARBITRIUM_CONTEXT_URL": f"{self.host.url}{CONTEXT_PATH}/{tail}",
            "ARBITRIUM_CONTEXT_TOKEN": self.tokens.context_token(deployment_id),
            "ARBITRIUM_DELETE_URL": f"{self.host.url}{STOP_PATH}/{tail}",
            "ARBITRIUM_DELETE_TOKEN": self.tokens.delete_token(deployment_id),
        }

    def secrets(self, deployment_id: str) -> list[str]:
        """The secret values among the variables."""
        return [self.tokens.context_token(deployment_id), self.tokens.delete_token(deployment_id)]

    def context(
        self, deployment_id: str, game: Game, ports: Mapping[str, Port], *, digest_key: str = ""
    ) -> dict[str, Any]:
        """The answer at `ARBITRIUM_CONTEXT_URL`. A `digest_key` replaces its `public_ip`."""
        return {
            "request_id": deployment_id,
            "fqdn": self.host.fqdn,
            "public_ip": digest_key or self.host.public_ip,
            "app_name": game.name,
            "app_version": game.version,
            "current_status": "Status.READY",
            "running": True,
            "error": False,
            "sockets": game.seats,
            "ports": _ports(ports),
            "location": self.host.location,
        }


def _ports(ports: Mapping[str, Port]) -> dict[str, dict[str, str | int]]:
    return {
        name: {
            "name": name,
            "internal": port.internal,
            "external": port.external,
            "protocol": port.protocol.upper(),
        }
        for name, port in ports.items()
    }
