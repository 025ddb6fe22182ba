"""`tipoff kick`, `tipoff drain`, and what `tipoff status` says of orchestrators."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from tests.matchmaker.world import ARENA, World, failed
from tipoff.operate.admin import drain, kick, restart, until_gone
from tipoff.operate.ban_commands import app as ban_app
from tipoff.operate.status import print_status, read_status
from tipoff_orchestrator_client.base import NoCapacity, OrchestratorUnavailable
from tipoff_shared.admin import Drained, decode_drain, decode_kick, decode_reply, decode_restart
from tipoff_shared.errors import Malformed, NoServerInTime, TipoffError, Unavailable
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentState, Kick, SessionState

BUSY = OrchestratorUnavailable("503 try later", retryable=True)


async def playing(world: World, game: str = "arena") -> SessionReady:
    ready = await world.play(game)
    await world.server_of(ready).connect(ready)
    await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    return ready


async def test_a_kicked_player_loses_connection_and_seat(world: World) -> None:
    """The server is told with the reason; asked again, nothing more happens."""
    async with world.matchmaker():
        ready = await playing(world)
        done = await kick(world.bus, ready.session_id, "cheating")
        assert (done.state, done.deployment_id, done.reason) == ("active", ready.deployment_id, "cheating")
        async with asyncio.timeout(5):
            command = await world.server_of(ready).commands.get()
        assert command == Kick(ready.session_id, "cheating")
        await world.server_of(ready).disconnect(ready)
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason == "cheating"
        assert (await kick(world.bus, ready.session_id)).state == "gone"
        await world.nothing_is_left()


async def test_a_kicked_player_who_has_not_come_yet_does_not_get_in(world: World) -> None:
    """The token is out; the connection it makes is ended."""
    async with world.matchmaker():
        ready = await world.play()
        assert (await kick(world.bus, ready.session_id)).state == "ready"
        server = world.server_of(ready)
        await server.commands.get()
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await server.connect(ready)
        async with asyncio.timeout(5):
            assert isinstance(await server.commands.get(), Kick)


async def test_a_waiting_player_may_be_kicked(world: World) -> None:
    """The request ends with an error, and no seat is taken."""
    world.announce = False
    async with world.matchmaker():
        answers = await world.ask(timeout=6)
        await world.eventually(lambda: world.ran(1), "a server starts")
        await kick(world.bus, answers.session_id if answers.seen else (await _session(world)))
        await world.announce_all()
        feedback = await answers.end()
        assert not isinstance(feedback, SessionReady)


async def _session(world: World) -> str:
    (session_id,) = await world.buckets.sessions.list()
    return session_id


async def test_what_is_not_there_is_a_typed_error(world: World) -> None:
    """404 with a hint, 400 for what is no id, 503 without a matchmaker."""
    with pytest.raises(Unavailable, match="no matchmaker runs here"):
        await kick(world.bus, "nobody")
    async with world.matchmaker():
        for work in (kick(world.bus, "nobody"), drain(world.bus, "nobody")):
            with pytest.raises(TipoffError, match="tipoff status") as caught:
                await work
            assert caught.value.code == 404
        with pytest.raises(Malformed, match="session_id"):
            await kick(world.bus, "*")
        with pytest.raises(Malformed, match="reason"):
            await drain(world.bus, "arena-1", "two\nlines")


async def test_a_drained_server_ends_with_its_last_player(world: World) -> None:
    """Nobody new comes; who plays goes on, and who holds a token gets in."""
    async with world.matchmaker(msgspec.structs.replace(ARENA, empty_ttl=60)):
        first, second = await playing(world), await world.play()
        assert first.deployment_id == second.deployment_id
        server = world.server_of(first)
        states: list[tuple[str, int]] = []
        done = await drain(world.bus, server.id)
        assert (done.state, done.seats) == ("draining", 2)
        other = await world.play()
        assert other.deployment_id != server.id
        await server.connect(second)
        await world.session_becomes(second.session_id, SessionState.ACTIVE)
        assert server.commands.empty()
        waiting = asyncio.create_task(
            until_gone(
                world.bus,
                server.id,
                timeout=10,
                on_change=lambda record: states.append((record.state.value, len(record.seats))),
            )
        )
        await world.eventually(lambda: states == [("draining", 2)], "both seats are seen")
        await server.disconnect(first)
        await world.eventually(lambda: ("draining", 1) in states, "the first has left")
        await server.disconnect(second)
        await waiting
        assert server.id not in world.fake.living


async def test_an_empty_server_is_drained_at_once(world: World) -> None:
    """Also one that is kept ready: another takes its place."""
    async with world.matchmaker(msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=60)):
        (record,) = await world.servers_ready(1)
        await drain(world.bus, record.id)
        await until_gone(world.bus, record.id, timeout=5, on_change=lambda record: None)
        (other,) = await world.servers_ready(1)
        assert other.id != record.id


async def test_now_means_with_its_players(world: World) -> None:
    """Their sessions end with the operator's reason."""
    async with world.matchmaker():
        ready = await playing(world)
        done = await drain(world.bus, ready.deployment_id, "the host goes down", now=True)
        assert done.state == "stopping"
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason == "the host goes down"
        await world.nothing_is_left()


