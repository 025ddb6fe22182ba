"""JetStream operations that several parts need: ask its API, make a stream, read it, acknowledge."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

import msgspec
from nats.aio.msg import Msg
from nats.js import api

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import (
    FAILURES,
    NotFound,
    PermissionDenied,
    Refused,
    translated,
    typed,
)
from tipoff_shared.nats.pull import pull_reader

log = logging.getLogger(__name__)

_OTHER_CONFIGURATION = 10058
"""nats-server's number for a stream that exists with another configuration."""


class _ApiError(msgspec.Struct, gc=False):
    code: int = 0
    err_code: int = 0
    description: str = ""


class StoredMessage(msgspec.Struct, gc=False):
    """A message of a stream, as the API answers it; `hdrs` are its headers as they are on the wire."""

    seq: int
    data: bytes = b""
    hdrs: bytes = b""


class _StreamState(msgspec.Struct, gc=False):
    last_seq: int = 0


class _Cluster(msgspec.Struct, gc=False):
    replicas: list[msgspec.Raw] = []


class Answer(msgspec.Struct, gc=False):
    """The API's answer: `seq` acknowledges a write, `message` was asked for; `created`, `state` and
    `cluster` are a stream's, `ts` is when nats-server answered."""

    seq: int = 0
    message: StoredMessage | None = None
    created: datetime.datetime | None = None
    ts: datetime.datetime | None = None
    state: _StreamState | None = None
    cluster: _Cluster | None = None
    error: _ApiError | None = None


_decode = msgspec.json.Decoder(Answer).decode


async def ask(
    bus: Bus, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout: float
) -> Answer:
    """Write to a stream's subject, or call the API; the answer, within about `timeout` seconds.

    Raises `Refused` with JetStream's error (`NotFound`: no such stream or message), `NoListener`, `NoAnswer`,
    `PermissionDenied`, and `Unavailable` at once when the connection is lost. Cancelling is safe; a write may still be
    done.
    """
    try:
        answer = _decode(await bus.nc.ask(subject, payload, headers, timeout=timeout))
    except FAILURES as exc:
        raise typed(exc) from exc
    except msgspec.DecodeError as exc:
        raise Unavailable(f"JetStream's answer on {subject} cannot be read") from exc
    if (error := answer.error) is not None:
        kind = NotFound if error.code == 404 else Refused
        raise kind(error.description, err_code=error.err_code, description=error.description)
    return answer


async def create_stream(bus: Bus, config: api.StreamConfig) -> None:
    """Create a stream where there is none. Raises `Unavailable` with NATS's reason.

    A stream that exists with another configuration stays as it is: an operator may have set limits or replicas.
    """
    try:
        with translated():
            await bus.js.add_stream(config)
    except PermissionDenied:
        raise
    except Refused as exc:
        if exc.err_code != _OTHER_CONFIGURATION:
            raise Unavailable(f"cannot create {config.name}: {exc.description}") from exc
    except Unavailable as exc:
        said = bus.last_error or exc
        raise Unavailable(f"cannot create {config.name}: {said}. Is JetStream enabled?") from exc


async def acknowledge(msg: Msg) -> None:
    """Acknowledge a message and do not wait. Raises `Unavailable` while NATS is away: the message comes again."""
    with translated():
        await msg.ack()


async def read_stream(
    bus: Bus,
    stream: str,
    config: api.ConsumerConfig,
    handle: Callable[[list[Msg]], Awaitable[None]],
    *,
    batch: int,
    wait: float,
    may_differ: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Read `stream` through the durable pull consumer `config` until NATS fails: raises `Unavailable`.

    `handle` gets up to `batch` messages at a time and acknowledges them; the next are requested when it returns.
    Processes that use one durable name share its messages; what one of them took and did not acknowledge is
    delivered again. `wait`: seconds for which each request to the server stays open. `may_differ`: an existing
    consumer of that name with other settings is accepted. `on_progress` is called for each batch: give it the `reset`
    of the `run_forever` that repeats this call.
    """
    name = config.durable_name or ""
    with contextlib.suppress(*((Unavailable,) if may_differ else ())), translated():
        await bus.js.add_consumer(stream, config)
    async with pull_reader(bus, stream, name) as reader:
        while True:
            if messages := await reader.fetch(batch, wait):
                on_progress()
                await handle(messages)
