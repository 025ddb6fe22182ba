"""Decides which open connections of game servers nats-server must close. Pure.

nats-server lists them, each node of a cluster its own. A connection is closed when its deployment has ended, and when
its server has more than `MAX_CONNECTIONS` on all nodes together; the newest go first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from tipoff_matchmaker.isolated.credentials import deployment_of
from tipoff_shared.errors import Malformed

MAX_CONNECTIONS = 4
"""What one game server may have open."""


class _Connection(msgspec.Struct):
    cid: int
    authorized_user: str = ""
    start: str = ""


class _Data(msgspec.Struct):
    server_id: str = ""
    num_connections: int = 0
    total: int = 0
    connections: list[_Connection] | None = None


class _List(msgspec.Struct):
    data: _Data | None = None


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """One connection of a game server. `node`: the id of the nats-server that has it; `number`: its number there;
    `since`: text that sorts by the time at which it was opened."""

    node: str
    number: int
    deployment_id: str
    since: str


@dataclass(frozen=True, slots=True)
class NodeList:
    """What one nats-server answers. `total`: how many connections it has that were asked for, those left out included.
    `connections`: those of game servers with their own user."""

    total: int
    listed: int
    connections: tuple[OpenConnection, ...]


def question(user: str = "", *, most: int, skip: int = 0) -> bytes:
    """Asks for `most` connections of `user` ("": of everybody) after the first `skip`."""
    asked: dict[str, object] = {"auth": True, "limit": most, "offset": skip}
    if user:
        asked["user"] = user
    return msgspec.json.encode(asked)


_decoder = msgspec.json.Decoder(_List)


def read_list(answer: bytes) -> NodeList:
    """The list in an answer. Raises `Malformed`."""
    try:
        data = _decoder.decode(answer).data
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a list of connections: {exc}") from exc
    if data is None:
        raise Malformed("not a list of connections")
    found = data.connections or []
    return NodeList(
        total=max(data.num_connections, data.total),
        listed=len(found),
        connections=tuple(
            OpenConnection(data.server_id, one.cid, deployment_id, one.start.removesuffix("Z"))
            for one in found
            if (deployment_id := deployment_of(one.authorized_user)) is not None
        ),
    )


def to_close(
    connections: Iterable[OpenConnection], has_ended: Callable[[str], bool]
) -> dict[str, list[OpenConnection]]:
    """Deployment id -> its connections to close."""
    of: defaultdict[str, list[OpenConnection]] = defaultdict(list)
    for connection in connections:
        of[connection.deployment_id].append(connection)
    closing: dict[str, list[OpenConnection]] = {}
    for deployment_id, found in of.items():
        keep = 0 if has_ended(deployment_id) else MAX_CONNECTIONS
        found.sort(key=lambda one: (one.since, one.node, one.number))
        if found[keep:]:
            closing[deployment_id] = found[keep:]
    return closing


def kick(connection: OpenConnection) -> bytes:
    """What its nats-server is asked."""
    return msgspec.json.encode({"cid": connection.number})


class _Outcome(msgspec.Struct):
    error: msgspec.Raw | None = None


def was_closed(answer: bytes) -> bool:
    """Whether nats-server has closed it; False when it was closed before."""
    try:
        return msgspec.json.decode(answer, type=_Outcome).error is None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
