"""Describes one deployment of one game, and reads that description from environment variables.

`find_context` decides between a deployment and a stand-alone server. The launcher sets:

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
| `TIPOFF_TRUSTED_PROXIES` | proxies whose X-Forwarded-For is believed, networks; by default this machine's |
| `TIPOFF_MAX_STRANGERS` | WebSocket connections that have not shown a token yet (256) |
| `TIPOFF_MAX_STRANGERS_PER_ADDRESS` | the share of one address in them (64); with one more its own oldest is closed |
| `TIPOFF_CONNECTIONS_PER_SECOND` | new WebSocket connections of one address (50; 0: no limit); more are closed |
| `TIPOFF_PLAIN_WEBSOCKET` | set to 1: a WebSocket listener without TLS even on a public address |
| `TIPOFF_BEVYGAP` | set to 1: also take tokens of bevygap's matchmaker, whose sessions are looked up |
| `TIPOFF_DRAIN_GRACE` | seconds for which players may stay after SIGTERM (5; the launcher says 0) |
| `TIPOFF_LEASE_TTL` | seconds the lease lives (10; refreshed every third); as `TIPOFF_MATCHMAKER_LEASE_TTL` |
| `TIPOFF_PROFILE` | `trusted` (default): the server writes its keys in NATS itself; `isolated`: it sends events |
| `TIPOFF_EVENT_KEY` | this deployment's key for those events, 64 hex digits; `TIPOFF_EVENT_KEY_FILE` names a file |
| `TIPOFF_LISTEN` | `host:port` of a stand-alone server |
| `TIPOFF_HEALTH_FILE` | a file, touched every second while the server lives; for the health check of our images |

plus `NATS_*` and `TIPOFF_NAMESPACE` (tipoff_shared.settings). Edgegap's `ARBITRIUM_*` are read too, so that one image
runs everywhere; there `LIGHTYEAR_PRIVATE_KEY` is the key when none of ours is set.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tipoff_shared.admission.client_address import Network
from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.games import Game
from tipoff_shared.names import check_name
from tipoff_shared.netcode import Dialect, InvalidKey, PrivateKey
from tipoff_shared.records import LEASE_TTL
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import EventKey
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:7777"
DEFAULT_DRAIN_GRACE = 5.0
DEFAULT_CONNECTIONS_PER_SECOND = 50


class Port(msgspec.Struct, frozen=True):
    """Where the server listens (`internal`) and where players dial (`external`)."""

    internal: int
    external: int
    protocol: str = ""
    name: str = ""
    tls_upgrade: bool = False
    """Edgegap terminates TLS in front of it."""


@dataclass(frozen=True, slots=True)
class Context:
    """One deployment of one game. `ports` holds the prescribed ports of `udp` and `websocket`; where one is missing,
    any free port is taken. `nats` is None for a stand-alone server."""

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
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of the proxies whose word about a player's address is believed."""
    max_strangers: int = 256
    max_strangers_per_address: int = 64
    """WebSocket connections that have not shown a token yet; each at least 1."""
    connections_per_second: int = DEFAULT_CONNECTIONS_PER_SECOND
    """New WebSocket connections of one address in the long run, twice its share of strangers at once; 0: no limit."""
    drain_grace: float = DEFAULT_DRAIN_GRACE
    lease_ttl: int = LEASE_TTL
    """Whole seconds, as NATS counts them."""
    bevygap: bool = False
    """Tokens without user data are bevygap's: their session is looked up in `sessions_ly2eg`."""
    event_key: EventKey | None = None
    """Isolated profile: the key that seals this deployment's events; None in the trusted profile."""
    context_url: str = ""
    """Edgegap: a GET here, with `context_token` in the authorization header, returns the server's public name."""
    context_token: Secret = field(default_factory=lambda: Secret(""))
    delete_url: str = ""
    """Edgegap: a DELETE here ends this deployment, with `delete_token` in the authorization header."""
    delete_token: Secret = field(default_factory=lambda: Secret(""))
    location: Mapping[str, str] = field(default_factory=dict)

    @property
    def stand_alone(self) -> bool:
        """Whether the server runs without NATS."""
        return self.nats is None

    def announcement(self, boot_id: str) -> dict[str, object]:
        """The message for `gameserver.contexts`, sent once: bevygap's members and ours."""
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
        """The paths of the game on the WebSocket listener: proxies pass on the path that players dialled."""
        return frozenset({"/", f"/gs/{self.deployment_id}", urlsplit(self.websocket_url).path or "/"})

    @property
    def plain_websocket_allowed(self) -> bool:
        """Whether a token may travel over a WebSocket without TLS: on loopback and local networks, behind a proxy that
        does TLS, or where the operator says so."""
        return self.plain_websocket or bool(self.websocket_url) or all(map(_is_local, self.public_hosts))


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a game asks for in code, as the arguments of `GameServer`."""

    tick_rate: float
    """Ticks per second."""
    capacity: int
    """Players at once."""
    message_limit: int
    """Messages per second of one player; those beyond are dropped."""
    flood_limit: int
    """Packets or frames per second of one player, beyond which it is disconnected."""
    max_tick_failures: int
    """This many failed ticks in a row end the server."""
    callback_timeout: float | None = 60.0
    """Seconds after which a callback that does not return ends the server; None: never."""
    resume_ttl: int = 0
    """Seconds for which a stand-alone server holds a seat after a lost connection."""
    udp: bool = True
    websocket: bool = True
    """Which listeners to open."""
    framing: bool = True
    """Whether clients may use tipoff's framing: reliable and long messages, close reasons over UDP."""


_LOCAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
"""Loopback, private and link-local networks. Python's `is_private` holds for more than these."""


def _is_local(host: str) -> bool:
    """Whether `host` is on this machine or its local network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return any(address in network for network in _LOCAL)


def find_context(
    environ: Mapping[str, str],
    *,
    stand_alone: bool | None,
    listen: str | None,
    private_key: PrivateKey | None,
    protocol_id: int | None,
    dialect: Dialect,
    ca_contents: str,
) -> Context:
    """The context `GameServer` runs in: a deployment if the environment says so, else stand-alone.

    Raises `ConfigError`.
    """
    deployed = is_deployed(environ)
    if stand_alone is False and not deployed:
        raise ConfigError(
            "stand_alone=False, but no TIPOFF_DEPLOYMENT_ID in the environment says what to join"
        )
    if deployed and not stand_alone:
        return deployed_context(environ, ca_contents=ca_contents)
    if stand_alone is None:
        log.warning("no TIPOFF_DEPLOYMENT_ID in the environment: this is a stand-alone server")
    return stand_alone_context(
        environ, listen=listen, private_key=private_key, protocol_id=protocol_id, dialect=dialect
    )


def is_deployed(environ: Mapping[str, str]) -> bool:
    """Whether a launcher or Edgegap started this process as a deployment."""
    return bool(environ.get("TIPOFF_DEPLOYMENT_ID") or environ.get("ARBITRIUM_REQUEST_ID"))


def deployed_context(environ: Mapping[str, str] | None = None, *, ca_contents: str = "") -> Context:
    """The context of a deployment. Raises `ConfigError` naming the variable that cannot be used.

    `ca_contents` is the PEM text of bevygap's `--ca_contents` argument, used unless the environment has one.
    """
    env = dict(os.environ if environ is None else environ)
    if ca_contents and not env.get("NATS_CA"):
        env.setdefault("NATS_CA_CONTENTS", ca_contents)
    edgegap = "ARBITRIUM_REQUEST_ID" in env
    game = _name(env, "TIPOFF_GAME", "game")
    version = _name(env, "TIPOFF_VERSION", "1")
    public = _hosts(env.get("TIPOFF_PUBLIC_HOST") or env.get("ARBITRIUM_PUBLIC_IP", "")) or ("127.0.0.1",)
    for host in public:
        if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
            raise ConfigError(
                f"TIPOFF_PUBLIC_HOST={host} means every interface, and players cannot dial it; name an address or a "
                "host name"
            )
    everywhere = "0.0.0.0"  # noqa: S104  # a game server is there to be reached
    bind = _hosts(env.get("TIPOFF_BIND_HOST", "")) or (
        ("127.0.0.1",) if all(map(_is_loopback, public)) and not edgegap else (everywhere,)
    )
    return Context(
        deployment_id=env.get("TIPOFF_DEPLOYMENT_ID") or env["ARBITRIUM_REQUEST_ID"],
        game=game,
        version=version,
        private_key=_private_key(env),
        protocol_id=_protocol_id(env, game, version, edgegap),
        dialect=_dialect(env, edgegap),
        capacity=_whole_number(env, "TIPOFF_CAPACITY", 1, 1000),
        public_hosts=public,
        bind_hosts=bind,
        ports=_ports(env),
        nats=NatsSettings.from_environment(env),
        tls_cert=env.get("TIPOFF_TLS_CERT", ""),
        tls_key=env.get("TIPOFF_TLS_KEY", ""),
        websocket_url=env.get("TIPOFF_WEBSOCKET_URL", ""),
        plain_websocket=_flag(env, "TIPOFF_PLAIN_WEBSOCKET"),
        trusted_proxies=_trusted_proxies(env),
        max_strangers=_whole_number(env, "TIPOFF_MAX_STRANGERS", 1, 65536) or 256,
        max_strangers_per_address=_whole_number(env, "TIPOFF_MAX_STRANGERS_PER_ADDRESS", 1, 65536) or 64,
        connections_per_second=_connections_per_second(env),
        drain_grace=_drain_grace(env),
        lease_ttl=_whole_number(env, "TIPOFF_LEASE_TTL", 1, 3600) or LEASE_TTL,
        bevygap=_flag(env, "TIPOFF_BEVYGAP") or (edgegap and not env.get("TIPOFF_GAME")),
        event_key=_event_key(env),
        context_url=_edgegaps(env, "ARBITRIUM_CONTEXT_URL"),
        context_token=Secret(env.get("ARBITRIUM_CONTEXT_TOKEN", "")),
        delete_url=_edgegaps(env, "ARBITRIUM_DELETE_URL"),
        delete_token=Secret(env.get("ARBITRIUM_DELETE_TOKEN", "")),
        location=_location(env),
    )


def stand_alone_context(
    environ: Mapping[str, str] | None = None,
    *,
    listen: str | None = None,
    private_key: PrivateKey | None = None,
    protocol_id: int | None = None,
    dialect: Dialect = Dialect.STANDARD,
) -> Context:
    """The context of a stand-alone server: its own key (random unless given), UDP and WebSocket on one port number.

    Raises `ConfigError` when `listen` is not `host:port`.
    """
    env = os.environ if environ is None else environ
    host, port = parse_listen(listen or env.get("TIPOFF_LISTEN", "") or DEFAULT_LISTEN)
    game = env.get("TIPOFF_GAME", "")
    version = env.get("TIPOFF_VERSION", "")
    if protocol_id is None:
        protocol_id = Game(name=game or "game", version=version or "1").netcode_protocol_id
    return Context(
        deployment_id="stand-alone",
        game=game,
        version=version,
        private_key=private_key or PrivateKey.generate(),
        protocol_id=protocol_id,
        dialect=dialect,
        public_hosts=(host,),
        bind_hosts=(host,),
        ports={name: Port(port, port) for name in ("udp", "websocket")},
        tls_cert=env.get("TIPOFF_TLS_CERT", ""),
        tls_key=env.get("TIPOFF_TLS_KEY", ""),
        plain_websocket=True,
        trusted_proxies=_trusted_proxies(env),
        max_strangers=_whole_number(env, "TIPOFF_MAX_STRANGERS", 1, 65536) or 256,
        max_strangers_per_address=_whole_number(env, "TIPOFF_MAX_STRANGERS_PER_ADDRESS", 1, 65536) or 64,
        connections_per_second=_connections_per_second(env),
        drain_grace=0.0,
    )


def ca_contents_argument(argv: list[str]) -> str:
    """The PEM text of bevygap's `--ca_contents PEM` or `--ca_contents=PEM`, "" without one."""
    for index, argument in enumerate(argv):
        if argument == "--ca_contents" and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith("--ca_contents="):
            return argument.partition("=")[2]
    return ""


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:7777`, `[::1]:7777`, `localhost:7777` or `:7777` (every IPv4 address). Raises `ConfigError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"listen={text!r}: host:port is expected, like {DEFAULT_LISTEN}")
    host = host.removeprefix("[").removesuffix("]") or "0.0.0.0"  # noqa: S104  # asked for by ":port"
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"listen={text!r}: {host!r} is not an IP address of this machine") from None
    return host, int(port)


