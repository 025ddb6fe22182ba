"""`tipoff token`, `tipoff gameserver --stand-alone --echo` and `tipoff connect`, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from tipoff.interop.echo_client import ConnectFailed, Report, connect_and_echo
from tipoff.interop.echo_commands import connect_command, gameserver_command, serve_echo
from tipoff.interop.token_commands import app as token_app
from tipoff_shared.netcode import (
    Address,
    ConnectToken,
    Dialect,
    PrivateKey,
    Server,
    issue_token,
    open_private,
)
from tipoff_shared.user_data import TokenUserData

KEY = PrivateKey(bytes(range(7, 39)))
PROTOCOL_ID = 0xABCDEF0123456789
HERE = Address("127.0.0.1", 40000)
WITH_KEY = {"TIPOFF_PRIVATE_KEY": KEY.reveal().hex()}

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(token_app, name="token")
app.command("gameserver")(gameserver_command)
app.command("connect")(connect_command)


def tipoff(*arguments: object, env: dict[str, str] | None = None, stdin: bytes | None = None) -> Result:
    """Run a command in this process."""
    clean = {"TIPOFF_PRIVATE_KEY": None, "TIPOFF_PRIVATE_KEY_FILE": None}
    return CliRunner().invoke(app, [str(each) for each in arguments], env=clean | (env or {}), input=stdin)


def make_token(address: Address = HERE, **fields: Any) -> ConnectToken:
    settings: dict[str, Any] = {
        "protocol_id": PROTOCOL_ID,
        "client_id": 2**64 - 1,
        "public_addresses": [address],
        "now": time.time(),
    }
    settings |= fields
    return issue_token(settings.pop("key", KEY), **settings)


ISSUE = ("token", "issue", "--protocol-id", hex(PROTOCOL_ID), "--client-id", 5, "--address", HERE)


# --- issue -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "hex", "base64"])
def test_issued_token_opens_with_the_key(form: str) -> None:
    """Whatever form it was written in, on standard output."""
    result = tipoff(
        *ISSUE, "--format", form, "--internal-address", "[::1]:9", "--user-data", "00ff", env=WITH_KEY
    )
    assert result.exit_code == 0, result.output
    written = result.stdout_bytes
    data = {"raw": lambda: written, "hex": lambda: bytes.fromhex(written.decode())}.get(
        form, lambda: base64.b64decode(written)
    )()
    private = open_private(data, KEY, protocol_id=PROTOCOL_ID, unix_now=time.time())
    assert (private.client_id, private.addresses) == (5, (Address("::1", 9),))
    assert private.user_data[:3] == b"\x00\xff\x00"
    assert ConnectToken.decode(data).addresses == (HERE,)


def test_token_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    """The key came from a file, too."""
    key_file, out = tmp_path / "key", tmp_path / "token"
    key_file.write_text(",".join(str(byte) for byte in KEY.reveal()) + "\n")
    result = tipoff(*ISSUE, "--key-file", key_file, "--out", out, "--lifetime", -1, "--timeout", -1)
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    token = ConnectToken.from_base64(out.read_text().strip())
    assert (token.expire_timestamp, token.timeout_seconds) == (2**64 - 1, -1)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--key", "12"),
        ("--key", "00" * 32),
        ("--key-file", "/nowhere/key"),
        ("--key", KEY.reveal().hex(), "--user-data", "0"),
        ("--key", KEY.reveal().hex(), "--address", "1.2.3.4"),
        ("--key", KEY.reveal().hex(), "--client-id", "many"),
        ("--key", KEY.reveal().hex(), "--client-id", 2**64),
        ("--key", KEY.reveal().hex(), "--out", "/nowhere/token"),
    ],
    ids=str,
)
def test_unusable_options_are_usage_errors(arguments: tuple[object, ...]) -> None:
    """Exit code 2; the key is not repeated in the message."""
    result = tipoff(*ISSUE, *arguments)
    assert result.exit_code == 2, result.output
    assert KEY.reveal().hex()[:16] not in result.output


def test_what_no_token_holds_is_refused_with_a_reason() -> None:
    """257 bytes of user data."""
    result = tipoff(*ISSUE, "--user-data", "ab" * 257, env=WITH_KEY)
    assert (result.exit_code, "user data has 257 bytes" in result.output) == (1, True)


# --- inspect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "hex", "base64"])
def test_token_is_read_in_any_form(form: str) -> None:
    """From standard input here; session keys show as fingerprints only."""
    token = make_token()
    data = token.encode()
    text = {"raw": data, "hex": data.hex().encode() + b"\n", "base64": token.to_base64().encode() + b"\n"}[
        form
    ]
    result = tipoff("token", "inspect", "-", stdin=text)
    assert result.exit_code == 0, result.output
    assert str(PROTOCOL_ID) in result.output
    assert "127.0.0.1:40000" in result.output
    for secret in (token.client_to_server_key, token.server_to_client_key):
        assert secret.hex()[:12] not in result.output
        assert base64.b64encode(secret).decode()[:12] not in result.output


def test_private_part_is_shown_to_who_has_the_key(tmp_path: Path) -> None:
    """As JSON, with 64-bit numbers as strings and our own user data spelt out."""
    ours = TokenUserData("session-1", "deployment-1", "boot-1", 3)
    (tmp_path / "token").write_bytes(make_token(user_data=ours.encode()).encode())
    result = tipoff(
        "token", "inspect", tmp_path / "token", "--json", "--protocol-id", PROTOCOL_ID, env=WITH_KEY
    )
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["valid"], found["protocol_id"]) == (True, str(PROTOCOL_ID))
    assert found["private"]["client_id"] == str(2**64 - 1)
    assert (found["private"]["session_id"], found["private"]["generation"]) == ("session-1", 3)


@pytest.mark.parametrize(
    ("token", "options", "reason"),
    [
        (b"", (), "2048 bytes, not 0"),
        (b"hello", (), "neither a raw token"),
        (bytes(2048), (), "do not start with NETCODE 1.02"),
        (make_token(now=1000.0).encode(), (), "expired"),
        (make_token().encode(), ("--protocol-id", 5), "not for 5"),
        (make_token().encode(), ("--protocol-id", 5, "--key", KEY.reveal().hex()), "this side speaks 5"),
        (make_token().encode(), ("--key", "11" * 32), "another private key"),
    ],
    ids=["empty", "no token", "zeros", "expired", "protocol", "protocol with key", "key"],
)
def test_unusable_token_is_exit_code_1_with_the_reason(
    token: bytes, options: tuple[object, ...], reason: str
) -> None:
    """On standard error for people, in the object for machines."""
    result = tipoff("token", "inspect", "-", *options, stdin=token)
    assert result.exit_code == 1, result.output
    assert reason in result.stderr
    as_json = tipoff("token", "inspect", "-", "--json", *options, stdin=token)
    found = json.loads(as_json.stdout)
    assert (as_json.exit_code, found["valid"]) == (1, False)
    assert reason in found["reason"]


def test_expired_token_shows_its_content_all_the_same() -> None:
    """One inspects it to find out why it did not work."""
    result = tipoff("token", "inspect", "-", "--json", stdin=make_token(now=1000.0).encode())
    found = json.loads(result.stdout)
    assert (found["expires"], found["addresses"]) == ("1970-01-01T00:17:10Z", ["127.0.0.1:40000"])


@pytest.mark.parametrize("expire", [2**64 - 1, 2**63])
def test_dates_beyond_the_calendar_are_shown_somehow(expire: int) -> None:
    """Never, or the number."""
    data = bytearray(make_token().encode())
    data[29:37] = expire.to_bytes(8, "little")
    found = json.loads(tipoff("token", "inspect", "-", "--json", stdin=bytes(data)).stdout)
    assert found["expires"] == (None if expire == 2**64 - 1 else str(2**63))


def test_lightyear_token_is_read_in_its_dialect() -> None:
    """IPv6 addresses in network order."""
    token = make_token(Address("2001:db8::1", 5), dialect=Dialect.LIGHTYEAR)
    result = tipoff("token", "inspect", "-", "--dialect", "lightyear", stdin=token.encode())
    assert "[2001:db8::1]:5" in result.output


def test_missing_file_is_a_usage_error() -> None:
    """Exit code 2, with its name."""
    result = tipoff("token", "inspect", "/nowhere/token")
    assert (result.exit_code, "/nowhere/token" in result.output) == (2, True)


# --- gameserver and connect ------------------------------------------------------------------------------------------


class EchoServer(NamedTuple):
    process: subprocess.Popen[str]
    address: Address


@pytest.fixture(scope="module")
def echo_server() -> Iterator[EchoServer]:
    """`tipoff gameserver` as users start it."""
    arguments = ["--stand-alone", "--echo", "--listen", "127.0.0.1:0", "--protocol-id", str(PROTOCOL_ID)]
    with subprocess.Popen(
        [sys.executable, "-m", "tipoff", "gameserver", *arguments],
        env=os.environ | WITH_KEY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        word, _, address = process.stdout.readline().strip().partition(" ")
        assert word == "listening", process.stderr and process.stderr.read()
        yield EchoServer(process, Address.parse(address))
        process.kill()


def test_payloads_come_back(echo_server: EchoServer) -> None:
    """A whole session between two processes; the report is JSON."""
    token = make_token(echo_server.address).to_base64().encode()
    result = tipoff("connect", "--token", "-", "--count", 50, "--size", 1200, "--json", stdin=token)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["ok"], report["echoes"], report["max_clients"]) == (True, 50, 64)
    assert report["server"] == str(echo_server.address)
    assert 0 < report["rtt_min_ms"] <= report["rtt_median_ms"] <= report["rtt_max_ms"]


def test_people_get_two_lines(echo_server: EchoServer) -> None:
    """Where to, how fast."""
    result = tipoff("connect", "--token", "-", stdin=make_token(echo_server.address).encode())
    assert result.exit_code == 0, result.output
    assert f"connected to {echo_server.address} in" in result.output
    assert "10 echoes, 0 payloads sent again, round trip min" in result.output


def test_token_of_another_key_gets_nobody_in(echo_server: EchoServer) -> None:
    """Exit code 1 and the reason, after the time given."""
    token = make_token(echo_server.address, key=PrivateKey(bytes(range(1, 33))))
    result = tipoff("connect", "--token", "-", "--timeout", 0.3, stdin=token.encode())
    assert (result.exit_code, "no connection within 0.3 s" in result.stderr) == (1, True)


def test_first_address_that_is_dead_is_passed_over(echo_server: EchoServer) -> None:
    """Two addresses of different families; nobody is at the first."""
    addresses = [Address("::1", 1), echo_server.address]
    token = make_token(public_addresses=addresses, internal_addresses=addresses, timeout=1)
    result = tipoff("connect", "--token", "-", "--count", 1, stdin=token.encode())
    assert result.exit_code == 0, result.output


def test_no_token_is_exit_code_1() -> None:
    """With the reason in the object."""
    result = tipoff("connect", "--token", "-", "--json", stdin=b"hello")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (1, False)


def test_sigterm_ends_the_server_cleanly(echo_server: EchoServer) -> None:
    """Exit code 0 and no traceback. The last test of this server."""
    echo_server.process.send_signal(signal.SIGTERM)
    _, errors = echo_server.process.communicate(timeout=10)
    assert echo_server.process.returncode == 0
    assert "Traceback" not in errors
    assert KEY.reveal().hex() not in errors


def test_gameserver_command_is_the_echo_server_only() -> None:
    """Without both flags it says what to do instead."""
    result = tipoff("gameserver", "--protocol-id", 1, "--key", KEY.reveal().hex())
    assert (result.exit_code, "this command runs only an echo server" in result.output) == (2, True)


def test_address_that_cannot_be_had_is_reported() -> None:
    """Exit code 1 with the system's words."""
    arguments = ("--stand-alone", "--echo", "--protocol-id", 1, "--listen", "192.0.2.1:1")
    result = tipoff("gameserver", *arguments, env=WITH_KEY)
    assert result.exit_code == 1, result.output
    assert "cannot listen on 192.0.2.1:1: Cannot assign" in result.output


