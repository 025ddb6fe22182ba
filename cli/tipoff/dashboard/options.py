"""What `tipoff up` tells its httpd about the dashboard, in one environment variable."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from tipoff_shared.errors import ConfigError

VARIABLE = "TIPOFF_UP_DASHBOARD"


class DashboardOptions(msgspec.Struct, frozen=True):
    """`token` is a secret. `hosts`: what players dial; `networks`: who may use the dashboard beside this machine, as
    text. `project` is a directory, `urls` and `nats` are shown. `at_root`: whether the dashboard is the page at `/`,
    too; else there is a game's page."""

    token: str
    hosts: tuple[str, ...]
    networks: str = ""
    project: str = ""
    nats: str = ""
    at_root: bool = False
    has_launcher: bool = True
    command_options: str = ""
    """What commands need after their name to find this system; "" for nothing."""

    def __repr__(self) -> str:
        return f"DashboardOptions(project={self.project!r}, token=...)"

    def to_environment(self) -> dict[str, str]:
        """The variable."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> DashboardOptions | None:
        """None where the variable is not set. Raises `ConfigError`."""
        text = (os.environ if environ is None else environ).get(VARIABLE)
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as exc:
            raise ConfigError(f"{VARIABLE}: {exc}; `tipoff up` sets it") from exc