async def test_a_restarted_game_has_new_servers_at_once(world: World) -> None:
    """With the reason for those who played there; another game's servers and players are left in peace."""
    other = msgspec.structs.replace(ARENA, name="pong", empty_ttl=60)
    async with world.matchmaker(msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=60), other):
        ready, elsewhere = await playing(world), await playing(world, "pong")
        done = await restart(world.bus, "arena", reason="server.py changed")
        assert done.versions == ["1"]
        assert ready.deployment_id in done.servers
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason == "server.py changed"

        async def new() -> bool:
            now = {record.id for record in await world.deployments() if record.state is DeploymentState.READY}
            return bool(now - {*done.servers, elsewhere.deployment_id}) and now.isdisjoint(done.servers)

        await world.eventually(new, "another server of arena is ready")
        other_session = await world.session(elsewhere.session_id)
        assert other_session is not None
        assert other_session.state is SessionState.ACTIVE


async def test_a_restart_forgets_starts_that_failed(world: World) -> None:
    """Who has mended the game does not wait for the pause after its failures."""
    world.fake.fail("deploy", NoCapacity("full", retryable=True, retry_after=1000))
    async with world.matchmaker(msgspec.structs.replace(ARENA, min_ready=1)):

        async def none_left() -> bool:
            return bool(world.fake.calls) and not await world.deployments()

        await world.eventually(none_left, "the start has failed")
        await restart(world.bus, "arena", "1")
        await world.servers_ready(1)


async def test_a_game_that_does_not_exist_cannot_be_restarted(world: World) -> None:
    """404 with those that exist."""
    async with world.matchmaker():
        with pytest.raises(TipoffError, match=r"no game pong; there are: arena 1") as caught:
            await restart(world.bus, "pong")
        assert caught.value.code == 404
        with pytest.raises(Malformed, match="game"):
            await restart(world.bus, "x" * 31)


async def test_a_server_that_starts_may_be_drained(world: World) -> None:
    """It ends; those who wait for it get another one."""
    world.announce = False
    async with world.matchmaker():
        answers = await world.ask()
        await world.eventually(lambda: world.ran(1), "the first server runs")
        first = next(iter(world.servers))
        world.announce = True
        await drain(world.bus, first)
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id != first


async def test_waiting_for_a_server_that_stays_ends_in_time(world: World) -> None:
    async with world.matchmaker():
        ready = await playing(world)
        await drain(world.bus, ready.deployment_id)
        with pytest.raises(NoServerInTime, match=r"draining, 1 seat.*--now"):
            await until_gone(world.bus, ready.deployment_id, timeout=0.3, on_change=lambda record: None)


async def test_one_of_several_matchmakers_does_it(world: World) -> None:
    """And every one of them says how it finds its orchestrators."""
    async with world.matchmaker(instance="m1"), world.matchmaker(instance="m2"):
        ready = await playing(world)
        await kick(world.bus, ready.session_id)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        status = await read_status(world.bus)
        assert [(o["matchmaker"], o["name"], o["state"]) for o in status["orchestrators"]] == [
            ("m1", "fake", "closed"),
            ("m2", "fake", "closed"),
        ]