def echo_at(bound: Address) -> Server:
    return Server(private_key=KEY, protocol_id=PROTOCOL_ID, addresses=[bound], max_clients=1)


class Listening:
    """An echo server in this loop."""

    def __init__(self, make: Any = echo_at) -> None:
        self.address: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self.stop = asyncio.Event()
        self._make = make

    def _server(self, bound: Address) -> Server:
        self.address.set_result(bound)
        return self._make(bound)  # type: ignore[no-any-return]  # a test's own callable

    async def __aenter__(self) -> Address:
        self._task = asyncio.create_task(serve_echo(self._server, Address("::1", 0), self.stop))
        return await self.address

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await self._task


async def test_server_that_stops_tells_its_clients() -> None:
    """The client fails at once, with the reason, not after its timeout."""
    listening = Listening()
    async with listening as address:
        asyncio.get_running_loop().call_later(0.2, listening.stop.set)
        with pytest.raises(ConnectFailed, match="closed the connection"):
            await connect_and_echo(make_token(address), Report(), count=1_000_000, size=8, timeout=5)


async def test_full_server_is_reported_as_a_refusal() -> None:
    """At once, over IPv6."""

    def full(bound: Address) -> Server:
        return Server(
            private_key=KEY, protocol_id=PROTOCOL_ID, addresses=[bound], max_clients=1, has_room=lambda: False
        )

    async with Listening(full) as address:
        with pytest.raises(ConnectFailed, match="refused the connection"):
            await connect_and_echo(make_token(address), Report(), count=1, size=8, timeout=5)


async def test_server_that_does_not_echo_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each payload is tried five times."""
    monkeypatch.setattr("tipoff.interop.echo_client.ECHO_PATIENCE", 0.02)

    class Mute(Server):
        def send(self, index: int, payload: bytes, now: float) -> bool:
            return True

    def mute(bound: Address) -> Server:
        return Mute(private_key=KEY, protocol_id=PROTOCOL_ID, addresses=[bound], max_clients=1)

    report = Report()
    async with Listening(mute) as address:
        with pytest.raises(ConnectFailed, match="payload 1 was not echoed, though sent 5 times"):
            await connect_and_echo(make_token(address), report, count=1, size=8, timeout=5)
    assert report.repeated == 5
