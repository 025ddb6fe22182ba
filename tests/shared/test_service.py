"""A service's process and its settings: what standard error says, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Literal

import pytest
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.service import exit_code_of, load_settings, run, signals, wait_until_stopped


class Settings(BaseSettings):
    """One setting of each kind."""

    model_config = SettingsConfigDict(env_prefix="TIPOFF_TEST_", frozen=True, extra="forbid")

    limit: int = Field(default=5, ge=1)
    profile: Literal["trusted", "isolated"] = "trusted"
    url: str = "wss://example.org/"
    games: str = Field(default="games.toml", min_length=1, validation_alias="TIPOFF_TEST_GAMES_FILE")
    names: list[str] = []
    hook_key: SecretStr = SecretStr("correct horse")
    password: str = "battery staple"

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith("wss://"):
            raise ValueError("wss://HOST/ is expected")
        return value

    @field_validator("hook_key", "password", mode="before")
    @classmethod
    def _secret(cls, value: str) -> str:
        if len(value) < 8:
            raise ValueError(f"{value} has fewer than 8 characters")
        return value


def complaint(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], **given: Any) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        load_settings(Settings, **given)
    assert error.value.__cause__ is None
    return str(error.value).splitlines()


def test_settings_come_from_the_environment_and_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller gives wins."""
    monkeypatch.setenv("TIPOFF_TEST_LIMIT", "7")
    assert load_settings(Settings).limit == 7
    assert load_settings(Settings, limit=8).limit == 8


def test_every_setting_that_cannot_be_used_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, what is allowed, and the value."""
    variables = {
        "TIPOFF_TEST_LIMIT": "0",
        "TIPOFF_TEST_PROFILE": "open",
        "TIPOFF_TEST_URL": "https://user:pw@example.org",
        "TIPOFF_TEST_GAMES_FILE": "",
    }
    assert complaint(monkeypatch, variables) == [
        "TIPOFF_TEST_LIMIT: must be greater than or equal to 1 (it is '0')",
        "TIPOFF_TEST_PROFILE: must be 'trusted' or 'isolated' (it is 'open')",
        "TIPOFF_TEST_URL: wss://HOST/ is expected (it is 'https://***@example.org')",
        "TIPOFF_TEST_GAMES_FILE: must have at least 1 character (it is '')",
    ]


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a validator quotes it."""
    variables = {"TIPOFF_TEST_HOOK_KEY": "hunter2", "TIPOFF_TEST_PASSWORD": "hunter3"}
    assert complaint(monkeypatch, variables) == [
        "TIPOFF_TEST_HOOK_KEY: *** has fewer than 8 characters",
        "TIPOFF_TEST_PASSWORD: *** has fewer than 8 characters",
    ]


def test_a_class_may_hide_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret may be in the wrong variable."""

    class Hidden(Settings):
        model_config = SettingsConfigDict(hide_input_in_errors=True)

    monkeypatch.setenv("TIPOFF_TEST_URL", "hunter2")
    monkeypatch.setenv("TIPOFF_TEST_LIMIT", "hunter3")
    with pytest.raises(ConfigError) as caught:
        load_settings(Hidden)
    assert "TIPOFF_TEST_URL: " in str(caught.value)
    assert "TIPOFF_TEST_LIMIT: must be a valid integer" in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_a_long_value_is_cut_and_keeps_to_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = complaint(monkeypatch, {"TIPOFF_TEST_LIMIT": "one\ntwo " * 100})
    assert line.startswith("TIPOFF_TEST_LIMIT: must be a valid integer")
    assert line.endswith("…)")
    assert len(line) < 200


def test_a_list_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaint(monkeypatch, {"TIPOFF_TEST_NAMES": "a,b"}) == ["TIPOFF_TEST_NAMES: JSON is expected"]


def test_a_setting_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="TIPOFF_TEST_SPEED: Extra inputs are not permitted"):
        load_settings(Settings, speed=1)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TIPOFF_TEST_LIMITS", "TIPOFF_TEST_LIMIT"),
        ("TIPOFF_TEST_PROFLIE", "TIPOFF_TEST_PROFILE"),
        ("TIPOFF_TEST_PASWORD", "TIPOFF_TEST_PASSWORD"),
        ("tipoff_test_limt", "TIPOFF_TEST_LIMIT"),
        ("TIPOFF_TEST_LIMIT", ""),
        ("tipoff_test_limit", ""),
        ("TIPOFF_TEST_MEMORY", ""),
        ("TIPOFF_OTHER_LIMITS", ""),
    ],
)
def test_a_variable_that_is_almost_a_setting_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, meant: str
) -> None:
    """Its value is not shown. What is like no setting may be meant for another program."""
    monkeypatch.setenv(variable, "7777777")
    load_settings(Settings)
    if meant:
        assert caplog.messages == [f"{variable} is no setting and is ignored; do you mean {meant}?"]
    else:
        assert caplog.messages == []
    assert "7777777" not in caplog.text


def test_exit_codes(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """0 done, 1 failed, 2 configuration, 130 Ctrl-C; a fault is not hidden."""

    def ends(error: BaseException | None, code: int | None = None) -> int:
        async def work() -> int | None:
            if error is not None:
                raise error
            return code

        return exit_code_of(work, prefix="tipoff test: ")

    assert (ends(None), ends(None, 0), ends(None, 1)) == (0, 0, 1)
    assert ends(Unavailable("NATS is away")) == 1
    assert "NATS is away" in caplog.text
    assert ends(ConfigError("A: one\nB: two")) == 2
    assert capsys.readouterr().err == "tipoff test: A: one\ntipoff test: B: two\n"
    assert ends(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_work_runs_on_uvloop_where_it_is_installed() -> None:
    pytest.importorskip("uvloop")

    async def name() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(name()) == "uvloop"


async def test_signals_are_heard_during_the_block_only() -> None:
    """Each of them, by name."""
    heard = asyncio.Queue[str]()
    before = signal.getsignal(signal.SIGTERM)
    with signals(heard.put_nowait):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            async with asyncio.timeout(5):
                assert await heard.get() == number.name
    assert signal.getsignal(signal.SIGTERM) == before


async def test_who_is_told_to_stop_has_not_failed() -> None:
    """Also where both happen."""
    stop, lost, failed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    failed.set()
    assert await wait_until_stopped(stop, lost, failed) == 1
    stop.set()
    assert await wait_until_stopped(stop, lost, failed) == 0


SERVICE = """
import asyncio
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from tipoff_shared.service import load_settings, run_service, wait_until_stopped

class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TIPOFF_TEST_")
    limit: int = Field(default=5, ge=1)
    pause: float = Field(default=5, gt=0)

async def main(stop):
    load_settings(Settings)
    print("serves", flush=True)
    return await wait_until_stopped(stop)

run_service("test", main)
"""


def start(**variables: str) -> Coroutine[Any, Any, asyncio.subprocess.Process]:
    return asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVICE,
        env=os.environ | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_service_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    process = await start()
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"serves\n"
            process.send_signal(number)
            _, said = await process.communicate()
        assert (process.returncode, said) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_service_that_cannot_be_set_up_says_why() -> None:
    """One line for each setting, no traceback, exit code 2."""
    process = await start(TIPOFF_TEST_LIMIT="0", TIPOFF_TEST_PAUSE="soon")
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert said.decode().splitlines() == [
        "tipoff test: TIPOFF_TEST_LIMIT: must be greater than or equal to 1 (it is '0')",
        "tipoff test: TIPOFF_TEST_PAUSE: must be a valid number, unable to parse string as a number (it is 'soon')",
    ]
