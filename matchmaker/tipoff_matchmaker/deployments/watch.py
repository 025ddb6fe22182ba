"""What other matchmakers write about deployments, as it happens: a hint that wakes whoever waits here."""

from __future__ import annotations

import asyncio
import logging

from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments.store import Ledger
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry
from tipoff_shared.records import DeploymentRecord

log = logging.getLogger(__name__)


async def watch_deployments(store: Bucket[DeploymentRecord], ledger: Ledger) -> None:
    """For ever; begins again after each outage. The sweep finds what was missed."""
    tries = 0
    while True:
        try:
            async with store.watch() as changes:
                while True:
                    batch = await changes.fetch()
                    tries = 0
                    for change, ack in batch:
                        if change.value is not None:
                            ledger.observe(Entry(change.key, change.value, change.revision))
                        elif (known := ledger.entries.get(change.key)) and known.revision < change.revision:
                            ledger.vanished(change.key)
                        await ack()
        except Unavailable as exc:
            tries += 1
            log.info("watching deployments: %s; again soon", exc)
            await asyncio.sleep(pause(tries, 0.1))
