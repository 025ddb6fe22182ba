"""Reads httpd's settings: each field of `Settings` is the environment variable `TIPOFF_HTTPD_<NAME>`."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tipoff_shared.admission.client_address import PRIVATE_NETWORKS, AddressRule, Network
from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.names import check_name
from tipoff_shared.service import load_settings


def _split(value: Any) -> Any:
    """Split `a, b`, the way an environment variable writes a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _networks(value: Any) -> Any:
    parts = _split(value)
    if not isinstance(parts, list | tuple):
        return parts
    return tuple(ip_network(part, strict=False) if isinstance(part, str) else part for part in parts)


def _name(value: str) -> str:
    if value:
        try:
            check_name(value, "name")
        except Malformed as exc:
            raise ValueError(str(exc)) from exc
    return value


_PUBLIC_KEY_ALGORITHMS = {f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)} | {
    "EdDSA"
}
_SECRET_ALGORITHMS = {"HS256", "HS384", "HS512"}

Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
Descriptors = Annotated[tuple[Annotated[int, Field(ge=3)], ...], NoDecode, BeforeValidator(_split)]
GameName = Annotated[str, AfterValidator(_name)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """The settings of one httpd. Lists are separated by commas, times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="TIPOFF_HTTPD_", frozen=True, populate_by_name=True)

    host: Strings = ("127.0.0.1",)
    """Addresses to listen on; `0.0.0.0` and `::` stand for all of this machine's."""
    port: Annotated[int, Field(ge=0, le=65535)] = 3000
    """The port to listen on; 0 takes any free one."""
    listen_fd: Descriptors = ()
    """Listening sockets inherited from the parent process, instead of `host` and `port`. Several httpds can share
    them; connections wait in them while one of the httpds restarts."""
    tls_cert: Path | None = None
    """PEM file with the certificate chain; with it and `tls_key`, httpd speaks https and wss."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key."""

    origins: Strings = ()
    """Origins of other pages that may ask, such as `https://game.example` or `https://*.game.example`; `file://` for
    pages from a file (Cordova, Electron), `null` for those without an origin, `*` for any. Pages of the same origin
    always may."""
    allow_missing_origin: bool = True
    """Serve clients without an Origin header: programs other than browsers send none."""
    trusted_proxies: Networks = ()
    """Addresses or networks of the reverse proxies whose X-Forwarded-For or Forwarded header is believed."""
    proxy_header: Literal["any", "x-forwarded-for", "forwarded"] = "any"
    """The header that the proxies write. `any`: X-Forwarded-For where there is one, else Forwarded. Name one when your
    proxy passes the other on as the player sent it."""
    allow_client_ip: bool = False
    """Believe the `client_ip` in a request. For development: it decides where servers start."""
    fake_ip: IPv4Address | None = None
    """Replaces loopback and private addresses, which tell an orchestrator nothing about where a player is."""

    default_game: GameName = ""
    default_version: GameName = ""
    """What `/matchmaker/wannaplay` asks for. Without both, it asks the `session.gensession` service."""

    request_timeout: Seconds = 65.0
    """From a player's request to its answer, whatever happens. Keep it a little over the matchmaker's own deadline:
    raise it where a game's `request_timeout` in games.toml is over 60."""
    acknowledge_timeout: Seconds = 10.0
    """Without a sign of life from any matchmaker for this long, the player gets 503."""
    retry_timeout: Seconds = 2.0
    """Without a sign of life from the matchmaker that was asked for this long, all of them are asked, again and
    again."""
    silence_timeout: Seconds = 5.0
    """The same once it has answered; a matchmaker reports progress every two seconds."""
    nats_patience: Seconds = 1.5
    """How long requests in flight wait for a lost NATS connection; then they get 503."""
    first_message_timeout: Seconds = 9.0
    """For the first message on a WebSocket. With the closing it stays under the 10 s that clients are promised."""
    head_timeout: Seconds = 9.0
    """For a whole HTTP request, head and body; then the connection is closed."""
    ping_interval: Seconds = 15.0
    """Between two pings on a WebSocket."""
    ping_timeout: Seconds = 15.0
    """For the answer to a ping; then the WebSocket is closed."""
    stall_timeout: Seconds = 20.0
    """A client that reads nothing for this long is cut off."""
    close_timeout: Seconds = 5.0
    """For the answer to a normal close."""
    linger: Seconds = 0.5
    """After any other close, for its last message to arrive before the socket is closed."""
    keep_alive_timeout: Seconds = 150.0
    """An HTTP connection stays open for this long after an answer. Keep it above the idle time of the reverse proxy or
    load balancer, which else answers 502 now and then: nginx and AWS 60 s, Go 90 s, Caddy 120 s, Google Cloud 600 s."""
    drain_timeout: Seconds = 8.0
    """At SIGTERM, for requests in flight to finish; at most one second in demo mode."""

    max_connections: Annotated[int, Field(ge=1)] = 4000
    """Open sockets. With one more, the oldest idle socket of the address that has most of them is closed; where all are
    in use, the new one gets 503. Each takes about 30 KiB of memory."""
    max_connections_per_address: Annotated[int, Field(ge=1)] = 400
    """The share of one address (an IPv6 /64 counts as one). With one more, its own oldest idle socket is closed; where
    all are in use, the new one gets 429. Behind trusted proxies each request counts under the address that they name.
    Loopback is exempt. Raise it where many players share an address, as behind carrier-grade NAT."""
    connections_per_second: Annotated[float, Field(ge=0)] = 50.0
    """New connections from one address (an IPv6 /64 counts as one) in the long run, and after a pause as many at once
    as it may hold, at least those of two seconds. More are closed as soon as they are accepted, before TLS. Loopback
    and trusted proxies are exempt; 0 means no limit."""
    max_requests: Annotated[int, Field(ge=1)] = 2000
    """Players being served or waiting at one time; more get 503 and close code 1013."""
    max_requests_per_address: Annotated[int, Field(ge=1)] = 100
    """The same for one address (an IPv6 /64 counts as one); more get 429. Loopback is exempt."""

    requests_per_second: Annotated[float, Field(ge=0)] = 10.0
    """New requests for a seat from one address (an IPv6 /64 counts as one) in the long run; more get 429. Loopback is
    exempt; 0 means no limit."""
    request_burst: Annotated[float, Field(ge=1)] = 100.0
    """How many of them may come at once, such as from a school behind one address."""

    auth: Literal["none", "jwt", "http"] = "none"
    """Who may ask for a seat. `none`: everybody. `jwt`: who has a JSON Web Token of your login. `http`: whom your own
    URL knows. Games then have `player.user_id` and `player.name`; docs/accounts.md says how."""
    auth_issuer: str = ""
    """For `jwt`: the issuer (`iss`) that a token must have, exactly."""
    auth_audience: Strings = ()
    """For `jwt`: the audiences (`aud`), of which a token must have one."""
    auth_jwks_url: str = ""
    """For `jwt`: where the issuer publishes its keys (JWKS). They are fetched every 5 minutes and for unknown keys."""
    auth_key_file: Path | None = None
    """For `jwt`, instead of the URL: a file with the public key in PEM, or with the shared secret for HS256."""
    auth_algorithms: Strings = ("RS256", "ES256", "EdDSA")
    """For `jwt`: the algorithms that may sign a token. HS256, HS384 and HS512 only by themselves, with a secret in
    `auth_key_file`."""
    auth_user_claim: str = "sub"
    """For `jwt`: the claim that is the user id, of at most 64 bytes."""
    auth_name_claim: str = "name"
    """For `jwt`: the claim that is the player's name, cut to 48 bytes."""
    auth_url: str = ""
    """For `http`: your URL, which is asked by POST with `{"auth": {...}, "address": "..."}`."""
    auth_timeout: Seconds = 5.0
    """For one call of `auth_url` or `auth_jwks_url`; then the player gets 503."""
    auth_calls: Annotated[int, Field(ge=1, le=10_000)] = 64
    """For `http`: calls of your URL at one time; more players get 503."""
    auth_calls_per_address: Annotated[int, Field(ge=1)] = 8
    """The same for one address (an IPv6 /64 counts as one); more get 429. Loopback is exempt."""
    auth_cache_ttl: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """For `http`: seconds for which an answer of your URL is remembered, a refusal at most 5; 0: not at all."""

    turn_relay: bool = True
    """Serve the turn relay: `POST /turn` and `/v1/turn/...`."""
    turn_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """A separate port for the turn relay's text protocol, at `/`, for clients of the original; 0 means none."""
    turn_requests_per_second: Annotated[float, Field(ge=0)] = 300.0
    """Requests to the turn relay from one address (an IPv6 /64 counts as one), twice as many at once; more get 429.
    Loopback is exempt; 0 means no limit."""
    turn_registrations_per_minute: Annotated[float, Field(ge=0)] = 120.0
    """The same for registrations, as many at once."""

    hook_key: SecretStr = Field(default=SecretStr(""), validation_alias="TIPOFF_HOOK_KEY")
    """The key that checks the URLs of webhooks, `POST /hook/...`; the same as the matchmakers'. Without it all webhooks
    get 404."""
    hook_key_file: Path | None = Field(default=None, validation_alias="TIPOFF_HOOK_KEY_FILE")
    """A file with that key, instead."""
    hooks_per_second: Annotated[float, Field(ge=0)] = 100.0
    """Webhooks from one address (an IPv6 /64 counts as one), twice as many at once; more get 429. Loopback is exempt;
    0 means no limit."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """A separate port for `/healthz`, `/readyz` and `/metrics`, by plain HTTP, which players cannot fill; 0 means none.
    The main port serves them, too."""
    metrics_host: Strings = ("127.0.0.1",)
    """Addresses of that port."""
    metrics_networks: Networks = PRIVATE_NETWORKS
    """Networks that may read /metrics."""
    internal_networks: Networks = PRIVATE_NETWORKS
    """Networks of the reverse proxy that asks `/internal/gs/...`. The socket's peer counts, no header."""
    demo: bool = False
    """Serve the page at `/`, its live events, and the button that kills a server. Only `tipoff up` sets it."""
    demo_listeners: Annotated[int, Field(ge=1)] = 64
    """Pages that may follow the live events at one time. With one more, the oldest of the address that has most is
    closed; where no address has more than the others, the new one gets 503."""
    demo_listeners_per_address: Annotated[int, Field(ge=1)] = 16
    """The share of one address (an IPv6 /64 counts as one); more get 429. Loopback is exempt."""
    web_dir: Path | None = None
    """In demo mode, a directory with index.html: the page to serve instead of the built-in one."""

    @property
    def address_rule(self) -> AddressRule:
        """The part of these settings that decides which address a player plays from."""
        return AddressRule(
            self.trusted_proxies, self.proxy_header, self.allow_client_ip, str(self.fake_ip or "")
        )

    @property
    def drain_seconds(self) -> float:
        """Seconds that requests in flight have at the end."""
        return min(1.0, self.drain_timeout) if self.demo else self.drain_timeout

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """From the environment and `given`. Raises `ConfigError` naming the variable and what is allowed."""
        settings = load_settings(cls, **given)
        if (settings.tls_cert is None) != (settings.tls_key is None):
            raise ConfigError(
                "TIPOFF_HTTPD_TLS_CERT and TIPOFF_HTTPD_TLS_KEY belong together; one is missing"
            )
        if bool(settings.default_game) != bool(settings.default_version):
            raise ConfigError("TIPOFF_HTTPD_DEFAULT_GAME and TIPOFF_HTTPD_DEFAULT_VERSION belong together")
        if not settings.host:
            raise ConfigError("TIPOFF_HTTPD_HOST is empty; an address to listen on is expected")
        _check_login(settings)
        return settings


def _check_login(settings: Settings) -> None:
    """Raises `ConfigError` where the settings of the login do not fit each other."""
    prefix = "TIPOFF_HTTPD_AUTH"
    if settings.auth == "http":
        _check_url(f"{prefix}_URL", settings.auth_url)
    if settings.auth != "jwt":
        return
    if not settings.auth_issuer or not settings.auth_audience:
        raise ConfigError(
            f"{prefix}=jwt wants {prefix}_ISSUER and {prefix}_AUDIENCE: without them, tokens that were made for other "
            "programs would let players in"
        )
    if bool(settings.auth_jwks_url) == (settings.auth_key_file is not None):
        raise ConfigError(f"{prefix}=jwt wants one of {prefix}_JWKS_URL and {prefix}_KEY_FILE")
    if settings.auth_jwks_url:
        _check_url(f"{prefix}_JWKS_URL", settings.auth_jwks_url)
    unknown = set(settings.auth_algorithms) - _PUBLIC_KEY_ALGORITHMS - _SECRET_ALGORITHMS
    if unknown or not settings.auth_algorithms:
        allowed = ", ".join(sorted(_PUBLIC_KEY_ALGORITHMS | _SECRET_ALGORITHMS))
        raise ConfigError(f"{prefix}_ALGORITHMS={','.join(settings.auth_algorithms)}: {allowed} are allowed")
    secret = _SECRET_ALGORITHMS & set(settings.auth_algorithms)
    if secret and (settings.auth_jwks_url or _PUBLIC_KEY_ALGORITHMS & set(settings.auth_algorithms)):
        raise ConfigError(
            f"{prefix}_ALGORITHMS: {', '.join(sorted(secret))} want a secret in {prefix}_KEY_FILE and no other "
            "algorithm beside them: else a public key could be taken for a secret"
        )


def _check_url(variable: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise ConfigError(f"{variable}: {exc}; a URL like https://login.example/... is expected") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{variable}: a URL like https://login.example/... is expected")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{variable} holds credentials, which would be logged; your URL gets the player's own"
        )
