"""`tipoff up --json`: what a program reads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tipoff.new.commands import write_game
from tipoff.operate.logs import LogLine
from tipoff.up.output import JsonLines
from tipoff.up.run import Running


def test_each_event_is_one_object_a_line() -> None:
    lines: list[str] = []
    output = JsonLines(lines.append)
    output.say("two\nlines")
    output.ready(Running(("http://a/",), "nats://b", 1.23456, ("pong 1",), ("pong 1",)))
    output.stopped()
    assert not any("\n" in line for line in lines)
    note, ready, stopped = map(json.loads, lines)
    assert note == {"event": "note", "text": "two\nlines"}
    assert ready == {
        "event": "ready",
        "ready": False,
        "urls": ["http://a/"],
        "nats": "nats://b",
        "games": ["pong 1"],
        "without_server": ["pong 1"],
        "dashboard": "",
        "seconds": 1.235,
    }
    assert stopped == {"event": "stopped"}


def test_a_servers_line_is_that_of_tipoff_logs() -> None:
    lines: list[str] = []
    line = LogLine("pong-1", "pong", "1", "map loaded", at=5.0, level="info", logger="maps")
    JsonLines(lines.append).show_line(line)
    found = json.loads(lines[0])
    assert (found["event"], found["deployment_id"], found["text"]) == (
        "output",
        line.deployment_id,
        line.text,
    )


@pytest.mark.slow
async def test_a_program_reads_every_event_of_up(tmp_path: Path) -> None:
    """From the start to `stopped`, with the traceback of a game; nothing else is on standard output."""
    game = write_game("pong", tmp_path)
    server = game / "server.py"
    server.write_text(
        server.read_text().replace("for dot in self.dots.values():", "for dot in self.nothing:", 1)
    )
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tipoff",
            "up",
            "--json",
            "--port",
            "0",
            "--state-dir",
            str(tmp_path / "state"),
        ),
        cwd=game,
        env=os.environ | {"COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(40):
            async for line in process.stdout:
                events.append(json.loads(line))
                if "has no attribute 'nothing'" in events[-1].get("traceback", "") and any(
                    event["event"] == "ready" for event in events
                ):
                    process.send_signal(signal.SIGINT)
        await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert events[-1] == {"event": "stopped"}
    (ready,) = [event for event in events if event["event"] == "ready"]
    assert ready["urls"][0].startswith("http://127.0.0.1:")
    assert any(event["event"] == "note" and "a server of pong 1 starts" in event["text"] for event in events)
