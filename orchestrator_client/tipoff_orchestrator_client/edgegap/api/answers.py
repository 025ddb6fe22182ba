"""Parses Edgegap's JSON. Unknown members are ignored and spellings of states may vary; an unusable answer raises
`Unreadable`, and nothing raises anything else. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from tipoff_orchestrator_client.base import MAX_PORTS, MAX_REASON
from tipoff_orchestrator_client.edgegap.api.errors import Unreadable

Json: TypeAlias = dict[str, Any]

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}", re.ASCII)
_ENDED = frozenset(
    {"TERMINATED", "TERMINATING", "DELETED", "DELETING", "STOPPED", "STOPPING", "ERROR", "FAILED"}
)
_NOT_BY_ITSELF = frozenset({"NONE", "NULL", "UNDEFINED"})
_MAX_TAGS = 100


@dataclass(frozen=True, slots=True)
class NamedPort:
    """`protocol` in lower case, like `udp`, `tcp`, `tcp/udp`, `ws`; `tls`: Edgegap terminates TLS for it."""

    name: str
    internal: int
    external: int
    protocol: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """A deployment, from a status, a row of the list, or a session's `deployment`. `ip` and `fqdn` are "" until it has
    them. `failed`: it ended in error, and stays until it is stopped. `problem`: why its address cannot be used."""

    request_id: str
    running: bool
    ended: bool = False
    failed: bool = False
    reason: str = ""
    ip: str = ""
    fqdn: str = ""
    ports: Mapping[str, NamedPort] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    sockets: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. `rows` are unparsed objects; `more`: there is another page."""

    rows: list[Json]
    more: bool


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an application. `ports`: name -> protocol. `kind`: of its sessions, "" where it names none."""

    name: str
    active: bool
    image_tag: str = ""
    ports: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    sockets: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A v1 session. `kind` in lower case. `failed`: why it will never be ready; "" while it may. `request_id`: of the
    deployment that it is linked to; "" while there is none, or where the answer lacks it. `server`: that deployment,
    where the answer describes it. `webhook_url`: as it was given at its creation."""

    session_id: str
    ready: bool
    failed: str = ""
    kind: str = ""
    request_id: str = ""
    server: Server | None = None
    webhook_url: str = field(default="", repr=False)


def parse_json(body: bytes) -> Json:
    """The JSON object in `body`. Every answer of Edgegap's is one."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Unreadable(f"Edgegap's answer is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise Unreadable(f"Edgegap's answer is {_kind(value)}, not an object")
    return value


def word(value: object) -> str:
    """`Status.READY`, `STATUS_READY`, `Ready` -> `READY`; "" for a value that is no text."""
    if not isinstance(value, str):
        return ""
    return value.strip().rpartition(".")[2].upper().removeprefix("STATUS_").removeprefix("SESSION_")[:40]


def identifier(answer: Mapping[str, Any], member: str) -> str:
    """The id in `member`, which is safe in a path."""
    value = answer.get(member)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Unreadable(f"Edgegap's answer has no usable {member}: {_short(value)}")
    return value


def is_id(text: str) -> bool:
    """Whether it has the form of Edgegap's ids, and is safe in a path."""
    return _ID.fullmatch(text) is not None


def parse_server(answer: Mapping[str, Any], *, strict: bool) -> Server:
    """A deployment. `strict`: raise for one that runs without a usable address; otherwise `problem` says why it is
    unusable."""
    request_id = identifier(answer, "request_id")
    state = word(answer.get("current_status") or answer.get("status"))
    error = answer.get("error") is True or state in ("ERROR", "FAILED")
    flag = answer.get("running", answer.get("ready"))
    running = (flag if isinstance(flag, bool) else state == "READY") and not error
    ended = error or (not running and state in _ENDED)
    reason = ""
    if ended:
        reason = text(answer.get("error_detail")) or text(answer.get("error")) or state.lower() or "error"
    problem = ""
    ip, fqdn = "", ""
    ports: dict[str, NamedPort] = {}
    try:
        ip, fqdn = _ip(answer.get("public_ip")), _fqdn(answer.get("fqdn"))
        ports = _ports(answer.get("ports"))
        if running and not ip and not fqdn:
            raise Unreadable("it runs and has neither public_ip nor fqdn")
        if running and not ports:
            raise Unreadable("it runs and has no ports")
    except Unreadable as exc:
        if strict and running:
            raise Unreadable(f"deployment {request_id} cannot be used: {exc}") from exc
        problem = str(exc)
        ip, fqdn, ports = "", "", {}
    return Server(
        request_id,
        running,
        ended,
        error,
        reason,
        ip,
        fqdn,
        ports,
        _tags(answer.get("tags")),
        _count(answer.get("sockets")),
        problem,
    )


