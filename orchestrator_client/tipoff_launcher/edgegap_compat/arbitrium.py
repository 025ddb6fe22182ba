"""What a server made for Edgegap is told here: the eight ARBITRIUM_* variables and its context. Pure.

A server with bevygap's plugin demands all eight at its start, fetches the context and writes its certificate's digest
to `cert_digests[public_ip]`. Servers of one host share one address and would overwrite each other's digest, so the
context of such a game names a synthetic `public_ip`, a key and nobody's address; players are told the host's own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tipoff_orchestrator_client.base import Port
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game

CONTEXT_PATH = "/v1/context"
STOP_PATH = "/v1/self/stop"

_SECRET = "servers.secret"  # noqa: S105  # a file's name
_SECRET_BYTES = 32
_KEYS = ipaddress.IPv4Network("240.0.0.0/4")
"""Reserved for ever and routed nowhere, so that no key can be taken for an address of somebody."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this launcher's servers are. `url`: how they reach the launcher's HTTP, without a path; `public_ip`: the
    address that players dial, `fqdn` its name where it has one."""

    url: str
    public_ip: str
    fqdn: str
    city: str
    country: str

    @property
    def location(self) -> dict[str, str]:
        return {"city": self.city, "country": self.country, "continent": "", "administrative_division": ""}


@dataclass(frozen=True, slots=True)
class ServerTokens:
    """The tokens by which servers identify themselves: each its own, none written down.

    They follow from one secret of the launcher's, so that a launcher that was restarted still knows those of the
    servers it adopts.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, state_dir: Path) -> ServerTokens:
        """The secret of this state directory, made at its first use. Raises `ConfigError`."""
        path = state_dir / _SECRET
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
        return self._token("context", deployment_id)

    def delete_token(self, deployment_id: str) -> str:
        return self._token("delete", deployment_id)

    def number(self, deployment_id: str) -> int:
        """The last part of the URLs, a positive i32 as at Edgegap. It is no secret."""
        return int.from_bytes(self._derive("number", deployment_id)[:4], "big") >> 1

    def _token(self, purpose: str, deployment_id: str) -> str:
        return base64.urlsafe_b64encode(self._derive(purpose, deployment_id)).rstrip(b"=").decode()

    def _derive(self, purpose: str, deployment_id: str) -> bytes:
        return hmac.digest(self.secret, f"{purpose}\0{deployment_id}".encode(), "sha256")


def synthetic_ip(deployment_id: str, held: Collection[str]) -> str:
    """A key of the form of an IPv4 address that is in nobody's hands here (`held`).

    Where it starts to look follows from the id, so that launchers of other hosts on the same NATS hardly ever choose
    the same one: the chance is 0.2 % that any two of a thousand servers do.
    """
    digest = hashlib.blake2b(deployment_id.encode(), digest_size=8, person=b"tipoff public_ip").digest()
    size = _KEYS.num_addresses - 2  # neither 240.0.0.0 nor 255.255.255.255
    number = int.from_bytes(digest, "big") % size
    while (address := str(_KEYS[1 + number % size])) in held:
        number += 1
    return address


@dataclass(frozen=True, slots=True)
class Arbitrium:
    """What one launcher tells its servers."""

    place: Place
    tokens: ServerTokens

    def variables(self, deployment_id: str, ports: Mapping[str, Port]) -> dict[str, str]:
        """All eight, each below 255 bytes unless a server has many ports. Holds the server's tokens."""
        tail = f"{deployment_id}/{self.tokens.number(deployment_id)}"
        return {
            "ARBITRIUM_REQUEST_ID": deployment_id,
            "ARBITRIUM_PUBLIC_IP": self.place.public_ip,
            "ARBITRIUM_PORTS_MAPPING": msgspec.json.encode({"ports": _ports(ports)}).decode(),
            "ARBITRIUM_DEPLOYMENT_LOCATION": msgspec.json.encode(self.place.location).decode(),
            "ARBITRIUM_CONTEXT_URL": f"{self.place.url}{CONTEXT_PATH}/{tail}",
            "ARBITRIUM_CONTEXT_TOKEN": self.tokens.context_token(deployment_id),
            "ARBITRIUM_DELETE_URL": f"{self.place.url}{STOP_PATH}/{tail}",
            "ARBITRIUM_DELETE_TOKEN": self.tokens.delete_token(deployment_id),
        }

    def secrets(self, deployment_id: str) -> list[str]:
        """Which of them must not show."""
        return [self.tokens.context_token(deployment_id), self.tokens.delete_token(deployment_id)]

    def context(
        self, deployment_id: str, game: Game, ports: Mapping[str, Port], *, digest_key: str = ""
    ) -> dict[str, Any]:
        """What `ARBITRIUM_CONTEXT_URL` answers; with a `digest_key` that is its `public_ip`."""
        return {
            "request_id": deployment_id,
            "fqdn": self.place.fqdn,
            "public_ip": digest_key or self.place.public_ip,
            "app_name": game.name,
            "app_version": game.version,
            "current_status": "Status.READY",
            "running": True,
            "error": False,
            "sockets": game.seats,
            "ports": _ports(ports),
            "location": self.place.location,
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
