"""The messages between operators and matchmakers: one JSON request, one JSON reply, over NATS.

    matchmaker.admin.kick    {"session_id", "reason"}               -> {"session_id", "state", "deployment_id", ...}
    matchmaker.admin.drain   {"deployment_id", "reason", "now"}     -> {"deployment_id", "state", "seats", ...}
    matchmaker.admin.restart {"game", "version", "reason"}          -> {"versions", "servers"}
    matchmaker.admin.rollout {"game", "version", "again"}           -> {"game", "version", "since"}
    matchmaker.admin.start   {"game", "version"}                    -> {"deployment_id"}
    matchmaker.admin.ban     {"kind", "subject", "until", ...}      -> {"kind", "subject", "until", "reason", "existed"}
    matchmaker.admin.status  (anything)                             -> {"instance", "in_flight", "orchestrators", ...}

Every matchmaker answers `status`; one of them answers each of the others (queue group). A failure is answered with
{"error": {"code", "message", "retry_after"}}. Repeating a request is harmless. Only the operators' role
may publish here, because these requests can end any game.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from tipoff_shared.errors import Internal, Malformed, TipoffError, from_code

OPERATIONS = ("kick", "drain", "restart", "rollout", "start", "ban", "status")
MAX_REQUEST = 4096
MAX_REASON = 200
_MAX_NAME = 30
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

T = TypeVar("T")


class KickSession(msgspec.Struct, frozen=True):
    """End one session; `reason` is for people."""

    session_id: str
    reason: str = ""


class DrainDeployment(msgspec.Struct, frozen=True):
    """Let a deployment run empty; with `now`, stop it at once, with its players."""

    deployment_id: str
    reason: str = ""
    now: bool = False


class RestartGame(msgspec.Struct, frozen=True):
    """End all servers of a game at once, with their players, and start new ones; `version` "" means all versions.
    Starts that failed are forgotten."""

    game: str
    version: str = ""
    reason: str = ""


class RolloutGame(msgspec.Struct, frozen=True):
    """Begin to replace the servers of one version of a game, or go on with a rollout of which old servers are left;
    with `again`, begin another one in any case."""

    game: str
    version: str
    again: bool = False


class StartServer(msgspec.Struct, frozen=True):
    """Start one server of a game more, within `max_deployments`."""

    game: str
    version: str


class BanPlayer(msgspec.Struct, frozen=True):
    """Keep a player out until `until` (Unix seconds; 0: for good), or with `lift` let it in again. `kind` and `subject`
    as in ban_list.py."""

    kind: str
    subject: str
    until: float = 0.0
    reason: str = ""
    lift: bool = False


class Banned(msgspec.Struct, frozen=True):
    """The answer to `ban`: the ban as it was written or lifted. `existed`: whether it was in force before."""

    kind: str
    subject: str
    until: float = 0.0
    reason: str = ""
    existed: bool = False


class Kicked(msgspec.Struct, frozen=True):
    """The answer to `kick`. `state`: the session's state before; `closing` and `gone`: it had ended already."""

    session_id: str
    state: str
    deployment_id: str = ""
    reason: str = ""


class Drained(msgspec.Struct, frozen=True):
    """The answer to `drain`. `seats`: how many are still taken; the server stops after the last one."""

    deployment_id: str
    state: str
    seats: int = 0
    reason: str = ""


class Restarted(msgspec.Struct, frozen=True):
    """The answer to `restart`: the versions of the game, and the ids of the servers that are stopping now."""

    versions: list[str]
    servers: list[str]


class RollingOut(msgspec.Struct, frozen=True):
    """The answer to `rollout`: servers made before `since` (Unix seconds) are to be replaced."""

    game: str
    version: str
    since: float


class ServerStarted(msgspec.Struct, frozen=True):
    """The answer to `start`: the new server, "" where there are `max_deployments` already."""

    deployment_id: str = ""


class Failing(msgspec.Struct, frozen=True):
    """One operation of an orchestrator that fails. `failures`: how often in a row; `retry_in`: seconds until the next
    try while the breaker is `open`; `half-open`: the next call is the try."""

    operation: str
    state: str
    failures: int
    error: str
    retry_in: float = 0.0


