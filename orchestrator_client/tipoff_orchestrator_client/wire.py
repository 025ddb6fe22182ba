"""Encodes and decodes the messages between a launcher and its clients over NATS: one JSON request, one JSON reply.

    deploy   {"deployment_id", "game", "version", "capacity", "near": [], "environment": {},
              "websocket_url", "event_key", "own_key", "nats_password", "games_revision"} -> {"deployment": {...}}
    get      {"deployment_id"}                                                -> {"deployment": {...} or null}
    stop     {"deployment_id"}                                                -> {}
    list     (anything)                                      -> {"deployments": [...], "problems": ["..."]}
    games    (anything)                                      -> {"games_revision", "problems": ["..."]}
    logs     {"select", "cursors": {}, "tail", "whole_since", "wait"}         -> {"logs": [{...}]}
    kill     {"deployment_id"}, in demo mode only                             -> {}
    events   published by the launcher          {"deployment": {...}}, or {"started": true} when it can be asked again

An error replaces any reply: {"error": {"kind", "message", "retryable", "may_have_started", "retry_after"}}.

Decoding accepts hostile input: whatever the bytes, a request gives a value or raises `Malformed`, a reply gives a value
or raises an `OrchestratorError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from tipoff_orchestrator_client.base import (
    MAX_REASON,
    Deployment,
    DeploySpec,
    GameUnavailable,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
)
from tipoff_shared.errors import Malformed
from tipoff_shared.names import check_name
from tipoff_shared.primitives.text import one_line

MAX_REQUEST = 64 * 1024
"""Bytes of the longest request a launcher reads."""

MAX_REPLY = 8 * 1024 * 1024
"""Bytes of the longest reply that a client reads; a list of ten thousand servers has 3 MB."""

MAX_CAPACITY = 1000

MAX_LOG_WAIT = 10.0
"""Seconds that a request for logs may wait for new lines."""

_DEPLOYMENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_ENVIRONMENT_NAME = re.compile(r"(GAME|MATCH)_[A-Z0-9_]{1,60}", re.ASCII)
_ENVIRONMENT_ENTRIES = 64
_ENVIRONMENT_VALUE = 4096
_NEAR = 1000
_SELECT = 128
_CURSORS = 1000
_PROBLEMS = 10
_EVENT_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_WEBSOCKET_URL = re.compile(r"wss?://[a-zA-Z0-9.-]{1,253}(:[0-9]{1,5})?/[a-zA-Z0-9._/-]{0,200}", re.ASCII)


class _Deploy(msgspec.Struct, omit_defaults=True):
    deployment_id: str
    game: str
    version: str
    capacity: int
    near: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    websocket_url: str = ""
    event_key: str = ""
    own_key: bool = False
    nats_password: str = ""
    games_revision: int = 0


class _One(msgspec.Struct):
    deployment_id: str


class LogRequest(msgspec.Struct, omit_defaults=True):
    """Which logs, and from where. `select`: a game, a deployment id, or "" for all. `cursors`: deployment id -> where
    an earlier answer ended. `tail`: how many of the last lines of a log without cursor, negative for all.
    `whole_since`: servers made at this time (Unix seconds) or later are read from their first line, 0 for none. `wait`:
    seconds to wait for new lines."""

    select: str = ""
    cursors: dict[str, str] = {}
    tail: int = 0
    whole_since: float = 0.0
    wait: float = 0.0


class ServerLog(msgspec.Struct, omit_defaults=True):
    """New lines of one server. `running`: False once it has ended and this is its last part. `lost`: lines before these
    were dropped before they could be read. `reason`: why it has ended."""

    deployment_id: str
    game: str
    version: str
    running: bool = True
    lines: tuple[str, ...] = ()
    cursor: str = ""
    lost: bool = False
    reason: str = ""


class _Error(msgspec.Struct, omit_defaults=True):
    kind: str
    message: str
    retryable: bool = False
    may_have_started: bool = False
    retry_after: float | None = None


class _Reply(msgspec.Struct, omit_defaults=True):
    deployment: Deployment | None = None
    deployments: list[Deployment] = []
    problems: list[str] = []
    started: bool = False
    logs: list[ServerLog] = []
    games_revision: int = 0
    error: _Error | None = None


_KINDS: dict[str, type[OrchestratorError]] = {
    "no_capacity": NoCapacity,
    "game_unavailable": GameUnavailable,
    "not_configured": NotConfigured,
    "unavailable": OrchestratorUnavailable,
    "failed": OrchestratorError,
}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}

_deploy_decoder = msgspec.json.Decoder(_Deploy)
_one_decoder = msgspec.json.Decoder(_One)
_logs_decoder = msgspec.json.Decoder(LogRequest)
_reply_decoder = msgspec.json.Decoder(_Reply)
T = TypeVar("T")
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


def check_deployment_id(value: str) -> str:
    """The id, unchanged. Raises `Malformed` unless it can be a directory, a KV key and a subject token as well."""
    if not _DEPLOYMENT_ID.fullmatch(value):
        raise Malformed(
            "deployment_id: 1 to 63 of the characters a-z 0-9 - are allowed, no - at the beginning"
        )
    return value


def check_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A spec's variables. Raises `Malformed` for a name other than GAME_... or MATCH_...: variables such as LD_PRELOAD
    would run commands."""
    if len(environment) > _ENVIRONMENT_ENTRIES:
        raise Malformed(f"environment: at most {_ENVIRONMENT_ENTRIES} variables are allowed")
    for name, value in environment.items():
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise Malformed("environment: names are GAME_... or MATCH_..., of the characters A-Z 0-9 _")
        if len(value) > _ENVIRONMENT_VALUE or "\0" in value:
            raise Malformed(
                f"environment: {name} is over {_ENVIRONMENT_VALUE} characters or holds a zero byte"
            )
    return dict(environment)


