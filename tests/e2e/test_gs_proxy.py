"""Players on https: WebSockets to game servers by way of a real Caddy and a real nginx (`/gs/{deployment_id}`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import tipoff
from tests.e2e.reverse_proxies import PROGRAMS, Door, door, program
from tests.e2e.steps import free_port, pids_of
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff_shared.messages import MAX_MESSAGE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

UNKNOWN = {"caddy": 404, "nginx": 403}
"""nginx's auth_request knows no refusal but 401 and 403."""


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(
    tmp_path_factory: pytest.TempPathFactory, games_file: Path, port: int
) -> AsyncIterator[RunningUp]:
    """A system whose players are told the proxy's URL."""
    environ = {"TIPOFF_MATCHMAKER_GS_PROXY_URL": f"wss://localhost:{port}/gs/"}
    async with running_up(tmp_path_factory.mktemp("state"), games=games_file, environ=environ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PROGRAMS)
async def front(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    source_tree: Path,
    proxied: RunningUp,
    port: int,
) -> AsyncIterator[Door]:
    """Each proxy in turn, on the port that players are told."""
    if program(request.param) is None:
        pytest.skip(f"{request.param} is not installed here (Debian has it: apt-get install {request.param})")
    httpd_port = int(proxied.url.rsplit(":", 1)[1])
    directory = tmp_path_factory.mktemp("proxies") / request.param
    async with door(request.param, directory, source_tree / "deploy", port, httpd_port) as standing:
        yield standing


def playing(front: Door):  # type: ignore[no-untyped-def] # a context manager of the client SDK's own
    return tipoff.connect(
        front.url, game="arena", version="1", transports=("websocket",), ssl=front.tls, timeout=20
    )


async def status_of(front: Door, url: str, **headers: str) -> int:
    """What a WebSocket to `url` is answered: 101 when it opens."""
    try:
        async with connect(url, ssl=front.tls, additional_headers=headers):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def test_a_player_plays_through_the_proxy(front: Door) -> None:
    """The URL that the matchmaker tells leads to the player's own server, over TLS."""
    async with playing(front) as player:
        assert player.server.startswith(f"{front.ws_url}/gs/arena-")
        async with asyncio.timeout(10):
            assert await anext(aiter(player))


async def test_nobody_but_a_live_server_of_ours_is_reached(front: Door) -> None:
    """Unknown ids, ids that are none, httpd's inner paths."""
    for path in ("arena-0000000000", "a"):
        assert await status_of(front, f"{front.ws_url}/gs/{path}") == UNKNOWN[front.name]
    for path in ("/gs/", "/gs/a/b", "/gs/A"):
        assert await status_of(front, front.ws_url + path) == 404


async def test_what_is_between_the_parts_is_not_for_players(front: Door) -> None:
    """httpd's inner paths and figures, however they are written."""
    async with playing(front) as player:
        server = player.server.rpartition("/")[2]
    async with httpx.AsyncClient(verify=front.tls, trust_env=False) as client:
        for path in ("/internal/gs/", "//internal/gs/", "/%69nternal/gs/", "/x/../internal/gs/"):
            answer = await client.get(httpx.URL(front.url, raw_path=f"{path}{server}".encode()))
            assert answer.status_code == 404
            assert "x-tipoff-upstream" not in answer.headers
        assert (await client.get(f"{front.url}/metrics")).status_code == 404


async def test_a_players_own_header_leads_nowhere(front: Door, proxied: RunningUp) -> None:
    """X-Tipoff-Upstream of a player is thrown away: an unknown server stays unknown, a live one is itself."""
    elsewhere = proxied.url.removeprefix("http://")
    headers = {"X-Tipoff-Upstream": elsewhere, "x-tipoff-upstream": elsewhere}
    unknown = f"{front.ws_url}/gs/arena-0000000000"
    assert await status_of(front, unknown, **headers) == UNKNOWN[front.name]
    async with (
        playing(front) as player,
        connect(player.server, ssl=front.tls, additional_headers=headers) as other,
    ):
        await other.send(b"no token")
        assert json.loads(await other.recv())["Refused"][0] == 403  # a game server's answer, not httpd's


async def test_an_ended_server_is_not_reached(front: Door, proxied: RunningUp) -> None:
    """Its process is gone: nobody answers for it."""
    async with playing(front) as player:
        url = player.server
        [server] = [one for one in (await proxied.status())["deployments"] if url.endswith(one["id"])]
    for pid in pids_of(proxied.state_dir, "tipoff_arena.server"):
        if f"TIPOFF_DEPLOYMENT_ID={server['id']}".encode() in _environ(pid):
            os.kill(pid, signal.SIGKILL)

    async def unknown() -> bool:
        code = await status_of(front, url)
        assert code == UNKNOWN[front.name] or code >= 500  # httpd has not heard of it yet
        return code == UNKNOWN[front.name]

    await eventually(unknown, "the ended server is unknown", 10)


async def test_httpd_may_die_while_players_play(front: Door, proxied: RunningUp) -> None:
    """The game's bytes do not pass through it; new players come when it is back."""
    async with playing(front) as player:
        messages = aiter(player)
        await anext(messages)
        [httpd] = pids_of(proxied.state_dir, "tipoff.up.httpd")
        os.kill(httpd, signal.SIGKILL)
        async with asyncio.timeout(10):
            for _ in range(30):
                message = await anext(messages)
                assert 0 < len(message) <= MAX_MESSAGE

    async def plays() -> bool:
        async with playing(front):
            return True

    await eventually(plays, "a new player plays", 20, unready=(tipoff.TipoffError,))


def _environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.row(70)
async def test_requests_some_seconds_apart_are_answered(front: Door) -> None:
    """The proxy asks again on a connection that it kept; httpd does not close it at that moment."""

    async def pair(number: int) -> list[int]:
        codes = []
        for pause in (4.98 + number / 250, 0.0):
            answer = await client.post("/v1/turn/unregister", json={"key": "1"})
            codes.append(answer.status_code)
            await asyncio.sleep(pause)  # the moment at which many servers close an idle connection
        return codes

    async with httpx.AsyncClient(base_url=front.url, verify=front.tls, trust_env=False) as client:
        codes = await asyncio.gather(*(pair(number) for number in range(10)))
    assert codes == [[404, 404]] * 10
