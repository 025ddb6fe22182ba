"""The turn relay within httpd: its endpoints, made with the app, and its relay, there while the app runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from tipoff_shared.admission.client_address import AddressRule
from tipoff_shared.admission.limits import ConcurrencyLimit, RateLimit
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_turn_relay.json_routes import JsonRoutes, TurnFailed, turn_failed
from tipoff_turn_relay.metrics import TurnMetrics
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.store import (
    GAMES_BUCKET,
    MAX_GAMES,
    PAIRING_BUCKET,
    Inbox,
    NatsRecords,
    RecordStore,
)
from tipoff_turn_relay.text_endpoint import TextEndpoint

PATH = "/turn"
BODY_LIMITS = {
    # The text endpoint itself answers what is too long, in its own words.
    b"/turn": 1 << 29,
    # 16 KB of data, each byte perhaps six in JSON.
    b"/v1/turn/": 112 * 1024,
}
"""Path, or prefix of paths ending in `/` -> bytes of a request body that the server around it must let pass."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """The turn relay's settings; rates are for one address, 0 is no limit."""

    requests_per_second: float = 300.0
    """In the long run; twice as many at once."""
    registrations_per_minute: float = 120.0
    """The same for registrations, as many at once."""
    nats_patience: float = 1.5
    """Seconds that a request waits for a lost NATS connection."""


class TurnService:
    """`text` is the ASGI endpoint of the text protocol; `add_to` gives the app the JSON routes."""

    def __init__(
        self,
        settings: TurnSettings,
        addresses: AddressRule,
        places: ConcurrencyLimit,
        registry: CollectorRegistry,
    ) -> None:
        """`places`: the service's own, of which each long poll takes one."""
        self._settings = settings
        self._metrics = TurnMetrics(registry)
        requests = RateLimit(settings.requests_per_second, 2 * settings.requests_per_second)
        registrations = RateLimit(settings.registrations_per_minute / 60, settings.registrations_per_minute)
        self.text = TextEndpoint(addresses, requests, registrations, self._metrics)
        self._json = JsonRoutes(addresses, places, requests, registrations, self._metrics)
        self._relay: TurnRelay | None = None
        self._metrics.observe(
            players=lambda: float(len(self._relay.list)) if self._relay else 0.0,
            games=lambda: float(len(self._relay.rooms)) if self._relay else 0.0,
        )

    def add_to(self, app: FastAPI) -> None:
        app.include_router(self._json.router())
        app.add_exception_handler(TurnFailed, turn_failed)

    def drain(self) -> None:
        """End the long polls: the service is about to stop."""
        if self._relay is not None:
            self._relay.drain()

    @asynccontextmanager
    async def running(self, bus: Bus, tasks: Tasks) -> AsyncIterator[None]:
        """Make the buckets that are missing and serve. Raises `Unavailable`.

        Leaving: requests are refused first, then those in hand fail with the store's inbox.
        """
        inbox = Inbox(bus)
        await inbox.subscribe()
        try:
            pairing = NatsRecords(bus, PAIRING_BUCKET, inbox)
            games = NatsRecords(bus, GAMES_BUCKET, inbox)
            await pairing.create_bucket("The turn relay's pairing list", max_records=16)
            await games.create_bucket("Game id -> the turn relay's record of the game", max_records=MAX_GAMES)
            async with self.on_stores(pairing, games, tasks):
                yield
        finally:
            inbox.close()

    @asynccontextmanager
    async def on_stores(
        self, pairing: RecordStore, games: RecordStore, tasks: Tasks
    ) -> AsyncIterator[TurnRelay]:
        """Serve from these stores."""
        relay = TurnRelay(pairing, games, tasks, patience=self._settings.nats_patience)
        async with relay.list.running():
            self._serve(relay)
            try:
                yield relay
            finally:
                self._serve(None)

    def _serve(self, relay: TurnRelay | None) -> None:
        self._relay = self.text.relay = self._json.relay = relay


class OwnPort:
    """The ASGI app of the relay's own port: every path is the text endpoint, under the rules of the whole app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app({**scope, "path": PATH, "raw_path": PATH.encode()}, receive, send)
