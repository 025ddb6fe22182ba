"""Builds the parts of one httpd, in this order, each from those before it.

settings -> limits, metrics -> login -> NATS -> matchmaker client, upstreams, turn relay -> state -> extension, demo
feed -> routes -> app
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tipoff_matchmaker_httpd.admission.origin import never_matches
from tipoff_matchmaker_httpd.app import HttpdApp, make_api, make_health_api
from tipoff_matchmaker_httpd.login.open import open_login
from tipoff_matchmaker_httpd.matchmaker.client import open_client
from tipoff_matchmaker_httpd.matchmaker.feedback import Deadlines
from tipoff_matchmaker_httpd.metrics import Metrics
from tipoff_matchmaker_httpd.routes.demo import DemoFeed, demo_routes, web_directory
from tipoff_matchmaker_httpd.routes.gs_proxy import Upstreams, gs_routes
from tipoff_matchmaker_httpd.routes.health import Readiness, health_routes
from tipoff_matchmaker_httpd.routes.hooks import webhook_routes
from tipoff_matchmaker_httpd.routes.play_http import stream_routes
from tipoff_matchmaker_httpd.routes.wannaplay import wannaplay_routes
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.limits import ConcurrencyLimit
from tipoff_shared.ban_follower import BanFollower
from tipoff_shared.errors import Unavailable
from tipoff_shared.hooks import load_hook_key
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import Ban, Bans, encode
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.admission import TurnSettings
from tipoff_turn_relay.service import BODY_LIMITS, open_turn_relay
from tipoff_turn_relay.service import PATH as TURN_PATH

log = logging.getLogger(__name__)

_BANS_AT_ONCE = 500
"""In one message: well below NATS's largest."""


Extension: TypeAlias = Callable[[HttpdState], AbstractAsyncContextManager[Sequence[APIRouter]]]
"""Further routes, which go before the page's, for as long as the block: `tipoff up` adds its dashboard."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A running httpd without its sockets."""

    app: HttpdApp
    health: ASGIApp
    """Only what operators ask: for a separate port."""
    state: HttpdState
    feed: DemoFeed
    """Empty outside demo mode."""


@asynccontextmanager
async def compose(
    settings: Settings, nats_settings: NatsSettings, extension: Extension | None = None
) -> AsyncIterator[Parts]:
    """An httpd that is connected to NATS, for the time of the block.

    Raises `ConfigError` for a hook key, a login key or a page that cannot be used, `Unavailable` when NATS cannot be
    reached.
    Leaving drains first, then ends the parts from the last to the first: the demo feed, the turn relay, the readiness
    checks, the upstreams, the matchmaker client (its players get an answer), the tasks, NATS, the login.
    """
    hook_key = load_hook_key(
        settings.hook_key.get_secret_value(), settings.hook_key_file, nats_settings.namespace
    )
    web = web_directory(settings) if settings.demo else None
    for entry in settings.origins:
        if reason := never_matches(entry):
            log.warning("TIPOFF_HTTPD_ORIGINS: no page is of origin %r: %s", entry, reason)
    limits = ConcurrencyLimit(settings.max_requests, settings.max_requests_per_address)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        login = await stack.enter_async_context(open_login(settings))
        bus = await stack.enter_async_context(connect(nats_settings, name="httpd"))
        tasks = await stack.enter_async_context(Tasks("httpd"))
        client = await stack.enter_async_context(open_client(bus, tasks, deadlines(settings)))
        every = buckets(bus)
        upstreams = Upstreams(every.deployments)
        await stack.enter_async_context(upstreams.running(every.gameservers))
        checks = await stack.enter_async_context(SingleFlight[str, Readiness]("readiness"))
        bans = BanFollower(every.bans)
        bans.subscribe_missing(lambda missing: _tell_matchmakers(bus, tasks, missing))
        tasks.start(bans.run(), "bans")
        body_limits = BODY_LIMITS if settings.turn_relay else {}
        state = HttpdState(settings, bus, client, limits, metrics, bans, body_limits, login)
        routers = [
            stream_routes(state),
            wannaplay_routes(state),
            health_routes(state, checks),
            gs_routes(state, upstreams),
            webhook_routes(state, hook_key),
        ]
        endpoints: dict[str, ASGIApp] = {}
        if settings.turn_relay:
            turn_settings = TurnSettings(
                settings.turn_requests_per_second,
                settings.turn_registrations_per_minute,
                settings.nats_patience,
            )
            turn = await stack.enter_async_context(
                open_turn_relay(
                    turn_settings, bus, tasks, state.addresses, limits, metrics.registry, bans.check
                )
            )
            state.on_drain(turn.drain)
            endpoints[TURN_PATH] = turn.text
            routers.append(turn.router)
        if extension is not None:
            routers += await stack.enter_async_context(extension(state))
        feed = DemoFeed(settings.demo_listeners, settings.demo_listeners_per_address)
        if web is not None:
            state.on_drain(feed.stop)
            await stack.enter_async_context(feed.running(bus))
            routers.append(demo_routes(state, feed, web))
        app = HttpdApp(state, make_api(routers), endpoints)
        stack.callback(state.drain)
        yield Parts(app, make_health_api(health_routes(state, checks)), state, feed)


def _tell_matchmakers(bus: Bus, tasks: Tasks, missing: Sequence[Ban]) -> None:
    """Of bans that NATS has lost: perhaps no matchmaker knows them any more."""

    async def tell() -> None:
        try:
            for at in range(0, len(missing), _BANS_AT_ONCE):
                some = Bans(list(missing[at : at + _BANS_AT_ONCE]))
                await bus.publish(bus.subjects.known_bans, encode(some))
        except Unavailable as exc:
            log.info("matchmakers hear of lost bans after the next listing: %s", exc)

    tasks.start(tell(), "lost bans")


def deadlines(settings: Settings) -> Deadlines:
    """How long a request waits for the matchmakers, by these settings."""
    return Deadlines(
        request=settings.request_timeout,
        acknowledge=settings.acknowledge_timeout,
        retry=settings.retry_timeout,
        silence=settings.silence_timeout,
        nats=settings.nats_patience,
    )


def create_app(settings: Settings, nats_settings: NatsSettings) -> ASGIApp:
    """An ASGI application for any server that runs the lifespan protocol; the parts live as long as its lifespan.

    Without `run_httpd` nothing limits what happens below HTTP: slow heads, sizes, floods.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, HttpdApp]]:
        async with compose(settings, nats_settings) as parts:
            yield {"httpd": parts.app}

    outer = FastAPI(lifespan=lifespan, openapi_url=None)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inner: ASGIApp = outer if scope["type"] == "lifespan" else scope["state"]["httpd"]
        await inner(scope, receive, send)

    return app
