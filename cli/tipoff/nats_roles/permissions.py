"""Says who may do what on NATS: the table from which nats-server's users file is made. This is the trusted profile, in
which game servers write their KV keys themselves.

Every name comes from `tipoff_shared` (subjects, buckets), so that a renamed subject is renamed here, too. The requests
of a role to JetStream follow from what `tipoff_shared.kv.bucket` (and bevygap's programs) do on a bucket:

| access | publishes |
|---|---|
| make | `$JS.API.STREAM.CREATE.KV_B` |
| get | `$JS.API.STREAM.INFO.KV_B`, `$JS.API.STREAM.MSG.GET.KV_B`, `$JS.API.DIRECT.GET.KV_B` (`.$KV.B.>`) |
| follow | get, and consumers that end with their reader: listings and watches |
| write | `$KV.B.>`: puts, deletes, compare-and-set |
| purge | `$JS.API.STREAM.PURGE.KV_B` |
| durable | consumers that stay, shared by all readers that use their name |

Roles within one account are no isolation: a client that may create a consumer or send a request to JetStream chooses
where the answer goes. The isolated profile is for game servers that are not trusted.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from tipoff_matchmaker import presence_reader
from tipoff_matchmaker.bevygap import delete_queue
from tipoff_shared.admin import OPERATIONS
from tipoff_shared.kv.buckets import BEVYGAP_BUCKETS, Buckets
from tipoff_shared.settings import inbox_prefix_of
from tipoff_shared.subjects import Subjects
from tipoff_turn_relay import store as turn_store

BUCKETS = tuple(field.name for field in dataclasses.fields(Buckets))
TURN_BUCKETS = turn_store.BUCKETS
SECRET_BUCKET = "connect_tokens"  # noqa: S105 # a bucket's name
"""Tokens as issued: only for the role `matchmaker`."""

GAMES_BUCKET = "games"
"""The published games.toml: `admin` writes it, and the parts follow it."""

DURABLES = (
    ("KV_", "active_connections", presence_reader.CONNECTIONS),
    ("KV_", "gameservers", presence_reader.LEASES),
    ("", "DELETE_SESSION_STREAM", delete_queue.DURABLE),
)
"""The matchmakers' own consumers: prefix of the stream, bucket or stream, name. Another reader would take messages away
from them."""

LAUNCHER_OPERATIONS = ("deploy", "get", "stop", "list")
KILL = "kill"
"""For the demo: a launcher answers it only in demo mode."""
LOGS = "logs"
"""The output of game servers, for operators."""
GAMES = "games"
"""Whether it has followed the published games, for operators."""


class Access(enum.Flag):
    """What a role may do with a bucket; the table above says what each one publishes."""

    MAKE = enum.auto()
    GET = enum.auto()
    CONSUMERS = enum.auto()
    WRITE = enum.auto()
    PURGE = enum.auto()
    DURABLE = enum.auto()
    SUBSCRIBE = enum.auto()
    """Receive writes by a plain subscription."""
    FOLLOW = GET | CONSUMERS
    OWN = MAKE | FOLLOW | WRITE | PURGE | DURABLE


@dataclass(frozen=True, slots=True)
class Permissions:
    """The subjects that a user may publish and subscribe to. Everything else is denied, and `deny_publish` always."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny_publish: tuple[str, ...] = ()


_READABLE = tuple(bucket for bucket in (*BUCKETS, *TURN_BUCKETS) if bucket != SECRET_BUCKET)

BUCKET_ACCESS: dict[str, dict[str, Access]] = {
    "matchmaker": {**dict.fromkeys(BUCKETS, Access.OWN), GAMES_BUCKET: Access.MAKE | Access.FOLLOW},
    "httpd": {
        # For the page's live strip, for the proxy of game servers, and to refuse banned players.
        **dict.fromkeys(("deployments", "sessions", "gameservers", "bans"), Access.FOLLOW),
        **dict.fromkeys(TURN_BUCKETS, Access.MAKE | Access.GET | Access.WRITE | Access.SUBSCRIBE),
    },
    "launcher": {
        "gameservers": Access.GET,  # whether a running server has its lease
        GAMES_BUCKET: Access.FOLLOW,
    },
    "gameserver": {
        # bevygap's programs create all five at their start, and end when they may not.
        **dict.fromkeys(BEVYGAP_BUCKETS, Access.MAKE),
        "sessions_ly2eg": Access.MAKE | Access.GET,
        "active_connections": Access.MAKE | Access.GET | Access.WRITE,
        "cert_digests": Access.MAKE | Access.GET | Access.WRITE,
        "gameservers": Access.GET | Access.WRITE,
    },
    "operator": dict.fromkeys(_READABLE, Access.FOLLOW),
    "admin": {
        **dict.fromkeys(_READABLE, Access.FOLLOW),
        GAMES_BUCKET: Access.FOLLOW | Access.WRITE,
    },
}


def permissions(role: str, subjects: Subjects) -> Permissions:
    """The permissions of `role` within the namespace of `subjects`. Raises `KeyError` for an unknown role."""
    publish: list[str] = []
    subscribe = [inboxes(role)]
    for bucket, access in BUCKET_ACCESS[role].items():
        name = subjects.bucket(bucket)
        publish += on_stream(f"KV_{name}", f"$KV.{name}", access)
        if Access.SUBSCRIBE in access:
            subscribe.append(f"$KV.{name}.>")
    asks, hears = _core(role, subjects)
    publish += asks
    subscribe += hears
    deny = () if role == "matchmaker" else tuple(_durables(subjects))
    return Permissions(tuple(dict.fromkeys(publish)), tuple(dict.fromkeys(subscribe)), deny)


def inboxes(role: str) -> str:
    """The subjects on which `role` receives answers."""
    return f"{inbox_prefix_of(role)}.>"


