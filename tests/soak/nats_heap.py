"""Tells a leak of nats-server from garbage that Go has not given back: `python -m tests.soak.nats_heap SECONDS`.

Writes what plays write (records, tokens, connections; all are removed again), and prints, four times, nats-server's
live memory after a garbage collection beside its resident memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from tests.e2e.steps import free_port
from tests.soak.processes import usage
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionRecord, SessionState

_LIVE = re.compile(r"heap profile: \d+: (\d+) \[")


async def churn(seconds: float) -> None:
    """Play for `seconds`, one play after another, and print the figures."""
    profile = free_port()
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedNats(Path(directory), more=f"prof_port: {profile}\n")
        await server.start()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(server.stop)
            bus = await stack.enter_async_context(connect(server.settings(), name="nats-heap"))
            http = await stack.enter_async_context(httpx.AsyncClient())
            buckets = await create_buckets(bus)
            began, plays = time.monotonic(), 0
            for part in range(1, 5):
                while time.monotonic() - began < seconds * part / 4:
                    await _play(buckets)
                    plays += 1
                url = f"http://127.0.0.1:{profile}/debug/pprof/heap?gc=1&debug=1"
                found = _LIVE.search((await http.get(url)).text)
                assert found is not None
                used = usage("nats-server", server.process.pid, time.time())
                assert used is not None
                figures = {
                    "plays": plays,
                    "live_mb": round(int(found[1]) / 1e6, 1),
                    "resident_mb": round(used.rss, 1),
                }
                print(json.dumps(figures), flush=True)


async def _play(buckets: Buckets) -> None:
    session_id = secrets.token_hex(12)
    record = SessionRecord(session_id, SessionState.READY, "arena", "1", "7", "me", created_at=1.0)
    revision = await buckets.sessions.create(session_id, record)
    await buckets.connect_tokens.put(session_id, "x" * 2732, ttl=30)
    await buckets.active_connections.put(session_id, "7")
    revision = await buckets.sessions.update(session_id, record, revision)
    await buckets.active_connections.delete(session_id)
    if (left := await buckets.active_connections.latest(session_id)) is not None:
        await buckets.active_connections.forget(session_id, left.revision)
    await buckets.sessions.update(session_id, record, revision, ttl=60)


if __name__ == "__main__":
    asyncio.run(churn(float(sys.argv[1])))
