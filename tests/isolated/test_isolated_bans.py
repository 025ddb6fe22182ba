"""Bans in the isolated profile: servers that are not trusted hear of users, and of nobody's address."""

from __future__ import annotations

import time

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.faults.real_servers import active
from tests.isolated.world import IsolatedWorld
from tests.matchmaker.world import ARENA
from tipoff.operate.admin import ban
from tipoff_shared.ban_list import new_ban
from tipoff_shared.netcode.events import ClientState
from tipoff_shared.records import Bans, Command, SessionState, decode_command

LASTING = msgspec.structs.replace(ARENA, empty_ttl=60)


@pytest.mark.row(68)
async def test_servers_that_are_not_trusted_hear_of_no_address(isolated: IsolatedWorld) -> None:
    """A player of a banned address is kicked there by its session; a user by the server."""
    world = isolated.world
    async with world.matchmaker(LASTING, profile="isolated"):
        async with active(world) as (ready, player):
            heard: list[Command] = []

            async def command(msg: Msg) -> None:
                heard.append(decode_command(msg.data))

            subject = world.bus.subjects.commands(ready.deployment_id)
            await world.bus.subscribe(subject, command)
            await ban(world.bus, new_ban("address", "203.0.113.0/24", until=time.time() + 60))
            session = await world.session_becomes(ready.session_id, SessionState.GONE)
            assert session.reason.startswith("you are banned until")
            await player.reaches(ClientState.DISCONNECTED)
            await ban(world.bus, new_ban("user", "mallory"))
            await world.eventually(lambda: _told(heard, "mallory"), "the server hears of the user")
        assert not any(isinstance(c, Bans) and any(one.kind == "address" for one in c.bans) for c in heard)


async def _told(heard: list[Command], subject: str) -> bool:
    return any(isinstance(c, Bans) and any(one.subject == subject for one in c.bans) for c in heard)