class OrchestratorStatus(msgspec.Struct, frozen=True):
    """One orchestrator, as one matchmaker sees it. `state`: the worst of closed, half-open and open. `problems`: what
    keeps it from starting servers although it answers, for people."""

    name: str
    state: str
    failing: list[Failing] = []
    problems: list[str] = []


class ClaimLimitStatus(msgspec.Struct, frozen=True):
    """How often a matchmaker has kept one address to its share of unclaimed seats. `limited`: its further players had
    to wait; `refused`: they got 429; `shortened`: a seat was held for a shorter time than usual."""

    limited: int = 0
    refused: int = 0
    shortened: int = 0


class MatchmakerStatus(msgspec.Struct, frozen=True):
    """The answer to `status`. `in_flight`: play requests in progress. `problems`: what keeps this matchmaker from
    serving players, beside its orchestrators; a text for people each."""

    instance: str
    in_flight: int
    orchestrators: list[OrchestratorStatus]
    problems: list[str] = []
    claim_limit: ClaimLimitStatus = ClaimLimitStatus()
    games_revision: int = -1
    """The published revision of games.toml that it follows; 0: none is published; -1: its release knows of none."""
    games_problems: list[str] = []
    """What keeps it from serving the published games."""


class _Error(msgspec.Struct, frozen=True):
    code: int
    message: str
    retry_after: float | None = None


class _Failed(msgspec.Struct, frozen=True):
    error: _Error | None = None


def encode(message: msgspec.Struct) -> bytes:
    """A request or a reply as JSON."""
    return msgspec.json.encode(message)


def encode_error(error: TipoffError) -> bytes:
    """The reply that carries `error`."""
    return msgspec.json.encode(_Failed(_Error(error.code, error.message, error.retry_after)))


def decode_kick(data: bytes) -> KickSession:
    """The request in `data`; raises `Malformed`."""
    asked = _request(data, KickSession)
    return KickSession(_id(asked.session_id, "session_id"), _reason(asked.reason))


def decode_drain(data: bytes) -> DrainDeployment:
    """The request in `data`; raises `Malformed`."""
    asked = _request(data, DrainDeployment)
    return DrainDeployment(_id(asked.deployment_id, "deployment_id"), _reason(asked.reason), asked.now)


def decode_restart(data: bytes) -> RestartGame:
    """The request in `data`; raises `Malformed`."""
    asked = _request(data, RestartGame)
    return RestartGame(_name(asked.game, "game"), _name(asked.version, "version"), _reason(asked.reason))


def decode_rollout(data: bytes) -> RolloutGame:
    """The request in `data`; raises `Malformed`."""
    asked = _request(data, RolloutGame)
    return RolloutGame(_name(asked.game, "game"), _name(asked.version, "version"), asked.again)


def decode_start(data: bytes) -> StartServer:
    """The request in `data`; raises `Malformed`."""
    asked = _request(data, StartServer)
    return StartServer(_name(asked.game, "game"), _name(asked.version, "version"))


def decode_ban(data: bytes) -> BanPlayer:
    """The request in `data`; raises `Malformed`. What it names is checked by `ban_list.new_ban`."""
    return _request(data, BanPlayer)


def decode_reply(data: bytes, kind: type[T]) -> T:
    """The reply in `data`. Raises the typed error that it carries, or `Internal` when it is unreadable."""
    try:
        if (error := msgspec.json.decode(data, type=_Failed).error) is not None:
            raise from_code(error.code, error.message, retry_after=error.retry_after)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Internal(f"a matchmaker's reply cannot be read: {exc}") from exc


def _request(data: bytes, kind: type[T]) -> T:
    if len(data) > MAX_REQUEST:
        raise Malformed(f"a request of an operator has at most {MAX_REQUEST} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a request of an operator: {exc}") from exc


def _id(text: str, what: str) -> str:
    if not _ID.fullmatch(text):
        raise Malformed(f"{what}: 1 to 64 letters, digits, - and _ are expected")
    return text


def _name(text: str, what: str) -> str:
    if len(text) > _MAX_NAME or not text.isprintable():
        raise Malformed(f"{what}: at most {_MAX_NAME} printable characters are expected")
    return text


def _reason(text: str) -> str:
    if len(text) > MAX_REASON or not text.isprintable():
        raise Malformed(f"reason: one line of at most {MAX_REASON} characters is allowed")
    return text
