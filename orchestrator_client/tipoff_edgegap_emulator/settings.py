"""Settings of the emulator as a service, from `TIPOFF_EDGEGAP_EMULATOR_...` variables."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class EmulatorSettings(BaseSettings):
    """One emulated account. Times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="TIPOFF_EDGEGAP_EMULATOR_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    games: Path = Field(default=Path("games.toml"), validation_alias="TIPOFF_GAMES")
    """The games file. Games with `[game.edgegap]` become the account's applications, and say how servers start."""

    token: SecretStr = Field(default=SecretStr(""), validation_alias="TIPOFF_EDGEGAP_TOKEN")
    """The API token that it accepts; the same as the matchmaker's. Empty: a random one, printed at the start."""

    host: str = "127.0.0.1"
    """The address that it listens on."""

    port: int = Field(default=8099, ge=0, le=65535)
    """The port that it listens on; 0 is any free one."""

    listen_fd: int | None = Field(default=None, ge=0)
    """A listening socket that the emulator inherits, instead of host and port."""

    url: str = ""
    """The emulator's URL for game servers; by default the address that it listens on."""

    public_host: str = "127.0.0.1"
    """The IPv4 address of this machine that players dial."""

    start_delay: float = Field(default=1.0, ge=0, le=3600)
    """Time from a request to the start of its server."""

    ready_delay: float = Field(default=0.0, ge=0, le=3600)
    """Time from the start of its server until a deployment is ready; the real service takes some seconds."""

    capacity: int = Field(default=0, ge=0, le=10_000)
    """Deployments at once: 1 as in Edgegap's free plan, 0 for no limit."""

    limits: bool = True
    """Enforce Edgegap's rate limits (create 40, status 20, list 10 a second)."""

    backend: Literal["process", "docker"] = "process"
    """What runs the servers: processes, by `[game.process]`, or containers, by `[game.docker]` and the
    `TIPOFF_LAUNCHER_DOCKER_...` variables."""

    port_range: str = Field(default="31000-31999", pattern=r"^\d{4,5}-\d{4,5}$")
    """Ports for the servers."""

    logs: Path | None = None
    """Directory for the servers' output; by default it is discarded."""

    empty: bool = False
    """Start without applications, like a new account; `tipoff edgegap configure-app --create` creates them."""

    die_with_parent: bool = True
    """Let Linux kill the servers when the emulator dies."""

    @field_validator("public_host")
    @classmethod
    def _address(cls, value: str) -> str:
        address = ipaddress.IPv4Address(value)
        if address.is_unspecified:
            raise ValueError(f"{value} means every interface, and players cannot dial it")
        return str(address)

    @property
    def ports(self) -> range:
        """The ports in `port_range`."""
        first, last = self.port_range.split("-")
        return range(int(first), int(last) + 1)
