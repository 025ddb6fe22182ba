"""Settings for Edgegap, from `TIPOFF_EDGEGAP_...` variables. Their repr shows no secret."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tipoff_shared.errors import ConfigError
from tipoff_shared.hooks import HookKey, load_hook_key
from tipoff_shared.secret import Secret


@dataclass(frozen=True, slots=True)
class WebhookUrls:
    """The URLs that Edgegap posts webhooks to. `key` makes them impossible to guess; None: there are none."""

    base: str
    key: HookKey | None

    def __call__(self, name: str) -> str:
        """The URL for our deployment or session `name`; "" when webhooks are not configured."""
        return "" if self.key is None else f"{self.base}/hook/{self.key.path_name(name)}"


class Settings(BaseSettings):
    """One account at Edgegap, as one matchmaker uses it. Times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="TIPOFF_EDGEGAP_",
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    url: str = "https://api.edgegap.com"
    """Base URL of the API; the emulator's, to try things without an account."""

    token: SecretStr = SecretStr("")
    """The API token, with or without the prefix `token `."""

    token_file: Path | None = None
    """A file that holds the API token."""

    hook_url: str = ""
    """Public base URL of httpd, like `https://play.example.org`: Edgegap then posts to `/hook/...` there when a
    deployment is ready, fails or ends. Empty: only polling."""

    hook_key: SecretStr = Field(default=SecretStr(""), validation_alias="TIPOFF_HOOK_KEY")
    """The key that makes webhook URLs impossible to guess; the same as httpd's. Required with `hook_url`."""

    hook_key_file: Path | None = Field(default=None, validation_alias="TIPOFF_HOOK_KEY_FILE")
    """A file that holds that key."""

    timeout: float = Field(default=8.0, gt=0, le=60)
    """For one call, from the first byte sent to the last byte received; a create gets one and a half times as much."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Part of Edgegap's rate limits (create 40, status 20, list 10 a second) that this process may use: 0.33 with three
    matchmakers on one account."""

    poll_first: float = Field(default=0.5, gt=0, le=60)
    """Without webhooks: time from ordering a deployment to its first poll. Later polls are less frequent."""

    poll_slowest: float = Field(default=3.0, gt=0, le=300)
    """The longest time between two polls of a deployment; with webhooks, the time between any two."""

    near: str = "8.8.8.8"
    """IP addresses, separated by commas, near which Edgegap places a server when no player's address is known, as for
    servers kept ready. The default is located in the USA."""

    pass_nats: bool = True
    """Pass the address and credentials of NATS to each deployment. Off: the version's environment at Edgegap holds
    them."""

    nats_host: str = ""
    """Address of NATS for game servers at Edgegap, `host:port`; by default the matchmaker's NATS_HOST."""

    nats_user: str = ""
    """NATS user of the game servers: one with the rights of role `gameserver`, never the matchmaker's."""

    nats_password: SecretStr = SecretStr("")
    """That user's password."""

    nats_password_file: Path | None = None
    """A file that holds that password."""

    nats_ca_file: Path | None = None
    """PEM file of the authority that signed NATS's certificate; by default the matchmaker's."""

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
        """The addresses in `near`."""
        return tuple(self.near.split(","))

    def api_token(self) -> Secret:
        """The API token without its prefix. Raises `ConfigError` when there is none."""
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
        """The key of webhook URLs; None without `hook_url`. Raises `ConfigError` when the key is missing."""
        if not self.hook_url:
            return None
        key = load_hook_key(self.hook_key.get_secret_value(), self.hook_key_file, namespace)
        if key is None:
            raise ConfigError(
                "TIPOFF_EDGEGAP_HOOK_URL is set, so a hook key is needed: set TIPOFF_HOOK_KEY_FILE (or "
                "TIPOFF_HOOK_KEY) for httpd and the matchmakers alike"
            )
        return key

    def webhook_urls(self, namespace: str) -> WebhookUrls:
        """The URLs that Edgegap posts webhooks to. Raises `ConfigError` when the key is missing."""
        return WebhookUrls(self.hook_url, self.hooks(namespace))

    def servers_password(self) -> str:
        """The game servers' password for NATS. Raises `ConfigError` when its file cannot be read."""
        return _secret(self.nats_password, self.nats_password_file, "TIPOFF_EDGEGAP_NATS_PASSWORD_FILE")


def _secret(value: SecretStr, file: Path | None, variable: str) -> str:
    if file is None:
        return value.get_secret_value().strip()
    try:
        return file.read_text().strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{variable}: {exc}") from exc
