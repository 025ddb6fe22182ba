"""Environment variables -> `Context`. What each variable means stands in context.py."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tipoff_gameserver.context import DEFAULT_DRAIN_GRACE, Context, Port
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
    """What `GameServer` runs as: a deployment where the environment says so, else a server that stands alone.

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
        log.warning("no TIPOFF_DEPLOYMENT_ID in the environment: this server stands alone")
    return stand_alone_context(
        environ, listen=listen, private_key=private_key, protocol_id=protocol_id, dialect=dialect
    )


def is_deployed(environ: Mapping[str, str]) -> bool:
    """Whether something started us as a deployment."""
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
    """A server that needs nothing else: its own key (random unless given), UDP and WebSocket on one port number.

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
        drain_grace=0.0,
    )


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
    """Not where our launcher has set it for others' servers: who we are is told otherwise there, and the lease tells
    the matchmaker of the end; asking for a signal in the middle of it would only cut it short."""
    ours = env.get("TIPOFF_DEPLOYMENT_ID") == env.get("ARBITRIUM_REQUEST_ID")
    return "" if ours else env.get(variable, "")


class _Mapping(msgspec.Struct):
    ports: dict[str, Port] = {}


def _ports(env: Mapping[str, str]) -> dict[str, Port]:
    """Our two listeners' ports, from our variable or Edgegap's: by name, else by protocol."""
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
    """Edgegap's description of where we run; information only, so a text nobody can read is no error."""
    try:
        data = msgspec.json.decode(env.get("ARBITRIUM_DEPLOYMENT_LOCATION") or "{}", type=dict[str, object])
    except msgspec.DecodeError:
        return {}
    return {key: str(value) for key, value in data.items()}
