"""Declares every bucket and stream once: bevygap's five with its exact configuration, and tipoff's own.

JetStream refuses a second create with another configuration, and bevygap's plugins create theirs at start. So this
module creates bevygap's buckets as raw streams: nats-py's `create_key_value` always sets `allow_msg_ttl`, and the Rust
side would be refused. On a cluster they keep one replica for the same reason, unless `bevygap_replicas` says that none
of those plugins runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nats.js import api

from tipoff_shared.games.revision import GamesRevision
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.jetstream import create_stream
from tipoff_shared.records import (
    Ban,
    DeploymentRecord,
    EdgegapOrder,
    EdgegapSeat,
    FleetRecord,
    GameserverLease,
    SessionRecord,
)

MAPPING_TTL = 30
"""Seconds that bevygap's client id mappings live."""
BEVYGAP_BUCKETS = (
    "sessions_ly2eg",
    "sessions_eg2ly",
    "cert_digests",
    "active_connections",
    "unclaimed_sessions",
)
"""bevygap's programs create these too, at their start."""
_FOURTEEN_DAYS = 14 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Buckets:
    """Typed access to all buckets. The object does no I/O; `create_buckets` creates the buckets."""

    sessions: Bucket[SessionRecord]
    deployments: Bucket[DeploymentRecord]
    fleets: Bucket[FleetRecord]
    gameservers: Bucket[GameserverLease]
    connect_tokens: Bucket[str]
    """session id -> its connect token (base64): a secret of the matchmaker's role."""
    matchmakers: Bucket[str]
    """`reconciler` -> the instance that holds the reconciler's lease, a key with a TTL."""
    edgegap_orders: Bucket[EdgegapOrder]
    edgegap_sessions: Bucket[EdgegapSeat]
    bans: Bucket[Ban]
    games: Bucket[GamesRevision]
    """`games_follower.CURRENT` -> the published revision of games.toml."""
    active_connections: Bucket[str]
    unclaimed_sessions: Bucket[str]
    cert_digests: Bucket[str]
    sessions_ly2eg: Bucket[str]
    sessions_eg2ly: Bucket[str]


def buckets(bus: Bus) -> Buckets:
    """Every bucket on this connection."""
    return Buckets(
        sessions=Bucket(bus, "sessions", SessionRecord),
        deployments=Bucket(bus, "deployments", DeploymentRecord),
        fleets=Bucket(bus, "fleets", FleetRecord),
        gameservers=Bucket(bus, "gameservers", GameserverLease),
        connect_tokens=Bucket(bus, "connect_tokens", str),
        matchmakers=Bucket(bus, "matchmakers", str),
        edgegap_orders=Bucket(bus, "edgegap_orders", EdgegapOrder),
        edgegap_sessions=Bucket(bus, "edgegap_sessions", EdgegapSeat),
        bans=Bucket(bus, "bans", Ban),
        games=Bucket(bus, "games", GamesRevision),
        active_connections=Bucket(bus, "active_connections", str),
        unclaimed_sessions=Bucket(bus, "unclaimed_sessions", str),
        cert_digests=Bucket(bus, "cert_digests", str),
        sessions_ly2eg=Bucket(bus, "sessions_ly2eg", str),
        sessions_eg2ly=Bucket(bus, "sessions_eg2ly", str),
    )


def _bevygap_bucket(
    bucket: str, description: str = "", *, replicas: int, max_age: float = 0, max_value: int = -1
) -> api.StreamConfig:
    return api.StreamConfig(
        name=f"KV_{bucket}",
        description=description or None,
        subjects=[f"$KV.{bucket}.>"],
        allow_direct=True,
        allow_rollup_hdrs=True,
        deny_delete=True,
        discard=api.DiscardPolicy.NEW,
        max_age=max_age,
        max_msg_size=max_value,
        max_msgs_per_subject=1,
        num_replicas=replicas,
        storage=api.StorageType.FILE,
        max_bytes=-1,
        max_msgs=-1,
        max_consumers=-1,
    )


def own_bucket(
    bucket: str,
    description: str,
    replicas: int,
    *,
    markers: bool = False,
    max_value: int = 1 << 18,
    max_entries: int = -1,
    max_age: float | None = None,
) -> api.StreamConfig:
    """A bucket of tipoff's own. Unlike bevygap's it is not direct, so that a caller reads its own writes, and has a
    TTL for each key.

    `markers`: expiry shows to consumers. `max_value` is in bytes, `max_age` in seconds.
    """
    return replace(
        _bevygap_bucket(bucket, description, replicas=replicas, max_value=max_value),
        allow_direct=False,
        max_age=max_age,
        allow_msg_ttl=True,
        subject_delete_marker_ttl=60 if markers else None,
        max_msgs=max_entries,
    )


def declarations(bus: Bus) -> list[api.StreamConfig]:
    """The configuration of every stream, in the order of creation."""
    name = bus.subjects.bucket
    replicas = bus.settings.replicas
    bevygap = bus.settings.bevygap_replicas
    return [
        _bevygap_bucket(
            name("sessions_ly2eg"),
            "Maps Lightyear Client IDs to Edgegap Session IDs",
            replicas=bevygap,
            max_age=MAPPING_TTL,
            max_value=1024,
        ),
        _bevygap_bucket(
            name("sessions_eg2ly"),
            "Maps Edgegap Session IDs to Lightyear Client IDs",
            replicas=bevygap,
            max_age=MAPPING_TTL,
            max_value=1024,
        ),
        _bevygap_bucket(
            name("cert_digests"),
            "Maps server public ip to their self-signed cert digests",
            replicas=bevygap,
            max_age=_FOURTEEN_DAYS,
            max_value=1024,
        ),
        _bevygap_bucket(name("active_connections"), replicas=bevygap),
        _bevygap_bucket(
            name("unclaimed_sessions"),
            "Any session ids we get from the API are stored here, and if they key age gets too big, "
            "we delete the session via the API.",
            replicas=bevygap,
            max_value=1024,
        ),
        api.StreamConfig(
            name=bus.subjects.delete_stream,
            subjects=[bus.subjects.delete_queue("*")],
            retention=api.RetentionPolicy.WORK_QUEUE,
            storage=api.StorageType.FILE,
            num_replicas=bevygap,
        ),
        own_bucket(name("sessions"), "Session id -> the session's record", replicas),
        own_bucket(name("deployments"), "Deployment id -> its record, the seat ledger", replicas),
        own_bucket(name("fleets"), "Game and version -> the deployments that may exist", replicas),
        own_bucket(name("gameservers"), "Deployment id -> lease of its game server", replicas, markers=True),
        own_bucket(name("connect_tokens"), "Session id -> its connect token: secret", replicas),
        own_bucket(name("matchmakers"), "Which matchmaker reconciles: a lease", replicas),
        own_bucket(name("bans"), "Who is banned, until when and why", replicas),
        own_bucket(name("games"), "The published revision of games.toml", replicas),
        own_bucket(name("edgegap_orders"), "Deployment id -> what was ordered from Edgegap", replicas),
        own_bucket(name("edgegap_sessions"), "Session id -> its part in a session of Edgegap's", replicas),
    ]


async def create_buckets(bus: Bus) -> Buckets:
    """Create every bucket and stream that is missing. Raises `Unavailable` with NATS's reason.

    An existing one with another configuration stays as it is: an operator may have set limits or replicas.
    """
    for config in declarations(bus):
        await create_stream(bus, config)
    return buckets(bus)
