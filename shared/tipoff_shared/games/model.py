"""A game of a games.toml, and what its settings mean."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import msgspec

GameKey: TypeAlias = tuple[str, str]
"""(name, version)."""


class ProcessSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[game.process]`: how the launcher starts a server as a local process."""

    command: list[str]
    """Program and arguments; `python` as the first word means the very interpreter that tipoff runs on."""
    cwd: str = "."
    """Directory to start it in, relative to games.toml."""
    env: dict[str, str] = {}
    """Further environment variables. No secrets: they show in the file."""
    ports: dict[str, Literal["udp", "tcp"]] = {}
    """Name -> udp or tcp: fixed ports from the launcher's range, told to the server as TIPOFF_PORTS. Servers that
    use our SDK need none: they take any free port and announce it."""


class DockerPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ports` of `[game.docker]`: one port that the container listens on."""

    internal: int = 0
    """The container's own port, for images that always listen on the same; 0: the very port players dial, from the
    launcher's range, told to the server as TIPOFF_PORTS."""
    protocol: Literal["udp", "tcp"] = "udp"
    """udp or tcp."""


class DockerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[game.docker]`: how the launcher starts a server as a container (TIPOFF_LAUNCHER_BACKEND=docker)."""

    image: str
    """The image, with its tag or digest."""
    command: list[str] = []
    """Instead of the image's own command."""
    ports: dict[str, DockerPort] = {}
    """Name -> {internal, protocol}. Empty: `udp` and `websocket` (tcp), as servers with our SDK listen."""
    env: dict[str, str] = {}
    """Further environment variables. No secrets: they show in the file and in `docker inspect`."""
    cpus: float = 1.0
    """Processors it may use."""
    memory: int = 512
    """MiB it may use, /tmp included; beyond it is killed."""
    pids: int = 256
    """Processes and threads it may have."""
    secrets: Literal["file", "environment"] = "file"
    """How it gets the game's key and the NATS password: as files under /run/tipoff, which our SDK reads; or as
    environment variables, which show in `docker inspect`: for images that know nothing else. Games with `bevygap`
    get them so in any case."""
    user: str = ""
    """Instead of the image's own user: `uid`, `uid:gid` or a name."""
    writable: list[str] = []
    """Directories beside /tmp that it may write to, in memory: everything else is read-only."""


class EdgegapSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[game.edgegap]`: what Edgegap starts, for the orchestrators `edgegap` and `edgegap-sessions`."""

    application: str
    """Name of the application at Edgegap."""
    version: str
    """Name of its version: one whose image has its own tag, because Edgegap caches what `latest` was."""
    port: str = ""
    """Name of the version's port that the game's primary transport uses; by default the one of the primary's name,
    else the only one of a fitting protocol."""
    kind: Literal["seat", "match"] = "seat"
    """For `edgegap-sessions`, as the version's session configuration says: sessions of kind Seat share a server,
    one of kind Match has one of its own."""
    env: dict[str, str] = {}
    """Further environment variables of each deployment, 255 bytes each at most. No secrets: they show in the file
    and at Edgegap."""


class Game(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[game]]`: one game in one version. Times are seconds."""

    name: str
    """What players ask for: at most 30 letters, digits, spaces, `.`, `_`, `-`."""
    version: str
    """The same for the version: each has servers of its own."""
    seats: int = 16
    """Players one server takes, 1 to 1000."""
    fill_rooms: bool = False
    """For matches of exactly `seats` players: nobody is put into an empty server while seats on others wait for players
    who have not connected yet, but waits for one of those, at most `claim_time`. So a player who never connects keeps
    no two others apart."""
    min_ready: int = 0
    """Servers kept ready without a player on them."""
    max_deployments: int = 4
    """Servers there may be at once, all matchmakers together."""
    empty_ttl: float = 30.0
    """How long a server that nobody plays on lives beyond `min_ready`."""
    start_timeout: float = 30.0
    """A server that is not ready after so long is stopped, and its players get another."""
    request_timeout: float = 60.0
    """How long a player waits at most for a way in."""
    orchestrator: str = "launcher"
    """What starts the servers."""
    ready: Literal["lease", "context", "running"] = "lease"
    """What makes a server ready: its lease in KV (our SDK), its message on `gameserver.contexts` (bevygap), or that
    it runs."""
    primary: Literal["udp", "websocket", "webtransport", "tcp"] = "udp"
    """The transport that `ip` and `port` of `SessionReady` name."""
    dialect: Literal["standard", "lightyear"] = "standard"
    """Dialect of netcode: `lightyear` for Bevy games with lightyear up to 0.19."""
    protocol_id: int | None = None
    """netcode's protocol id; by default one that only this game and version have."""
    claim_time: int = 15
    """How long a seat waits for its player, which is also how long the connect token lets the player in. A seat that is
    not claimed by then is free for others. bevygap's servers may finish a handshake `token_timeout` after that, so
    their seats wait so much longer. (`token_lifetime`, an earlier name, is still read.)"""
    token_timeout: int = 15
    """A connection on which nothing was heard for so long is over."""
    resume_ttl: int = 30
    """How long a player's seat is held after the connection was lost, so that the player can reconnect to it
    (docs/reconnect.md). 0: not at all. Who leaves or is kicked frees the seat at once. bevygap's servers hold none."""
    bevygap: bool = False
    """Write bevygap's mappings for every session, and give its servers tokens they understand."""
    private_key_file: str = ""
    """File with the private key (64 hex digits, or 32 decimal numbers), relative to games.toml."""
    private_key_env: str = ""
    """Environment variable with the private key, instead. Where neither is set, the file `GAME.VERSION.key` in the
    directory `TIPOFF_KEYS_DIR` is read: `tipoff up` makes those, at random, at each start."""
    process: ProcessSpec | None = None
    """For the orchestrator `launcher`, where it starts processes."""
    docker: DockerSpec | None = None
    """For the orchestrator `launcher`, where it starts containers."""
    edgegap: EdgegapSpec | None = None
    """For the orchestrators `edgegap` and `edgegap-sessions`."""

    @property
    def key(self) -> GameKey:
        """(name, version)."""
        return (self.name, self.version)

    @property
    def netcode_protocol_id(self) -> int:
        """The configured protocol id, else one that only this game and version have."""
        if self.protocol_id is not None:
            return self.protocol_id
        digest = hashlib.blake2b(
            f"{self.name}\0{self.version}".encode(), digest_size=8, person=b"tipoff protocol"
        )
        return int.from_bytes(digest.digest(), "little")
