"""Chromium plays from the page. `TIPOFF_PICTURES=docs/pictures` keeps the screenshots that the README shows."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page, async_playwright

from tests.chromium import FLAGS, chromium
from tests.e2e.reverse_proxies import program, under_a_path
from tests.polling import eventually
from tipoff.new.commands import Template, write_game
from tipoff.testing import running_up

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


async def picture(page: Page, name: str) -> None:
    if directory := os.environ.get("TIPOFF_PICTURES"):
        await page.screenshot(path=Path(directory) / name)


async def state(page: Page, expression: str) -> object:
    return await page.evaluate(f"window.tipoff.{expression}")


async def connected(page: Page) -> None:
    await page.wait_for_selector('body[data-connected="true"]', timeout=20_000)


async def test_the_page_plays_and_survives_the_death_of_its_server(
    tmp_path: Path, browser: BrowserContext
) -> None:
    """Play, ticks go up, Kill this server, back in a game on another server; the old seats are gone."""
    async with running_up(tmp_path / "state", environ={"TIPOFF_STATE_DIR": str(tmp_path / "state")}) as up:
        page = await browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(up.url + "/")
        await picture(page, "welcome.png")
        await page.click("#play")
        await connected(page)
        await page.keyboard.down("ArrowRight")
        first_tick = await state(page, "tick")
        await page.wait_for_function(f"window.tipoff.tick > {first_tick} + 30", timeout=10_000)
        await page.keyboard.up("ArrowRight")
        await page.wait_for_selector('#session-strip [data-state="active"]')
        await page.wait_for_selector("#servers .server .seat")
        await picture(page, "arena.png")
        old_server, old_session = await state(page, "deploymentId"), await state(page, "sessionId")
        await page.click("#kill")
        await page.wait_for_function(
            f"window.tipoff.deploymentId && window.tipoff.deploymentId !== {old_server!r}", timeout=20_000
        )
        await connected(page)
        assert await state(page, "sessionId") != old_session
        second_tick = await state(page, "tick")
        await page.wait_for_function(f"window.tipoff.tick > {second_tick} + 10", timeout=10_000)
        await picture(page, "after-the-kill.png")

        async def old_is_gone() -> bool:
            return all(d["id"] != old_server for d in (await up.status())["deployments"])

        await eventually(old_is_gone, "the killed server gone", 10)
        assert errors == []


async def dots_drawn(page: Page) -> bool:
    """Whether anything orange stands on the canvas of a new game's page."""
    return bool(
        await page.evaluate(
            """() => {
                const canvas = document.getElementById("map");
                const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return pixels.some((value, at) => at % 4 === 0 && value > 200);
            }"""
        )
    )


async def test_the_page_of_a_new_game_joins_the_server_that_runs_the_new_code(
    tmp_path: Path, browser: BrowserContext
) -> None:
    """`tipoff up --reload`: the server's code changes, the page says so, and plays on by itself."""
    game = write_game("reloaded", tmp_path)
    server = game / "server.py"
    async with running_up(tmp_path / "state", games=game / "games.toml", arguments=("--reload",)) as up:
        page = await browser.new_page()
        await page.goto(up.url + "/")
        await page.click("#go")
        playing = "document.getElementById('say').textContent === 'arrow keys'"
        await page.wait_for_function(playing, timeout=20_000)
        server.write_text(server.read_text() + "# changed\n")
        await page.wait_for_function(f"!({playing})", timeout=20_000)
        await page.wait_for_function(playing, timeout=20_000)


async def test_the_page_of_a_new_game_plays(tmp_path: Path, browser: BrowserContext) -> None:
    """The lines that `tipoff new` writes, opened where `tipoff up` serves them."""
    game = write_game("my game", tmp_path)
    async with running_up(tmp_path / "state", games=game / "games.toml") as up:
        page = await browser.new_page()
        await page.goto(up.url + "/")
        await page.click("#go")
        await page.wait_for_function(
            "document.getElementById('say').textContent === 'arrow keys'", timeout=20_000
        )

        async def drawn() -> bool:
            return await dots_drawn(page)

        await eventually(drawn, "a dot on the canvas", 5)
        await page.keyboard.down("ArrowLeft")
        await asyncio.sleep(0.3)  # a player holds the key for a while; nothing is awaited by this
        await page.keyboard.up("ArrowLeft")


