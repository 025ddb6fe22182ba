"""A server reads its environment: our variables, Edgegap's, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tipoff_gameserver import (
    ConfigError,
    Context,
    GameServer,
    deployed_context,
    stand_alone_context,
)
from tipoff_gameserver import Game as SdkGame
from tipoff_gameserver.context import ca_contents_argument, parse_listen
from tipoff_shared.games import Game
from tipoff_shared.netcode import Dialect

KEY = "11" * 32
OURS = {
    "TIPOFF_DEPLOYMENT_ID": "arena-1",
    "TIPOFF_GAME": "arena",
    "TIPOFF_VERSION": "v1.0",
    "TIPOFF_PUBLIC_HOST": "192.168.1.5,127.0.0.1",
    "TIPOFF_PRIVATE_KEY": KEY,
    "NATS_INSECURE": "1",
}
EDGEGAP = {
    "ARBITRIUM_REQUEST_ID": "abcdef123456",
    "ARBITRIUM_PUBLIC_IP": "203.0.113.7",
    "ARBITRIUM_PORTS_MAPPING": json.dumps(
        {
            "ports": {
                "7777": {"name": "7777", "internal": 7777, "external": 31504, "protocol": "UDP"},
                "ws": {"name": "ws", "internal": 8080, "external": 31505, "protocol": "WSS"},
            }
        }
    ),
    "ARBITRIUM_DEPLOYMENT_LOCATION": '{"city": "Montreal", "latitude": 45.5}',
    "ARBITRIUM_DELETE_URL": "https://api.example/stop",
    "ARBITRIUM_DELETE_TOKEN": "delete-token",
    "LIGHTYEAR_PRIVATE_KEY": ",".join(["17"] * 32),
}


def test_our_own_variables() -> None:
    context = deployed_context(OURS)
    assert (context.deployment_id, context.game, context.version) == ("arena-1", "arena", "v1.0")
    assert context.public_hosts == ("192.168.1.5", "127.0.0.1")
    assert context.bind_hosts == ("0.0.0.0",)
    assert context.private_key.reveal().hex() == KEY
    assert context.protocol_id == Game(name="arena", version="v1.0").netcode_protocol_id
    assert context.dialect is Dialect.STANDARD
    assert context.plain_websocket_allowed
    assert not context.stand_alone


def test_edgegaps_variables() -> None:
    """One image runs everywhere: the ports by their protocol, the key by bevygap's name and form."""
    context = deployed_context(EDGEGAP)
    assert context.deployment_id == "abcdef123456"
    assert context.public_hosts == ("203.0.113.7",)
    assert context.bind_hosts == ("0.0.0.0",)
    assert (context.ports["udp"].internal, context.ports["udp"].external) == (7777, 31504)
    assert (context.ports["websocket"].internal, context.ports["websocket"].external) == (8080, 31505)
    assert context.private_key.reveal().hex() == KEY
    assert (context.dialect, context.protocol_id, context.bevygap) == (Dialect.LIGHTYEAR, 0, True)
    assert context.location["city"] == "Montreal"
    assert not context.plain_websocket_allowed
    assert "delete-token" not in repr(context)


def test_our_game_on_edgegap_is_not_bevygaps() -> None:
    context = deployed_context(EDGEGAP | {"TIPOFF_GAME": "arena"})
    assert (context.dialect, context.bevygap) == (Dialect.STANDARD, False)


def test_what_our_launcher_sets_for_others_changes_nothing() -> None:
    """It gives every server Edgegap's variables, too; ours win, and the end is told by the lease alone."""
    both = deployed_context(OURS | EDGEGAP | {"ARBITRIUM_REQUEST_ID": OURS["TIPOFF_DEPLOYMENT_ID"]})
    assert both.delete_url == ""
    assert (both.deployment_id, both.public_hosts) == ("arena-1", ("192.168.1.5", "127.0.0.1"))
    assert (both.dialect, both.bevygap) == (Dialect.STANDARD, False)
    assert both.private_key.reveal().hex() == KEY
    on_edgegap = deployed_context(OURS | EDGEGAP)  # started there by our orchestrator
    assert on_edgegap.delete_url == EDGEGAP["ARBITRIUM_DELETE_URL"]


def test_a_server_on_loopback_listens_there_only() -> None:
    assert deployed_context(OURS | {"TIPOFF_PUBLIC_HOST": "127.0.0.1"}).bind_hosts == ("127.0.0.1",)