def _name(env: Mapping[str, str], variable: str, default: str) -> str:
    try:
        return check_name(env.get(variable) or default, variable)
    except Malformed as exc:
        raise ConfigError(str(exc)) from exc


def _trusted_proxies(env: Mapping[str, str]) -> tuple[Network, ...]:
    """The configured networks; without any, this machine where a proxy is announced, else none."""
    text = env.get("TIPOFF_TRUSTED_PROXIES", "")
    if not text and env.get("TIPOFF_WEBSOCKET_URL"):
        text = "127.0.0.0/8,::1"
    try:
        return tuple(ipaddress.ip_network(part, strict=False) for part in _hosts(text))
    except ValueError as exc:
        raise ConfigError(
            f"TIPOFF_TRUSTED_PROXIES={text!r}: addresses or networks separated by commas are expected: {exc}"
        ) from None


def _flag(env: Mapping[str, str], variable: str) -> bool:
    return env.get(variable, "") not in ("", "0", "false")


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(host.strip() for host in text.split(",") if host.strip())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _private_key(env: Mapping[str, str]) -> PrivateKey:
    where = "TIPOFF_PRIVATE_KEY"
    text = env.get("TIPOFF_PRIVATE_KEY", "")
    if path := env.get("TIPOFF_PRIVATE_KEY_FILE", ""):
        where = f"TIPOFF_PRIVATE_KEY_FILE={path}"
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeError) as exc:
            raise ConfigError(f"{where}: {exc}") from exc
    elif not text and env.get("LIGHTYEAR_PRIVATE_KEY"):
        where = "LIGHTYEAR_PRIVATE_KEY"
        text = env[where]
    if not text.strip():
        raise ConfigError(
            "no private key: set TIPOFF_PRIVATE_KEY_FILE (or TIPOFF_PRIVATE_KEY) to the key the matchmaker has for "
            "this game, 64 hex digits"
        )
    try:
        return PrivateKey.parse(text)
    except InvalidKey as exc:  # its message never contains the key
        raise ConfigError(f"{where}: {exc}") from None


