"""Hears, over NATS, what Edgegap and the check's server say: webhooks by way of httpd, and the server's lease."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from nats.aio.msg import Msg

from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.live.evidence import HooksSeen
from tipoff_orchestrator_client.edgegap.setup.live.leftovers import MARK
from tipoff_shared.errors import ConfigError, TipoffError
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.text import describe
from tipoff_shared.records import GameserverLease
from tipoff_shared.settings import NatsSettings

NO_HOOK = f"https://{MARK}.invalid/"
"""The webhook URL of a session where httpd has none: it only marks the session."""
Say = Callable[[str], None]
"""Tells the user what the check is doing."""

_PROOF = 5.0
"""Seconds for our own webhook to come through httpd and NATS."""


class Listener:
    """Made by `listening`. `url`: of the session's webhooks. `seen`: what came; `deaf`: why nothing can come, or ""."""

    def __init__(self, url: str, deaf: str, bus: Bus | None, no_nats: str) -> None:
        self.url = url
        self.deaf = deaf
        self.seen = HooksSeen()
        self.no_nats = no_nats
        """Why the server's lease cannot be read, or ""."""
        self._bus = bus
        self._nonce = secrets.token_hex(8)
        self._proved = asyncio.Event()

    async def announced_url(self, deployment_id: str) -> str | None:
        """The WebSocket URL in the lease of the server, "" for a server without one; None while there is no lease.
        Raises `TipoffError`."""
        if self._bus is None:
            return None
        entry = await Bucket(self._bus, "gameservers", GameserverLease).get(deployment_id)
        if entry is None:
            return None
        websocket = entry.value.transports.websocket
        return "" if websocket is None else websocket.url

    async def prove(self) -> None:
        """Post a webhook and wait for it: without that, silence would mean nothing. Sets `deaf` where it fails."""
        if self.deaf or self._bus is None:
            return
        said = "httpd did not answer"
        try:
            await self._bus.subscribe(self._bus.subjects.webhook(MARK), self._received)
            await self._bus.flush()
            async with httpx.AsyncClient(timeout=_PROOF, trust_env=False) as client:
                answer = await client.post(self.url, json={"probe": self._nonce})
            said = f"httpd answered {answer.status_code}"
            if not answer.is_success:
                raise TimeoutError
            async with asyncio.timeout(_PROOF):
                await self._proved.wait()
        except (TipoffError, httpx.HTTPError, httpx.InvalidURL) as exc:
            self.deaf = f"our own webhook did not come through: {describe(exc)}"
        except TimeoutError:
            self.deaf = f"our own webhook did not come through: {said}"
        else:
            self.seen.proved = True

    async def _received(self, msg: Msg) -> None:
        try:
            body = json.loads(msg.data)
        except (ValueError, RecursionError):
            return
        if not isinstance(body, dict):
            return
        if body.get("probe") == self._nonce:
            self._proved.set()
        elif isinstance(body.get("session_id"), str):
            self.seen.states.append((body.get("linked") is True, body.get("ready") is True))


@asynccontextmanager
async def listening(
    settings: Settings, nats: NatsSettings, *, leases: bool, say: Say
) -> AsyncIterator[Listener]:
    """A listener, deaf where NATS or httpd cannot be reached or no webhooks are configured. It connects to NATS only
    for webhooks and for `leases`."""
    async with AsyncExitStack() as stack:
        bus: Bus | None = None
        no_nats = ""
        if leases or settings.hook_url:
            say("connecting to NATS")
            try:
                bus = await stack.enter_async_context(connect(nats, name="tipoff edgegap check"))
            except (TipoffError, OSError) as exc:
                no_nats = f"NATS cannot be reached from here: {describe(exc)}"
        url, deaf = NO_HOOK, ""
        try:
            url = settings.webhook_urls(nats.namespace)(MARK) or NO_HOOK
        except ConfigError as exc:
            deaf = str(exc)
        if url == NO_HOOK:
            deaf = deaf or "no webhooks are configured: set TIPOFF_EDGEGAP_HOOK_URL and TIPOFF_HOOK_KEY_FILE"
        listener = Listener(url, deaf or no_nats, bus, no_nats)
        await listener.prove()
        yield listener
