"""The events of a game server in the isolated profile, each sealed with the key of its deployment.

Such a server reaches no bucket. It publishes events to `gs.<deployment id>.ev`, a stream keeps them, and a matchmaker
writes the records, as far as that server may change them. All servers share one NATS user, so the subject proves
nothing; the seal does (HMAC-SHA-256 over deployment id and body, in a header). Only matchmakers have the secret from
which the key is derived; neither a game's private key nor another server's key leads to it.

`(started_at, seq)` orders the events of a deployment: `started_at` is when this boot began, `seq` counts its events.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from tipoff_shared.errors import Malformed, NotAllowed
from tipoff_shared.messages import Transports
from tipoff_shared.records import GameserverLease
from tipoff_shared.secret import Secret

MAC_HEADER = "Tipoff-Mac"
MESSAGE_ID_HEADER = "Nats-Msg-Id"
TTL_HEADER = "Nats-TTL"
MAX_EVENT = 64 * 1024
"""Bytes of one event's body."""
MAX_CHANGES = 500
"""Joins and leaves in one event."""
MAX_END = 200
"""Characters that say why one player has left."""
MAX_LEASE_TTL = 3600

_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_CLIENT_ID = re.compile(r"[0-9]{1,20}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}", re.ASCII)
_URL = re.compile(r"(?:wss?|https)://[!-~]{1,500}", re.ASCII)
_DIGEST = re.compile(r"(?:[0-9a-f]{2}:){31}[0-9a-f]{2}|", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9a-f]{12}|", re.ASCII)
_MAX_INTERNAL = 32


class Lease(msgspec.Struct, frozen=True, tag="lease", tag_field="event"):
    """The server's lease for `ttl` more seconds; its state may be draining or ended."""

    lease: GameserverLease
    ttl: int


class Players(msgspec.Struct, frozen=True, tag="players", tag_field="event", omit_defaults=True):
    """The sessions that joined (session id -> client id, in decimal) and, after that, those that left. `ends`: session
    id -> why it left (`SessionEnd.encode`), where that is not by itself."""

    joined: dict[str, str] = {}
    left: list[str] = []
    ends: dict[str, str] = {}


class Context(msgspec.Struct, frozen=True, tag="context", tag_field="event"):
    """Once per boot: what a server of the trusted profile publishes on `gameserver.contexts`."""

    context: dict[str, Any]


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye", tag_field="event"):
    """The lease is withdrawn; the last event of a boot."""


What: TypeAlias = Lease | Players | Context | Goodbye


class ServerEvent(msgspec.Struct, frozen=True):
    """One event of one boot. `started_at`: Unix seconds of the server's clock; `seq`: 1, 2, 3, ..."""

    boot_id: str
    started_at: float
    seq: int
    what: What

    @property
    def order(self) -> tuple[float, int]:
        """Orders the events of a deployment."""
        return self.started_at, self.seq