def _event_key(env: Mapping[str, str]) -> EventKey | None:
    """The isolated profile's key; None in the trusted profile."""
    profile = env.get("TIPOFF_PROFILE") or "trusted"
    if profile not in ("trusted", "isolated"):
        raise ConfigError(f"TIPOFF_PROFILE={profile!r}: trusted or isolated is expected")
    if profile == "trusted":
        return None
    where = "TIPOFF_EVENT_KEY"
    text = env.get(where, "")
    if path := env.get("TIPOFF_EVENT_KEY_FILE", ""):
        where = f"TIPOFF_EVENT_KEY_FILE={path}"
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeError) as exc:
            raise ConfigError(f"{where}: {exc}") from exc
    try:
        return EventKey.parse(text)
    except Malformed:  # its message never contains the key
        raise ConfigError(
            f"{where}: TIPOFF_PROFILE=isolated wants this deployment's event key, 64 hex digits, as the matchmaker "
            "gives it to whatever starts the server"
        ) from None


def _whole_number(env: Mapping[str, str], variable: str, low: int, high: int) -> int | None:
    text = env.get(variable, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ConfigError(f"{variable}={text!r}: a whole number from {low} to {high} is expected")
    return int(text)


def _connections_per_second(env: Mapping[str, str]) -> int:
    given = _whole_number(env, "TIPOFF_CONNECTIONS_PER_SECOND", 0, 65536)
    return DEFAULT_CONNECTIONS_PER_SECOND if given is None else given


def _protocol_id(env: Mapping[str, str], game: str, version: str, edgegap: bool) -> int:
    given = _whole_number(env, "TIPOFF_PROTOCOL_ID", 0, 2**64 - 1)
    if given is not None:
        return given
    if edgegap and not env.get("TIPOFF_GAME"):
        return 0  # bevygap's matchmaker
    return Game(name=game, version=version).netcode_protocol_id


def _dialect(env: Mapping[str, str], edgegap: bool) -> Dialect:
    default = Dialect.LIGHTYEAR if edgegap and not env.get("TIPOFF_GAME") else Dialect.STANDARD
    text = env.get("TIPOFF_DIALECT") or default
    try:
        return Dialect(text)
    except ValueError:
        raise ConfigError(f"TIPOFF_DIALECT={text!r}: standard or lightyear is expected") from None


def _drain_grace(env: Mapping[str, str]) -> float:
    text = env.get("TIPOFF_DRAIN_GRACE") or str(DEFAULT_DRAIN_GRACE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ConfigError(f"TIPOFF_DRAIN_GRACE={text!r}: seconds from 0 to 86400 are expected")
    return seconds


def _edgegaps(env: Mapping[str, str], variable: str) -> str:
    """An URL of Edgegap's; "" where our launcher has set it for servers without our SDK. There our own variables name
    the deployment and the lease reports the end; calling the URL would only send a signal into the shutdown."""
    ours = env.get("TIPOFF_DEPLOYMENT_ID") == env.get("ARBITRIUM_REQUEST_ID")
    return "" if ours else env.get(variable, "")


class _Mapping(msgspec.Struct):
    """`ARBITRIUM_PORTS_MAPPING`."""

    ports: dict[str, Port] = {}


def _ports(env: Mapping[str, str]) -> dict[str, Port]:
    """The ports of the two listeners, from our variable or Edgegap's: by name, else by protocol."""
    variable = "TIPOFF_PORTS" if env.get("TIPOFF_PORTS") else "ARBITRIUM_PORTS_MAPPING"
    text = env.get(variable, "")
    if not text:
        return {}
    try:
        if variable == "TIPOFF_PORTS":
            given = msgspec.json.decode(text, type=dict[str, Port])
        else:
            given = msgspec.json.decode(text, type=_Mapping).ports
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise ConfigError(f"{variable}: {exc}; name -> {{internal, external, protocol}} is expected") from exc
    for name, port in given.items():
        if not (0 <= port.internal <= 65535 and 0 <= port.external <= 65535):
            raise ConfigError(f"{variable}: the ports of {name!r} are outside 0..65535")
    ports: dict[str, Port] = {}
    for ours, protocols in (
        ("udp", ("UDP", "TCP/UDP")),
        ("websocket", ("WS", "WSS", "TCP", "HTTP", "HTTPS")),
    ):
        named = [port for name, port in given.items() if ours in (name.lower(), port.name.lower())]
        typed = [port for port in given.values() if port.protocol.upper() in protocols]
        if found := named or typed:
            ports[ours] = found[0]
    return ports


def _location(env: Mapping[str, str]) -> dict[str, str]:
    """Edgegap's description of where the server runs. Information only, so an unreadable text is no error."""
    try:
        data = msgspec.json.decode(env.get("ARBITRIUM_DEPLOYMENT_LOCATION") or "{}", type=dict[str, object])
    except msgspec.DecodeError:
        return {}
    return {key: str(value) for key, value in data.items()}