@pytest.mark.row(37)
async def test_status_and_metrics_show_an_orchestrator_that_fails(world: World) -> None:
    """What fails, why, and when it is tried again; and that it works again."""
    async with world.matchmaker(breaker_failures=3, breaker_pause=0.4) as matchmaker:
        world.fake.fail("list", BUSY, times=4)
        for _ in range(3):
            await matchmaker.parts.reconciler.once()

        async def is_open() -> Any:
            (orchestrator,) = (await read_status(world.bus))["orchestrators"]
            return orchestrator if orchestrator["state"] == "open" else None

        orchestrator = await world.eventually(is_open, "the breaker is open")
        (failing,) = orchestrator["failing"]
        assert (failing["operation"], failing["error"]) == ("list", "503 try later")
        labels = {"orchestrator": "fake", "operation": "list"}
        value = matchmaker.parts.metrics.registry.get_sample_value
        assert value("tipoff_orchestrator_breaker", labels) == 1
        assert (value("tipoff_orchestrator_errors_total", labels) or 0) >= 3
        shown = io.StringIO()
        print_status(await read_status(world.bus), Console(file=shown, width=200))
        assert "503 try later" in shown.getvalue()

        async def works() -> bool:
            return (await read_status(world.bus))["orchestrators"][0]["state"] == "closed"

        await world.eventually(works, "the breaker is closed")
        assert value("tipoff_orchestrator_breaker", labels) == 0
        shown = io.StringIO()
        print_status(await read_status(world.bus), Console(file=shown, width=200))
        assert "orchestrator fake: works" in shown.getvalue()


async def test_status_without_a_matchmaker_is_quick(world: World) -> None:
    """NATS says at once that nobody listens."""
    began = asyncio.get_running_loop().time()
    status = await read_status(world.bus)
    assert status["orchestrators"] == []
    assert asyncio.get_running_loop().time() - began < 0.9
    shown = io.StringIO()
    print_status(status, Console(file=shown, width=200))
    assert "no matchmaker answers" in shown.getvalue()


