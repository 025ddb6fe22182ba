"""Reads the launcher's settings from `TIPOFF_LAUNCHER_...` variables; those of NATS are in `tipoff_shared.settings`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tipoff_shared.errors import ConfigError
from tipoff_shared.state_home import state_home


def _default_state_dir() -> Path:
    try:
        return state_home() / "tipoff"
    except ConfigError as exc:
        raise ConfigError(f"{exc} (TIPOFF_LAUNCHER_STATE_DIR)") from exc


class Settings(BaseSettings):
    """The settings of one launcher: one host, one namespace, one state directory. Times are seconds."""

    model_config = SettingsConfigDict(env_prefix="TIPOFF_LAUNCHER_", frozen=True, extra="forbid")

    games: Path = Field(default=Path("games.toml"), validation_alias="TIPOFF_GAMES")
    """The games.toml that `python -m tipoff_launcher` reads; the same file as the matchmaker's."""

    host: str = Field(default="local", pattern=r"^[a-zA-Z0-9_-]{1,32}$")
    """This host's name on NATS: the matchmakers' orchestrator `launcher` uses `local`."""

    backend: Literal["process", "docker"] = "process"
    """What servers run as: processes of this host, or containers of its Docker engine."""

    state_dir: Path = Field(default_factory=_default_state_dir)
    """Directory for the records and logs of the servers, in its subdirectory `deployments`."""

    public_host: str = "127.0.0.1"
    """What players dial: addresses or names, separated by commas; the first is the main one."""

    bind_host: str = ""
    """Addresses that servers listen on, separated by commas; "" is loopback when players can only be on this host, else
    every interface. IPv6 is included where `public_host` has an IPv6 address."""

    proxy_host: str = Field(default="", pattern=r"^[a-zA-Z0-9.-]{0,253}$")
    """What the reverse proxy for browsers (`/gs/...`) dials to reach servers that run as processes; "" is 127.0.0.1, or
    the address that servers listen on."""

    trusted_proxies: str = Field(default="", pattern=r"^[0-9a-fA-F.:/, ]{0,1024}$")
    """Addresses or networks, separated by commas, of the reverse proxies whose word about players' addresses the
    servers behind them believe (TIPOFF_TRUSTED_PROXIES); "" is a proxy on the server's own machine."""

    tls_cert: str = ""
    tls_key: str = ""
    """PEM files for the servers' WebSocket listeners, needed when players come from an https page."""

    max_servers: int = Field(default=64, ge=1, le=2000)
    """Most servers that may run on this host at once."""

    min_free_disk: int = Field(default=256, ge=0)
    """MiB that must be free on the disk of the state directory, or a twentieth of a smaller disk; with less, no server
    is started. 0: no limit."""

    port_range: str = "30000-30999"
    """Ports of containers, and of games that need fixed ones (`ports` in games.toml). Where it is set, other
    servers take their two ports (UDP, TCP) from it, too, so that a firewall can open them; otherwise any free ones."""

    context_listen: str = ""
    """ADDRESS:PORT of the HTTP endpoint where servers made for Edgegap (bevygap's) fetch their context; port 0 is any
    free port, and the same one again after a restart. "" is 127.0.0.1:0, or 0.0.0.0:0 where such servers are
    containers."""

    context_url: str = ""
    """URL by which servers reach that endpoint; "" is loopback, and for containers `host.docker.internal`. Where the
    launcher itself is a container, use its name there, like `http://launcher:8070`."""

    location: str = "here, local network"
    """`CITY, COUNTRY` of this host, for the context of such servers."""

    stop_grace: float = Field(default=5.0, ge=0, le=300)
    """Time between SIGTERM and SIGKILL."""

    adopt_grace: float = Field(default=20.0, ge=0, le=3600)
    """How long a restarted launcher waits for the lease of a server it finds running, before it stops the server.
    Use at least two lease TTLs (20): after an outage of NATS every lease has expired."""

    adopt_copied: bool = False
    """Take over the running servers that are recorded in a state directory which was moved here from another file
    system. Without it, a launcher refuses to start when it cannot tell whether the directory is a copy."""

    stop_servers_on_exit: bool = False
    """Stop every server when the launcher ends; otherwise they keep running and the next launcher adopts them."""

    die_with_parent: bool = False
    """Let Linux kill the servers when the launcher dies without stopping them."""

    demo: bool = False
    """Also answer `kill`, which ends a server as a crash would."""

    nice: int = Field(default=0, ge=0, le=19)
    """Added to the servers' niceness."""

    max_log_bytes: int = Field(default=10 * 1024 * 1024, ge=1024)
    """Size at which a server's log is moved aside (to server.log.1, replacing the previous one). Both stay below it."""

    max_log_rate: int = Field(default=1024 * 1024, ge=1024)
    """Bytes a second that a server may log for long. More than that is dropped, and the log says
    how much; a burst may fill a log of `max_log_bytes`."""

    keep_stopped: int = Field(default=20, ge=0, le=10_000)
    """How many stopped servers keep their directory with its log."""

    max_requests: int = Field(default=256, ge=1)
    """Most requests handled at once; more are told to retry."""

    server_nats_user: str = Field(default="", pattern=r"^[a-zA-Z0-9_-]{0,64}$")
    """The NATS user of the servers, with the inbox prefix `_INBOX_USER`; "" is the launcher's own user."""

    server_nats_password_file: str = ""
    """File with that user's password."""

    docker_host: str = Field(default="", pattern=r"^((unix|tcp|http|https|ssh)://.+)?$")
    """The Docker engine, like unix:///var/run/docker.sock; "" is DOCKER_HOST, else that socket."""

    docker_network: str = Field(default="", pattern=r"^[a-zA-Z0-9_.-]{0,128}$")
    """The network of the containers: the name of one of the engine's, or `host`; "" is the engine's default bridge."""

    docker_owner: str = Field(default="", max_length=4096)
    """The owner of the containers, where several systems share an engine: each touches only its own. Any text, and ""
    is the name of the network. Containers of a former owner are never touched again, so change it when none runs."""

    docker_nats_host: str = Field(default="", pattern=r"^[a-zA-Z0-9_.:,/\[\]-]{0,512}$")
    """Where containers reach NATS (as NATS_HOST), if not where the launcher does:
    `host.docker.internal:4222` is the engine's host."""

    docker_images: str = ""
    """The images that may run, as patterns like `tipoff/*,registry.example.org/*`, separated by commas; "" allows
    exactly those that games.toml names."""

    docker_pull: Literal["missing", "always", "never"] = "missing"
    """When an image is fetched before a start: if the engine does not have it, every time, or never."""

    docker_pull_at_start: bool = True
    """Fetch missing images when the launcher starts, so that no player waits for them."""

    docker_pull_timeout: float = Field(default=900.0, ge=1, le=86_400)
    """Longest time to fetch one image."""

    docker_config: Path | None = None
    """A `config.json` as `docker login` writes it, with the credentials for private registries."""

    docker_max_cpus: float = Field(default=0.0, ge=0)
    """A game that wants more processors than this is not started; 0: no limit."""

    docker_max_memory: int = Field(default=0, ge=0)
    """The same for memory, in MiB."""

    docker_init: bool = True
    """Run a tiny init process in front of each server, which forwards signals and reaps zombies."""

    docker_wait: float = Field(default=60.0, ge=0, le=3600)
    """How long a starting launcher waits for the Docker engine to answer."""

    @field_validator("public_host")
    @classmethod
    def _public_host(cls, value: str) -> str:
        hosts = [host.strip() for host in value.split(",")]
        if not all(re.fullmatch(r"[a-zA-Z0-9.:-]{1,253}", host) for host in hosts):
            raise ValueError("addresses or host names separated by commas are allowed")
        for host in hosts:
            if _is_unspecified(host):
                raise ValueError(f"{host} means every interface, and players cannot dial it")
        return ",".join(hosts)

    @field_validator("port_range")
    @classmethod
    def _port_range(cls, value: str) -> str:
        found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", value)
        if not found or not 1024 <= int(found[1]) <= int(found[2]) <= 65535:
            raise ValueError("FIRST-LAST within 1024-65535 is allowed, like 30000-30999")
        return value

    @field_validator("context_listen")
    @classmethod
    def _context_listen(cls, value: str) -> str:
        if not value:
            return value
        address, _, port = value.rpartition(":")
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise ValueError("ADDRESS:PORT with an IPv4 address is allowed, like 127.0.0.1:8070") from None
        if not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
            raise ValueError("ADDRESS:PORT is allowed, like 127.0.0.1:8070; port 0 is any free one")
        return value

    @field_validator("context_url")
    @classmethod
    def _context_url(cls, value: str) -> str:
        if not re.fullmatch(r"(https?://[a-zA-Z0-9.-]{1,253}(:\d{1,5})?)?/?", value):
            raise ValueError("http://HOST:PORT without a path is allowed, like http://launcher:8070")
        return value.rstrip("/")

    @property
    def city_and_country(self) -> tuple[str, str]:
        """The two parts of `location`."""
        city, _, country = self.location.partition(",")
        return city.strip(), country.strip() or city.strip()

    @property
    def keeps_to_range(self) -> bool:
        """Whether servers that could take any free port keep to `port_range`."""
        return "port_range" in self.model_fields_set

    @property
    def ports(self) -> range:
        """`port_range` as a range."""
        first, last = self.port_range.split("-")
        return range(int(first), int(last) + 1)

    @property
    def docker_owned_by(self) -> str:
        """`docker_owner`, or its default."""
        return self.docker_owner or self.docker_network

    @property
    def main_public_host(self) -> str:
        """The first of `public_host`."""
        return self.public_host.split(",")[0]

    @property
    def listen_on(self) -> str:
        """The address that servers bind: only loopback where no other host could reach them anyway."""
        if self.bind_host:
            return self.bind_host
        hosts = self.public_host.split(",")
        ipv6 = any(":" in host for host in hosts)
        if all(_is_loopback(host) for host in hosts):
            return "127.0.0.1,::1" if ipv6 else "127.0.0.1"
        return "0.0.0.0,::" if ipv6 else "0.0.0.0"  # noqa: S104 # players come from other hosts

    @property
    def reached_by_proxy(self) -> str:
        """The host that a reverse proxy dials to reach servers of this host."""
        first = self.listen_on.split(",")[0]
        return self.proxy_host or ("127.0.0.1" if first == "0.0.0.0" else first)  # noqa: S104 # compared


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
