"""`tipoff edgegap configure-app` and `tipoff edgegap check`, from an empty account to one that works."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.edgegap_emulator.emulator_account import GAMES, Account, Accounts, at_once, order
from tipoff.app import app
from tipoff_shared.errors import ConfigError
from tipoff_shared.hooks import HookKey

IMAGE = "registry.edgegap.com/org/arena:1.0"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arena.1.key").write_text("ab" * 32)
    monkeypatch.setenv("TIPOFF_KEYS_DIR", str(tmp_path))
    monkeypatch.setenv("TIPOFF_GAMES", str(tmp_path / "games.toml"))
    monkeypatch.setenv("NATS_INSECURE", "1")
    for name in ("NATS_HOST", "NATS_USER", "NATS_PASSWORD", "TIPOFF_EDGEGAP_HOOK_URL"):
        monkeypatch.delenv(name, raising=False)


async def tipoff(it: Account, *arguments: str) -> Result:
    """`tipoff edgegap ...`, with this account's address and token; a `ConfigError` comes through."""
    environ = {"TIPOFF_EDGEGAP_URL": it.emulator.url, "TIPOFF_EDGEGAP_TOKEN": it.emulator.token}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["edgegap", *arguments], env=environ)
    if isinstance(result.exception, ConfigError):
        raise result.exception
    return result


pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.slow
async def test_from_an_empty_account_to_one_that_works(account: Accounts) -> None:
    """check says what is missing, configure-app makes it, a second time there is nothing to do."""
    async with account(at_once(empty=True)) as it:
        before = await tipoff(it, "check")
        assert before.exit_code == 1
        assert "application arena-app: it does not exist" in before.output
        made = await tipoff(it, "configure-app", "--create", "--image", IMAGE)
        assert made.exit_code == 0, made.output
        again = await tipoff(it, "configure-app", "--create", "--image", IMAGE, "--json")
        assert json.loads(again.output)["changes"] == []
        after = await tipoff(it, "check", "--json")
        assert after.exit_code == 0, after.output
        assert json.loads(after.output)["ok"] is True
        await it.ready()
        assert it.emulator.problems == []


async def test_a_dry_run_writes_nothing(account: Accounts) -> None:
    async with account(at_once(empty=True)) as it:
        shown = await tipoff(it, "configure-app", "--create", "--image", IMAGE, "--dry-run")
        assert "nothing was written" in shown.output
        assert it.emulator.state.catalogue.applications == {}


async def test_nothing_is_made_without_being_asked(account: Accounts) -> None:
    async with account(at_once(empty=True)) as it:
        with pytest.raises(ConfigError, match="--create"):
            await tipoff(it, "configure-app", "--image", IMAGE)


@pytest.mark.slow
async def test_secrets_are_written_and_never_shown(account: Accounts) -> None:
    async with account() as it:
        written = await tipoff(it, "configure-app", "--environment")
        assert "TIPOFF_PRIVATE_KEY: missing -> (secret)" in written.output
        assert "abab" not in written.output
        assert (await tipoff(it, "configure-app", "--environment", "--json")).output.count("member") == 0
        envs = {
            env["key"]: env["value"]
            for env in it.emulator.state.catalogue.versions["arena-app", "v1"]["envs"]
        }
        assert envs["TIPOFF_PRIVATE_KEY"] == "ab" * 32
        assert "TIPOFF_DEPLOYMENT_ID" not in envs


async def test_bevygaps_servers_get_their_authority_as_an_argument(account: Accounts, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    text = GAMES.replace("seats = 4", "seats = 4\nbevygap = true")
    async with account(text=text) as it:
        result = await tipoff(it, "configure-app", "--ca", str(tmp_path / "ca.pem"))
        assert result.exit_code == 0, result.output
        arguments = it.emulator.state.catalogue.versions["arena-app", "v1"]["arguments"]
        assert arguments == "--ca_contents '-----BEGIN CERTIFICATE-----MIIB-----END CERTIFICATE-----'"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image", "registry.edgegap.com/org/arena:latest"], "latest"),
        (["other"], "which game"),
        (["--cpu", "0.25", "--memory", "1024"], "Edgegap allows"),
    ],
)
async def test_what_cannot_be_is_told_before_anything_is_written(
    account: Accounts, arguments: list[str], says: str
) -> None:
    async with account() as it:
        with pytest.raises(ConfigError, match=says):
            await tipoff(it, "configure-app", *arguments)
        assert it.emulator.count("version.change") == 0


async def test_check_tells_a_token_that_is_not_taken(
    account: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never shows it."""
    async with account() as it:
        it.emulator.token = "canary"
        result = await tipoff(it, "check")
        assert result.exit_code == 1
        assert "BAD  token" in result.output
        assert "canary" not in result.output


@pytest.mark.slow
async def test_check_finds_a_version_that_is_off(account: Accounts) -> None:
    async with account() as it:
        it.emulator.state.catalogue.versions["arena-app", "v1"]["is_active"] = False
        result = await tipoff(it, "check")
        assert (result.exit_code, "is not active" in result.output) == (1, True)
        assert (await tipoff(it, "configure-app")).exit_code == 0
        assert (await it.client.post("/v2/deployments", json=order())).status_code == 202


async def test_check_finds_webhooks_that_lead_nowhere(
    account: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIPOFF_EDGEGAP_HOOK_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TIPOFF_HOOK_KEY", "0123456789abcdef")
    async with account() as it:
        result = await tipoff(it, "check")
        assert (result.exit_code, "does not answer" in result.output) == (1, True)


@pytest.mark.slow
async def test_check_tries_the_way_that_webhooks_take(
    account: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours must be let in, a forged one must not."""
    key = HookKey("0123456789abcdef")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        status = "204 No Content" if key.check(path.removeprefix("/hook/")) else "404 Not Found"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("TIPOFF_EDGEGAP_HOOK_URL", f"http://127.0.0.1:{port}")
    async with server, account() as it:
        for own, code, says in (
            ("0123456789abcdef", 0, "accepts ours and refuses others"),
            ("another key 0123456", 1, "answers 404 to a good webhook"),
        ):
            monkeypatch.setenv("TIPOFF_HOOK_KEY", own)
            result = await tipoff(it, "check")
            assert (result.exit_code, says in result.output) == (code, True), result.output


async def test_check_costs_nothing(account: Accounts) -> None:
    """It only reads."""
    async with account() as it:
        await tipoff(it, "check")
        assert {one.method for one in it.emulator.requests} == {"GET"}
        assert it.emulator.problems == []
