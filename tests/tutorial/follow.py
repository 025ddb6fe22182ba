"""Follows docs/tutorial.md word by word: `python -m tests.tutorial.follow PAGE DIRECTORY`.

A shell for each terminal of the page, files written as it says, and Chromium for what happens in the browser. Run it
where nothing listens on port 3000, as in a network namespace of its own: the page says `http://127.0.0.1:3000`.

`--shell` is the command of a terminal, for shells elsewhere, as in a container; DIRECTORY is then what the container
has as its working directory. `--environment` is a JSON object: all variables that the shells have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from playwright.async_api import Page, async_playwright

from tests.chromium import FLAGS, chromium
from tests.polling import eventually
from tests.tutorial.page import Browser, Change, Commands, File, Step, steps
from tests.tutorial.terminal import PROMPT, Terminal

HOME = "http://127.0.0.1:3000"
LISTEN = """
window.said = [];
addEventListener("DOMContentLoaded", () => {
  const say = document.getElementById("say");
  new MutationObserver(() => window.said.push(say.textContent)).observe(say, {childList: true});
});
"""
"""Keeps every sentence that the page shows."""


class Reader:
    """What a person does in the browser, in the order of the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.tasks: list[asyncio.Task[None]] = []

    async def hello(self) -> None:
        """Plays, and sees a dot."""
        await self.page.goto(HOME)
        await self.page.get_by_role("button", name="Play").click()
        await self.page.keyboard.press("ArrowRight")
        drawn = (
            "document.getElementById('map').getContext('2d').getImageData(0, 0, 640, 400).data.some(x => x)"
        )
        await eventually(lambda: self.page.evaluate(drawn), "a dot in the page", 60)

    async def close(self) -> None:
        """Goes elsewhere."""
        await self.page.goto("about:blank")

    async def dashboard(self) -> None:
        """Sees the game there, and its mistake."""
        await self.page.goto(f"{HOME}/_tipoff")
        for text in ("stars", "has no attribute 'begn'"):
            await self.page.get_by_text(text).first.wait_for()
        await self.page.goto("about:blank")

    async def race(self) -> None:
        """Waits for an opponent, and runs upwards."""
        await self._play_as("Cora")
        await self.page.keyboard.down("ArrowUp")

    async def lost(self) -> None:
        """Sees who has won, and waits for the next one."""
        await self._sees("Bob wins")
        await self._sees_now("waiting for another player")

    async def rematch(self) -> None:
        """Plays again, and wants another race after the first one."""
        await self._play_as("Cora")

        async def again() -> None:
            await self.page.get_by_role("button", name="Again").click(timeout=120_000)

        self.tasks.append(asyncio.create_task(again()))

    async def played_twice(self) -> None:
        await asyncio.gather(*self.tasks)
        await self._sees_now("waiting for another player")
        said = await self.page.evaluate("window.said")
        races = [text for text in said if text in ("arrow keys: get the star!", "Bob wins")]
        changes = [text for before, text in zip(["", *races], races, strict=False) if text != before]
        assert changes == ["arrow keys: get the star!", "Bob wins"] * 2, said

    async def _play_as(self, name: str) -> None:
        """Reloads the page and plays; again, if a restart of the servers ended that."""
        await self.page.goto(HOME)

        async def waits() -> bool:
            if await self.page.locator("#start").is_visible():
                await self.page.get_by_label("your name").fill(name)
                await self.page.get_by_role("button", name="Play").click()
            return "waiting for another player" in await self._says()

        await eventually(waits, "a place in a room", 60)

    async def _says(self) -> str:
        return await self.page.locator("#say").inner_text()

    async def _sees_now(self, text: str) -> None:
        async def seen() -> bool:
            return text in await self._says()

        await eventually(seen, f"the page says {text!r}", 60)

    async def _sees(self, text: str) -> None:
        async def seen() -> bool:
            return any(text in each for each in await self.page.evaluate("window.said"))

        await eventually(seen, f"the page said {text!r}", 60)


class Follower:
    """Takes one step after the other."""

    def __init__(
        self, directory: Path, terminal: Callable[[str], Terminal], browser: Callable[[str], Awaitable[None]]
    ) -> None:
        self.directory = directory
        self.make_terminal = terminal
        self.browser = browser
        self.terminals: dict[str, Terminal] = {}

    async def take(self, step: Step) -> None:
        match step:
            case File(path, text):
                (self.directory / path).write_text(text)
            case Change(path):
                file = self.directory / path
                file.write_text(step.apply(file.read_text()))
            case Browser(name):
                await self.browser(name)
            case Commands(name, lines):
                if name not in self.terminals:
                    self.terminals[name] = await asyncio.to_thread(self.make_terminal, name)
                await asyncio.to_thread(self._type, self.terminals[name], lines)

    @staticmethod
    def _type(terminal: Terminal, lines: tuple[str, ...]) -> None:
        expected: list[str] = []
        for index, line in enumerate(lines):
            shown = lines[index + 1 : index + 2]
            if line.startswith("$ "):
                terminal.expect(expected)
                expected = []
                # A command whose output is shown is judged by that.
                terminal.type(line[2:], strict=not shown or shown[0].startswith(("$ ", "^C")))
            elif line == "^C":
                terminal.interrupt()
            else:
                expected.append(line)
        terminal.expect(expected)

    async def close(self) -> None:
        """End the terminals."""
        for terminal in self.terminals.values():
            await asyncio.to_thread(terminal.close)


async def follow(page: list[Step], directory: Path, shell: list[str], environment: dict[str, str]) -> None:
    """Take every step of `page`. Raises when one does not do what it says."""

    def terminal(name: str) -> Terminal:
        return Terminal(name, shell, directory, environment)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        window = await browser.new_page()
        window.set_default_timeout(60_000)
        await window.add_init_script(LISTEN)
        reader = Reader(window)
        follower = Follower(directory, terminal, lambda name: getattr(reader, name.replace(" ", "_"))())
        try:
            for step in page:
                print("step:", str(step)[:150], flush=True)
                await follower.take(step)
            for each in follower.terminals.values():
                await asyncio.to_thread(each.wait_for_prompt)
        except BaseException:
            print("the page said:", await window.evaluate("window.said"), file=sys.stderr)
            for each in follower.terminals.values():
                print(f"=== {each.name}\n{each.tail()}", file=sys.stderr)
            raise
        finally:
            await follower.close()
            await browser.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shell", default="bash --noprofile --norc --noediting")
    parser.add_argument("--environment", type=json.loads, default={})
    given = parser.parse_args()
    environment = {"PS1": PROMPT, "TERM": "dumb", "LANG": "C.UTF-8", **given.environment}
    os.umask(0o022)
    asyncio.run(follow(steps(given.page.read_text()), given.directory, shlex.split(given.shell), environment))


if __name__ == "__main__":
    main()
