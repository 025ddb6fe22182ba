"""`tipoff edgegap check --live` as a command: confirmation, output, exit codes, Ctrl-C, a killed process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.edgegap_emulator.emulator_account import Account, Accounts
from tests.edgegap_emulator.live_checks import nothing_is_left, quick
from tipoff_edgegap_emulator import Fail
from tipoff_orchestrator_client.edgegap.setup.live.judge import ASSUMPTIONS
from tipoff_orchestrator_client.edgegap.setup.live.leftovers import MARK


class Command:
    """`tipoff edgegap check --live ...` as a process; `keyboard` is the terminal that it reads, where it has one."""

    def __init__(self, process: asyncio.subprocess.Process, keyboard: int | None = None) -> None:
        self.process = process
        self._keyboard = keyboard

    def type(self, text: bytes) -> None:
        """Type at its terminal."""
        assert self._keyboard is not None
        os.write(self._keyboard, text)

    async def asks(self, question: str) -> str:
        """All that it has written to standard error up to its question."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            return (await self.process.stderr.readuntil(question.encode())).decode()

    async def end(self) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        out, err = await self.process.communicate()
        if self._keyboard is not None:
            os.close(self._keyboard)
        return self.process.returncode or 0, out.decode(), err.decode()


async def check_live(
    it: Account, *arguments: str, environ: Mapping[str, str] | None = None, at_terminal: bool = False
) -> Command:
    directory = it.games.base
    (directory / "arena.1.key").write_text("ab" * 32)
    variables = {
        "PATH": os.environ["PATH"],
        "TIPOFF_GAMES": str(directory / "games.toml"),
        "TIPOFF_KEYS_DIR": str(directory),
        "NATS_INSECURE": "1",
        "TIPOFF_EDGEGAP_URL": it.emulator.url,
        "TIPOFF_EDGEGAP_TOKEN": it.emulator.token,
    }
    keyboard, terminal = pty.openpty() if at_terminal else (None, asyncio.subprocess.DEVNULL)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tipoff", "edgegap", "check", "--live", *arguments),
        env=variables | dict(environ or {}),
        stdin=terminal,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    if at_terminal:
        os.close(terminal)
    return Command(process, keyboard)


async def test_without_confirmation_nothing_is_made(account: Accounts) -> None:
    async with account(quick()) as it:
        code, out, err = await (await check_live(it)).end()
        assert code == 1
        assert "--yes confirms it" in err
        assert {one.method for one in it.emulator.requests} == {"GET"}
        assert "everything is right" in out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (b"n\n", "nothing was made at Edgegap"),
        (b"\x04", "Aborted"),
        (b"perhaps\nn\n", "invalid input"),
        (b"\n", "nothing was made"),
    ],
    ids=["no", "the end of input", "neither", "nothing"],
)
async def test_at_a_terminal_it_says_what_it_costs_and_asks(
    account: Accounts, typed: bytes, said: str
) -> None:
    """Whatever is no yes is a no."""
    async with account(quick()) as it:
        command = await check_live(it, at_terminal=True)
        question = await command.asks("Go on? [y/N]:")
        assert "one deployment of arena-app version v1 and one session at" in question
        assert it.emulator.url in question
        assert "Edgegap bills the deployment's time" in question
        command.type(typed)
        code, out, err = await command.end()
        assert code == 1
        assert said in err
        assert "everything is right" in out
        assert {one.method for one in it.emulator.requests} == {"GET"}


@pytest.mark.slow
async def test_at_a_terminal_a_yes_makes_the_deployment_and_removes_it(account: Accounts) -> None:
    async with account(quick(rates={"status": 20, "list": 10})) as it:
        command = await check_live(it, at_terminal=True)
        await command.asks("Go on? [y/N]:")
        command.type(b"y\n")
        code, _, err = await command.end()
        assert code == 0, err
        assert it.emulator.count("deploy", 202) == 1
        await nothing_is_left(it)


@pytest.mark.slow
async def test_at_a_terminal_yes_as_an_option_asks_nothing(account: Accounts) -> None:
    async with account(quick(rates={"status": 20, "list": 10})) as it:
        code, _, err = await (await check_live(it, "--yes", at_terminal=True)).end()
        assert code == 0, err
        assert "Go on?" not in err
        await nothing_is_left(it)


@pytest.mark.slow
async def test_with_a_setup_that_is_wrong_nothing_is_made(account: Accounts) -> None:
    async with account(quick()) as it:
        it.emulator.state.catalogue.versions["arena-app", "v1"]["is_active"] = False
        code, out, _ = await (await check_live(it, "--yes")).end()
        assert code == 1
        assert "nothing was made at Edgegap" in out
        assert {one.method for one in it.emulator.requests} == {"GET"}


@pytest.mark.slow
@pytest.mark.row(87)
async def test_json_and_the_exit_code_say_what_came_of_it(account: Accounts) -> None:
    """Without rate limits one assumption does not hold, which is exit code 1; the token is nowhere."""
    for rates, code in (({"status": 20, "list": 10}, 0), ({}, 1)):
        async with account(quick(rates=rates)) as it:
            ended, out, err = await (await check_live(it, "--yes", "--json", "arena")).end()
            told = json.loads(out)
            assert ended == code, out
            assert told["ok"] is (code == 0)
            assert [one["step"] for one in told["live"]["assumptions"]] == list(ASSUMPTIONS)
            assert {one["outcome"] for one in told["live"]["assumptions"]} <= {"held", "not held", "not seen"}
            assert told["live"]["left"] == []
            assert "ordering one deployment" in err
            assert it.emulator.token not in out + err
            await nothing_is_left(it)


@pytest.mark.slow
@pytest.mark.row(87)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_removes_what_was_made(account: Accounts, number: signal.Signals) -> None:
    async with account(quick(rules={"start_delay": 1.0})) as it:
        command = await check_live(it, "--yes")
        await it.emulator.until(lambda emulator: emulator.count("deploy", 202) == 1, 20)
        command.process.send_signal(number)
        code, out, err = await command.end()
        assert code == 130, err
        assert "stopping" in err
        assert "removed: deployment" in out
        await nothing_is_left(it)


@pytest.mark.slow
@pytest.mark.row(87)
async def test_what_a_killed_check_left_is_removed_by_the_next(account: Accounts) -> None:
    async with account(quick(rules={"capacity": 1})) as it:
        command = await check_live(it, "--yes")
        await it.emulator.until(lambda emulator: emulator.count("deploy", 202) == 1, 20)
        command.process.kill()
        await command.end()
        (left,) = [one.request_id for one in it.emulator.deployments if MARK in one.tags]
        _, out, err = await (await check_live(it, "--yes", "--json")).end()
        assert f"deployment {left}" in json.loads(out)["live"]["removed_before"], err
        await nothing_is_left(it)


@pytest.mark.slow
@pytest.mark.row(87)
async def test_what_is_left_has_an_exit_code_of_its_own(account: Accounts) -> None:
    async with account(quick()) as it:
        it.emulator.misbehave("stop", Fail(500, "out of order"))
        code, out, _ = await (await check_live(it, "--yes")).end()
        assert code == 3
        assert "LEFT AT EDGEGAP deployment" in out


@pytest.mark.parametrize("argument", ["arena", "--yes"])
async def test_what_is_for_live_only_is_refused_without_it(
    account: Accounts, tmp_path: Path, argument: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tipoff", "edgegap", "check", argument),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 1
    assert b"are for --live" in said
