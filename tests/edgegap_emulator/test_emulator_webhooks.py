"""Webhooks: what is posted when, once; and how they go wrong to order (row 43)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.edgegap_emulator.emulator_account import Accounts, at_once
from tipoff_edgegap_emulator import GoesWrong, Hold, Phase, Repeat, effect_runner


class Sink:
    """Takes webhooks: (path, body), in the order in which they came."""

    def __init__(self) -> None:
        self.url = ""
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = int(head.lower().split("content-length:")[1].split("\r\n")[0])
            self.taken.append((head.split()[1], json.loads(await reader.readexactly(size))))
            if self.silent:
                await reader.read()  # until the other side gives up
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
        finally:
            writer.close()

    def hooks(self) -> dict[str, dict[str, str]]:
        return {
            f"webhook_on_{event}": {"url": f"{self.url}/{event}"}
            for event in ("ready", "error", "terminated")
        }


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    made = Sink()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


async def test_ready_and_terminated_are_told_with_the_status_of_that_moment(
    account: Accounts, sink: Sink
) -> None:
    async with account() as it:
        request_id = await it.ready(**sink.hooks())
        await it.client.delete(f"/v1/stop/{request_id}")
        await it.emulator.until(lambda e: len(e.webhooks) == 2)
    told = [(path, body["request_id"], body["running"]) for path, body in sink.taken]
    assert told == [("/ready", request_id, True), ("/terminated", request_id, False)]


async def test_an_error_is_told(account: Accounts, sink: Sink) -> None:
    async with account() as it:
        it.emulator.misbehave("life", GoesWrong("no image"), times=1)
        await it.deploy(**sink.hooks())
        await it.emulator.until(lambda e: len(e.webhooks) == 1)
    path, body = sink.taken[0]
    assert (path, body["error"], body["error_detail"]) == ("/error", True, "no image")


async def test_a_session_is_told_when_it_is_linked_and_when_it_is_ready(
    account: Accounts, sink: Sink
) -> None:
    options = at_once(session_config={"kind": "Match", "sockets": 1})
    async with account(options) as it:
        session_id = (await it.session(webhook_url=f"{sink.url}/session")).json()["session_id"]
        await it.emulator.until(lambda e: len(e.webhooks) == 2)
    assert [(body["session_id"], body["status"], body["ready"]) for _, body in sink.taken][-1] == (
        session_id,
        "Ready",
        True,
    )
    assert set(sink.taken[-1][1]) >= {"linked", "kind", "user_count", "deployment_request_id", "webhook_url"}


async def test_nobody_there_is_not_tried_again(account: Accounts) -> None:
    async with account() as it:
        request_id = await it.ready(webhook_on_ready={"url": "http://127.0.0.1:9/hook"})
        await it.emulator.until(lambda e: len(e.webhooks) == 1)
        assert isinstance(it.emulator.webhooks[0].outcome, str)
        await it.client.delete(f"/v1/stop/{request_id}")
    assert len(it.emulator.webhooks) == 1


async def test_no_answer_in_time_is_given_up(
    account: Accounts, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten seconds in truth."""
    monkeypatch.setattr(effect_runner, "WEBHOOK_TIMEOUT", 0.1)
    sink.silent = True
    async with account() as it:
        await it.ready(**sink.hooks())
        await it.emulator.until(lambda e: len(e.webhooks) == 1)
        assert "Timeout" in str(it.emulator.webhooks[0].outcome)
        assert it.emulator.deployments[0].phase is Phase.READY


async def test_ten_times_to_order(account: Accounts, sink: Sink) -> None:
    async with account() as it:
        it.emulator.misbehave("webhook", Repeat(10), times=1)
        await it.ready(**sink.hooks())
        await it.emulator.until(lambda e: len(e.webhooks) == 10)
    assert len(sink.taken) == 10


async def test_never_to_order(account: Accounts, sink: Sink) -> None:
    async with account() as it:
        it.emulator.misbehave("webhook", Repeat(0), times=1)
        request_id = await it.ready(**sink.hooks())
        await it.client.delete(f"/v1/stop/{request_id}")
        await it.emulator.until(lambda e: len(e.webhooks) == 1)
    assert [path for path, _ in sink.taken] == ["/terminated"]


async def test_the_last_first_to_order(account: Accounts, sink: Sink) -> None:
    async with account() as it:
        it.emulator.misbehave("webhook", Hold(2), times=2)
        request_id = await it.ready(**sink.hooks())
        await it.client.delete(f"/v1/stop/{request_id}")
        await it.emulator.until(lambda e: len(e.webhooks) == 2)
    assert [path for path, _ in sink.taken] == ["/terminated", "/ready"]


async def test_anything_to_anybody(account: Accounts, sink: Sink) -> None:
    """Forged, or with an unknown id."""
    async with account() as it:
        delivery = await it.emulator.send_webhook(f"{sink.url}/forged", {"request_id": "nobody"})
    assert delivery.outcome == 200
    assert sink.taken == [("/forged", {"request_id": "nobody"})]