class EventKey:
    """The event key of one deployment. Its repr does not show it."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def derive(cls, secret: Secret, namespace: str, deployment_id: str) -> EventKey:
        """The key of a deployment, from the secret that matchmakers share (64 hex digits)."""
        name = f"{namespace}/{deployment_id}".encode()
        return cls(
            hashlib.blake2b(
                name, key=bytes.fromhex(secret.reveal()), digest_size=32, person=b"tipoff events"
            ).digest()
        )

    @classmethod
    def parse(cls, text: str) -> EventKey:
        """The key in 64 hex digits; raises `Malformed`, which does not show them."""
        if not _KEY.fullmatch(text.strip()):
            raise Malformed("an event key has 64 hex digits")
        return cls(bytes.fromhex(text.strip()))

    def reveal(self) -> str:
        """The key in hex, as the server receives it."""
        return self._key.hex()

    def __repr__(self) -> str:
        return "EventKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("an EventKey is not serialised")

    def mac(self, deployment_id: str, body: bytes) -> str:
        """The seal of one event, in hex."""
        return hmac.digest(self._key, deployment_id.encode() + b"\0" + body, "sha256").hex()


def seal(key: EventKey, deployment_id: str, event: ServerEvent) -> tuple[bytes, dict[str, str]]:
    """Body and headers of `event`, ready to be published, any number of times."""
    body = msgspec.json.encode(event)
    mac = key.mac(deployment_id, body)
    # The stream recognises a repeated event by this id. It ends with a part that only the key's owner knows: anybody
    # who used the id first would make the stream drop the event.
    message_id = f"{deployment_id}.{event.boot_id}.{event.seq}.{mac[:16]}"
    headers = {MAC_HEADER: mac, MESSAGE_ID_HEADER: message_id}
    if isinstance(event.what, Lease):
        headers[TTL_HEADER] = str(event.what.ttl)  # an expired lease need not be read
    return body, headers


_decoder = msgspec.json.Decoder(ServerEvent)


def unseal(key: EventKey, deployment_id: str, body: bytes, headers: Mapping[str, str] | None) -> ServerEvent:
    """The event in `body`, completely checked. Raises `NotAllowed` for a wrong seal and `Malformed` for values out of
    bounds."""
    if len(body) > MAX_EVENT:
        raise Malformed(f"an event is at most {MAX_EVENT} bytes")
    mac = (headers or {}).get(MAC_HEADER, "")
    if not hmac.compare_digest(
        mac.encode(errors="replace"), key.mac(deployment_id, body).encode()
    ):  # bytes: of strings it takes ASCII alone
        raise NotAllowed("the seal is not of this deployment's key")
    try:
        event = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not an event: {exc}") from exc
    if not (_ID.fullmatch(event.boot_id) and 0 < event.started_at < 1e11 and 1 <= event.seq < 2**53):
        raise Malformed("not an event: boot_id, started_at or seq is out of bounds")
    match event.what:
        case Lease(lease, ttl):
            _check_lease(lease, ttl, deployment_id, event.boot_id)
        case Players(joined, left, ends):
            if len(joined) + len(left) > MAX_CHANGES:
                raise Malformed(f"joined and left: at most {MAX_CHANGES} together")
            if not all(map(_ID.fullmatch, (*joined, *left, *ends))):
                raise Malformed("joined, left, ends: not a session id")
            if len(ends) > MAX_CHANGES or any(len(end) > MAX_END for end in ends.values()):
                raise Malformed(f"ends: at most {MAX_CHANGES}, of {MAX_END} characters")
            if not all(map(_CLIENT_ID.fullmatch, joined.values())):
                raise Malformed("joined: not a client id")
        case Context() | Goodbye():
            pass
    return event


def _check_lease(lease: GameserverLease, ttl: int, deployment_id: str, boot_id: str) -> None:
    if (lease.deployment_id, lease.boot_id) != (deployment_id, boot_id):
        raise Malformed("lease: of another deployment or boot")
    if not 1 <= ttl <= MAX_LEASE_TTL:
        raise Malformed(f"ttl: 1 to {MAX_LEASE_TTL} seconds are allowed")
    if not (1 <= lease.capacity <= 1000 and 0 <= lease.players <= 10_000):
        raise Malformed("lease: capacity or players is out of bounds")
    if not 0 <= lease.websocket_port <= 65535:
        raise Malformed("lease: websocket_port cannot be")
    if len(lease.game) > 30 or len(lease.version) > 30 or not _DIGEST.fullmatch(lease.cert_digest):
        raise Malformed("lease: game, version or cert_digest cannot be")
    if len(lease.reason) > 300:
        raise Malformed("lease: reason is too long")
    if not _FINGERPRINT.fullmatch(lease.key):
        raise Malformed("lease: key is not a fingerprint")
    if len(lease.internal) > _MAX_INTERNAL or not all(map(_is_address, lease.internal)):
        raise Malformed(f"lease: internal has at most {_MAX_INTERNAL} of ip:port")
    _check_transports(lease.transports)


def _check_transports(transports: Transports) -> None:
    for address in (transports.udp, transports.tcp):
        if address is not None and not (_HOST.fullmatch(address.host) and 1 <= address.port <= 65535):
            raise Malformed("lease: a transport's host or port cannot be")
    web = transports.webtransport
    if web is not None and not (_URL.fullmatch(web.url) and _DIGEST.fullmatch(web.cert_digest)):
        raise Malformed("lease: webtransport cannot be")
    if transports.websocket is not None and not _URL.fullmatch(transports.websocket.url):
        raise Malformed("lease: websocket cannot be")


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        return False
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
