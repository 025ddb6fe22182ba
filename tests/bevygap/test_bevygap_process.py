"""Unmodified servers with bevygap's plugin, started by the launcher as processes: two at once on one host."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.bevygap.players import playing
from tests.bevygap.stand_in import PROTOCOL_ID
from tests.matchmaker.world import KEY, World
from tests.polling import eventually
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import DeploymentState, SessionState

STAND_IN = Path(__file__).with_name("stand_in.py")
SDK_SERVER = Path(__file__).with_name("sdk_server.py")
SPACESHIPS = Game(
    "spaceships",
    "1",
    seats=2,
    max_deployments=3,
    empty_ttl=60,
    orchestrator="fake",  # the name under which the tests' world has the launcher
    ready="context",
    primary="webtransport",
    dialect="lightyear",
    protocol_id=PROTOCOL_ID,
    bevygap=True,
    process=ProcessSpec([sys.executable, str(STAND_IN)], ports={"webtransport": "udp"}),
)


@dataclass
class Scene:
    world: World
    launcher: Launcher
    orchestrator: LauncherOrchestrator

    def log_of(self, deployment_id: str) -> str:
        directory = self.launcher.settings.state_dir / "deployments" / deployment_id
        path = directory / "server.log"  # there as soon as something was written
        return path.read_text() if path.exists() else ""


def environment_of(native_id: str) -> dict[str, str]:
    """The variables of a process, as the process back end names it."""
    environ = Path("/proc", native_id.partition("@")[0], "environ").read_bytes()
    return dict(pair.decode().split("=", 1) for pair in environ.split(b"\0") if pair)


@asynccontextmanager
async def scene(nats: EmbeddedNats, tmp_path: Path, game: Game = SPACESHIPS) -> AsyncIterator[Scene]:
    """A launcher and what matchmakers need; nothing of bevygap's is there yet but the buckets."""
    settings = nats.settings()
    first = (
        20_000 + os.getpid() * 20 % 9_000
    )  # launchers of other test processes look for ports at the same time
    launcher_settings = Settings(
        state_dir=tmp_path / "launcher",
        port_range=f"{first}-{first + 19}",
        stop_grace=1,
        stop_servers_on_exit=True,
        location="Ghent, Belgium",
    )
    games = Games({game.key: game}, {game.key: KEY}, tmp_path)
    async with (
        run_launcher(launcher_settings, games, settings) as launcher,
        connect(settings, name="test") as bus,
        World(bus, settings) as world,
    ):
        yield Scene(world, launcher, LauncherOrchestrator(bus))


async def test_two_servers_with_bevygaps_plugin_play_on_one_host(
    own_nats: EmbeddedNats, tmp_path: Path
) -> None:
    """Each player is told the digest of the server that takes the token, and the host's own address; who leaves gives
    the seat back, and digests go with their servers."""
    game = msgspec.structs.replace(SPACESHIPS, seats=1)
    async with (
        scene(own_nats, tmp_path, game) as on,
        on.world.matchmaker(game, orchestrator=on.orchestrator) as matchmaker,
    ):
        world = on.world
        first = await world.play("spaceships")
        second = await world.play("spaceships")
        assert first.deployment_id != second.deployment_id
        assert first.ip == second.ip == "127.0.0.1"
        async with playing(first) as one, playing(second) as other:
            for player, ready in ((one, first), (other, second)):
                who = (await player.ask(b"who")).decode()
                assert who == f"{ready.deployment_id} {ready.cert_digest}"
                await world.session_becomes(ready.session_id, SessionState.ACTIVE)
                assert ready.transports.webtransport is not None
                assert ready.transports.webtransport.cert_digest == ready.cert_digest
            digests = await world.buckets.cert_digests.list()
            assert len(digests) == 2
            assert "127.0.0.1" not in digests
        for ready in (first, second):
            await world.session_becomes(ready.session_id, SessionState.GONE)
        matchmaker.parts.stopper.stop(first.deployment_id, "for the test")
        await world.deployment_becomes(first.deployment_id, DeploymentState.GONE)

        async def one_digest() -> bool:
            return len(await world.buckets.cert_digests.list()) == 1

        await world.eventually(one_digest, "the digest went with its server")


async def test_a_server_may_ask_for_its_own_end(own_nats: EmbeddedNats, tmp_path: Path) -> None:
    """By ARBITRIUM_DELETE_URL: it is stopped, and its player's seat is given back."""
    async with (
        scene(own_nats, tmp_path) as on,
        on.world.matchmaker(SPACESHIPS, orchestrator=on.orchestrator),
    ):
        ready = await on.world.play("spaceships")
        async with playing(ready) as player:
            await on.world.session_becomes(ready.session_id, SessionState.ACTIVE)
            await player.ask(b"end")
            session = await on.world.session_becomes(ready.session_id, SessionState.GONE)
        assert "stopped" in session.reason
        found = await on.orchestrator.get(ready.deployment_id)
        assert found is not None
        assert found.reason == "stopped"