async def said(page: Page, text: str) -> None:
    await page.wait_for_function(
        f"document.getElementById('say').textContent.includes({text!r})", timeout=20_000
    )


async def test_the_duel_of_a_new_game_is_for_two(tmp_path: Path, browser: BrowserContext) -> None:
    """They see each other's names and the score; whoever stays waits for another opponent, and gets one."""
    game = write_game("pong", tmp_path, Template.DUEL)
    async with running_up(tmp_path / "state", games=game / "games.toml") as up:
        ann, bob, eve = [await browser.new_page() for _ in range(3)]
        for page, name in ((ann, "Ann"), (bob, "Bob")):
            await page.goto(up.url + "/")
            await page.fill("#name", name)
            await page.click("#go")
            if page is ann:
                await said(ann, "waiting for an opponent")
        await said(ann, " : ")
        await said(ann, "Bob")
        await said(bob, "Ann")
        await bob.close()
        await said(ann, "waiting for an opponent")
        await eve.goto(up.url + "/")
        await eve.fill("#name", "Eve")
        await eve.click("#go")
        await said(ann, "Eve")


@pytest.mark.parametrize("template", list(Template))
@pytest.mark.parametrize(("width", "height"), [(320, 568), (667, 375), (1280, 800)])
async def test_new_pages_fit_a_phone(
    tmp_path: Path, browser: BrowserContext, template: Template, width: int, height: int
) -> None:
    """Upright and on its side: nothing sticks out sideways, and the button can be seen."""
    page = await browser.new_page()
    await page.set_viewport_size({"width": width, "height": height})
    await page.goto((write_game("game", tmp_path, template) / "web/index.html").as_uri())
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = await page.locator("#go").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= height


@pytest.mark.parametrize("template", list(Template))
async def test_new_pages_speak_of_what_the_device_has(tmp_path: Path, template: Template) -> None:
    """A phone has no arrow keys. With keys, the first Tab stop is the name, the second the button."""
    where = (write_game("game", tmp_path, template) / "web/index.html").as_uri()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            phone = await (await browser.new_context(has_touch=True, is_mobile=True)).new_page()
            await phone.goto(where)
            said = await phone.inner_text("body")
            assert "key" not in said.lower()
            assert "finger" in said.lower() or "touch" in said.lower()
            desk = await (await browser.new_context()).new_page()
            await desk.goto(where)
            assert "key" in (await desk.inner_text("body")).lower()
            for expected in ("name", "go"):
                await desk.keyboard.press("Tab")
                assert await desk.evaluate("document.activeElement.id") == expected
        finally:
            await browser.close()


@pytest.mark.row(70)
@pytest.mark.skipif(program("nginx") is None, reason="nginx is not installed")
async def test_pages_play_under_a_path_of_a_proxy(tmp_path: Path, browser: BrowserContext) -> None:
    """The page of `tipoff up` with its live view and its button, the page of `tipoff new`, and /docs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    state_dir = tmp_path / "state"
    async with (
        running_up(state_dir, environ={"TIPOFF_STATE_DIR": str(state_dir)}) as up,
        under_a_path(tmp_path / "nginx", port, int(up.url.rpartition(":")[2])) as url,
    ):
        page = await browser.new_page()
        missing: list[str] = []
        page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
        await page.goto(url)
        await page.wait_for_selector('#live[data-live="true"]')
        await page.click("#play")
        await connected(page)
        old = await state(page, "deploymentId")
        await page.click("#kill")
        await page.wait_for_function(
            f"window.tipoff.deploymentId && window.tipoff.deploymentId !== {old!r}", timeout=20_000
        )
        await page.goto(url + "docs")
        await page.click("text=openapi.json")
        assert missing == []
    game = write_game("my game", tmp_path)
    async with (
        running_up(tmp_path / "other", games=game / "games.toml") as up,
        under_a_path(tmp_path / "nginx2", port, int(up.url.rpartition(":")[2])) as url,
    ):
        await page.goto(url)
        await page.click("#go")
        await page.wait_for_function(
            "document.getElementById('say').textContent === 'arrow keys'", timeout=20_000
        )
