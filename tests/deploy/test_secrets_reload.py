"""What `tipoff secrets rotate` says is to be done, done to a running nats-server: a reload, no restart."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.deployed_nats import DeployedNats
from tests.polling import eventually
from tipoff.secrets.directory import SecretsDirectory
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.settings import NatsSettings


@pytest.fixture
def server(tmp_path: Path, source_tree: Path) -> Iterator[DeployedNats]:
    server = DeployedNats(tmp_path, source_tree, "nats.conf")
    server.start()
    yield server
    server.stop()


async def _certificate_names(settings: NatsSettings) -> set[str]:
    """The names in the certificate that nats-server shows, before it asks for a password."""
    server, tls = urlsplit(settings.servers[0]), settings.tls_context()
    assert tls is not None
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(server.hostname, server.port)
        try:
            assert (await reader.readline()).startswith(b"INFO ")
            await writer.start_tls(tls, server_hostname=server.hostname)
            return {value for _, value in writer.get_extra_info("peercert")["subjectAltName"]}
        finally:
            writer.transport.abort()  # a closing handshake would fail on what nats-server sends at the same time


async def _lost(bus: Bus) -> None:
    gone = asyncio.Event()
    bus.on_disconnect(gone.set)
    async with asyncio.timeout(15):
        if bus.connected:
            await gone.wait()


async def test_a_new_password_holds_after_a_reload_and_others_stay_connected(server: DeployedNats) -> None:
    old = server.settings("httpd")
    async with connect(server.settings("admin"), name="admin") as other, connect(old, name="httpd") as httpd:
        since = other.connected_since
        SecretsDirectory(server.secrets).rotate("httpd")
        server.reload()
        await _lost(httpd)
        await other.flush()
        assert other.connected_since == since
    with pytest.raises(Unavailable, match="refuses the user or password"):
        async with connect(old, name="old"):
            pass
    async with connect(server.settings("httpd"), name="new") as bus:
        assert bus.connected


async def test_a_renewed_certificate_is_shown_after_a_reload(server: DeployedNats) -> None:
    """Who is connected stays; whoever connects sees the new names."""
    async with connect(server.settings("operator"), name="stays") as bus:
        since = bus.connected_since
        assert "new.example.org" not in await _certificate_names(server.settings("operator"))
        SecretsDirectory(server.secrets).rotate("nats-tls", ["new.example.org"])
        server.reload()

        async def renewed() -> bool:
            return "new.example.org" in await _certificate_names(server.settings("operator"))

        await eventually(renewed, "the new names", 15)  # nats-server says nowhere that it has reloaded
        async with connect(server.settings("operator"), name="comes"):
            pass
        assert bus.connected_since == since


async def test_a_foreign_inbox_is_still_the_reason_after_a_reconnect(server: DeployedNats) -> None:
    """The subscriptions are made again before anybody hears of the new connection, and denied again."""
    settings = dataclasses.replace(server.settings("launcher"), inbox_prefix="_INBOX_mine")
    async with connect(settings, name="test") as bus:
        for _ in range(2):
            with pytest.raises(PermissionDenied, match="NATS_INBOX_PREFIX"):
                async with asyncio.timeout(2):
                    await buckets(bus).gameservers.get("nobody")
            back = asyncio.Event()
            bus.on_reconnect(back.set)
            server.kill()
            await _lost(bus)
            server.start()
            async with asyncio.timeout(10):
                await back.wait()
