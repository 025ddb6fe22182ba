"""What is decided without asking anybody: environment, tags, ports, places, when to look, and what is wrong with a
version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edgegap.edgegap_world import sleeper, with_sessions
from tests.matchmaker.world import KEY
from tipoff_orchestrator_client.base import DeploySpec, Port
from tipoff_orchestrator_client.edgegap.api.answers import NamedPort, Version
from tipoff_orchestrator_client.edgegap.api.client import public_addresses
from tipoff_orchestrator_client.edgegap.environment import Environment
from tipoff_orchestrator_client.edgegap.naming import (
    choose_port,
    deployment_id_in,
    game_in,
    ports_of,
    tags_of,
)
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import PollSchedule
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.setup.verify import problems_of
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import EdgegapSpec, Game, Games
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

GAME = sleeper()
SPEC = DeploySpec("arena-1", "arena", "1", 4)
CA = "-----BEGIN CERTIFICATE-----\n" + "MIIB9TCCAZugAwIBAgIUTAvE1aC\n" * 40 + "-----END CERTIFICATE-----\n"


def environment(game: Game = GAME, nats: NatsSettings | None = None, **settings: Any) -> dict[str, str]:
    games = Games({game.key: game}, {game.key: KEY}, Path())
    made = Environment(Settings(**settings), nats or NatsSettings(insecure=True), games)
    return {name: value for name, value, _ in made.of(SPEC, game)}


# The environment.


def test_a_server_is_told_who_it_is() -> None:
    """By the variables that our SDK reads anywhere."""
    told = environment()
    assert told["TIPOFF_DEPLOYMENT_ID"] == "arena-1"
    assert told["TIPOFF_CAPACITY"] == "4"
    assert told["TIPOFF_PRIVATE_KEY"] == KEY.reveal().hex()
    assert told["NATS_HOST"] == "nats://127.0.0.1:4222"


@pytest.mark.row(66)
def test_a_server_that_is_to_have_its_own_key_never_sees_the_games() -> None:
    games = Games({GAME.key: GAME}, {GAME.key: KEY}, Path())
    made = Environment(Settings(), NatsSettings(insecure=True), games).of(replace(SPEC, own_key=True), GAME)
    told = {name: value for name, value, _ in made}
    assert told["TIPOFF_PRIVATE_KEY"] == KEY.of_deployment("arena-1").reveal().hex()
    assert not any(KEY.reveal().hex() in value for value in told.values())


def test_secrets_are_hidden_variables() -> None:
    """Edgegap then never shows them."""
    games = Games({GAME.key: GAME}, {GAME.key: KEY}, Path())
    settings = Settings(nats_user="gameserver", nats_password="secret")  # type: ignore[arg-type] # as pydantic takes it
    made = Environment(settings, NatsSettings(user="matchmaker", insecure=True), games).of(SPEC, GAME)
    assert {name for name, _, hidden in made if hidden} == {"TIPOFF_PRIVATE_KEY", "NATS_PASSWORD"}


def test_a_certificate_authority_goes_in_parts_and_comes_out_whole(tmp_path: Path) -> None:
    """No value is over 255 bytes, and none begins or ends with white space."""
    file = tmp_path / "ca.pem"
    file.write_text(CA)
    told = environment(nats=NatsSettings(ca_file=str(file)))
    parts = [value for name, value in told.items() if name.startswith("NATS_CA_CONTENTS_")]
    assert len(parts) > 3
    assert all(len(part) <= 255 and part[0] == part[0].strip() for part in parts)
    read = NatsSettings.from_environment(told)
    assert read.ca_contents == CA


def test_bevygaps_servers_take_the_authority_as_an_argument() -> None:
    """They know no parts: the application's version has it. And lightyear reads its key in decimal."""
    game = msgspec.structs.replace(GAME, bevygap=True)
    told = environment(game, NatsSettings(servers=("tls://one:4222", "tls://two:4222"), ca_contents=CA))
    assert not any(name.startswith("NATS_CA") for name in told)
    assert told["LIGHTYEAR_PRIVATE_KEY"] == ",".join(str(number) for number in KEY.reveal())
    assert told["NATS_HOST"] == "tls://one:4222"
    assert {"NATS_USER", "NATS_PASSWORD"} <= set(told)


def test_the_matchmakers_own_credentials_are_never_passed_on() -> None:
    """It is said what to set instead."""
    nats = NatsSettings(user="matchmaker", password=Secret("mine"), insecure=True)
    with pytest.raises(ConfigError, match="TIPOFF_EDGEGAP_NATS_USER"):
        environment(nats=nats)
    assert "mine" not in environment(nats=nats, nats_user="gameserver", nats_password="theirs").values()
    assert "NATS_HOST" not in environment(nats=nats, pass_nats=False)


def test_a_value_that_is_too_long_is_told_before_anything_is_started() -> None:
    game = msgspec.structs.replace(GAME, edgegap=EdgegapSpec("a", "1", env={"MOTD": "x" * 256}))
    with pytest.raises(ConfigError, match="MOTD has 256 bytes; Edgegap takes 255"):
        environment(game)


# Whose it is.


