"""The stream of game servers' events in the isolated profile, and the bucket with the matchmakers' secret.

The first matchmaker of that profile creates both. The stream accepts only plain messages (no rollup, schedules or
counters, which are off by default) and bounds the messages of one server and of all, so that a flood delays others only
for as long as it takes to read it.
"""

from __future__ import annotations

from nats.js import api

from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.jetstream import create_stream
from tipoff_shared.server_events import MAX_EVENT

SECRET_BUCKET = "event_secret"  # noqa: S105 # a bucket's name
SECRET_KEY = "present"  # noqa: S105 # a key's name
DURABLE = "matchmaker-events"
"""Name of the durable consumer that all matchmakers share."""

_HEADERS = 4096
_MAX_PER_SERVER = 256
_MAX_OF_ALL = 100_000
_MAX_BYTES = 256 * 1024 * 1024


def declarations(bus: Bus) -> list[api.StreamConfig]:
    """The configuration of both."""
    bucket = bus.subjects.bucket(SECRET_BUCKET)
    return [
        api.StreamConfig(
            name=bus.subjects.events_stream,
            description="What game servers of the isolated profile say, until it is handled",
            subjects=[bus.subjects.events("*")],
            retention=api.RetentionPolicy.WORK_QUEUE,
            storage=api.StorageType.FILE,
            num_replicas=bus.settings.replicas,
            max_msg_size=MAX_EVENT + _HEADERS,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=_MAX_PER_SERVER,
            max_msgs=_MAX_OF_ALL,
            max_bytes=_MAX_BYTES,
            allow_msg_ttl=True,
        ),
        api.StreamConfig(
            name=f"KV_{bucket}",
            description="What game servers' event keys are made of: secret",
            subjects=[f"$KV.{bucket}.>"],
            allow_direct=False,
            discard=api.DiscardPolicy.NEW,
            max_msgs_per_subject=1,
            max_msg_size=1024,
            num_replicas=bus.settings.replicas,
            storage=api.StorageType.FILE,
        ),
    ]


def secret_store(bus: Bus) -> Bucket[str]:
    """The bucket with the secret; only the matchmaker's role may read it."""
    return Bucket(bus, SECRET_BUCKET, str)


async def create_event_stream(bus: Bus) -> None:
    """Create both where they are missing. Raises `Unavailable`. An operator's changes to them stay."""
    for config in declarations(bus):
        await create_stream(bus, config)
