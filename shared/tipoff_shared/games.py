"""games.toml: which games and versions there are, how their servers are started, how many may run.

    [[game]]
    name = "arena"
    version = "1"
    seats = 16                # players one server takes
    min_ready = 1             # servers kept ready without a player
    max_deployments = 4
    empty_ttl = 30            # seconds an empty server lives beyond min_ready

    [game.process]            # how the launcher's process back end starts one
    command = ["python", "-m", "tipoff_arena.server"]

    [game.docker]             # how its docker back end starts one
    image = "tipoff/gameserver"

    [game.edgegap]            # what Edgegap starts (orchestrator = "edgegap" or "edgegap-sessions")
    application = "arena"
    version = "1.0.3"

Everything else has a default; see `Game`. An error names the file, the line and what is allowed.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.names import check_name, key_token
from tipoff_shared.netcode.errors import NetcodeError
from tipoff_shared.netcode.keys import PrivateKey

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
    """Name of its version: one whose image has a tag of its own, because Edgegap caches what `latest` was."""
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
    token_lifetime: int = 30
    """How long a connect token lets its player in."""
    token_timeout: int = 15
    """A connection on which nothing was heard for so long is over."""
    claim_timeout: float = 15.0
    """How long beyond the token's lifetime a seat waits for its player."""
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


class Games:
    """All games of one games.toml, with their private keys."""

    def __init__(self, games: Mapping[GameKey, Game], keys: Mapping[GameKey, PrivateKey], base: Path) -> None:
        self._games = dict(games)
        self._keys = dict(keys)
        self.base = base
        """Directory that relative paths start from."""

    def all(self) -> list[Game]:
        return list(self._games.values())

    def get(self, name: str, version: str) -> Game | None:
        return self._games.get((name, version))

    def private_key(self, game: Game) -> PrivateKey:
        return self._keys[game.key]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    game: list[Game]


_LIMITS: dict[str, tuple[float, float]] = {
    "seats": (1, 1000),  # a record of 1000 seats is 39 KiB, the most that is still quick to write
    "min_ready": (0, 1000),
    "max_deployments": (1, 10_000),
    "empty_ttl": (0, 86_400),
    "start_timeout": (1, 3600),
    "request_timeout": (1, 3600),
    "token_lifetime": (1, 3600),
    "token_timeout": (1, 3600),
    "claim_timeout": (1, 3600),
    "protocol_id": (0, 2**64 - 1),
}


_BEVYGAP_TIMEOUT = 25
"""A mapping lives 30 s (bevygap's configuration), and a token should live 5 s at least before its handshake begins."""


def load_games(
    path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    missing_keys: Literal["refuse", "random"] = "refuse",
) -> Games:
    """Read and check `path`. Raises `ConfigError` with file, line and what is allowed.

    `missing_keys="random"` makes a random private key where none is configured: for the demo alone.
    """
    text = read_games(path)
    games = parse_games(text, str(path))
    keys: dict[GameKey, PrivateKey] = {}
    for index, game in enumerate(games):
        key = _private_key(game, path, os.environ if environ is None else environ)
        if key is None and missing_keys == "random":
            key = PrivateKey.generate()
        if key is None:
            raise ConfigError(
                f"{path}:{_line_of(text, index, None)}: game {game.name!r} has no private key; "
                "set private_key_file or private_key_env (64 hex digits), or TIPOFF_KEYS_DIR"
            )
        keys[game.key] = key
    return Games({game.key: game for game in games}, keys, path.resolve().parent)


