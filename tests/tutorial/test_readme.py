"""README's game and README's player fit each other."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import ModuleType

import pytest

import tipoff


async def test_the_player_of_the_readme_plays_the_game_of_the_readme(
    source_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server_text, client_text = re.findall(
        r"```python\n(.*?)```", (source_tree / "README.md").read_text(), re.DOTALL
    )
    server, client = ModuleType("server"), ModuleType("client")
    exec(compile(server_text, "server.py", "exec"), server.__dict__)
    exec(compile(client_text, "client.py", "exec"), client.__dict__)
    async with tipoff.GameServer(server.Game(), stand_alone=True, listen="127.0.0.1:0") as running:
        async with asyncio.timeout(20):
            await client.main(running.url)
    printed = capsys.readouterr().out
    assert "b'welcome'" in printed
    assert "b'hello'" in printed
