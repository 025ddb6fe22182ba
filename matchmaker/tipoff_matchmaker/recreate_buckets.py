"""A NATS that comes back without its data has no buckets: they are made again."""

from __future__ import annotations

import asyncio
import logging

from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.event_secret import EventSecret
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)


async def recreate_buckets(bus: Bus, event_secret: EventSecret | None) -> None:
    """Until they are there, or NATS is away again. Where they are, nothing happens."""
    tries = 0
    while bus.connected:
        try:
            await create_buckets(bus)
            if event_secret is not None:
                await event_secret.ensure()
        except (Unavailable, LostRace) as exc:
            tries += 1
            log.info("%s; again soon", exc)
            await asyncio.sleep(pause(tries, 0.2))
        else:
            return
