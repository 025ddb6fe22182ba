"""The turn relay within httpd: its endpoints, made with the app, and its relay, there while the app runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from tipoff_matchmaker_httpd.admission.rate_limit import RateLimit
from tipoff_matchmaker_httpd.server.http import GuardedHttp
from tipoff_matchmaker_httpd.state import Httpd
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


class TurnService:
    """`text` is the ASGI endpoint of the text protocol; `add_to` gives the app the JSON routes."""

    def __init__(self, httpd: Httpd) -> None:
        settings = httpd.settings
        self._httpd = httpd
        self._metrics = TurnMetrics(httpd.metrics.registry)
        requests = RateLimit(settings.turn_requests_per_second, 2 * settings.turn_requests_per_second)
        registrations = RateLimit(
            settings.turn_registrations_per_minute / 60, settings.turn_registrations_per_minute
        )
        self.text = TextEndpoint(httpd.addresses, requests, registrations, self._metrics)
        self._json = JsonRoutes(httpd, requests, registrations, self._metrics)
        self._relay: TurnRelay | None = None
        self._metrics.observe(
            players=lambda: float(len(self._relay.list)) if self._relay else 0.0,
            games=lambda: float(len(self._relay.rooms)) if self._relay else 0.0,
        )
        httpd.body_limits.update(BODY_LIMITS)
        httpd.on_drain.append(self._drain)

    def add_to(self, app: FastAPI) -> None:
        app.include_router(self._json.router())
        app.add_exception_handler(TurnFailed, turn_failed)

    def _drain(self) -> None:
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
        relay = TurnRelay(pairing, games, tasks, patience=self._httpd.settings.nats_patience)
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

    def __init__(self, app: FastAPI, httpd: Httpd) -> None:
        self._app = app
        self.httpd = httpd

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app({**scope, "path": PATH, "raw_path": PATH.encode()}, receive, send)


class TurnPortHttp(GuardedHttp):
    """An HTTP connection to the relay's own port, where the text endpoint judges bodies on every path."""

    def on_headers_complete(self) -> None:
        self.url = PATH.encode()
        super().on_headers_complete()
