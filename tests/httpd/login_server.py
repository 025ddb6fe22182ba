"""A real HTTP server, for an issuer's JWKS or an operator's own URL, and an issuer with its keys and tokens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://login.example/", "duel"

Answer = Callable[[bytes], bytes | Awaitable[bytes]]
"""The body of a request -> all bytes of the answer."""


def answer(value: object, status: int = 200, **headers: str) -> bytes:
    """An HTTP answer with `value` as JSON, or as it is where it is bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    more = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


class LoginServer:
    """Answers each request with `script`; `requests` are their bodies, `heads` their heads."""

    def __init__(self) -> None:
        self.script: Answer = lambda _: answer({})
        self.requests: list[bytes] = []
        self.heads: list[bytes] = []
        self.waiting = 0
        """Requests that `never` holds."""
        self.release = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/login"

    async def held(self, _: bytes) -> bytes:
        """A script: no answer until `release`."""
        self.waiting += 1
        try:
            await self.release.wait()
        finally:
            self.waiting -= 1
        return answer({"user_id": "late"})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                self.heads.append(head)
                self.requests.append(body)
                said = self.script(body)
                writer.write(said if isinstance(said, bytes) else await said)
                await writer.drain()
        writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LoginServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.release.set()
            server.close()
            if hasattr(server, "abort_clients"):  # Python 3.13
                server.abort_clients()


class Issuer:
    """An issuer of tokens: its keys by name, and what it signs."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}

    def add(self, kid: str, kind: str = "EC") -> None:
        """A new key."""
        self.keys[kid] = {
            "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
            "RSA": lambda: rsa.generate_private_key(65537, 2048),
            "OKP": ed25519.Ed25519PrivateKey.generate,
        }[kind]()

    def key_set(self) -> dict[str, Any]:
        """The public keys."""
        return {"keys": [jwk(key.public_key()) | {"kid": kid} for kid, key in self.keys.items()]}

    def token(
        self, kid: str, algorithm: str = "ES256", *, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A token of a user, signed by that key. A claim that is None is left out."""
        made = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": time.time() + 60,
            "sub": "ann-1",
            "name": "Ann",
        } | claims
        given = {name: value for name, value in made.items() if value is not None}
        return jwt.encode(given, self.keys[kid], algorithm, headers={"kid": kid} | (header or {}))


def jwk(public_key: Any) -> dict[str, Any]:
    """A public key as a member of a key set."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return RSAAlgorithm.to_jwk(public_key, as_dict=True)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return ECAlgorithm.to_jwk(public_key, as_dict=True)
    return OKPAlgorithm.to_jwk(public_key, as_dict=True)