# Requests.


def encode_deploy(spec: DeploySpec) -> bytes:
    """A request to deploy."""
    return msgspec.json.encode(
        _Deploy(
            spec.deployment_id,
            spec.game,
            spec.version,
            spec.capacity,
            spec.near,
            dict(spec.environment),
            spec.websocket_url,
            spec.event_key,
            spec.own_key,
            spec.nats_password,
            spec.games_revision,
        )
    )


def decode_deploy(data: bytes) -> DeploySpec:
    """The spec of a request to deploy, all members checked. Raises `Malformed`."""
    asked = _decode(data, _deploy_decoder)
    check_deployment_id(asked.deployment_id)
    check_name(asked.game, "game")
    check_name(asked.version, "version")
    if not 1 <= asked.capacity <= MAX_CAPACITY:
        raise Malformed(f"capacity: 1 to {MAX_CAPACITY} is allowed")
    if len(asked.near) > _NEAR:
        raise Malformed(f"near: at most {_NEAR} are allowed")
    if asked.event_key and not _EVENT_KEY.fullmatch(asked.event_key):
        raise Malformed("event_key: 64 hex digits are expected")
    if asked.nats_password and not _EVENT_KEY.fullmatch(asked.nats_password):
        raise Malformed("nats_password: 64 hex digits are expected")
    if asked.websocket_url and not _WEBSOCKET_URL.fullmatch(asked.websocket_url):
        raise Malformed("websocket_url: wss://HOST/PATH is expected")
    return DeploySpec(
        asked.deployment_id,
        asked.game,
        asked.version,
        asked.capacity,
        asked.near,
        check_environment(asked.environment),
        asked.websocket_url,
        asked.event_key,
        asked.own_key,
        asked.nats_password,
        asked.games_revision,
    )


def encode_one(deployment_id: str) -> bytes:
    """A request about one deployment: get, stop or kill."""
    return msgspec.json.encode(_One(deployment_id))


def decode_one(data: bytes) -> str:
    """The deployment id of a request about one deployment. Raises `Malformed`."""
    return check_deployment_id(_decode(data, _one_decoder).deployment_id)


def encode_log_request(request: LogRequest) -> bytes:
    """A request for logs."""
    return msgspec.json.encode(request)


