"""The page in a real Chromium, against a real arena server and a live feed that the test writes itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from playwright.async_api import Browser, Page, Route, async_playwright
from websockets.asyncio.client import connect as open_websocket

import tipoff_matchmaker_httpd
from tests.chromium import FLAGS, chromium
from tests.polling import eventually
from tipoff_arena import wire
from tipoff_arena.arena_map import standard_arena
from tipoff_arena.game import ArenaGame
from tipoff_gameserver import GameServer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

WEB = Path(tipoff_matchmaker_httpd.__file__).parent / "web"


class PageServer:
    """Serves the page and plays httpd: `/matchmaker/ws` hands on to `upstream`, the feed says what it is told."""

    def __init__(self) -> None:
        self.upstream = ""
        self.error: list[Any] | None = None
        """`[code, message]` to answer requests with, in place of a seat."""
        self.demo = True
        self.deployments: list[dict[str, Any]] = []
        self.killed: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.listeners: set[asyncio.Queue[bytes | None]] = set()
        self.url = ""

    def tell(self, event: str, data: object) -> None:
        for queue in self.listeners:
            queue.put_nowait(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())

    def drop_listeners(self) -> None:
        for queue in self.listeners:
            queue.put_nowait(None)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        async def page() -> Response:
            return FileResponse(WEB / "index.html")

        @app.get("/demo/events")
        async def events() -> Response:
            if not self.demo:
                return JSONResponse({}, status_code=404)

            async def feed() -> AsyncIterator[bytes]:
                queue: asyncio.Queue[bytes | None] = asyncio.Queue(100)
                self.listeners.add(queue)
                try:
                    snapshot = {"deployments": self.deployments, "sessions": []}
                    yield f"event: snapshot\ndata: {json.dumps(snapshot)}\n\n".encode()
                    while (event := await queue.get()) is not None:
                        yield event
                finally:
                    self.listeners.discard(queue)

            return StreamingResponse(feed(), media_type="text/event-stream")

        @app.post("/demo/kill/{deployment_id}")
        async def kill(deployment_id: str) -> Response:
            self.killed.append(deployment_id)
            return JSONResponse({}, status_code=202)

        @app.websocket("/matchmaker/ws")
        async def matchmaker(socket: WebSocket) -> None:
            await socket.accept()
            request = await socket.receive_text()
            self.requests.append(json.loads(request))
            if self.error is not None:
                await socket.send_json({"Error": self.error})
            else:
                async with open_websocket(self.upstream) as upstream:
                    await upstream.send(request)
                    async for message in upstream:
                        await socket.send_text(str(message))
            await socket.close()

        app.mount("/web", StaticFiles(directory=WEB))
        return app


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[PageServer]:
    page_server = PageServer()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            page_server.app(), log_level="warning", ws="websockets-sansio", lifespan="off"
        )
        uvicorn_server = uvicorn.Server(config)
        page_server.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        serving = asyncio.create_task(uvicorn_server.serve(sockets=[listening]))
        try:
            yield page_server
        finally:
            page_server.drop_listeners()
            uvicorn_server.should_exit = uvicorn_server.force_exit = True
            await serving


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium, headless; one for all tests here."""
    path = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A new page; an uncaught error in it fails the test."""
    errors: list[str] = []
    page = await browser.new_page(viewport={"width": 1280, "height": 800})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(10_000)
    yield page
    await page.close()
    assert errors == []


@asynccontextmanager
async def arena(server: PageServer, listen: str = "127.0.0.1:0") -> AsyncIterator[GameServer]:
    async with GameServer(ArenaGame(bots=3), stand_alone=True, listen=listen) as game:
        server.upstream = game.url
        yield game


def deployment(name: str, state: str = "ready", seats: list[str] | None = None) -> dict[str, Any]:
    seat_map = dict.fromkeys(seats or [], 0.0)
    return {"id": name, "state": state, "game": "arena", "version": "1", "capacity": 4, "seats": seat_map}


async def play(page: Page, server: PageServer) -> None:
    await page.goto(server.url)
    await page.click("#play")
    await page.wait_for_selector('body[data-connected="true"]')


async def test_the_page_reads_and_writes_the_same_bytes_as_the_server(page: Page, server: PageServer) -> None:
    """`wire.js` against `wire.py`, message by message."""
    squares = [wire.Square(7, 1.5, 26.25, 65535, wire.BOT), wire.Square(60000, 63.5, 0.0, 1, 0)]
    snapshot = wire.encode_snapshot(2**32 - 1, squares)
    welcome = wire.encode_welcome(513, standard_arena(), 30.0)
    await page.goto(server.url)
    seen = await page.evaluate(
        """async ([snapshot, welcome]) => {
            const wire = await import("/web/wire.js");
            const read = (bytes) => wire.parse(new Uint8Array(bytes).buffer);
            const failures = [];
            for (let length = 0; length < snapshot.length; length++) {
                try { read(snapshot.slice(0, length)); failures.push(length); }
                catch (error) { if (!(error instanceof wire.WireError)) failures.push(String(error)); }
            }
            const shot = read(snapshot), hello = read(welcome);
            return {
                tick: shot.tick, squares: [...shot.squares], number: hello.number, walls: hello.walls.length,
                size: [hello.width, hello.height, hello.size], rate: hello.tickRate, speed: hello.speed, failures,
                input: [...new Uint8Array(wire.encodeInput(4294967295, 9))], hello: [...wire.encodeHello()],
            };
        }""",
        [list(snapshot), list(welcome)],
    )
    assert seen == {
        "tick": 2**32 - 1,
        "squares": [
            [7, {"x": 1.5, "y": 26.25, "lastInput": 65535, "bot": True}],
            [60000, {"x": 63.5, "y": 0, "lastInput": 1, "bot": False}],
        ],
        "number": 513,
        "walls": len(standard_arena().walls),
        "size": [48, 27, 1],
        "rate": 30,
        "speed": 9,
        "failures": [],
        "input": list(wire.encode_input(4294967295, 9)),
        "hello": list(wire.encode_hello()),
    }


async def test_keys_move_the_square_until_the_wall(page: Page, server: PageServer) -> None:
    """Pressed in the page, decided by the server, seen in the page."""
    async with arena(server):
        await play(page, server)
        await page.wait_for_function("window.tipoff.me && window.tipoff.me.x === 15")
        await page.keyboard.down("a")
        await page.wait_for_function("window.tipoff.me.x === 7.5")
        await page.keyboard.up("a")
        assert await page.evaluate("window.tipoff.latency") < 500


async def test_a_dragged_finger_moves_the_square_too(page: Page, server: PageServer) -> None:
    async with arena(server):
        await play(page, server)
        await page.wait_for_function("window.tipoff.me && window.tipoff.me.x === 15")
        box = await page.locator("#canvas").bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + 300, box["y"] + 300)
        await page.mouse.down()
        await page.mouse.move(box["x"] + 200, box["y"] + 300)
        await page.wait_for_function("window.tipoff.me.x < 12")
        await page.mouse.up()


async def test_a_vanished_server_leads_to_a_new_game(page: Page, server: PageServer) -> None:
    """Killed by the button: a new request with a new id, and back in."""
    async with arena(server) as first:
        await play(page, server)
        session = await page.evaluate("window.tipoff.sessionId")
        await page.click("#kill")
        await eventually(lambda: bool(server.killed))
        async with arena(server):  # what the next request is answered with
            for player in first.players:
                player.link.ws.transport.abort()  # type: ignore[attr-defined]  # as a SIGKILL looks from outside
            await page.wait_for_function("window.tipoff.connections === 2")
            await page.wait_for_selector('body[data-connected="true"]')
            assert await page.evaluate("window.tipoff.sessionId") != session
    assert server.killed == ["stand-alone"]
    first_request, second_request = server.requests
    assert first_request["request_id"] != second_request["request_id"]


async def test_the_end_of_a_match_is_no_loss(page: Page, server: PageServer) -> None:
    """The server said goodbye: no new game unless asked for."""
    async with arena(server) as game:
        await play(page, server)
        for player in game.players:
            player.kick("well played")
        await page.wait_for_selector('body[data-phase="idle"]')
        assert "well played" in await page.inner_text("#detail")
        assert await page.is_visible("#play")


async def test_leaving_frees_the_seat_and_offers_to_play_again(page: Page, server: PageServer) -> None:
    async with arena(server) as game:
        await play(page, server)
        await page.click("#leave")
        await page.wait_for_selector('body[data-connected="false"]')
        assert await page.get_attribute("#session-strip", "data-state") == "gone"
        await eventually(lambda: not game.players)
        await page.click("#play")
        await page.wait_for_selector('body[data-connected="true"]')


@pytest.mark.parametrize(
    ("code", "phase", "said"),
    [
        (404, "failed", "No such game here"),
        (403, "failed", "Not allowed"),
        (503, "lost", "No room right now"),
    ],
)
async def test_an_error_says_what_it_is_and_what_to_do(
    page: Page, server: PageServer, code: int, phase: str, said: str
) -> None:
    """Those that pass by themselves are tried again, the others are not."""
    server.error = [code, "the reason of the server"]
    await page.goto(server.url)
    await page.click("#play")
    await page.wait_for_selector(f'body[data-phase="{phase}"]')
    assert await page.inner_text("#headline") == said
    assert "the reason of the server" in await page.inner_text("#detail")
    assert (await page.evaluate("window.tipoff.error"))["code"] == code
    if phase == "lost":
        async with arena(server):
            server.error = None
            await page.wait_for_selector('body[data-connected="true"]')


async def test_the_strip_and_the_seats_follow_the_feed(page: Page, server: PageServer) -> None:
    """The matchmaker's records win over what the page knows itself."""
    server.deployments = [deployment("arena-one", seats=["s-other"])]
    async with arena(server):
        await play(page, server)
        mine = await page.evaluate("window.tipoff.sessionId")
        for state in ("ready", "active"):
            server.tell("session", {"id": mine, "state": state})
            await page.wait_for_selector(
                f'#session-strip[data-state="{state}"] [data-step="{state}"][data-is="now"]'
            )
        server.tell("deployment", deployment("arena-one", seats=["s-other", mine]))
        await page.wait_for_selector('.server[data-deployment="arena-one"] .seat.mine')
        assert await page.locator(".server .seat.taken").count() == 2
        assert await page.locator(".server .seat").count() == 4
        server.tell("deployment", deployment("arena-one", "gone"))
        await page.wait_for_selector('.server[data-deployment="arena-one"]', state="detached")
        server.tell("session", {"id": mine, "state": "closing", "reason": "server gone"})
        await page.wait_for_selector('#session-strip[data-state="closing"]')
        server.tell("session", {"id": mine, "state": "gone", "reason": "server gone"})
        await page.wait_for_selector('#session-strip[data-state="gone"]')


