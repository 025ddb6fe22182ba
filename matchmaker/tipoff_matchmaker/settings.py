"""Settings of a matchmaker, each with a default that suits one machine and a fleet alike."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_GS_PROXY_URL = re.compile(r"(wss?://[a-zA-Z0-9.-]{1,253}(:[0-9]{1,5})?/([a-zA-Z0-9._-]+/)*)?", re.ASCII)


class Settings(BaseSettings):
    """Read from the environment (`TIPOFF_MATCHMAKER_MAX_REQUESTS=500`), or given by the caller. Times are seconds."""

    model_config = SettingsConfigDict(env_prefix="TIPOFF_MATCHMAKER_", frozen=True, extra="forbid")

    instance: str = Field(
        default_factory=lambda: "m" + secrets.token_hex(6), pattern=r"^[A-Za-z0-9_-]{1,40}$"
    )
    """Name of this process, in heartbeats and as the owner of session records. Never two at once with the same."""

    games: Path = Field(default=Path("games.toml"), validation_alias="TIPOFF_GAMES")
    """The games.toml that `python -m tipoff_matchmaker` reads; the same file as the launcher's."""

    default_game: str = ""
    """`NAME/VERSION` that `session.gensession` means; by default the only bevygap game, else the first game."""

    profile: Literal["trusted", "isolated"] = "trusted"
    """How game servers are present: `trusted` ones write their keys in NATS themselves; `isolated` ones are in an
    account of their own and send events, which matchmakers write down. The same for all matchmakers of a namespace."""

    server_auth_seed_file: Path | None = None
    """Isolated profile: the file with the seed of the nkey by which matchmakers sign their answers to nats-server about
    game servers that connect (`secrets/nats/server-auth.seed`). Each server then has its own NATS user, which may
    publish its own events only; without it, all share the user that the launcher gives them. The same for all
    matchmakers of a namespace."""

    server_keys: Literal["auto", "own", "game"] = "auto"
    """Which netcode key game servers that are started from now on get. `own`: one derived from the game's key for each
    server, so that none can open or forge another's tokens. `game`: the game's key itself; matchmakers of a release
    before this setting know only that, so set it before you go back to one. `auto`: `own` in the isolated profile,
    `game` in the trusted one. bevygap's servers always get the game's key."""

    max_requests: int = Field(default=2000, ge=1)
    """Play requests in hand at once, waiting ones included; more are refused with 503 and Retry-After."""

    progress_interval: float = Field(default=2.0, gt=0)
    """How often a waiting player hears what is going on, beyond what happens in between."""

    owner_silence: float = Field(default=3.0, gt=0)
    """After so long without a heartbeat of a matchmaker (there are three in this time) another one may go on with
    the requests it has in hand."""

    unclaimed_per_address: int = Field(default=32, ge=0)
    """Seats of one game that players at one address (an IPv6 /64 counts as one) may hold before they connect, and at
    most half of the seats the game can have. Further players there wait until some of those have connected. Loopback is
    exempt; 0 means no limit, and holds of full length for everybody."""

    free_misses: int = Field(default=3, ge=0)
    """Seats that an address may let expire at no cost. Each further one halves how long it may hold its next ones; each
    one it claims takes one off, and ten minutes without any forgive all."""

    least_hold: float = Field(default=5.0, ge=2)
    """The shortest time for which such an address holds a seat, which is also its token's lifetime."""

    unclaimed_patience: float = Field(default=5.0, gt=0)
    """How long players wait because their address holds as many unclaimed seats as it may, and none of them is claimed;
    then they are refused with 429 and Retry-After."""

    seat_hold: float = Field(default=15.0, gt=0)
    """How long a seat counts whose session record is not written: the time this process has to write it."""

    claim_slack: float = Field(default=1.0, ge=0)
    """A seat waits so much longer than its token is good (a game's `claim_time`): clocks of machines differ, and a
    connection of the last moment takes a while to be reported."""

    gone_ttl: float = Field(default=120.0, ge=1)
    """How long an ended session's record stays, so that a late message about it finds it ended."""

    lease_ttl: float = Field(default=10.0, gt=0)
    """Time to live of a gameserver's lease, as gameservers write it. After connecting to NATS nothing is closed for
    want of news before two of these have passed."""

    lease_grace: float = Field(default=10.0, gt=0)
    """How long a server that still runs may be without a lease before it is stopped."""

    orphan_grace: float = Field(default=30.0, gt=0)
    """Age at which a server without a record is stopped, and a connection without a session is forgotten."""

    sweep_interval: float = Field(default=2.0, gt=0)
    """Between two comparisons of records, leases and orchestrators (jittered by a quarter)."""

    reconciler_ttl: float = Field(default=6.0, ge=1)
    """One matchmaker at a time acts on those comparisons, by a lease of this length: after a crash of that one, the
    next one begins so many seconds later."""

    listing_interval: float = Field(default=5.0, gt=0)
    """Between two listings of all sessions, the truth behind the claim deadlines kept in memory."""

    deploy_tries: int = Field(default=5, ge=1)
    """Calls to an orchestrator for one deployment before it counts as failed."""

    start_failures: int = Field(default=3, ge=1)
    """Deployments of a game that fail in a row, while none is ready, before the waiting are told so (502)."""

    tell_reasons: bool = False
    """Tell players in the orchestrator's words why no server could be started, and which games there are: good while
    you develop a game. What their servers wrote is never told."""

    backoff: float = Field(default=0.2, gt=0)
    """First pause after a failed call; doubled (to at most 5 s) and jittered each time."""

    breaker_failures: int = Field(default=5, ge=1)
    """Calls of one kind (deploy, get, stop, list) to an orchestrator that fail in a row before it is left alone."""

    breaker_pause: float = Field(default=2.0, gt=0)
    """How long it is then left alone before one call tries it; doubled (to at most 30 s) while that fails."""

    drain_timeout: float = Field(default=6.0, gt=0)
    """How long pending requests may still take after the process was told to stop."""

    gs_proxy_url: str = ""
    """What browsers dial to reach game servers of the launcher through a reverse proxy, like
    `wss://play.example.org/gs/`; the deployment's id is put behind it. "": players dial game servers directly."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Prometheus metrics at `http://HOST:PORT/metrics`; 0: none."""

    metrics_host: str = "127.0.0.1"
    """Address the metrics are served at."""

    @field_validator("gs_proxy_url")
    @classmethod
    def _gs_proxy_url(cls, value: str) -> str:
        if not _GS_PROXY_URL.fullmatch(value):
            raise ValueError(
                "wss://HOST/PATH/ with a slash at its end is expected, like wss://play.example.org/gs/"
            )
        return value

    @property
    def gives_own_keys(self) -> bool:
        """Whether new servers get netcode keys of their own."""
        return self.server_keys == "own" or (self.server_keys == "auto" and self.profile == "isolated")

    def websocket_url(self, deployment_id: str) -> str:
        """What browsers dial to reach this deployment by way of the reverse proxy; "" without a proxy."""
        return f"{self.gs_proxy_url}{deployment_id}" if self.gs_proxy_url else ""