def test_the_key_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("22" * 32 + "\n")
    context = deployed_context(OURS | {"TIPOFF_PRIVATE_KEY_FILE": str(file)})
    assert context.private_key.reveal().hex() == "22" * 32
    assert "22" * 8 not in repr(context)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"TIPOFF_PRIVATE_KEY": ""}, "no private key: set TIPOFF_PRIVATE_KEY_FILE"),
        ({"TIPOFF_PRIVATE_KEY": "xyz"}, "TIPOFF_PRIVATE_KEY: a private key is 64 hex digits"),
        ({"TIPOFF_PRIVATE_KEY": "00" * 32}, "all zeros"),
        ({"TIPOFF_PRIVATE_KEY_FILE": "/does/not/exist"}, "TIPOFF_PRIVATE_KEY_FILE=/does/not/exist"),
        ({"TIPOFF_CAPACITY": "many"}, "TIPOFF_CAPACITY='many'"),
        ({"TIPOFF_CAPACITY": "0"}, "TIPOFF_CAPACITY='0'"),
        ({"TIPOFF_PROTOCOL_ID": "-1"}, "TIPOFF_PROTOCOL_ID"),
        ({"TIPOFF_DIALECT": "klingon"}, "standard or lightyear"),
        ({"TIPOFF_PORTS": "{"}, "TIPOFF_PORTS"),
        ({"TIPOFF_PORTS": '{"udp": {"internal": 70000, "external": 1}}'}, "outside 0..65535"),
        ({"TIPOFF_GAME": "a*b"}, "TIPOFF_GAME"),
        ({"TIPOFF_DRAIN_GRACE": "nan"}, "TIPOFF_DRAIN_GRACE"),
        ({"TIPOFF_PUBLIC_HOST": "0.0.0.0"}, "TIPOFF_PUBLIC_HOST=0.0.0.0 means every interface"),
        ({"TIPOFF_PUBLIC_HOST": "play.example.org,::"}, "TIPOFF_PUBLIC_HOST=:: means every interface"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        deployed_context(OURS | change)
    assert said in str(error.value)


def test_a_key_that_cannot_be_read_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as error:
        deployed_context(OURS | {"TIPOFF_PRIVATE_KEY": "5ec2e7" * 9})
    assert "5ec2e7" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:7777", ("127.0.0.1", 7777)),
        ("localhost:0", ("127.0.0.1", 0)),
        (":9", ("0.0.0.0", 9)),
        ("[::1]:9", ("::1", 9)),
    ],
)
def test_listen_is_read(text: str, place: tuple[str, int]) -> None:
    assert parse_listen(text) == place


@pytest.mark.parametrize(
    "text", ["7777", "host.example:7777", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x"]
)
def test_a_listen_that_cannot_be_used_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="listen="):
        stand_alone_context({}, listen=text)


def test_stand_alone_keys_are_new_each_time() -> None:
    first, second = stand_alone_context({}), stand_alone_context({})
    assert first.private_key != second.private_key


def test_bevygaps_argument_is_understood() -> None:
    assert ca_contents_argument(["game", "--ca_contents", "PEM"]) == "PEM"
    assert ca_contents_argument(["game", "--ca_contents=PEM"]) == "PEM"
    assert ca_contents_argument(["game"]) == ""
    context = deployed_context({**OURS, "NATS_INSECURE": ""}, ca_contents="PEM")
    assert context.nats is not None
    assert context.nats.ca_contents == "PEM"


async def test_tokens_do_not_travel_in_clear_over_the_internet(
    deployment: Context, caplog: pytest.LogCaptureFixture
) -> None:
    """On a public address without TLS there is no WebSocket listener, and the log says what to do about it."""
    public = replace(deployment, public_hosts=("203.0.113.7",))
    async with GameServer(SdkGame(), context=public) as server:
        assert server.transports.websocket is None
        assert server.transports.udp is not None
        assert server.transports.udp.host == "203.0.113.7"
    assert "TIPOFF_TLS_CERT" in caplog.text
    with pytest.raises(ConfigError, match="no listener is left"):
        async with GameServer(SdkGame(), context=public, udp=False):
            pass
    proxied = replace(public, websocket_url="wss://play.example/ws")
    async with GameServer(SdkGame(), context=proxied) as server:
        assert server.transports.websocket is not None
        assert server.transports.websocket.url == "wss://play.example/ws"
