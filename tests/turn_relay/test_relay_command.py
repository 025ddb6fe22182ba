"""`tipoff relay` and `tipoff bench turn` as processes, against a real httpd."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tipoff.app import app
from tipoff.turn_relay.commands import bench_app, histogram
from tipoff.turn_relay.pipe import decode, printable
from tipoff_matchmaker_httpd.server.run import RunningHttpd


async def tipoff(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
    )


async def relay(httpd: RunningHttpd, name: str, partner: str) -> asyncio.subprocess.Process:
    return await tipoff("relay", "--url", httpd.url, "--name", name, "--partner", partner)


async def test_any_bytes_go_both_ways_and_both_ends_end(httpd: RunningHttpd) -> None:
    chance = random.Random(7)
    one, other = chance.randbytes(200_000), bytes(range(256)) * 10 + b",|\r\n\0*"
    ada, bob = await asyncio.gather(relay(httpd, "Ada", "Bob"), relay(httpd, "Bob", "Ada"))
    async with asyncio.timeout(30):
        (
            (
                from_bob,
                said,
            ),
            (from_ada, _),
        ) = await asyncio.gather(ada.communicate(one), bob.communicate(other))
    assert from_bob == other
    assert from_ada == one
    assert (ada.returncode, bob.returncode) == (0, 0)
    assert b"paired with Bob" in said


@pytest.mark.slow
async def test_a_chat_line_arrives_while_both_go_on(httpd: RunningHttpd) -> None:
    ada, bob = await asyncio.gather(relay(httpd, "Ada", "Bob"), relay(httpd, "Bob", "Ada"))
    assert ada.stdin
    assert bob.stdin
    assert ada.stdout
    assert bob.stdout
    async with asyncio.timeout(20):
        for n in range(3):
            ada.stdin.write(b"hello %d\n" % n)
            assert await bob.stdout.readline() == b"hello %d\n" % n
            bob.stdin.write(b"hi %d\n" % n)
            assert await ada.stdout.readline() == b"hi %d\n" % n
        bob.stdin.close()  # Bob has said all; Ada may go on
        ada.stdin.write(b"bye\n")
        assert await bob.stdout.readline() == b"bye\n"
        ada.stdin.close()
        assert await ada.wait() == await bob.wait() == 0


@pytest.mark.slow
async def test_a_partner_that_is_interrupted_ends_the_relay_with_exit_code_1(httpd: RunningHttpd) -> None:
    ada, bob = await asyncio.gather(relay(httpd, "Ada", "Bob"), relay(httpd, "Bob", "Ada"))
    assert ada.stdin
    assert bob.stdout
    async with asyncio.timeout(20):
        ada.stdin.write(b"hello\n")
        await bob.stdout.readline()
        ada.terminate()
        assert await ada.wait() == 130
        _, said = await bob.communicate()
    assert bob.returncode == 1
    assert b"the partner is gone" in said


@pytest.mark.slow
async def test_a_url_without_a_relay_is_one_clear_line(httpd: RunningHttpd) -> None:
    for url, words in (
        ("ftp://x", b"http://HOST:PORT is expected"),
        (f"{httpd.url}/nowhere", b"not a turn relay"),
    ):
        process = await tipoff("relay", "--url", url, "--name", "Ada")
        _, said = await process.communicate(b"")
        assert process.returncode == 1
        assert words in said
        assert b"Traceback" not in said


def test_names_of_others_do_not_command_the_terminal() -> None:
    assert printable("Bob\x1b[2J\n") == "Bob?[2J?"


def test_what_another_program_hands_over_is_a_line_of_text() -> None:
    assert decode("b:aGk=") == b"hi"
    assert decode("hello") == b"hello\n"
    assert decode("b:not base64!") == b"b:not base64!\n"


@pytest.mark.slow
async def test_the_stress_test_tells_what_it_measured(httpd: RunningHttpd, tmp_path: Path) -> None:
    process = await tipoff(
        "bench", "turn", "--url", httpd.url, "--clients", "4", "--rate", "20", "--seconds", "0.5", "--json"
    )
    out, said = await process.communicate()
    assert process.returncode == 0, said
    result = json.loads(out)
    assert result["clients"] == 4
    assert result["errors"] == {}
    assert result["handed_over"] == result["arrived"] == result["requests"] >= 10
    assert result["out_of_order"] == 0
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]
    files = [tmp_path / "one", tmp_path / "other"]
    for file in files:
        file.write_bytes(out)
    total = CliRunner().invoke(bench_app, ["total", "--json", *map(str, files)])
    assert total.exit_code == 0
    added = json.loads(total.stdout)
    assert (added["clients"], added["arrived"]) == (8, 2 * result["arrived"])
    assert added["p99_ms"] == result["p99_ms"]


@pytest.mark.slow
async def test_the_stress_test_of_nothing_fails(httpd: RunningHttpd) -> None:
    process = await tipoff(
        "bench", "turn", "--url", f"{httpd.url}/healthz", "--clients", "2", "--seconds", "0.2"
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in said


def test_a_histogram_keeps_two_percent() -> None:
    for seconds in (0.0001, 0.00123, 0.5, 9.9):
        ((step, count),) = histogram([seconds]).items()
        assert count == 1
        assert abs(int(step) / 1e6 - seconds) / seconds < 0.02


@pytest.mark.parametrize("arguments", [["turn", "--clients", "3"], ["turn", "--start-at", "noon"]])
def test_options_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(bench_app, arguments).exit_code != 0


def test_both_commands_have_help() -> None:
    for command in (["relay", "--help"], ["bench", "turn", "--help"], ["bench", "total", "--help"]):
        assert CliRunner().invoke(app, command).exit_code == 0