def read_games(path: Path) -> str:
    """The text of a games.toml; raises `ConfigError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; `tipoff new NAME` writes an example") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 at byte {exc.start}") from exc


def parse_games(text: str, where: str = "games.toml") -> list[Game]:
    """The games in `text`, checked; raises `ConfigError`. Reads no other file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{where}: {exc}") from exc
    try:
        games = msgspec.convert(data, _File).game
    except msgspec.ValidationError as exc:
        index, field = _place(str(exc))
        raise ConfigError(f"{where}:{_line_of(text, index, field)}: {_explain(str(exc), field)}") from exc
    if not games:
        raise ConfigError(f"{where}: no [[game]] in it")
    seen: set[GameKey] = set()
    for index, game in enumerate(games):
        try:
            check_name(game.name, "name")
            check_name(game.version, "version")
        except Malformed as exc:
            field = str(exc).split(":", 1)[0]
            raise ConfigError(f"{where}:{_line_of(text, index, field)}: {exc}") from exc
        for name, (low, high) in _LIMITS.items():
            value = getattr(game, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(
                    f"{where}:{_line_of(text, index, name)}: {name} = {value:g}: {low:g} to {high:g} is allowed"
                )
        if game.min_ready > game.max_deployments:
            raise ConfigError(
                f"{where}:{_line_of(text, index, 'min_ready')}: min_ready = {game.min_ready} is more than "
                f"max_deployments = {game.max_deployments}"
            )
        if game.bevygap and game.token_timeout > _BEVYGAP_TIMEOUT:
            raise ConfigError(
                f"{where}:{_line_of(text, index, 'token_timeout')}: token_timeout = {game.token_timeout}: at most "
                f"{_BEVYGAP_TIMEOUT} is allowed with bevygap = true, or a player might connect later than a mapping "
                "lives, which ends a bevygap server"
            )
        if game.process is not None and not game.process.command:
            raise ConfigError(f"{where}:{_line_of(text, index, 'command')}: command is empty")
        if game.docker is not None and (wrong := _wrong_in_docker(game.docker)):
            field, complaint = wrong
            raise ConfigError(f"{where}:{_line_of(text, index, field)}: {field}: {complaint}")
        if game.orchestrator == "launcher" and game.process is None and game.docker is None:
            raise ConfigError(
                f"{where}:{_line_of(text, index, None)}: game {game.name!r} has no [game.process] with its "
                'command, like command = ["python", "server.py"], and no [game.docker] with its image'
            )
        if game.edgegap is not None and (wrong := _wrong_at_edgegap(game.edgegap)):
            field, complaint = wrong
            raise ConfigError(f"{where}:{_line_of(text, index, field)}: {field}: {complaint}")
        if game.orchestrator in ("edgegap", "edgegap-sessions") and game.edgegap is None:
            raise ConfigError(
                f"{where}:{_line_of(text, index, None)}: game {game.name!r} has no [game.edgegap] with its "
                "application and version"
            )
        if game.key in seen:
            raise ConfigError(
                f"{where}:{_line_of(text, index, None)}: game {game.name!r} version {game.version!r} "
                "stands here twice"
            )
        seen.add(game.key)
    return games


EDGEGAP_VALUE_LIMIT = 255
"""Bytes of one environment variable's value at Edgegap."""
_EDGEGAP_NAME = re.compile(r"[a-zA-Z0-9 ._-]{1,64}", re.ASCII)


def _wrong_at_edgegap(spec: EdgegapSpec) -> tuple[str, str] | None:
    """The first field of `[game.edgegap]` that cannot be, and what can."""
    for field in ("application", "version"):
        if not _EDGEGAP_NAME.fullmatch(getattr(spec, field)):
            return (
                field,
                f"{getattr(spec, field)!r}: 1 to 64 letters, digits, spaces, `.`, `_`, `-` are allowed",
            )
    for name, value in spec.env.items():
        if len(value.encode()) > EDGEGAP_VALUE_LIMIT:
            return "env", f"{name} has {len(value.encode())} bytes; Edgegap takes {EDGEGAP_VALUE_LIMIT}"
    return None


_DOCKER_LIMITS: dict[str, tuple[float, float]] = {
    "cpus": (0.01, 1024),
    "memory": (8, 1024 * 1024),
    "pids": (1, 100_000),
}
_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._/:@-]{0,254}", re.ASCII)
_PORT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,32}", re.ASCII)
_USER = re.compile(r"([a-zA-Z0-9._-]{1,32}(:[a-zA-Z0-9._-]{1,32})?)?", re.ASCII)


