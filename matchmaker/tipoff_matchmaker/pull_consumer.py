"""Reading a stream through a durable pull consumer, for ever: an outage of NATS ends nothing.

Any number of matchmakers share the consumer; what one of them took and did not acknowledge comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.msg import Msg
from nats.js import api

from tipoff_matchmaker.backoff import pause
from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)


async def read_for_ever(
    bus: Bus,
    stream: str,
    config: api.ConsumerConfig,
    handle: Callable[[list[Msg]], Awaitable[None]],
    *,
    batch: int,
    wait: float,
    first_pause: float,
    may_differ: bool = False,
) -> None:
    """Make the consumer, and let `handle` have its messages, up to `batch` at a time: it acknowledges them, and the
    next ones are asked for when it returns.

    `wait`: seconds for which the server is asked; after an outage the one that was asked then never answers.
    `first_pause`: seconds before one begins again. `may_differ`: a consumer that somebody else has made with other
    settings is as good.
    """
    name = config.durable_name or ""
    tries = 0
    while True:
        try:
            with contextlib.suppress(*((nats.errors.Error,) if may_differ else ())):
                await bus.js.add_consumer(stream, config)
            sub = await bus.js.pull_subscribe_bind(consumer=name, stream=stream)
            try:
                while True:
                    try:
                        messages = await sub.fetch(batch, timeout=wait)
                    except (TimeoutError, nats.errors.TimeoutError):
                        if not bus.connected:
                            raise
                        continue
                    tries = 0
                    await handle(messages)
            finally:
                with contextlib.suppress(nats.errors.Error):
                    await sub.unsubscribe()
        except (TimeoutError, nats.errors.Error) as exc:
            tries += 1
            log.info("reading %s by %s: %s; again soon", stream, name, str(exc) or type(exc).__name__)
            await asyncio.sleep(pause(tries, first_pause))
