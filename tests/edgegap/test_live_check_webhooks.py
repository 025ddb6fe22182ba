"""`tipoff edgegap check --live` hears webhooks through a real httpd and NATS, and reads the server's lease."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.edgegap.edgegap_world import EdgegapWorld, sleeper, with_sessions
from tests.edgegap_emulator.live_checks import FAST, outcomes, seen
from tipoff_edgegap_emulator import Repeat, Rules
from tipoff_orchestrator_client.edgegap.setup.live.check import Report, live_check
from tipoff_orchestrator_client.edgegap.setup.live.judge import Outcome
from tipoff_orchestrator_client.edgegap.setup.live.leftovers import MARK
from tipoff_shared.messages import Transports, WebSocketAddress
from tipoff_shared.records import GameserverLease, LeaseState
from tipoff_shared.settings import NatsSettings

pytestmark = [pytest.mark.slow, pytest.mark.row(87)]

HELD, NOT_HELD, NOT_SEEN = Outcome.HELD, Outcome.NOT_HELD, Outcome.NOT_SEEN


@asynccontextmanager
async def world(nats: NatsSettings, tmp_path: Path, **members: Any) -> AsyncIterator[EdgegapWorld]:
    """Sessions, webhooks, no matchmaker; a deployment is ready half a second after its order."""
    given: dict[str, Any] = {
        "hooks": True,
        "rules": Rules(start_delay=0.3, ready_delay=0.2, forget_after=0.2),
    }
    game = with_sessions(sleeper())
    async with EdgegapWorld.running(nats, tmp_path, game, matchmaker=False, **(given | members)) as it:
        yield it


async def check(it: EdgegapWorld, **settings: Any) -> Report:
    report = Report()
    (game,) = it.games.all()
    await live_check(
        it.edgegap_settings.model_copy(update=settings),
        it.nats_settings,
        game,
        report,
        timeout=20.0,
        say=lambda _: None,
        pace=FAST,
    )
    assert report.left == []
    return report


async def test_a_sessions_webhooks_are_heard(settings: NatsSettings, tmp_path: Path) -> None:
    async with world(settings, tmp_path) as it:
        report = await check(it)
        assert outcomes(report)["session-webhooks"] is HELD, report
        assert f"/hook/{MARK}." in it.emulator.webhooks[0].url


@pytest.mark.parametrize("lost", [1, None])
async def test_a_missing_webhook_is_told(settings: NatsSettings, tmp_path: Path, lost: int | None) -> None:
    """The first (linked), or all."""
    async with world(settings, tmp_path) as it:
        it.emulator.misbehave("webhook", Repeat(0), lost)
        report = await check(it)
        assert outcomes(report)["session-webhooks"] is NOT_HELD, report


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hook_key": "another key that fits nothing"}, "did not come through: httpd answered 404"),
        ({"hook_url": "http://127.0.0.1:9"}, "did not come through"),
        ({"hook_url": ""}, "no webhooks are configured"),
    ],
)
async def test_without_a_way_to_hear_webhooks_their_absence_means_nothing(
    settings: NatsSettings, tmp_path: Path, wrong: dict[str, str], says: str
) -> None:
    async with world(settings, tmp_path) as it:
        changes: dict[str, Any] = {
            name: SecretStr(value) if name == "hook_key" else value for name, value in wrong.items()
        }
        report = await check(it, **changes)
        assert outcomes(report)["session-webhooks"] is NOT_SEEN
        assert says in seen(report, "session-webhooks")
        assert outcomes(report)["sessions-v1"] is HELD, report


@pytest.mark.parametrize(
    ("url", "expected"),
    [("wss://abc.pr.edgegap.net:30001/", HELD), ("ws://127.0.0.1:30001/", NOT_HELD), ("", NOT_SEEN)],
)
async def test_the_address_that_the_server_announces_is_read(
    settings: NatsSettings, tmp_path: Path, url: str, expected: Outcome
) -> None:
    """The lease is a server's, which has read its context; "" writes none."""
    async with world(settings, tmp_path) as it:
        version = it.emulator.state.catalogue.versions["arena-app", "v1"]
        for port in version["ports"]:
            port["tls_upgrade"] = True

        async def announce() -> None:
            await it.emulator.until(
                lambda emulator: any(MARK in one.tags for one in emulator.deployments), 20
            )
            (made,) = it.emulator.deployments
            transports = Transports(websocket=WebSocketAddress(url))
            lease = GameserverLease(
                made.request_id, "boot", "arena", "1", LeaseState.READY, transports, capacity=4
            )
            await it.buckets.gameservers.put(made.request_id, lease)

        server = asyncio.create_task(announce()) if url else None
        report = await check(it)
        if server is not None:
            with contextlib.suppress(TimeoutError):
                await server
        assert outcomes(report)["context-tls"] is expected, report


async def test_without_nats_the_rest_is_seen(settings: NatsSettings, tmp_path: Path) -> None:
    async with world(settings, tmp_path) as it:
        it.nats_settings = replace(settings, servers=("127.0.0.1:9",))
        report = await check(it)
        assert "NATS cannot be reached" in seen(report, "session-webhooks")
        assert outcomes(report)["sessions-v1"] is HELD, report
