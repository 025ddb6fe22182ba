"""Which address a player is told for each that a server may announce: its own kind, and one that can be dialled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tipoff_matchmaker.tokens import Endpoint, Tokens
from tipoff_shared.errors import OrchestratorFailed
from tipoff_shared.games import Game, Games
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress
from tipoff_shared.records import DeploymentRecord, DeploymentState

pytestmark = pytest.mark.row(83)


async def endpoint(*, udp: str = "", url: str = "", bevygap: bool = False) -> Endpoint:
    game = Game(name="arena", version="1", bevygap=bevygap)
    transports = Transports(
        udp=UdpAddress(udp, 7777) if udp else None, websocket=WebSocketAddress(url) if url else None
    )
    record = DeploymentRecord(
        "arena-1", DeploymentState.READY, "arena", "1", "launcher", 4, 0.0, transports=transports
    )
    return await Tokens(Games({game.key: game}, {}, Path())).endpoint(game, record)


@pytest.mark.parametrize("bevygap", [False, True])
async def test_ipv4_is_told_to_everybody(bevygap: bool) -> None:
    for host in ("203.0.113.5", "::ffff:203.0.113.5"):
        assert (await endpoint(udp=host, bevygap=bevygap)).ip == "203.0.113.5"


async def test_ipv6_is_told_to_clients_that_know_it() -> None:
    """By UDP, and by a WebSocket URL; a token names the same address."""
    for found in (await endpoint(udp="2001:db8::1"), await endpoint(url="ws://[2001:db8::1]:7777/")):
        assert (found.ip, found.port) == ("2001:db8::1", 7777)
        assert str(found.public[0]) == "[2001:db8::1]:7777"


async def test_a_name_with_both_is_told_as_ipv4() -> None:
    """Old clients read `ip` as IPv4."""
    assert (await endpoint(udp="localhost")).ip == "127.0.0.1"


@pytest.mark.parametrize("host", ["2001:db8::1", "::1"])
async def test_bevygaps_clients_are_refused_ipv6_with_the_reason(host: str) -> None:
    with pytest.raises(OrchestratorFailed, match="know only IPv4"):
        await endpoint(udp=host, bevygap=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
async def test_every_interface_is_no_address(host: str) -> None:
    with pytest.raises(OrchestratorFailed, match="set TIPOFF_PUBLIC_HOST"):
        await endpoint(udp=host)


@pytest.mark.parametrize(("bevygap", "kind"), [(False, "address"), (True, "IPv4 address")])
async def test_a_name_without_an_address_is_an_error_that_names_it(bevygap: bool, kind: str) -> None:
    with pytest.raises(OrchestratorFailed, match=f"name no-such-host.invalid has no {kind}: "):
        await endpoint(udp="no-such-host.invalid", bevygap=bevygap)