async def test_a_broken_feed_is_taken_up_again(page: Page, server: PageServer) -> None:
    """And the new snapshot replaces what was missed."""
    server.deployments = [deployment("arena-one")]
    await page.goto(server.url)
    await page.wait_for_selector('.server[data-deployment="arena-one"]')
    server.deployments = [deployment("arena-two")]
    server.drop_listeners()
    await page.wait_for_selector('.server[data-deployment="arena-two"]')
    await page.wait_for_selector('.server[data-deployment="arena-one"]', state="detached")
    await page.wait_for_selector('#live[data-live="true"]')


async def test_without_a_feed_the_page_is_the_game_alone(page: Page, server: PageServer) -> None:
    """No strip, no servers, no button that could not work."""
    server.demo = False
    async with arena(server):
        await page.goto(server.url)
        await page.wait_for_selector("#side", state="hidden")
        assert not await page.is_visible("#kill")
        await page.click("#play")
        await page.wait_for_selector('body[data-connected="true"]')


@pytest.mark.row(94)
@pytest.mark.parametrize("file", ["main.js", "wire.js", "style.css"])
async def test_a_file_that_does_not_arrive_is_fetched_again(
    page: Page, server: PageServer, file: str
) -> None:
    """As after a change of network while the page loads: its script, what that imports, its style."""
    failures = 2

    async def fetch(route: Route) -> None:
        nonlocal failures
        failures -= 1
        await (route.abort("failed") if failures >= 0 else route.continue_())

    await page.route(f"**/{file}", fetch)
    async with arena(server):
        await play(page, server)
        await page.wait_for_function("getComputedStyle(document.body, null).margin === '0px'")
    assert failures < 0
    assert await page.evaluate("history.state") is None