async def test_a_missed_context_is_made_good(own_nats: EmbeddedNats, tmp_path: Path) -> None:
    """The matchmaker that started the server died before it heard that it is ready: the next one finds the digest."""
    async with scene(own_nats, tmp_path) as on:
        world = on.world
        async with world.matchmaker(SPACESHIPS, orchestrator=on.orchestrator) as deaf:

            async def hears_nothing(data: bytes) -> None:
                pass

            deaf.parts.contexts.received = hears_nothing  # type: ignore[method-assign] # as if it had died meanwhile
            deaf.parts.contexts.look_for_digest = hears_nothing  # type: ignore[method-assign, assignment]
            answers = await world.ask("spaceships")

            async def digest_written() -> bool:
                return bool(await world.buckets.cert_digests.list())

            await world.eventually(digest_written, "the server is up")
            async with world.matchmaker(SPACESHIPS, orchestrator=on.orchestrator):
                await deaf.parts.lease.give_up()
                ready = await answers.end()
        assert getattr(ready, "cert_digest", "")


async def test_the_servers_environment_is_complete_and_short(own_nats: EmbeddedNats, tmp_path: Path) -> None:
    """All eight variables, each below Edgegap's 255 bytes; what ends in the log shows no token."""
    async with (
        scene(own_nats, tmp_path) as on,
        on.world.matchmaker(SPACESHIPS, orchestrator=on.orchestrator),
    ):
        ready = await on.world.play("spaceships")
        found = await on.orchestrator.get(ready.deployment_id)
        assert found is not None
        variables = environment_of(found.native_id)
        arbitrium = {name: value for name, value in variables.items() if name.startswith("ARBITRIUM_")}
        assert len(arbitrium) == 8
        assert all(len(value) < 255 for value in arbitrium.values()), arbitrium
        assert arbitrium["ARBITRIUM_PUBLIC_IP"] == "127.0.0.1"
        assert json.loads(arbitrium["ARBITRIUM_DEPLOYMENT_LOCATION"])["city"] == "Ghent"
        mapping = json.loads(arbitrium["ARBITRIUM_PORTS_MAPPING"])["ports"]["webtransport"]
        assert (mapping["external"], mapping["protocol"]) == (ready.port, "UDP")
        await eventually(lambda: on.log_of(ready.deployment_id) != "", "it has written something")
        assert "panicked" not in on.log_of(ready.deployment_id)


@pytest.mark.slow
async def test_a_server_with_our_sdk_understands_the_same_variables(
    own_nats: EmbeddedNats, tmp_path: Path
) -> None:
    """One image runs everywhere: without a word of ours it announces itself by its context, looks up who comes, and
    gives the seat back."""
    game = msgspec.structs.replace(
        SPACESHIPS,
        primary="udp",
        process=ProcessSpec([sys.executable, str(SDK_SERVER)], ports={"udp": "udp", "websocket": "tcp"}),
    )
    async with (
        scene(own_nats, tmp_path, game) as on,
        on.world.matchmaker(game, orchestrator=on.orchestrator),
    ):
        ready = await on.world.play("spaceships")
        async with playing(ready) as player:
            assert await player.ask(b"hello") == b"hello"
            await on.world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await on.world.session_becomes(ready.session_id, SessionState.GONE)


async def test_a_missing_mapping_ends_the_server(own_nats: EmbeddedNats, tmp_path: Path) -> None:
    """That is what the mappings are kept for; and the sessions of a server that has ended are given back."""
    async with (
        scene(own_nats, tmp_path) as on,
        on.world.matchmaker(SPACESHIPS, orchestrator=on.orchestrator),
    ):
        ready = await on.world.play("spaceships")
        await on.world.buckets.sessions_ly2eg.delete(ready.client_id)
        async with playing(ready):
            session = await on.world.session_becomes(ready.session_id, SessionState.GONE)
        assert "exited with code 1" in session.reason
        said = "not mapped to a session id"
        await eventually(lambda: said in on.log_of(ready.deployment_id), "it says why it ended")


@pytest.mark.parametrize("missing", ["ARBITRIUM_CONTEXT_TOKEN", "NATS_PASSWORD"])
async def test_the_stand_in_is_as_strict_as_the_plugin(missing: str, own_nats: EmbeddedNats) -> None:
    """It ends where the plugin would: otherwise these tests would prove nothing."""
    everything = dict.fromkeys(
        ("ARBITRIUM_REQUEST_ID", "ARBITRIUM_DELETE_URL", "ARBITRIUM_DELETE_TOKEN"), "x"
    )
    everything |= dict.fromkeys(("ARBITRIUM_DEPLOYMENT_LOCATION", "ARBITRIUM_CONTEXT_URL"), "x")
    everything |= dict.fromkeys(
        ("ARBITRIUM_CONTEXT_TOKEN", "ARBITRIUM_PUBLIC_IP", "ARBITRIUM_PORTS_MAPPING"), "x"
    )
    everything |= {
        "NATS_HOST": f"127.0.0.1:{own_nats.port}",
        "NATS_USER": "u",
        "NATS_PASSWORD": "p",
        "NATS_INSECURE": "",
    }
    del everything[missing]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(STAND_IN), env=everything, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 1
    assert missing in said.decode()