def on_stream(stream: str, keys: str, access: Access) -> Iterable[str]:
    """The subjects that `access` to `stream`, whose own subjects begin with `keys`, publishes to."""
    api = "$JS.API"
    if access & (Access.MAKE | Access.GET):
        yield f"{api}.STREAM.INFO.{stream}"
    if Access.MAKE in access:
        yield f"{api}.STREAM.CREATE.{stream}"
    if Access.GET in access:
        yield f"{api}.STREAM.MSG.GET.{stream}"
        yield f"{api}.DIRECT.GET.{stream}"
        yield f"{api}.DIRECT.GET.{stream}.{keys}.>"
    if Access.CONSUMERS in access:
        yield f"{api}.CONSUMER.CREATE.{stream}"
        yield f"{api}.CONSUMER.CREATE.{stream}.>"  # named ones: nats.go's (and so the `nats` program's) watches
        yield f"{api}.CONSUMER.INFO.{stream}.*"
        yield f"{api}.CONSUMER.MSG.NEXT.{stream}.*"
        yield f"{api}.CONSUMER.DELETE.{stream}.*"
        yield from _answers(f"{stream}.>")
    if Access.DURABLE in access:
        yield f"{api}.CONSUMER.DURABLE.CREATE.{stream}.*"
    if Access.WRITE in access:
        yield f"{keys}.>"
    if Access.PURGE in access:
        yield f"{api}.STREAM.PURGE.{stream}"


def _durables(subjects: Subjects) -> Iterable[str]:
    for prefix, name, durable in DURABLES:
        stream = prefix + subjects.bucket(name)
        for operation in ("CREATE", "DURABLE.CREATE", "MSG.NEXT", "DELETE"):
            yield f"$JS.API.CONSUMER.{operation}.{stream}.{durable}"
        yield f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.>"
        yield from (subject for subject in _answers(f"{stream}.{durable}.>") if "ACK" in subject)


def _answers(to: str) -> Iterable[str]:
    """Acknowledgements and flow control `to` a consumer: the present subjects, and those of nats-server's feature flag
    `js_ack_fc_v2`, which name the domain (`_`: none) and the account. With `*` for the domain, a role could acknowledge
    messages of a stream that it may not read, by the present form."""
    for kind in ("ACK", "FC"):
        yield f"$JS.{kind}.{to}"
        yield f"$JS.{kind}._.*.{to}"


def _core(role: str, subjects: Subjects) -> tuple[list[str], list[str]]:
    """The subjects outside buckets that `role` publishes to, and those that it subscribes to."""
    match role:
        case "matchmaker":
            publish = [
                subjects.alive("*"),
                subjects.over,
                subjects.commands("*"),
                *(subjects.launcher("*", operation) for operation in LAUNCHER_OPERATIONS),
                subjects.delete_queue("*"),
                *on_stream(subjects.delete_stream, "", Access.MAKE | Access.CONSUMERS | Access.DURABLE),
                "$JS.API.INFO",
                *(inboxes(asker) for asker in ("httpd", "operator", "admin")),
            ]
            subscribe = [
                subjects.all_requests,
                subjects.all_retries,
                subjects.left,
                subjects.ping_matchmaker,
                subjects.alive("*"),
                subjects.over,
                *(subjects.admin(operation) for operation in OPERATIONS),
                subjects.gensession,
                subjects.known_bans,
                "$SRV.>",  # discovery of bevygap's micro service `gensession`
                subjects.contexts,
                subjects.launcher("*", "events"),
                subjects.all_webhooks,
            ]
        case "httpd":
            publish = [
                subjects.all_requests,
                subjects.all_retries,
                subjects.left,
                subjects.ping_matchmaker,
                subjects.gensession,
                subjects.known_bans,
                subjects.all_webhooks,
                subjects.launcher("*", KILL),
            ]
            subscribe = []
        case "launcher":
            publish = [
                subjects.launcher("*", "events"),
                subjects.launcher("*", "list"),  # whether another launcher has its name
                *(inboxes(asker) for asker in ("matchmaker", "httpd", "launcher", "operator", "admin")),
            ]
            subscribe = [
                subjects.launcher("*", operation) for operation in (*LAUNCHER_OPERATIONS, KILL, LOGS, GAMES)
            ]
        case "gameserver":
            publish = [
                subjects.contexts,
                *on_stream(subjects.delete_stream, "", Access.MAKE),
                "$JS.API.INFO",
            ]
            # bevygap's programs use these inboxes; our own services use others.
            subscribe = [subjects.commands("*"), "_INBOX.>"]
        case "operator" | "admin":
            operations = ("status",) if role == "operator" else OPERATIONS
            publish = [
                *(subjects.admin(operation) for operation in operations),
                subjects.ping_matchmaker,
                subjects.launcher("*", LOGS),
                subjects.launcher("*", GAMES),
                "$SRV.PING",
                "$SRV.INFO",
                "$SRV.STATS",
                # The `nats` program sends these before it shows a bucket.
                "$JS.API.INFO",
                "$JS.API.STREAM.LIST",
                "$JS.API.STREAM.NAMES",
                *(
                    f"$JS.API.CONSUMER.{kind}.{stream}"
                    for kind in ("LIST", "NAMES")
                    for stream in _streams(subjects)
                ),
                f"$JS.API.STREAM.INFO.{subjects.delete_stream}",
            ]
            subscribe = [subjects.launcher("*", "events"), subjects.alive("*")]
        case _:
            raise KeyError(role)
    return publish, subscribe


def _streams(subjects: Subjects) -> Iterable[str]:
    yield from (f"KV_{subjects.bucket(bucket)}" for bucket in _READABLE)
    yield subjects.delete_stream
