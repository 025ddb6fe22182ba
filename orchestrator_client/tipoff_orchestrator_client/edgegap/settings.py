"""Settings of everything that speaks to Edgegap, from `TIPOFF_EDGEGAP_...` variables. Secrets never show in a repr."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tipoff_shared.errors import ConfigError
from tipoff_shared.hooks import HookKey, load_hook_key
from tipoff_shared.secret import Secret


class Settings(BaseSettings):
    """One account at Edgegap, as one matchmaker uses it. Times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="TIPOFF_EDGEGAP_", frozen=True, extra="forbid", populate_by_name=True
    )

    url: str = "https://api.edgegap.com"
    """Where the API is; the emulator's address instead, to try things without an account."""

    token: SecretStr = SecretStr("")
    """The API token, with or without `token ` before it."""

    token_file: Path | None = None
    """A file with the API token, instead."""

    hook_url: str = ""
    """Public base URL of httpd, like `https://play.example.org`: Edgegap then posts to `/hook/...` there when a
    deployment is ready, fails or ends. Empty: polling alone."""

    hook_key: SecretStr = Field(default=SecretStr(""), validation_alias="TIPOFF_HOOK_KEY")
    """Makes webhook addresses that nobody can guess; the same as httpd's. Needed with `hook_url`."""

    hook_key_file: Path | None = Field(default=None, validation_alias="TIPOFF_HOOK_KEY_FILE")
    """A file with that key, instead."""

    timeout: float = Field(default=8.0, gt=0, le=60)
    """For one call, from the first byte sent to the last one received; a create has one and a half times as long."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Part of Edgegap's rate limits (create 40, status 20, list 10 a second) that this process may use: with three
    matchmakers on one account, 0.33."""

    poll_first: float = Field(default=0.5, gt=0, le=60)
    """Without webhooks: how soon after a deployment was ordered it is first looked for. Later looks come slower."""

    poll_slowest: float = Field(default=3.0, gt=0, le=300)
    """The longest time between two such looks; with webhooks, the time between any two."""

    near: str = "8.8.8.8"
    """IP address that stands for players where none is known, as for servers kept ready: Edgegap places a server near
    somebody. Several are separated by commas. The default is taken to be in the USA."""

    pass_nats: bool = True
    """Tell each deployment how to reach NATS. Off: the version's own environment at Edgegap says it."""

    nats_host: str = ""
    """NATS as game servers at Edgegap reach it, `host:port`; by default the matchmaker's own NATS_HOST."""

    nats_user: str = ""
    """The user that game servers come as: one with the rights of role `gameserver`, never the matchmaker's."""

    nats_password: SecretStr = SecretStr("")
    """That user's password."""

    nats_password_file: Path | None = None
    """A file with that password, instead."""

    nats_ca_file: Path | None = None
    """PEM file of the authority that signed NATS's certificate; by default the matchmaker's own."""

    @field_validator("url", "hook_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", value):
            raise ValueError("a URL like https://play.example.org is expected")
        return value.rstrip("/")

    @field_validator("near")
    @classmethod
    def _addresses(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            raise ValueError("at least one IP address is expected")
        return ",".join(str(ip_address(part)) for part in parts)

    @property
    def default_near(self) -> tuple[str, ...]:
        return tuple(self.near.split(","))

    def api_token(self) -> Secret:
        """Raises `ConfigError` when there is none."""
        token = _secret(self.token, self.token_file, "TIPOFF_EDGEGAP_TOKEN_FILE")
        if token[:6].lower() == "token ":
            token = token[6:].strip()
        if not token:
            raise ConfigError(
                "no Edgegap API token: set TIPOFF_EDGEGAP_TOKEN_FILE (or TIPOFF_EDGEGAP_TOKEN); the dashboard makes "
                "one under user settings, Tokens"
            )
        if not re.fullmatch(r"[\x21-\x7e]{1,200}", token):
            raise ConfigError("the Edgegap API token holds characters that no token has")
        return Secret(token)

    def hooks(self, namespace: str) -> HookKey | None:
        """None where Edgegap is not asked to call. Raises `ConfigError` when the key is missing."""
        if not self.hook_url:
            return None
        key = load_hook_key(self.hook_key.get_secret_value(), self.hook_key_file, namespace)
        if key is None:
            raise ConfigError(
                "TIPOFF_EDGEGAP_HOOK_URL is set, so a hook key is needed: set TIPOFF_HOOK_KEY_FILE (or "
                "TIPOFF_HOOK_KEY) for httpd and the matchmakers alike"
            )
        return key

    def servers_password(self) -> str:
        """What game servers show NATS; raises `ConfigError` when its file cannot be read."""
        return _secret(self.nats_password, self.nats_password_file, "TIPOFF_EDGEGAP_NATS_PASSWORD_FILE")


def _secret(value: SecretStr, file: Path | None, variable: str) -> str:
    if file is None:
        return value.get_secret_value().strip()
    try:
        return file.read_text().strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{variable}: {exc}") from exc