@given(st.text(max_size=40), st.text(max_size=40))
def test_other_peoples_tags_are_never_ours(one: str, other: str) -> None:
    """Whatever they hold, only the tags that we write name a deployment of this namespace."""
    assert deployment_id_in([one, other], "prod") is None or {one, other} >= {"tipoff-prod"}


def test_namespaces_do_not_see_each_other() -> None:
    """Not even where one's name begins like the other's, or there is none."""
    for mine, theirs in (("", "a"), ("a", ""), ("a", "a-b"), ("a", "b")):
        tags = tags_of(theirs, "arena-1", GAME.key)
        assert deployment_id_in(tags, mine) is None
        assert deployment_id_in(tags, theirs) == "arena-1"
    assert game_in(tags_of("", "arena-1", GAME.key), [GAME]) is GAME
    assert all(len(tag) <= 31 for tag in tags_of("n" * 24, "a" * 27, GAME.key))


def test_a_deployment_with_two_names_is_nobodys() -> None:
    tags = [*tags_of("", "arena-1", GAME.key), "id-arena-2"]
    assert deployment_id_in(tags, "") is None


# Ports and places.


@pytest.mark.parametrize(
    ("ports", "port", "chosen"),
    [
        ({"udp": "udp", "web": "ws"}, "", "udp"),
        ({"web": "ws", "play": "tcp/udp"}, "", "play"),
        ({"web": "ws", "play": "udp", "other": "udp"}, "other", "other"),
        ({"web": "ws"}, "", None),
        ({"play": "udp"}, "game", None),
    ],
)
def test_the_games_port_is_found(ports: dict[str, str], port: str, chosen: str | None) -> None:
    """By its name in games.toml, else by the transport's, else by its protocol."""
    game = msgspec.structs.replace(GAME, edgegap=EdgegapSpec("a", "1", port=port))
    assert choose_port(ports, game) == chosen


def test_the_named_port_is_the_primary_transports() -> None:
    """Others keep their names, and a second one of the same transport does not hide it."""
    ports = {
        "game": NamedPort("game", 5000, 31000, "udp"),
        "udp": NamedPort("udp", 5001, 31001, "udp"),
        "websocket": NamedPort("websocket", 5002, 31002, "ws", tls=True),
    }
    assert ports_of(ports, GAME) == {
        "udp": Port(5000, 31000, "udp"),
        "websocket": Port(5002, 31002, "wss"),
    }


def test_servers_are_placed_near_public_addresses() -> None:
    """Regions, private addresses and nonsense place nothing; without any, the default does."""
    near = ["8.8.4.4", "10.0.0.1", "eu-west", "127.0.0.1", "2001:4860:4860::8888", "8.8.4.4", "999.1.1.1"]
    assert public_addresses(near, ["1.1.1.1"]) == ["8.8.4.4", "2001:4860:4860::8888"]
    assert public_addresses(["10.0.0.1"], ["1.1.1.1"]) == ["1.1.1.1"]


@pytest.mark.parametrize("near", ["", "somewhere", "1.1.1"])
def test_the_default_place_is_an_address(near: str) -> None:
    with pytest.raises(ValueError, match="near"):
        Settings(near=near)


# When to poll.


def test_polls_are_quick_at_first_and_slower_later() -> None:
    schedule = PollSchedule(0.5, 3.0)
    schedule.add("a", 0.0)
    seen: list[float] = []
    while (at := schedule.next_at()) is not None and at < 20:
        assert schedule.due(at) == ["a"]
        seen.append(at)
    gaps = [later - earlier for earlier, later in zip([0.0, *seen], seen, strict=False)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (0.5, 3.0)
    schedule.remove("a")
    assert schedule.next_at() is None


def test_many_are_polled_together_and_a_webhook_comes_first() -> None:
    """One list answers for all; a webhook makes its id due at once."""
    schedule = PollSchedule(1.0, 1.0)
    for number in range(5):
        schedule.add(str(number), number * 0.1)
    assert sorted(schedule.due(1.25)) == ["0", "1", "2", "3", "4"]
    assert schedule.due(1.3) == []
    schedule.poll_now("3")
    schedule.poll_now("3")
    schedule.poll_now("unknown here, maybe known elsewhere")
    assert schedule.next_at() == float("-inf")
    assert schedule.due(1.4) == ["3", "unknown here, maybe known elsewhere"]


# What is wrong with a version.

GOOD = Version("v1", True, "1.0.3", {"game": "udp"}, "seat", 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"active": False}, "not active"),
        ({"image_tag": "latest"}, "Edgegap caches"),
        ({"ports": {"web": "ws"}}, "no port 'game'; it has web (ws)"),
        ({"kind": "match"}, "sessions of kind match; games.toml says kind = 'seat'"),
        ({"sockets": 8}, "8 sockets; games.toml says seats = 4"),
    ],
)
def test_what_speaks_against_a_version_is_said(change: dict[str, Any], said: str) -> None:
    import dataclasses

    game = with_sessions(GAME)
    assert game.edgegap is not None
    problems = problems_of(dataclasses.replace(GOOD, **change), game, game.edgegap)
    assert said in "; ".join(problems)
    assert bool(problems) == bool(said)