def _wrong_in_docker(spec: DockerSpec) -> tuple[str, str] | None:
    """The first field of `[game.docker]` that cannot be, and what can."""
    if not _IMAGE.fullmatch(spec.image):
        return "image", f"{spec.image!r} is no image; NAME, NAME:TAG or NAME@DIGEST is expected"
    for name, (low, high) in _DOCKER_LIMITS.items():
        if not low <= getattr(spec, name) <= high:
            return name, f"{getattr(spec, name):g}: {low:g} to {high:g} is allowed"
    for name, port in spec.ports.items():
        if not _PORT_NAME.fullmatch(name):
            return "ports", f"{name!r}: names have 1 to 32 letters, digits, _ and -"
        if not 0 <= port.internal <= 65535:
            return "ports", f"{name}: internal = {port.internal}: 0 to 65535 is allowed"
    if len({(p.internal, p.protocol) for p in spec.ports.values() if p.internal}) != sum(
        p.internal > 0 for p in spec.ports.values()
    ):
        return "ports", "two of them have the same internal port"
    if not _USER.fullmatch(spec.user):
        return "user", f"{spec.user!r}: UID, UID:GID or a name is expected"
    for directory in spec.writable:
        if not re.fullmatch(r"(/[a-zA-Z0-9._-]+)+", directory) or {"..", "."} & set(directory.split("/")):
            return "writable", f"{directory!r}: directories like /var/cache/game are expected"
    return None


def key_file(directory: Path, game: Game) -> Path:
    """Where `TIPOFF_KEYS_DIR` holds the key of `game`."""
    return directory / f"{key_token(game.name)}.{key_token(game.version)}.key"


def _private_key(game: Game, path: Path, environ: Mapping[str, str]) -> PrivateKey | None:
    source = ""
    try:
        if game.private_key_env and (value := environ.get(game.private_key_env, "")):
            source = f"the variable {game.private_key_env}"
            return PrivateKey.parse(value)
        if game.private_key_file:
            file = path.resolve().parent / game.private_key_file
            source = str(file)
            return PrivateKey.parse(file.read_text().strip())
        if directory := environ.get("TIPOFF_KEYS_DIR", ""):
            file = key_file(Path(directory), game)
            source = str(file)
            if file.exists():
                return PrivateKey.parse(file.read_text().strip())
    except OSError as exc:
        raise ConfigError(f"{path}: the key of game {game.name!r}: {exc}") from exc
    except (ValueError, NetcodeError):
        raise ConfigError(  # without the cause: it may quote the key
            f"{path}: the key of game {game.name!r} in {source} is not 64 hex digits or 32 numbers, or is all zeros"
        ) from None
    return None


def _place(message: str) -> tuple[int, str | None]:
    """Which [[game]] and which field a msgspec message speaks of: `$.game[1].seats`, `field `x``."""
    index = int(found[1]) if (found := re.search(r"\$\.game\[(\d+)\]", message)) else 0
    if found := re.search(r"unknown field `(\w+)`", message):
        return index, found[1]
    if found := re.search(r"\$\.game\[\d+\]\.(?:\w+\.)*(\w+)", message):
        return index, found[1]
    return index, None


def _explain(message: str, field: str | None) -> str:
    if "unknown field" in message:
        allowed = Game.__struct_fields__
        if ".process" in message:
            allowed = ProcessSpec.__struct_fields__
        elif ".docker" in message:
            allowed = (DockerPort if ".ports" in message else DockerSpec).__struct_fields__
        elif ".edgegap" in message:
            allowed = EdgegapSpec.__struct_fields__
        if "$.game" not in message:
            allowed = ("game",)
        return f"{field!r} is not known here; allowed are {', '.join(allowed)}"
    if "`array`, got `object` - at `$.game`" in message:
        return "write [[game]], in double brackets: there may be several"
    text = re.sub(r" - at `\$[^`]*`", "", message)
    return f"{field}: {text}" if field else text


def _line_of(text: str, index: int, field: str | None) -> int:
    """Line of `field` within the index-th [[game]], or of that header."""
    lines = text.splitlines()
    headers = [n for n, line in enumerate(lines) if re.match(r"\s*\[\[\s*game\s*\]\]", line)]
    if index >= len(headers):
        start, end = 0, len(lines)
    else:
        start = headers[index]
        end = headers[index + 1] if index + 1 < len(headers) else len(lines)
    if field is not None:
        for n in range(start, end):
            if re.match(rf"\s*{re.escape(field)}\s*=|\s*\[(\w+\.)*{re.escape(field)}\]", lines[n]):
                return n + 1
        for n, line in enumerate(lines):  # outside any [[game]]
            if re.match(rf"\s*{re.escape(field)}\s*=|\s*\[+{re.escape(field)}\]+", line):
                return n + 1
    return start + 1
