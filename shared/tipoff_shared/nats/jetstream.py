"""JetStream operations that several parts need: make a stream, read it through a durable consumer, acknowledge."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from nats.aio.msg import Msg
from nats.js import api

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import NoAnswer, PermissionDenied, Refused, translated

log = logging.getLogger(__name__)

_OTHER_CONFIGURATION = 10058
"""nats-server's number for a stream that exists with another configuration."""


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
    with translated():
        sub = await bus.js.pull_subscribe_bind(consumer=name, stream=stream)
    try:
        while True:
            try:
                with translated():
                    messages = await sub.fetch(batch, timeout=wait)
            except NoAnswer:
                if not bus.connected:
                    raise
                continue
            on_progress()
            await handle(messages)
    finally:
        with contextlib.suppress(Unavailable), translated():
            await sub.unsubscribe()
