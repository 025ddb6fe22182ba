"""Chromium on the dashboard and on pages that want a login."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest
from playwright.async_api import BrowserContext, Page

from tests.e2e.test_dashboard import project
from tipoff.new.commands import Template, write_game
from tipoff.testing import running_up

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

WITHIN = 60_000
"""Milliseconds that the page gets for what takes it a moment."""
TWO_PLAY = '#tests .card[data-state="playing"] >> nth=1'


def errors_of(page: Page) -> list[str]:
    """What goes wrong in the page's scripts, and what its content policy forbids."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda line: found.append(line.text) if "Content Security" in line.text else None)
    return found


async def test_the_dashboard_shows_and_steers_a_game(tmp_path: Path, browser: BrowserContext) -> None:
    """A traceback, a test player who plays and one who waits and why, their lines, a kick, a restart; by keyboard, on
    a phone."""
    async with running_up(tmp_path / "state", games=project(tmp_path)) as up:
        page = await browser.new_page()
        errors = errors_of(page)
        await page.goto(up.url + "/_tipoff")
        await page.wait_for_selector('body[data-live="true"]', timeout=WITHIN)
        await page.wait_for_selector('#errors pre:has-text("maps_of_nobody")', timeout=WITHIN)
        traceback = await page.locator("#errors pre").first.inner_text()
        assert traceback.startswith("Traceback (most recent call last):\n  File ")
        duel = page.locator('#games .card[data-key="duel 1"]')
        await page.wait_for_selector('#servers .card[data-key^="duel-"][data-state="ready"]', timeout=WITHIN)
        for _ in range(2):
            await duel.locator('[data-action="test"]').click()
        await page.wait_for_selector(TWO_PLAY, timeout=WITHIN)
        await duel.locator('[data-action="test"]').click()  # one too many for the only room
        await page.wait_for_selector('#tests .card[data-state="requested"] .why', timeout=WITHIN)
        waits = '#sessions .card[data-state="requested"] .why:has-text("all servers are full")'
        await page.wait_for_selector(waits, timeout=WITHIN)
        await page.wait_for_selector('#logs :text("hello test 1")', timeout=WITHIN)

        kick = page.locator('#sessions .card:has-text("test 1") [data-action="kick"]')
        await kick.focus()
        await page.keyboard.press("Enter")
        await page.wait_for_selector(
            '#tests .card[data-state="over"] :text("kicked by the developer")', timeout=WITHIN
        )
        await page.wait_for_selector(TWO_PLAY, timeout=WITHIN)

        before = await page.locator('#servers .card[data-key^="duel-"]').first.get_attribute("data-key")
        restart = duel.locator('[data-action="restart"]')
        await restart.click()
        assert "End" in await restart.inner_text()  # it asks, for players are there
        await restart.click()
        await page.wait_for_selector(f'#servers .card[data-key="{before}"]', state="detached", timeout=WITHIN)
        await page.wait_for_selector('#servers .card[data-key^="duel-"][data-state="ready"]', timeout=WITHIN)

        for width, height in ((320, 568), (667, 375)):
            await page.set_viewport_size({"width": width, "height": height})
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        grounds = set()
        for scheme in ("dark", "light"):
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type] # either is one
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        assert errors == []


def login(path: Path) -> tuple[dict[str, str], str]:
    """The settings of a login by JSON Web Token, and the token of a player."""
    (path / "secret").write_text("s" * 32)
    settings = {
        "TIPOFF_HTTPD_AUTH": "jwt",
        "TIPOFF_HTTPD_AUTH_ISSUER": "https://login.example/",
        "TIPOFF_HTTPD_AUTH_AUDIENCE": "duel",
        "TIPOFF_HTTPD_AUTH_KEY_FILE": str(path / "secret"),
        "TIPOFF_HTTPD_AUTH_ALGORITHMS": "HS256",
    }
    claims = {
        "iss": "https://login.example/",
        "aud": "duel",
        "exp": time.time() + 3600,
        "sub": "ann-1",
        "name": "Ann",
    }
    return settings, jwt.encode(claims, "s" * 32, "HS256")


async def test_the_page_asks_for_a_login(tmp_path: Path, browser: BrowserContext) -> None:
    """With the reason of the refusal; then it plays. A token in the address is used and leaves it."""
    settings, token = login(tmp_path)
    state = tmp_path / "state"
    async with running_up(state, environ=settings | {"TIPOFF_STATE_DIR": str(state)}) as up:
        page = await browser.new_page()
        await page.goto(up.url + "/")
        await page.click("#play")
        await page.wait_for_selector("#login:visible", timeout=WITHIN)
        assert "missing" in await page.inner_text("#detail")
        await page.fill("#token", "wrong")
        await page.keyboard.press("Enter")
        await page.wait_for_selector('#detail:has-text("malformed")', timeout=WITHIN)
        await page.fill("#token", token)
        await page.keyboard.press("Enter")
        await page.wait_for_selector('body[data-connected="true"]', timeout=WITHIN)
        await page.close()

        page = await browser.new_page()
        await page.goto(f"{up.url}/#token={token}")
        await page.click("#play")
        await page.wait_for_selector('body[data-connected="true"]', timeout=WITHIN)
        assert token not in page.url
        assert await page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("template", list(Template))
async def test_the_page_of_a_new_game_asks_for_a_login(
    tmp_path: Path, browser: BrowserContext, template: Template
) -> None:
    """The same for what `tipoff new` writes."""
    settings, token = login(tmp_path)
    game = write_game("pong", tmp_path, template)
    async with running_up(tmp_path / "state", games=game / "games.toml", environ=settings) as up:
        page = await browser.new_page()
        await page.goto(up.url + "/")
        await page.click("#go")
        await page.wait_for_selector("#token:visible", timeout=WITHIN)
        assert "missing" in await page.inner_text("#say")
        await page.fill("#token", token)
        await page.click("#go")
        playing = "arrow keys" if template is Template.HELLO else "waiting for an opponent"
        await page.wait_for_selector(f'#say:has-text("{playing}")', timeout=WITHIN)
        other = await browser.new_page()
        await other.goto(f"{up.url}/?token={token}")
        await other.click("#go")
        playing = "arrow keys" if template is Template.HELLO else "Ann"
        await other.wait_for_selector(f'#say:has-text("{playing}")', timeout=WITHIN)
        assert token not in other.url
