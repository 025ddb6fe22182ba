"""What NATS does not permit is told as that, at once, with the subject, the user and what to do."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

import pytest

from tests.deploy.deployed_nats import DeployedNats
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import buckets, create_buckets
from tipoff_shared.nats.connection import connect
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_turn_relay.store import PAIRING_BUCKET

AT_ONCE = 2.0
"""Seconds; each of these calls would otherwise wait for five."""


async def test_a_denied_request_fails_at_once_and_says_what_to_do(roles: DeployedNats) -> None:
    async with connect(roles.settings("launcher"), name="test") as bus:
        with pytest.raises(PermissionDenied) as caught:
            async with asyncio.timeout(AT_ONCE):
                await bus.request("roles.Matchmaker.admin.KICK", b"{}", timeout=10)
    assert caught.value.subject == "roles.Matchmaker.admin.KICK"
    assert caught.value.user == "launcher"
    for words in ("'launcher' may not publish to", "NATS_USER", "tipoff secrets init"):
        assert words in str(caught.value)


async def test_players_are_told_nothing_of_subjects_and_users(roles: DeployedNats) -> None:
    """`message` goes over wires to anybody."""
    async with connect(roles.settings("launcher"), name="test") as bus:
        with pytest.raises(Unavailable) as caught:
            await bus.request("foreign.subject", b"", timeout=10)
    assert caught.value.code == 503
    assert "foreign" not in caught.value.message
    assert "launcher" not in caught.value.message


async def test_a_denied_write_to_a_bucket_fails_at_once(roles: DeployedNats) -> None:
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        await create_buckets(owner)
    async with connect(roles.settings("operator"), name="test") as bus:
        with pytest.raises(PermissionDenied, match=r"'operator' may not publish to \$KV\.roles_sessions_?"):
            async with asyncio.timeout(AT_ONCE):
                await buckets(bus).sessions.delete("s1")


async def test_others_who_wait_are_not_disturbed(roles: DeployedNats) -> None:
    """Only the question that was denied fails: one on its way to another subject gets its answer."""
    async with connect(roles.settings("matchmaker"), name="owner") as owner:
        kv = await create_buckets(owner)
        await kv.gameservers.delete("nobody")
    async with connect(roles.settings("launcher"), name="test") as bus:
        allowed, denied = await asyncio.gather(
            buckets(bus).gameservers.get("nobody"),
            buckets(bus).sessions.get("nobody"),
            return_exceptions=True,
        )
    assert allowed is None
    assert isinstance(denied, PermissionDenied)


async def test_a_denied_subscription_fails_the_flush_that_follows(roles: DeployedNats) -> None:
    """A part that serves flushes after it has subscribed: it does not start deaf."""
    async with connect(roles.settings("gameserver"), name="test") as bus:

        async def answer(_: object) -> None: ...

        await bus.serve("roles.matchmaker.Ping", answer, handlers=BoundedHandlers("test", 1))
        with pytest.raises(PermissionDenied, match=r"may not subscribe to roles\.matchmaker\.Ping"):
            await bus.flush()
        await bus.flush()


async def test_a_foreign_inbox_prefix_is_said_to_be_the_reason(roles: DeployedNats) -> None:
    """Every answer would be lost; each question is refused, also a later one."""
    settings = dataclasses.replace(roles.settings("launcher"), inbox_prefix="_INBOX_mine")
    async with connect(settings, name="test") as bus:
        for _ in range(2):
            with pytest.raises(PermissionDenied, match="NATS_INBOX_PREFIX"):
                async with asyncio.timeout(AT_ONCE):
                    await buckets(bus).gameservers.get("nobody")


async def test_a_denied_read_fails_at_once(roles: DeployedNats) -> None:
    async with connect(roles.settings("gameserver"), name="test") as bus:
        with pytest.raises(PermissionDenied, match="turn_pairing"):
            async with asyncio.timeout(AT_ONCE / 2):
                await Bucket(bus, PAIRING_BUCKET, str).get("list")


async def test_the_log_says_it_once(roles: DeployedNats, caplog: pytest.LogCaptureFixture) -> None:
    """Loops try again and again; a log that is full of one line helps nobody."""
    with caplog.at_level(logging.INFO):
        async with connect(roles.settings("gameserver"), name="test") as bus:
            for _ in range(5):
                await bus.publish("roles.matchmaker.left", b"")
            await bus.flush()
    assert [record.levelname for record in caplog.records if "may not publish" in record.message] == ["ERROR"]


async def test_a_part_with_another_role_s_user_says_so_at_its_start(roles: DeployedNats) -> None:
    """A matchmaker that was given httpd's credentials: no minutes of time-outs."""
    async with connect(roles.settings("httpd"), name="test") as bus:
        with pytest.raises(PermissionDenied, match=r"'httpd' may not publish to .*STREAM.CREATE"):
            async with asyncio.timeout(AT_ONCE):
                await create_buckets(bus)


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_certificate_that_is_not_to_be_trusted_is_said_at_once(
    tmp_path: Path, source_tree: Path, wrong: str
) -> None:
    """No authority given, or NATS under a name that its certificate does not have: what to set, without waiting."""
    server = DeployedNats(tmp_path, source_tree, "nats.conf")
    server.start()
    try:
        settings = server.settings("operator")
        async with connect(settings, name="test") as bus:
            assert bus.connected
        changed = {"authority": {"ca_file": ""}, "name": {"servers": (f"tls://127.1:{server.port}",)}}[wrong]
        with pytest.raises(Unavailable, match=r"certificate that is not trusted.*NATS_CA.*NATS_HOST"):
            async with (
                asyncio.timeout(AT_ONCE),
                connect(dataclasses.replace(settings, **changed), name="test"),
            ):
                pass
    finally:
        server.stop()
