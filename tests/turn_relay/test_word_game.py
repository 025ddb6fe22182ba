"""The word games of the documentation: what it shows is what is here, and they can be played."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import FLAGS, chromium
from tipoff_matchmaker_httpd.server.run import RunningHttpd

ROOT = Path(os.environ.get("TIPOFF_SOURCE_TREE") or Path(__file__).parents[2])  # as `source_tree` in conftest
GAME = ROOT / "examples/word-game"


@pytest.mark.parametrize(("name", "language"), [("word_game.py", "python"), ("index.html", "html")])
def test_the_documentation_shows_the_program_that_is_here(name: str, language: str) -> None:
    page = (ROOT / "docs/turn-relay.md").read_text()
    program = (GAME / name).read_text()
    assert f"```{language}\n{program}```" in page
    assert len(program.splitlines()) <= 60


async def player(httpd: RunningHttpd, name: str, partner: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(GAME / "word_game.py"),
        name,
        partner,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"RELAY": httpd.url, "PYTHONUNBUFFERED": "1"},
    )


async def test_two_people_play_in_two_terminals(httpd: RunningHttpd) -> None:
    ada, bob = await asyncio.gather(player(httpd, "Ada", "Bob"), player(httpd, "Bob", "Ada"))
    # Who begins is chance. Every word goes with every other but for "tea", which is said already.
    async with asyncio.timeout(30):
        outputs = await asyncio.gather(
            ada.communicate(b"tat\ntot\n7\ntnt\n\n"), bob.communicate(b"tight\ntat\ntint\ntext\n\n")
        )
    texts = [out.decode() for out, _ in outputs]
    assert (ada.returncode, bob.returncode) == (0, 0), texts
    results = [re.findall(r"(\d+) words. You (lose|win)", text) for text in texts]
    assert {result[0][1] for result in results} == {"lose", "win"}, texts
    assert results[0][0][0] == results[1][0][0]
    assert "that does not go" in texts[0]
    said = [re.findall(r"'(?:Ada|Bob)': '(\w*)'", text) for text in texts]
    assert said[0] == said[1]


async def test_a_refusal_is_one_clear_line(httpd: RunningHttpd) -> None:
    nameless = await player(httpd, "", "nobody")
    async with asyncio.timeout(10):
        said, _ = await nameless.communicate()
    assert nameless.returncode == 1
    assert said.startswith(b"the game is over: ")
    assert said.count(b"\n") == 1


@pytest.mark.browser
@pytest.mark.timeout(120)
async def test_a_page_plays_with_a_terminal(start: Any, tmp_path: Path) -> None:
    from playwright.async_api import async_playwright

    path = chromium()
    httpd = await start(demo=True, web_dir=GAME)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = await browser.new_page()
        await page.goto(f"{httpd.url}/?partner=Bob")
        await page.fill("#input", "Ada")
        await page.press("#input", "Enter")
        bob = await player(httpd, "Bob", "Ada")
        assert bob.stdin
        bob.stdin.write(b"tat\ntot\n\n")
        for word in ("tint", "tight", "text"):
            await page.wait_for_function(
                "/your word|You (win|lose)/.test(document.getElementById('state').textContent)"
            )
            if "You" in await page.inner_text("#state"):
                break
            await page.fill("#input", word)
            await page.press("#input", "Enter")
            await page.locator("#words li", has_text=word).wait_for()
        await page.wait_for_function("/You win/.test(document.getElementById('state').textContent)")
        words = await page.locator("#words li").all_inner_texts()
        await browser.close()
    out, _ = await asyncio.wait_for(bob.communicate(), 10)
    assert b"You lose." in out
    assert "Ada: tint" in words
    assert "Bob: tot" in words