def parse_page(answer: Mapping[str, Any], *, seen: int) -> Page:
    """A page of a list. `seen`: rows of the pages before; with the total they tell whether there are more, where the
    answer does not."""
    rows = answer.get("data")
    if rows is None:
        rows = []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unreadable(f"Edgegap's list is {_kind(rows)}, not a list of objects")
    pagination = answer.get("pagination")
    more: object = None
    if isinstance(pagination, dict):
        more = pagination.get("has_next")
        if not isinstance(more, bool) and "next_page_number" in pagination:
            more = pagination["next_page_number"] is not None
    if not isinstance(more, bool):
        total = _count(answer.get("total_count"))
        more = total is not None and bool(rows) and seen + len(rows) < total
    return Page(rows, more and bool(rows))


def parse_version(answer: Mapping[str, Any], name: str) -> Version:
    """The version with this name."""
    ports = answer.get("ports") or []
    found: dict[str, str] = {}
    if isinstance(ports, dict):
        ports = [{"name": key} | value for key, value in ports.items() if isinstance(value, dict)]
    if not isinstance(ports, list):
        raise Unreadable(f"version {name}: ports is {_kind(ports)}, not a list")
    for port in ports[:MAX_PORTS]:
        if isinstance(port, dict):
            found[text(port.get("name")) or str(port.get("port", ""))[:40]] = protocol(port.get("protocol"))
    active = answer.get("is_active")
    if not isinstance(active, bool):
        raise Unreadable(f"version {name}: is_active is {_short(active)}, not true or false")
    config = answer.get("session_config")
    config = config if isinstance(config, dict) else {}
    return Version(
        name,
        active,
        text(answer.get("docker_tag")),
        found,
        word(config.get("kind")).lower(),
        _count(config.get("sockets")),
    )


def parse_session(answer: Mapping[str, Any]) -> Session:
    """A session, from its own answer or a row of the list."""
    session_id = identifier(answer, "session_id")
    state = word(answer.get("status"))
    flag = answer.get("ready")
    ready = flag if isinstance(flag, bool) else state == "READY"
    detail = text(answer.get("error"))
    if detail.upper() in _NOT_BY_ITSELF:
        detail = ""
    failed = ""
    if not ready and (detail or state in ("ERROR", "UNPROCESSABLE", "TERMINATED", "DELETED", "FAILED")):
        failed = detail or state.lower()
    given = answer.get("deployment")
    request_id = answer.get("deployment_request_id")
    server = None
    if isinstance(given, dict) and given.get("request_id") is not None:
        request_id = identifier(given, "request_id")
        server = parse_server(given, strict=ready)
    if not isinstance(request_id, str) or not is_id(request_id):
        request_id = ""
    given_url = answer.get("webhook_url")
    webhook = given_url if isinstance(given_url, str) else ""
    return Session(session_id, ready, failed, word(answer.get("kind")).lower(), request_id, server, webhook)


def protocol(value: object) -> str:
    """`UDP`, `Protocol.TCP_UDP`, `tcp/udp` -> `udp`, `tcp/udp`, ..."""
    return word(value).lower().replace("_", "/")


def text(value: object) -> str:
    """A text of Edgegap's for a log or a player: one line, of bounded length; "" for a value that is no text."""
    if not isinstance(value, str):
        return ""
    line = " ".join("".join(c if c.isprintable() else " " for c in value[: 4 * MAX_REASON]).split())
    return line[:MAX_REASON]


def _ip(value: object) -> str:
    if value is None or value == "":
        return ""
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise Unreadable(f"public_ip is {_short(value)}, not an IP address") from None


def _fqdn(value: object) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise Unreadable(f"fqdn is {_short(value)}, not a host name")
    return value


def _ports(value: object) -> dict[str, NamedPort]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unreadable(f"ports is {_kind(value)}, not an object")
    if len(value) > MAX_PORTS:
        raise Unreadable(f"it has over {MAX_PORTS} ports")
    found: dict[str, NamedPort] = {}
    for key, port in value.items():
        if not isinstance(port, dict):
            raise Unreadable(f"port {key[:40]!r} is {_kind(port)}, not an object")
        given = port.get("name")
        name = given if isinstance(given, str) and 0 < len(given) <= 40 else key[:40]
        external, internal = _port(port.get("external")), _port(port.get("internal"))
        if external is None:
            raise Unreadable(
                f"port {name!r} is {_short(port.get('external'))} outside; 1 to 65535 is possible"
            )
        tls = port.get("tls_upgrade") is True
        found[name] = NamedPort(name, internal or 0, external, protocol(port.get("protocol")), tls)
    return found


def _port(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    return None


def _tags(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(tag for tag in value[:_MAX_TAGS] if isinstance(tag, str) and len(tag) <= 200)


def _count(value: object) -> int | None:
    """A number, or its digits as text, as lists hold the number of sockets."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    return None


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(
        type(value), "a number"
    )


def _short(value: object) -> str:
    shown = "null" if value is None else repr(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"
