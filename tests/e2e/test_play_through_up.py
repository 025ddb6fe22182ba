"""As a new user: `tipoff up`, `tipoff play`, `tipoff status`; and that all that was taken is given back."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.steps import all_given_back, command_lines, tipoff, tipoff_json
from tests.polling import eventually
from tipoff.testing import RunningUp
from tipoff_client_sdk import connect
from tipoff_shared.errors import UnknownGame
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import connect as connect_nats

# The system is shared by the tests of this file, and so is its event loop.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


async def test_a_player_plays_and_everything_is_given_back(up: RunningUp) -> None:
    """Connected, rising ticks, exit code 0; within 3 s afterwards neither session nor seat."""
    report = await tipoff_json("play", "--url", up.url, "--seconds", "1", "--json")
    assert report["connected"] is True
    first, last = report["ticks"]
    assert last > first

    def empty(status: Any) -> bool:
        return not status["sessions"] and not any(d["seats"] for d in status["deployments"])

    async def all_is_given_back() -> bool:
        return empty(await up.status())

    await eventually(all_is_given_back, "no session and no seat", 3)
    assert empty(await tipoff_json("status", "--state-dir", str(up.state_dir), "--json"))


async def test_the_request_and_the_connection_are_seen_on_nats(up: RunningUp) -> None:
    """The request travels on bevygap's subject; the session's key comes to active_connections and goes."""
    async with connect_nats(up.nats_settings, name="test") as bus:
        requests: asyncio.Queue[str] = asyncio.Queue()

        async def seen(msg: object) -> None:
            requests.put_nowait(msg.subject)  # type: ignore[attr-defined] # a nats Msg

        await bus.nc.subscribe("matchmaker.request.>", cb=seen)
        await bus.flush()
        connections = buckets(bus).active_connections
        async with connect(up.url, game="arena", version="1") as player:
            async with asyncio.timeout(5):
                assert await requests.get() == "matchmaker.request.arena.1"

            async def there() -> bool:
                return await connections.get(player.session_id) is not None

            await eventually(there, "the session in active_connections", 10)

        async def gone() -> bool:
            return await connections.get(player.session_id) is None

        await eventually(gone, "the session out of active_connections", 10)


async def test_games_and_versions_have_servers_of_their_own(up: RunningUp) -> None:
    """Two games and two versions side by side never see each other; what is not there is said."""
    async with (
        connect(up.url, game="arena", version="1") as one,
        connect(up.url, game="arena", version="v0.0.2") as two,
        connect(up.url, game="other game", version="1") as three,
    ):
        assert len({one.deployment_id, two.deployment_id, three.deployment_id}) == 3
        status = await up.status()
        assert {(d["id"], d["game"], d["version"]) for d in status["deployments"] if d["seats"]} == {
            (one.deployment_id, "arena", "1"),
            (two.deployment_id, "arena", "v0.0.2"),
            (three.deployment_id, "other game", "1"),
        }
    with pytest.raises(UnknownGame):
        async with connect(up.url, game="arena", version="3"):
            pass


async def test_a_killed_server_gives_its_seats_back(up: RunningUp) -> None:
    """kill -9 of a game server: its seats are free at once, and the player is served on another."""
    async with connect_nats(up.nats_settings, name="test") as bus:
        kv = buckets(bus)
        async with connect(up.url, game="arena", version="1") as player:
            lease = await kv.gameservers.get(player.deployment_id)
            assert lease is not None
            os.kill(lease.value.pid, signal.SIGKILL)
            await eventually(lambda: all_given_back(up), "no seat, no session", 10)
        async with connect(up.url, game="arena", version="1") as again:
            assert again.deployment_id != player.deployment_id


@pytest.mark.slow
async def test_forty_bots_share_servers_and_the_fleet_shrinks(up: RunningUp) -> None:
    """40 players on servers of 8 seats; afterwards the fleet is `min_ready` again."""
    report = await tipoff_json("play", "--url", up.url, "--bots", "40", "--seconds", "4", "--json")
    assert report["bots_connected"] == 40
    assert 5 <= len(report["deployments"]) <= 8

    async def shrunk() -> bool:
        status = await up.status()
        states = [d["state"] for d in status["deployments"] if d["version"] == "1"]
        return not status["sessions"] and states == ["ready"]

    await eventually(shrunk, "one ready server left", 20)


@pytest.mark.row(58)
async def test_no_secret_is_in_a_log_or_on_a_command_line(up: RunningUp) -> None:
    """The private keys, the NATS password, a token: searched for where others could read them."""
    import base64

    async with connect(up.url, game="arena", version="1") as player:
        async with connect_nats(up.nats_settings, name="test") as bus:
            token = await buckets(bus).connect_tokens.get(player.session_id)
        secrets = [path.read_text() for path in (up.state_dir / "keys").glob("*.key")]
        secrets.append(up.nats_settings.password.reveal())
        if token is not None:
            secrets += [token.value, base64.b64decode(token.value).hex()[:64]]
        assert len(secrets) >= 4
        where = {path: path.read_text(errors="replace") for path in up.state_dir.rglob("*.log")}
        where |= {Path(f"/proc/{pid}/cmdline"): line for pid, line in command_lines().items()}
        where[Path("output")] = "\n".join(up.output)
    leaks = [
        f"secret {n} in {path}" for path, text in where.items() for n, s in enumerate(secrets) if s in text
    ]
    assert leaks == []


async def test_status_and_watch_speak_json(up: RunningUp) -> None:
    """`tipoff watch --json` tells a session's life; `tipoff status --json` has its lists."""
    import json
    import sys

    watcher = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tipoff", "watch", "--json", "--state-dir", str(up.state_dir),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert watcher.stdout is not None

        async def seen(state: str, session_id: str) -> None:
            while True:
                item = json.loads(await watcher.stdout.readline())  # type: ignore[union-attr] # it is a pipe
                if (item["bucket"], item["key"]) == ("sessions", session_id) and item["value"][
                    "state"
                ] == state:
                    return

        async with asyncio.timeout(20):
            await watcher.stdout.readline()  # the first line: it watches
            async with connect(up.url, game="arena", version="1") as player:
                await seen("active", player.session_id)
            await seen("gone", player.session_id)
    finally:
        watcher.terminate()
        await watcher.communicate()
    assert set(await up.status()) == {
        "deployments",
        "sessions",
        "ended",
        "connections",
        "orchestrators",
        "problems",
        "matchmakers",
    }


async def test_play_says_why_it_failed(up: RunningUp) -> None:
    """An unknown game ends with exit code 1 and the reason."""
    code, out = await tipoff("play", "--url", up.url, "--game", "nothing", "--seconds", "1", "--json")
    assert code == 1
    assert '"code": 404' in out
    assert "unknown game or version: nothing 1 is not here, but arena 1" in out
