"""One deployment of one game, and the environment variables that describe it (read by environment.py).

Ours (set by the launcher):

| variable | meaning |
|---|---|
| `TIPOFF_DEPLOYMENT_ID` | this deployment's id; without it (and without Edgegap's) the server is stand-alone |
| `TIPOFF_GAME`, `TIPOFF_VERSION` | which game this is |
| `TIPOFF_CAPACITY` | players one server takes; wins over the `capacity` in code |
| `TIPOFF_PUBLIC_HOST` | what players dial; several separated by commas, the first one is the main one |
| `TIPOFF_BIND_HOST` | where to listen; several separated by commas (one socket each) |
| `TIPOFF_PORTS` | JSON, name -> {internal, external, protocol}; without it any free ports are taken and announced |
| `TIPOFF_PROTOCOL_ID`, `TIPOFF_DIALECT` | netcode's protocol id; `standard` or `lightyear` |
| `TIPOFF_PRIVATE_KEY_FILE`, `TIPOFF_PRIVATE_KEY` | the key shared with the matchmaker: a file, or the key itself |
| `TIPOFF_TLS_CERT`, `TIPOFF_TLS_KEY` | PEM files: the WebSocket listener speaks TLS |
| `TIPOFF_WEBSOCKET_URL` | what browsers dial, when a proxy in front of the WebSocket port does the TLS |
| `TIPOFF_PLAIN_WEBSOCKET` | set to 1: a WebSocket listener without TLS even on a public address |
| `TIPOFF_BEVYGAP` | set to 1: also take tokens of bevygap's matchmaker, whose sessions are looked up |
| `TIPOFF_DRAIN_GRACE` | seconds for which players may stay after SIGTERM (5) |
| `TIPOFF_LEASE_TTL` | seconds the lease lives (10; refreshed every third); as `TIPOFF_MATCHMAKER_LEASE_TTL` |
| `TIPOFF_PROFILE` | `trusted` (default): the server writes its keys in NATS itself; `isolated`: it sends events |
| `TIPOFF_EVENT_KEY` | this deployment's key for those events, 64 hex digits; `TIPOFF_EVENT_KEY_FILE` names a file |
| `TIPOFF_LISTEN` | `host:port` of a stand-alone server |
| `TIPOFF_HEALTH_FILE` | a file, touched every second while the server lives; for the health check of our images |

plus `NATS_*` and `TIPOFF_NAMESPACE` (tipoff_shared.settings). Edgegap's `ARBITRIUM_*` are understood too, so that
one image runs everywhere; there `LIGHTYEAR_PRIVATE_KEY` is taken as the key when none of ours is set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from tipoff_shared.netcode import Dialect, PrivateKey
from tipoff_shared.records import LEASE_TTL
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import EventKey
from tipoff_shared.settings import NatsSettings

DEFAULT_DRAIN_GRACE = 5.0


class Port(msgspec.Struct, frozen=True):
    """Where the server listens (`internal`) and where players dial (`external`)."""

    internal: int
    external: int
    protocol: str = ""
    name: str = ""
    tls_upgrade: bool = False
    """Edgegap speaks TLS before it; the server does not."""


@dataclass(frozen=True, slots=True)
class Context:
    """One deployment of one game. `ports` holds `udp` and `websocket` where they are prescribed; where one is
    missing, any free port is taken. `nats` is None for a stand-alone server."""

    deployment_id: str
    game: str
    version: str
    private_key: PrivateKey
    protocol_id: int
    dialect: Dialect = Dialect.STANDARD
    capacity: int | None = None
    public_hosts: tuple[str, ...] = ("127.0.0.1",)
    bind_hosts: tuple[str, ...] = ("127.0.0.1",)
    ports: Mapping[str, Port] = field(default_factory=dict)
    nats: NatsSettings | None = None
    tls_cert: str = ""
    tls_key: str = ""
    websocket_url: str = ""
    plain_websocket: bool = False
    drain_grace: float = DEFAULT_DRAIN_GRACE
    lease_ttl: int = LEASE_TTL
    """Whole seconds, as NATS counts them."""
    bevygap: bool = False
    """Tokens without user data are bevygap's: their session is looked up in `sessions_ly2eg`."""
    event_key: EventKey | None = None
    """Isolated profile: the key that seals this deployment's events; None in the trusted profile."""
    context_url: str = ""
    """Edgegap: a GET here, with `context_token` in the authorization header, says by what name we are reached."""
    context_token: Secret = field(default_factory=lambda: Secret(""))
    delete_url: str = ""
    """Edgegap: a DELETE here ends this deployment, with `delete_token` in the authorization header."""
    delete_token: Secret = field(default_factory=lambda: Secret(""))
    location: Mapping[str, str] = field(default_factory=dict)

    @property
    def stand_alone(self) -> bool:
        return self.nats is None

    def announcement(self, boot_id: str) -> dict[str, object]:
        """What `gameserver.contexts` is told once: bevygap's members and ours."""
        return {
            "request_id": self.deployment_id,
            "deployment_id": self.deployment_id,
            "boot_id": boot_id,
            "game": self.game,
            "version": self.version,
            "public_ip": self.public_hosts[0],
            "fqdn": self.public_hosts[0],
            "location": dict(self.location),
        }

    @property
    def websocket_paths(self) -> frozenset[str]:
        """Where the game is on the WebSocket listener: proxies pass on the path that players dialled."""
        return frozenset({"/", f"/gs/{self.deployment_id}", urlsplit(self.websocket_url).path or "/"})

    @property
    def plain_websocket_allowed(self) -> bool:
        """Whether a token may travel to us over a WebSocket without TLS: on loopback and local networks, behind
        a proxy that does TLS, or where the operator says so."""
        return self.plain_websocket or bool(self.websocket_url) or all(map(_is_local, self.public_hosts))


_LOCAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
"""Loopback, private and link-local networks. Python's `is_private` holds for more than these."""


def _is_local(host: str) -> bool:
    """Nobody outside this machine or its network is on the way to `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return any(address in network for network in _LOCAL)
