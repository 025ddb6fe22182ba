"""Finds what `tipoff doctor` checks: by options, else the compose stack's .env file, else the environment.

The .env file of deploy/ names the whole stack: host, ports, secrets, games and engine.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tipoff.port_range import DEFAULT_PORTS, parse_ports
from tipoff.up.state_dir import UpInfo
from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings, inbox_prefix_of

DEFAULT_SOCKET = Path("/var/run/docker.sock")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """What to check. `host` is the name that players dial ("" for unknown), `url` the page and API, `public_hosts` the
    addresses of game servers in tokens. `nats` is None where no NATS is known; `nats_problem` says why. `ca` is the PEM
    file of an authority that `url` is checked against, besides the system's."""

    host: str = ""
    url: str = ""
    public_hosts: tuple[str, ...] = ()
    ports: range = range(0)
    nats: NatsSettings | None = None
    nats_problem: str = ""
    named: bool = False
    """Whether somebody said that a `tipoff up` is to run here, so that its absence is a failure."""
    monitor: str = ""
    games: Path | None = None
    keys_dir: Path | None = None
    engine: Path | None = None
    network: str = ""
    project: str = ""
    """The compose project; only this host reaches the monitoring port of its NATS."""
    pull: str = "missing"
    ca: Path | None = None
    state_dir: Path | None = None
    """Where a `tipoff up` on this host keeps its state."""
    servers_here: bool = True
    """Whether game servers run on this host, so that its ports matter."""
    any_ports: bool = False
    """Whether they take any free ports, not those of `ports`."""


def read_env_file(path: Path) -> dict[str, str]:
    """Read `NAME=value` lines like docker compose: comments, quotes, no substitution. Raises `ConfigError`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}:{number}: NAME=value is expected")
        value = match[2].strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        else:
            value = re.split(r"\s#", value, maxsplit=1)[0].strip()
        found[match[1]] = value
    return found


def of_env_file(path: Path) -> Target:
    """The stack of deploy/compose.yaml with this .env file. Raises `ConfigError`."""
    env = read_env_file(path)
    base = path.resolve().parent
    secrets = base / env.get("TIPOFF_SECRETS", "secrets")
    profiles = env.get("COMPOSE_PROFILES", "local").split(",")
    dev = "dev" in profiles
    host = env.get("TIPOFF_HOST") or "localhost"
    port = env.get("TIPOFF_HTTP_PORT") or "3000" if dev else env.get("TIPOFF_HTTPS_PORT") or "443"
    url = f"http://127.0.0.1:{port}" if dev else _https(host, port)
    nats, problem = _operator(env, secrets, dev)
    games = base / (env.get("TIPOFF_GAMES_FILE") or "games.toml")
    here = "edgegap" not in profiles or "local" in profiles
    return Target(
        host="" if dev else host,
        url=url,
        public_hosts=_hosts(env.get("TIPOFF_PUBLIC_HOST") or "127.0.0.1") if here else (),
        ports=parse_ports(env.get("TIPOFF_PORT_RANGE") or "30000-30199") if here else range(0),
        nats=nats,
        nats_problem=problem,
        games=games,
        keys_dir=secrets / "netcode",
        engine=Path(env.get("DOCKER_SOCKET") or DEFAULT_SOCKET) if here else None,
        network=f"{env.get('COMPOSE_PROJECT_NAME') or 'tipoff'}_games" if here else "",
        project=env.get("COMPOSE_PROJECT_NAME") or "tipoff",
        pull=env.get("TIPOFF_PULL") or "missing",
        servers_here=here,
    )


def of_environment(env: Mapping[str, str], *, nats: NatsSettings | None, problem: str) -> Target:
    """The installation that the services' own variables describe."""
    games = env.get("TIPOFF_GAMES") or ("games.toml" if Path("games.toml").exists() else "")
    keys = env.get("TIPOFF_KEYS_DIR", "")
    docker = env.get("TIPOFF_LAUNCHER_BACKEND") == "docker"
    public = _hosts(env.get("TIPOFF_LAUNCHER_PUBLIC_HOST", ""))
    return Target(
        host="",
        public_hosts=public,
        ports=parse_ports(env.get("TIPOFF_LAUNCHER_PORT_RANGE") or DEFAULT_PORTS),
        nats=nats,
        nats_problem=problem,
        games=Path(games) if games else None,
        keys_dir=Path(keys) if keys else None,
        engine=engine_socket(env) if docker else None,
        network=env.get("TIPOFF_LAUNCHER_DOCKER_NETWORK", ""),
        pull=env.get("TIPOFF_LAUNCHER_DOCKER_PULL") or "missing",
    )


def of_up(target: Target, up: UpInfo, state_dir: Path) -> Target:
    """The `tipoff up` that keeps its state in `state_dir`; what it does not say is as in `target`."""
    name = urlsplit(up.url).hostname or ""
    return dataclasses.replace(
        target,
        host="" if is_local(name) or _is_address(name) else name,
        url=up.url.rstrip("/"),
        public_hosts=up.public_hosts or target.public_hosts,
        ports=parse_ports(up.ports) if up.ports else target.ports,
        any_ports=not up.ports,
        games=Path(up.games) if up.games else target.games,
        keys_dir=state_dir / "keys",
        state_dir=state_dir,
    )


def engine_socket(env: Mapping[str, str]) -> Path:
    """The engine's Unix socket, by the variables of the launcher and of `docker`."""
    host = env.get("TIPOFF_LAUNCHER_DOCKER_HOST") or env.get("DOCKER_HOST") or ""
    return Path(host.removeprefix("unix://")) if host.startswith("unix://") else DEFAULT_SOCKET


def monitor_of(nats: NatsSettings) -> str:
    """The usual URL of nats-server's monitoring port: port 8222 of the first server."""
    first = nats.servers[0].partition("://")[2].rpartition("@")[2]
    host = first.rpartition(":")[0] or first
    return f"http://{host}:8222"


def is_local(host: str) -> bool:
    """Whether a name or address is loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _https(host: str, port: str) -> str:
    return f"https://{host}" if port == "443" else f"https://{host}:{port}"


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _operator(env: Mapping[str, str], secrets: Path, dev: bool) -> tuple[NatsSettings | None, str]:
    """How the role `operator` connects to NATS from this host; None and the reason when that is unknown."""
    published = env.get("TIPOFF_NATS_PUBLISH") or "127.0.0.1:4222"
    host, _, port = published.rpartition(":")
    host = "127.0.0.1" if host in ("", "0.0.0.0", "[::]") else host  # noqa: S104 # compared
    password, ca = secrets / "nats" / "operator.password", secrets / "nats" / "ca.pem"
    try:
        text = password.read_text().strip()
    except OSError as exc:
        return None, f"{password}: {exc.strerror}; `tipoff secrets init {secrets}` makes it"
    if not dev and not ca.is_file():
        return None, f"{ca} is missing; `tipoff secrets init {secrets}` makes it"
    settings = NatsSettings(
        servers=(f"{'nats' if dev else 'tls'}://{host}:{port}",),
        user="operator",
        password=Secret(text),
        ca_file="" if dev else str(ca),
        insecure=dev,
        namespace=env.get("TIPOFF_NAMESPACE", ""),
        inbox_prefix=inbox_prefix_of("operator"),
    )
    return settings, ""
