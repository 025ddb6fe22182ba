"""deploy/compose.yaml for real: players over https, servers as containers, parts that die, nothing left at the end.

The tests run in this order on one stack, and each leaves it whole.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

import tipoff
from tests.chromium import FLAGS, chromium
from tests.docker.compose_stack import Stack, stack_in
from tests.docker_engine import docker
from tests.polling import eventually
from tipoff_client_sdk import Player

pytestmark = [
    pytest.mark.slow,
    pytest.mark.docker,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    source_tree: Path, images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """Profile local, up and ready, with the fixture's images."""
    with stack_in(source_tree, tmp_path_factory.mktemp("stack"), "test", profile="local") as stack:
        began = time.monotonic()
        await stack.up()
        print(f"up to ready: {time.monotonic() - began:.1f} s")
        yield stack


async def all_given_back(stack: Stack) -> None:
    """Wait until no session, seat or connection is left."""

    status: dict[str, Any] = {}

    async def empty() -> bool:
        nonlocal status
        status = await stack.status()
        return not status["sessions"] and not any(server["seats"] for server in status["deployments"])

    try:
        await eventually(empty, "everything given back", 60, unready=(Exception,))
    except pytest.fail.Exception:
        print(status)
        raise


async def a_tick(player: Player) -> bytes:
    return await asyncio.wait_for(player.receive(), 10)


async def plays_on(player: Player, messages: int = 30) -> None:
    """The game goes on: that many new messages arrive."""
    player.take_all()
    for _ in range(messages):
        await a_tick(player)


@pytest.mark.parametrize("transport", ["udp", "websocket"])
async def test_a_player_gets_in_by_https(stack: Stack, transport: str) -> None:
    """The Python SDK asks over wss, and plays over UDP on a published port or over wss through the proxy."""
    async with tipoff.connect(
        stack.url, game="arena", version="1", transports=[transport], ssl=stack.tls
    ) as player:
        await plays_on(player)


async def test_the_way_for_browsers_is_the_proxy(stack: Stack) -> None:
    """`SessionReady.transports` names wss://HOST/gs/ID, which a page on https may open."""
    ready = await session_ready(stack)
    url = ready["transports"]["websocket"]["url"]
    assert url == f"wss://localhost:{stack.https_port}/gs/{ready['deployment_id']}"


def docker_logs(container: str) -> str:
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


async def session_ready(stack: Stack) -> dict[str, object]:
    """Ask for a seat over HTTP, and do not claim it."""
    import httpx

    assert stack.tls is not None
    async with httpx.AsyncClient(verify=stack.tls, timeout=30) as client:
        answer = await client.post(f"{stack.url}/matchmaker/request/arena/1")
    last = json.loads(answer.text.strip().splitlines()[-1])
    return last["SessionReady"]


