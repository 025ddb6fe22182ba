"""Bytes that nats-py cannot read, from an untrusted game server, must not end the reading of all others."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.real_servers import active
from tests.isolated.attacker import enter
from tests.isolated.world import IsolatedNats, IsolatedWorld
from tipoff_shared.records import SessionState

_ODD = {
    "a subject that is not UTF-8": (b"gs.\xff\xfe.ev", b""),
    "white space of Python's, not of NATS's": (b"gs.a\x0bb.ev", b""),
    "form feed": (b"gs.a\x0cb.ev", b""),
    "a header block of three bytes": (b"gs.odd.ev", b"abc"),
    "a status line that is not UTF-8": (b"gs.odd.ev", b"NATS/1.0 \xff\xfe\xfd\r\n\r\n"),
    "a status line like the server's": (b"gs.odd.ev", b"NATS/1.0 503\r\n\r\n"),
    "a status header": (b"gs.odd.ev", b"NATS/1.0\r\nStatus: 500\r\n\r\n"),
}


@pytest.mark.row(56)
async def test_events_that_nats_py_cannot_read_stop_nobody(
    isolated: IsolatedWorld, isolated_nats: IsolatedNats
) -> None:
    """A player comes and leaves as ever, and none of them is kept in the stream to come again."""
    world = isolated.world
    prefix = world.bus.subjects.events("x").partition("gs.")[0].encode()
    settings = isolated_nats.settings("gameserver")
    async with world.matchmaker(profile="isolated"):
        entered = await enter(isolated_nats.server.port, settings.user, settings.password.reveal())
        assert entered is not None
        reader, writer = entered
        for subject, headers in _ODD.values():
            size = b"%d %d" % (len(headers), len(headers) + 1) if headers else b"1"
            verb = b"HPUB " if headers else b"PUB "
            writer.write(verb + prefix + subject + b" " + size + b"\r\n" + headers + b"x\r\n")
        writer.write(b"PING\r\n")
        async with asyncio.timeout(5):
            while (line := await reader.readline()) != b"PONG\r\n":
                assert line == b"PING\r\n", "nats-server takes them"
        async with asyncio.timeout(8), active(world) as (ready, _):
            pass
        await world.session_becomes(ready.session_id, SessionState.GONE)

        async def empty() -> bool:
            info = await world.bus.js.stream_info(world.bus.subjects.events_stream)
            return info.state.last_seq > 0 and info.state.messages == 0

        await world.eventually(empty, "none is kept")
        writer.close()
        await writer.wait_closed()
