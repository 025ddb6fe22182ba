"""Game servers behind a reverse proxy: what players are told, and where the proxy may be sent."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from pydantic import ValidationError

from tests.matchmaker.world import WithPorts, World
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.readiness import from_lease
from tipoff_matchmaker.reconciler import actions, rules
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import transports_told
from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_shared.messages import SessionReady, Transports, UdpAddress, WebSocketAddress
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease, LeaseState

BASE = "wss://play.example.org/gs/"
BOTH = Transports(udp=UdpAddress("127.0.0.1", 7777), websocket=WebSocketAddress("ws://127.0.0.1:7778/"))
GRACE = rules.Grace(lease=10, orphan=30, slack=1)


def record(**changes: object) -> DeploymentRecord:
    plain = DeploymentRecord(
        "d1", DeploymentState.READY, "arena", "1", "fake", 4, created_at=0.0, boot_id="b1", transports=BOTH
    )
    return msgspec.structs.replace(plain, **changes)


def running(proxy: str) -> Deployment:
    return Deployment("d1", "arena", "1", RunState.RUNNING, proxy=proxy)


class Proxied(WithPorts):
    """An orchestrator like the launcher: it says where a reverse proxy reaches its servers."""

    def _told(self, deployment: Deployment) -> Deployment:
        return dataclasses.replace(deployment, proxy="127.0.0.1")


def test_players_are_told_the_proxys_url_beside_the_direct_address() -> None:
    """WebSocket by the proxy, UDP as it is."""
    told = transports_told(BASE, record(proxy="tipoff-d1:7778"))
    assert told.websocket == WebSocketAddress("wss://play.example.org/gs/d1")
    assert told.udp == BOTH.udp


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("", {"proxy": "tipoff-d1:7778"}),
        (BASE, {"proxy": ""}),
        (BASE, {"proxy": "tipoff-d1", "transports": Transports(udp=BOTH.udp)}),
    ],
)
def test_without_proxy_or_listener_the_server_is_told_as_it_is(base: str, changes: dict[str, object]) -> None:
    """No proxy configured; a server elsewhere, which none of ours reaches; no WebSocket listener."""
    there = record(**changes)
    assert transports_told(base, there) is there.transports


def test_a_server_has_no_say_in_where_the_proxy_goes() -> None:
    """Whatever its lease announces, the host is its orchestrator's."""
    lease = GameserverLease(
        "d1",
        "b1",
        "arena",
        "1",
        LeaseState.READY,
        Transports(websocket=WebSocketAddress("ws://169.254.169.254:80/")),
        4,
        internal=["169.254.169.254:80"],
        websocket_port=4222,
    )
    after = state_machine.ready(record(proxy="tipoff-d1:7778"), from_lease(lease), 1.0)
    assert after.proxy == "tipoff-d1:7778"
    assert after.websocket_port == 4222  # used for a proxy without a port alone: then in its own container


def test_the_reconciler_notes_what_a_dead_matchmaker_did_not() -> None:
    """The listing says where a server is reached, its record does not."""

    def judged(there: DeploymentRecord, deployment: Deployment) -> list[actions.RecordPlace]:
        snapshot = rules.Snapshot(
            now=1.0,
            settled=True,
            games={},
            before={"d1": there},
            after={"d1": there},
            leases={},
            listed={"fake": {"d1": deployment}},
            fleets={},
        )
        found = rules.judge(snapshot, GRACE, rules.Memory(), lambda _: False)
        return [action for action in found if isinstance(action, actions.RecordPlace)]

    assert judged(record(), running("tipoff-d1")) == [actions.RecordPlace(running("tipoff-d1"))]
    assert judged(record(proxy="tipoff-d1"), running("tipoff-d1")) == []
    assert judged(record(state=DeploymentState.GONE), running("tipoff-d1")) == []


def test_noting_the_same_twice_changes_nothing() -> None:
    """The very same record."""
    noted = state_machine.placed(record(), running("tipoff-d1"))
    assert noted.proxy == "tipoff-d1"
    assert state_machine.placed(noted, running("tipoff-d1")) is noted


@pytest.mark.parametrize(
    "url", ["https://x/gs/", "wss://x/gs", "wss://x", "wss://x/gs/?a", "wss:///gs/", "wss://a b/"]
)
def test_a_proxy_url_is_a_websocket_url_with_a_slash_at_its_end(url: str) -> None:
    """Anything else is refused at the start."""
    with pytest.raises(ValidationError):
        Settings(gs_proxy_url=url)


async def test_a_player_is_told_and_the_record_says_where_the_proxy_goes(world: World) -> None:
    """From the request to the message, on real NATS."""
    world.transports = BOTH
    async with world.matchmaker(orchestrator=Proxied(world.fake, {}), gs_proxy_url=BASE):
        ready = await (await world.ask()).end()
        assert isinstance(ready, SessionReady)
        assert ready.transports.websocket == WebSocketAddress(f"{BASE}{ready.deployment_id}")
        [there] = await world.deployments()
        assert there.proxy == "127.0.0.1"