@pytest.mark.row(59)
async def test_every_container_is_locked_up(stack: Stack) -> None:
    """Game servers too: read-only, no capabilities (Caddy: for its ports), no new privileges, limits. Only the launcher
    has the engine's socket."""
    for container in [*stack.containers(), *stack.game_containers()]:
        found = json.loads(docker("inspect", container))[0]
        name, host = found["Name"], found["HostConfig"]
        is_caddy = "_caddy" in name or "-caddy" in name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert (host["CapAdd"] or []) == (["NET_BIND_SERVICE"] if is_caddy else []), name
        assert any("no-new-privileges" in option for option in host["SecurityOpt"]), name
        assert not host["Privileged"], name
        assert host["Memory"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert host["LogConfig"]["Config"].get("max-size"), name
        ours = found["Config"]["Image"].startswith("tipoff/")
        assert not ours or found["Config"]["User"] == "10001:10001", name
        mounted = {mount["Destination"] for mount in found["Mounts"]}
        assert any(path.endswith("docker.sock") for path in mounted) is ("launcher" in name), name


@pytest.mark.row(58, 59)
async def test_no_secret_shows_in_what_the_engine_tells(stack: Stack) -> None:
    """In no container's environment, command line (`docker inspect`) or log."""
    secrets = [
        line
        for path in stack.secrets.rglob("*")
        if path.suffix in (".password", ".key")
        for line in path.read_text().splitlines()
        if len(line) > 20 and not line.startswith("-----")  # whole passwords and keys, lines of a PEM file
    ]
    assert len(secrets) >= 6
    for container in [*stack.containers(), *stack.game_containers()]:
        told = docker("inspect", container) + docker_logs(container)
        assert not [secret[:4] for secret in secrets if secret in told]


async def test_what_is_inside_is_closed_to_the_outside(stack: Stack) -> None:
    """Requests between the parts and metrics are closed, and a player cannot choose the upstream."""
    for path in ("/internal/gs/x", "/metrics", "/gs/no-such-server", "/gs/../internal/gs/x"):
        assert (await stack.get(path))[0] == 404, path
    live = [server["id"] for server in (await stack.status())["deployments"]]
    assert live
    for id in live:  # only its WebSocket is proxied, not its pages
        assert (await stack.get(f"/gs/{id}"))[0] == 404, id
    upstream = {"X-Tipoff-Upstream": "nats:8222"}
    assert (await stack.get("/gs/no-such-server", upstream))[0] == 404


async def test_a_game_server_learns_nothing_from_nats_but_as_its_user(stack: Stack) -> None:
    """NATS's monitoring port, which needs no password, is not reachable on its network."""
    (container, *_) = stack.game_containers()
    for host, refusal in (("nats", "ConnectionRefusedError"), ("nats-monitor", "gaierror")):
        attempt = f"import socket; socket.create_connection(('{host}', 8222), 5)"
        told = docker("exec", container, "sh", "-c", f'python -c "{attempt}" 2>&1 || true')
        assert refusal in told, told


async def test_a_cold_start_takes_less_than_three_seconds(stack: Stack) -> None:
    """From the request to the connection, with no server of the version and the image present; best of three."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        async with tipoff.connect(stack.url, game="arena", version="cold", ssl=stack.tls) as player:
            took.append(time.monotonic() - began)
            await a_tick(player)
        if min(took) < 3:
            break

        async def no_server() -> bool:
            return all(server["version"] != "cold" for server in (await stack.status())["deployments"])

        await eventually(no_server, "the server without players gone", 30, unready=(Exception,))
    print(f"cold start to connected: {', '.join(f'{seconds:.2f} s' for seconds in took)}")
    assert min(took) < 3


@pytest.mark.browser
async def test_chromium_plays_on_https(stack: Stack, tmp_path: Path) -> None:
    """The page at / plays: nothing is blocked as mixed content, and ticks arrive."""
    path = chromium()
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=path,
            headless=True,
            args=[*FLAGS, "--ignore-certificate-errors"],
        )
        try:
            page = await context.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            await page.goto(stack.url + "/")
            await page.click("#play")
            await page.wait_for_selector('body[data-connected="true"]', timeout=30_000)
            tick = await page.evaluate("window.tipoff.tick")
            await page.wait_for_function(f"window.tipoff.tick > {tick} + 30", timeout=15_000)
            assert errors == []
        finally:
            await context.close()


async def test_a_killed_game_container_is_given_back(stack: Stack) -> None:
    """Its player is told, its seats are freed, its container is removed, and the next player gets in."""
    async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as player:
        await a_tick(player)
        deployment = player.deployment_id
        [victim] = stack.game_containers(deployment)
        docker("kill", victim)
        await asyncio.wait_for(player.ended(), 30)

    async def gone() -> bool:
        servers = (await stack.status())["deployments"]
        return all(server["id"] != deployment for server in servers) and not stack.game_containers(deployment)

    await eventually(gone, "the killed server gone, its container too", 40, unready=(Exception,))
    async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as player:
        await a_tick(player)
    await all_given_back(stack)


async def test_a_matchmaker_that_crashes_is_not_missed(stack: Stack) -> None:
    """Players get in meanwhile, and it restarts by itself."""

    async def play() -> None:
        async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as player:
            await a_tick(player)

    await asyncio.gather(stack.crash("matchmaker-a"), *(play() for _ in range(6)))
    await all_given_back(stack)


async def test_an_httpd_can_be_replaced_without_anybody_noticing(stack: Stack) -> None:
    """When one of the two is stopped, Caddy uses the other."""
    await stack.compose("stop", "httpd-a")
    for _ in range(10):
        status, _ = await stack.get("/readyz")
        assert status == 200
    await stack.compose("start", "httpd-a")


async def test_games_go_on_while_nats_crashes(stack: Stack) -> None:
    """Players play on; new players get in when NATS is back; everything is released."""
    async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as player:
        await a_tick(player)
        await stack.crash("nats")
        await plays_on(player)
        await eventually(stack.ready, "a stack that is ready again", 60, unready=(Exception,))
        await plays_on(player)
        async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as other:
            await a_tick(other)
    await all_given_back(stack)


async def test_games_go_on_while_the_launcher_is_replaced(stack: Stack) -> None:
    """As in an upgrade: `kill launcher`, `up -d launcher`. The next launcher adopts the servers."""
    async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as player:
        await a_tick(player)
        before = stack.game_containers(player.deployment_id)
        await stack.compose("kill", "launcher")
        await stack.compose("up", "-d", "--no-deps", "--force-recreate", "launcher")
        await eventually(stack.ready, "a stack that is ready again", 60, unready=(Exception,))
        await plays_on(player)
        assert before == stack.game_containers(player.deployment_id)
    await all_given_back(stack)


async def test_down_leaves_nothing(stack: Stack) -> None:
    """No containers (game servers included), no networks, no volumes."""
    assert len(stack.game_containers()) > 0
    await stack.down()
    assert stack.leftovers() == []


async def test_profile_dev_plays_without_tls(
    source_tree: Path, images: Mapping[str, str], tmp_path: Path
) -> None:
    """One of each part, over http and ws, with the demo button; `down` leaves nothing here either."""
    with stack_in(source_tree, tmp_path, "test", profile="dev") as stack:
        await stack.up()
        assert (await stack.get("/"))[0] == 200
        for transport in ("udp", "websocket"):
            async with tipoff.connect(stack.url, game="arena", version="1", transports=[transport]) as player:
                await plays_on(player)
        await stack.down()
        assert stack.leftovers() == []
