"""Runs the turn relay inside an HTTP server: `open_turn_relay` is all that httpd calls to mount it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Gauge
from starlette.types import ASGIApp, Receive, Scope, Send

from tipoff_shared.admission.client_address import AddressRule
from tipoff_shared.admission.limits import ConcurrencyLimit
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_turn_relay.admission import TurnAdmission, TurnSettings
from tipoff_turn_relay.game import Game
from tipoff_turn_relay.games import GAME_CODEC
from tipoff_turn_relay.json_routes import json_routes
from tipoff_turn_relay.pairing import PairingList
from tipoff_turn_relay.pairing_list import LIST_CODEC
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.store import GAMES_BUCKET, MAX_GAMES, PAIRING_BUCKET, RecordBucket, open_bucket
from tipoff_turn_relay.text_endpoint import TextEndpoint

PATH = "/turn"
"""The path of the text endpoint."""
BODY_LIMITS = {
    # The text endpoint itself answers a body that is too long, in its protocol.
    b"/turn": 1 << 29,
    # 16 KB of data, of which each byte may take six in JSON.
    b"/v1/turn/": 112 * 1024,
}
"""Path, or prefix of paths ending in `/` -> bytes of a request body that the HTTP server must let pass there."""


@dataclass(frozen=True, slots=True)
class TurnEndpoints:
    """The endpoints of a running turn relay: `text` serves `PATH`, `router` the JSON API."""

    text: ASGIApp
    router: APIRouter
    relay: TurnRelay

    def drain(self) -> None:
        """End the long polls, because the service is about to stop."""
        self.relay.drain()


@asynccontextmanager
async def open_turn_relay(
    settings: TurnSettings,
    bus: Bus,
    tasks: Tasks,
    addresses: AddressRule,
    places: ConcurrencyLimit,
    registry: CollectorRegistry,
    check_ban: Callable[[str], None],
) -> AsyncIterator[TurnEndpoints]:
    """Create the missing buckets and run a turn relay for the time of the block.

    `places` are those of the whole service; each long poll takes one. `registry` gets the relay's metrics.
    `check_ban(address)` raises `NotAllowed` where players are banned. Raises `Unavailable` when the buckets cannot be
    created.
    """
    pairing = await open_bucket(
        bus,
        PAIRING_BUCKET,
        PairingList,
        LIST_CODEC,
        description="The turn relay's pairing list",
        max_records=16,
    )
    games = await open_bucket(
        bus,
        GAMES_BUCKET,
        Game,
        GAME_CODEC,
        description="Game id -> the turn relay's record of the game",
        max_records=MAX_GAMES,
    )
    admission = TurnAdmission(settings, addresses, places, registry, check_ban)
    async with open_on_buckets(pairing, games, tasks, settings, admission) as endpoints:
        _observe(registry, endpoints.relay)
        yield endpoints


@asynccontextmanager
async def open_on_buckets(
    pairing: RecordBucket[PairingList],
    games: RecordBucket[Game],
    tasks: Tasks,
    settings: TurnSettings,
    admission: TurnAdmission,
) -> AsyncIterator[TurnEndpoints]:
    """Run a turn relay whose state is in these buckets."""
    relay = TurnRelay(pairing, games, tasks, patience=settings.nats_patience)
    async with relay.pairing.running():
        yield TurnEndpoints(TextEndpoint(relay, admission), json_routes(relay, admission), relay)


def _observe(registry: CollectorRegistry, relay: TurnRelay) -> None:
    """Gauges that are read when the metrics are."""
    for name, text, read in (
        (
            "tipoff_turn_players",
            "Players in the pairing list, as last seen by this process",
            relay.pairing.__len__,
        ),
        ("tipoff_turn_games", "Games whose last state this process keeps", relay.games.__len__),
    ):
        Gauge(name, text, registry=registry).set_function(read)


class OwnPort:
    """The ASGI application of the relay's own port: every path is the text endpoint, under the rules of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a WebSocket is refused."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app({**scope, "path": PATH, "raw_path": PATH.encode()}, receive, send)