@pytest.mark.row(94)
async def test_a_page_that_stays_incomplete_says_so(page: Page, server: PageServer) -> None:
    """After three attempts; the button loads it again, and then it plays."""
    loads = 0

    async def fetch(route: Route) -> None:
        nonlocal loads
        loads += 1
        await route.abort("failed")

    await page.route("**/wire.js", fetch)
    await page.goto(server.url)
    await page.wait_for_selector("text=This page did not load completely")
    assert loads == 4
    await page.unroute("**/wire.js")
    async with arena(server):
        await page.click("text=Load again")
        await page.wait_for_function("window.tipoff !== undefined")
        await page.click("#play")
        await page.wait_for_selector('body[data-connected="true"]')


@pytest.mark.row(94)
async def test_play_cannot_be_pressed_before_the_scripts_are_there(page: Page, server: PageServer) -> None:
    arrived = asyncio.Event()

    async def fetch(route: Route) -> None:
        await arrived.wait()
        await route.continue_()

    await page.route("**/keys.js", fetch)
    await page.goto(server.url, wait_until="commit")
    await page.wait_for_selector("#play")
    assert await page.is_disabled("#play")
    arrived.set()
    await page.wait_for_selector("#play:enabled")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844), (1920, 1080)])
async def test_nothing_sticks_out_sideways(page: Page, server: PageServer, width: int, height: int) -> None:
    """On the screens of the README, of a phone and of a desk."""
    server.deployments = [deployment(f"arena-0123456789{n}") for n in range(6)]
    await page.set_viewport_size({"width": width, "height": height})
    await page.goto(server.url)
    await page.wait_for_selector(".server")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width > 1000:
        assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")