async def command(world: World, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the real command."""
    settings = world.nats_settings
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff",
        *arguments,
        "--nats",
        settings.servers[0],
        "--namespace",
        settings.namespace,
        env=os.environ | settings.to_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
async def test_the_commands(world: World) -> None:
    """What they print, for people and machines, and their exit codes."""
    async with world.matchmaker(msgspec.structs.replace(ARENA, empty_ttl=60)):
        ready = await playing(world)
        code, out, _ = await command(world, "kick", ready.session_id, "--reason", "bye")
        assert (code, out) == (
            0,
            f"session {ready.session_id} was active on {ready.deployment_id} and is ended: bye\n",
        )
        await world.server_of(ready).disconnect(ready)
        code, out, _ = await command(world, "drain", ready.deployment_id, "--now", "--wait", "--json")
        assert code == 0
        assert json.loads(out)["state"] == "gone"
        code, out, err = await command(world, "drain", ready.deployment_id)
        assert (code, out) == (1, "")
        assert err.startswith(f"tipoff: there is no server {ready.deployment_id}")


@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: msgspec.json.encode({"session_id": text}))
)
def test_any_request_is_read_or_refused(data: bytes) -> None:
    for decode in (decode_kick, decode_drain, decode_restart):
        try:
            decode(data)
        except Malformed:
            continue


@given(st.binary(max_size=200))
def test_any_reply_is_read_or_a_typed_error(data: bytes) -> None:
    try:
        decode_reply(data, Drained)
    except TipoffError:
        return


@pytest.mark.row(67)
async def test_status_says_how_often_an_address_was_kept_to_its_share(world: World) -> None:
    """One line for all matchmakers; nothing while there is nothing to tell."""
    one = msgspec.structs.replace(ARENA, seats=1, max_deployments=1)
    async with world.matchmaker(one, unclaimed_patience=0.1):
        await world.play(client_ip="203.0.113.1")
        assert "unclaimed seats" not in _shown(await read_status(world.bus))
        assert failed(await (await world.ask(client_ip="203.0.113.1")).end()).code == 429
        status = await read_status(world.bus)
        assert status["matchmakers"][0]["claim_limit"] == {"limited": 1, "refused": 1, "shortened": 0}
        assert "an address reached its share 1 times, 1 requests were refused" in _shown(status)


@pytest.mark.row(78)
async def test_status_counts_who_is_connected_now(world: World) -> None:
    """A game server tells its number with its heartbeat, so that one may be old: it is shown as such. No server shows
    a player and no seat."""
    async with world.matchmaker(msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1)):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        (shown,) = (await read_status(world.bus))["deployments"]
        assert (shown["connected"], len(shown["seats"])) == (1, 1)
        await server.disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        status = await read_status(world.bus)
        (shown,) = status["deployments"]
        assert (shown["connected"], len(shown["seats"])) == (0, 0)
        shown["players"] = 1  # as its heartbeat said a moment ago
        assert "0 (last report: 1)" in _shown(status)


def test_status_shows_who_plays_where_that_is_known() -> None:
    """A name is anybody's text: it changes nothing of the table."""
    empty: dict[str, list[dict[str, Any]]] = {
        kind: []
        for kind in ("deployments", "sessions", "connections", "orchestrators", "problems", "matchmakers")
    }

    def session(**player: str) -> dict[str, Any]:
        usual = {"id": "s1", "game": "duel", "version": "1", "state": "active", "created_at": 0.0}
        return usual | player

    assert " player " not in _shown(empty | {"sessions": [session()]})
    shown = _shown(
        empty
        | {
            "sessions": [
                session(),
                session(user_id="auth0|1", name="[red]Ann[/red]"),
                session(name="Bob"),
                session(user_id="cleo"),
            ]
        }
    )
    for text in ("[red]Ann[/red] (auth0|1)", " Bob ", " cleo "):
        assert text in shown
    over = session(deployment_id="duel-1", cause="kicked", reason="the game kicked the player: [b]no[/b]")
    shown = _shown(empty | {"ended": [over | {"ended_at": time.time() - 5}]})
    for text in ("Ended lately", "duel-1", "the game kicked the player: [b]no[/b]", "5 s"):
        assert text in shown
    session_id, server = "s" + "a" * 26, "duel-0123456789"
    long = session(id=session_id, deployment_id=server, user_id="u" * 40, name="n" * 40)
    narrow = _shown(empty | {"sessions": [long]}, width=80)
    assert session_id in narrow
    assert server in narrow


def _shown(status: dict[str, list[dict[str, Any]]], width: int = 300) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_status(status, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
@pytest.mark.row(68)
async def test_the_ban_commands(world: World) -> None:
    """What they print, for people and machines, and their exit codes."""
    async with world.matchmaker():
        banned = ("--address", "203.0.113.9/24")
        code, out, err = await command(world, "ban", "add", *banned, "--for", "7d", "--reason", "spam")
        assert (code, err) == (0, "")
        assert out.startswith("address 203.0.113.0/24 is banned until 20")
        code, out, _ = await command(world, "ban", "add", "--user", "mallory", "--json")
        assert json.loads(out) == {
            "kind": "user",
            "subject": "mallory",
            "until": 0.0,
            "reason": "",
            "existed": False,
        }
        code, out, _ = await command(world, "ban", "list", "--json")
        first, second = json.loads(out)
        assert (first["subject"], first["reason"], second["until"]) == ("203.0.113.0/24", "spam", 0.0)
        assert 6.9 * 86_400 < first["until"] - first["created_at"] <= 7 * 86_400
        code, out, _ = await command(world, "ban", "list")
        assert "203.0.113.0/24" in out
        assert "until it is removed" in out
        code, out, _ = await command(world, "ban", "remove", *banned)
        assert (code, out) == (0, "address 203.0.113.0/24 is no longer banned\n")
        code, out, _ = await command(world, "ban", "remove", *banned)
        assert code == 1
        assert "was not banned" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["add"], "one of --address, --user and --client"),
        (["add", "--user", "m", "--client", "1"], "one of --address, --user and --client"),
        (["add", "--address", "nowhere"], "an IP address or a network"),
        (["add", "--user", "m", "--for", "soon"], "like 30m or 7d"),
        (["add", "--user", "m", "--reason", "two\nlines"], "one line"),
        (["remove", "--client", "x"], "a number from 0"),
    ],
)
def test_wrong_options_of_ban_are_refused_in_a_sentence(arguments: list[str], complaint: str) -> None:
    """Before anything is connected."""
    done = CliRunner().invoke(ban_app, arguments)
    assert done.exit_code == 2
    assert complaint in " ".join(done.output.replace("│", " ").split())