def decode_log_request(data: bytes) -> LogRequest:
    """A request for logs, all members checked but the cursors, which are the launcher's own. Raises `Malformed`."""
    asked = _decode(data, _logs_decoder)
    if len(asked.select) > _SELECT or len(asked.cursors) > _CURSORS:
        raise Malformed(
            f"logs: select has at most {_SELECT} characters, and there are at most {_CURSORS} cursors"
        )
    if not 0 <= asked.wait <= MAX_LOG_WAIT:
        raise Malformed(f"logs: wait is 0 to {MAX_LOG_WAIT:g} seconds")
    return asked


def _decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    if len(data) > MAX_REQUEST:
        raise Malformed(f"a request to a launcher is at most {MAX_REQUEST} bytes")
    try:
        return decoder.decode(data)
    except _UNREADABLE as exc:
        raise Malformed(f"not a request to a launcher: {exc}") from exc


# Replies and events.


def encode_deployment(deployment: Deployment | None) -> bytes:
    """A reply to deploy or get, or an event."""
    return msgspec.json.encode({"deployment": deployment})


def encode_deployments(deployments: list[Deployment], problems: Sequence[str] = ()) -> bytes:
    """A reply to list. `problems`: what keeps the launcher from starting servers, for people."""
    return msgspec.json.encode({"deployments": deployments, "problems": problems})


def encode_games(revision: int, problems: Sequence[str]) -> bytes:
    """A reply to games. `problems`: what keeps the launcher from starting servers of the published games."""
    return msgspec.json.encode({"games_revision": revision, "problems": problems})


def decode_games(data: bytes) -> tuple[int, list[str]]:
    """The published revision that the launcher follows (0: none), and what keeps it from starting servers of its
    games. Raises the `OrchestratorError` that it reports."""
    reply = _reply(data)
    return reply.games_revision, [one_line(problem, MAX_REASON) for problem in reply.problems[:_PROBLEMS]]


def encode_logs(logs: Sequence[ServerLog]) -> bytes:
    """A reply to logs."""
    return msgspec.json.encode({"logs": logs})


def decode_logs(data: bytes) -> list[ServerLog]:
    """The logs of a reply. Raises the `OrchestratorError` that it reports."""
    return _reply(data).logs


def encode_done() -> bytes:
    """A reply to stop or kill."""
    return b"{}"


def encode_started() -> bytes:
    """The event that the launcher has started."""
    return b'{"started": true}'


def encode_error(error: OrchestratorError) -> bytes:
    """A reply that reports an error."""
    kind = _KIND_OF.get(type(error), "failed")
    return msgspec.json.encode(
        {"error": _Error(kind, str(error), error.retryable, error.may_have_started, error.retry_after)}
    )


def decode_deployment(data: bytes) -> Deployment | None:
    """The deployment of a reply. Raises the `OrchestratorError` that it reports."""
    return _reply(data).deployment


def decode_event(data: bytes) -> tuple[Deployment | None, bool]:
    """The deployment of an event, and whether it says that the launcher has started. Raises `OrchestratorError`."""
    event = _reply(data)
    return event.deployment, event.started


def decode_deployments(data: bytes) -> tuple[list[Deployment], list[str]]:
    """The deployments of a reply to list, and the launcher's problems, few and short. Raises the `OrchestratorError`
    that it reports."""
    reply = _reply(data)
    return reply.deployments, [one_line(problem, MAX_REASON) for problem in reply.problems[:_PROBLEMS]]


def decode_done(data: bytes) -> None:
    """Check a reply without a value. Raises the `OrchestratorError` that it reports."""
    _reply(data)


def _reply(data: bytes) -> _Reply:
    if len(data) > MAX_REPLY:
        raise OrchestratorUnavailable(
            f"the launcher's answer has over {MAX_REPLY} bytes", retryable=True, may_have_started=True
        )
    try:
        reply = _reply_decoder.decode(data)
    except _UNREADABLE as exc:
        raise OrchestratorUnavailable(
            f"the launcher's answer cannot be read: {exc}", retryable=True, may_have_started=True
        ) from exc
    if (error := reply.error) is not None:
        raise _KINDS.get(error.kind, OrchestratorError)(
            error.message,
            retryable=error.retryable,
            may_have_started=error.may_have_started,
            retry_after=error.retry_after,
        )
    return reply
