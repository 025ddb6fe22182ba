"""Two matchmakers that know different things: what one has written, the other may not have heard of yet."""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World, failed
from tipoff_shared import admin, names
from tipoff_shared.messages import ProgressReport, SessionReady, Transports
from tipoff_shared.records import DeploymentState, SessionState

SMALL = msgspec.structs.replace(ARENA, seats=1, max_deployments=1)


@pytest.mark.row(36)
async def test_who_is_asked_again_looks_before_it_calls_a_server_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its knowledge of the server is older than the session's record: the server had not even arrived then."""
    request_id = names.new_request_id()
    async with world.matchmaker():
        first = await (await world.ask(request_id=request_id)).end()
        assert isinstance(first, SessionReady)
    async with world.matchmaker() as late:
        known = late.parts.deployments.entries[first.deployment_id].value
        older = msgspec.structs.replace(
            known, state=DeploymentState.STARTING, boot_id="", transports=Transports(), internal=[]
        )
        monkeypatch.setattr(late.parts.deployments, "get", lambda deployment_id: older)
        again = await (await world.ask(request_id=request_id, again=True)).end()
        assert isinstance(again, SessionReady)
        assert again.client_id == first.client_id


async def test_a_player_who_is_kicked_while_waiting_hears_of_it_at_once(world: World) -> None:
    """Whichever matchmaker the operator's request reaches, and whichever sees the player's request through."""
    async with world.matchmaker(SMALL):
        playing = await world.play()
        await world.server_of(playing).connect(playing)
        waiting = await world.ask()
        await waiting.until(ProgressReport)
        async with world.matchmaker(SMALL):
            subject = world.bus.subjects.admin("kick")
            reason = admin.encode(admin.KickSession(waiting.session_id, "be nice"))
            began = time.monotonic()
            kicked = admin.decode_reply(
                (await world.bus.request(subject, reason, timeout=2)).data, admin.Kicked
            )
            assert kicked.state == SessionState.REQUESTED
            refusal = failed(await waiting.end())
            assert time.monotonic() - began < 2  # the request itself had ten seconds
        assert refusal.code == 409
        assert "be nice" in refusal.message
        await world.eventually(lambda: world.seats_are([playing.session_id]), "one seat")
