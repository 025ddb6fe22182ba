"""What a version must look like for a game, and what is said of one that looks otherwise. Nothing is asked here."""

from __future__ import annotations

from typing import Any

import pytest

from tipoff_edgegap_emulator import schema
from tipoff_orchestrator_client.edgegap.setup.app_version import (
    SET_AND_ENCRYPTED,
    Image,
    Wishes,
    ca_argument,
    changes,
    wanted_version,
)
from tipoff_orchestrator_client.edgegap.setup.check import (
    Verdict,
    reachable_from_outside,
    version_findings,
)
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import EdgegapSpec, Game

IMAGE = Image("registry.edgegap.com", "org/arena", "1.0")
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\nAAAA\n-----END CERTIFICATE-----\n"


def game(**members: Any) -> Game:
    spec = {"edgegap": EdgegapSpec("arena-app", "v1"), "orchestrator": "edgegap", "seats": 4}
    return Game("arena", "1", **(spec | members))


def version(**members: Any) -> dict[str, Any]:
    """One that is as it should be."""
    return wanted_version(game(), Wishes(image=IMAGE)) | {"req_cpu": 512, "req_memory": 1024} | members


def wrong(found: dict[str, Any], of: Game | None = None) -> list[str]:
    return [one.text for one in version_findings(of or game(), found) if one.verdict is Verdict.BAD]


def test_what_we_write_is_what_edgegap_understands() -> None:
    """For every kind of game."""
    wishes = Wishes(
        IMAGE, 512, 1024, 60, True, True, "robot", "secret", PEM, (("A", "b", False), ("C", "d", True))
    )
    for one in (game(), game(primary="websocket"), game(orchestrator="edgegap-sessions"), game(bevygap=True)):
        body = wanted_version(one, wishes) | {"name": "v1"}
        assert schema.problems(schema.version, body) == []


def test_a_version_as_it_should_be_is_left_alone() -> None:
    assert changes(version(), wanted_version(game(), Wishes(image=IMAGE))) == ({}, [])
    assert wrong(version()) == []


def test_only_what_differs_is_sent() -> None:
    body, told = changes(version(), wanted_version(game(), Wishes(image=Image("r", "org/arena", "1.1"))))
    assert body == {"docker_repository": "r", "docker_tag": "1.1"}
    assert [str(one) for one in told] == [
        "docker_repository: registry.edgegap.com -> r",
        "docker_tag: 1.0 -> 1.1",
    ]


def test_ports_and_variables_of_others_are_kept() -> None:
    """Lists are replaced whole at Edgegap."""
    current = version(
        ports=[{"name": "voice", "port": 30_000, "protocol": "UDP"}], envs=[{"key": "MAP", "value": "x"}]
    )
    wishes = Wishes(environment=(("A", "b", False),))
    body, _ = changes(current, wanted_version(game(), wishes))
    assert {port["name"] for port in body["ports"]} == {"voice", "udp", "websocket"}
    assert len({port["port"] for port in body["ports"]}) == 3
    assert [env["key"] for env in body["envs"]] == ["MAP", "A"]


def test_a_port_keeps_the_number_it_has() -> None:
    """It may stand in a game's code."""
    current = version(ports=[{"name": "udp", "port": 6420, "protocol": "UDP", "to_check": True}])
    body, _ = changes(current, wanted_version(game(), Wishes()))
    assert body["ports"][0] == {
        "name": "udp",
        "port": 6420,
        "protocol": "UDP",
        "to_check": False,
        "tls_upgrade": False,
    }


def test_a_secret_that_is_set_is_not_written_again_and_never_told() -> None:
    """Nobody can read it; with another change it goes along, because the list is replaced whole."""
    wishes = Wishes(environment=(("KEY", "canary", True), ("A", "b", False)))
    wanted = wanted_version(game(), wishes)
    set_already = [{"key": "KEY", "value": SET_AND_ENCRYPTED}, {"key": "A", "value": "b"}]
    assert changes(version(envs=set_already), wanted)[0] == {}
    body, told = changes(version(envs=[]), wanted)
    assert body["envs"][0]["value"] == "canary"
    assert "canary" not in "".join(map(str, told)) + repr(wishes)


def test_a_foreign_secret_would_be_lost_so_nothing_is_changed() -> None:
    current = version(envs=[{"key": "THEIRS", "value": SET_AND_ENCRYPTED}])
    with pytest.raises(ConfigError, match="THEIRS"):
        changes(current, wanted_version(game(), Wishes(environment=(("A", "b", False),))))


def test_an_authority_becomes_the_argument_that_bevygaps_script_writes() -> None:
    expected = "--ca_contents '-----BEGIN CERTIFICATE-----MIIBAAAA-----END CERTIFICATE-----'"
    assert ca_argument(PEM) == expected
    assert wanted_version(game(bevygap=True), Wishes(ca=PEM))["arguments"] == expected


@pytest.mark.parametrize("text", ["", "nonsense", PEM.replace("MIIB", "M'IB")])
def test_what_is_no_authority_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        ca_argument(text)


def test_sessions_get_their_configuration() -> None:
    seats = wanted_version(game(orchestrator="edgegap-sessions"), Wishes())
    assert (seats["session_config"]["kind"], seats["session_config"]["sockets"]) == ("Seat", 4)
    spec = EdgegapSpec("arena-app", "v1", kind="match")
    match = wanted_version(game(orchestrator="edgegap-sessions", edgegap=spec), Wishes())
    assert (match["session_config"]["kind"], match["session_config"]["sockets"]) == ("Match", 1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("registry.edgegap.com/org/arena:1.0", ("registry.edgegap.com", "org/arena", "1.0")),
        ("localhost:5000/arena:2026.11.20-1", ("localhost:5000", "arena", "2026.11.20-1")),
    ],
)
def test_an_image_in_its_parts(text: str, parts: tuple[str, str, str]) -> None:
    assert Image.parse(text) == Image(*parts)


@pytest.mark.parametrize(
    "text", ["arena", "arena:1", "registry.edgegap.com/arena", "registry.edgegap.com/arena:latest", "r/a b:1"]
)
def test_an_image_that_edgegap_could_not_run(text: str) -> None:
    """`latest` is cached where it was pulled once."""
    with pytest.raises(ConfigError):
        Image.parse(text)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"is_active": False}, "is not active"),
        ({"docker_tag": "latest"}, "'latest'"),
        ({"ports": []}, "has no port 'udp'"),
        ({"ports": [{"name": "web", "port": 1, "protocol": "WS"}]}, "has no port 'udp'"),
        ({"ports": [{"name": "udp", "port": 60_001, "protocol": "UDP"}]}, "1 to 59999"),
        ({"envs": [{"key": "LONG", "value": "x" * 256}]}, "LONG"),
    ],
)
def test_a_version_that_cannot_work_is_told(members: dict[str, Any], says: str) -> None:
    assert says in " ".join(wrong(version(**members)))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"kind": "Default", "sockets": 4}, "of kind default"),
        ({"kind": "Seat", "sockets": 9}, "9 sockets"),
        ({"kind": "Seat", "sockets": 4, "autodeploy": False}, "autodeploy is off"),
    ],
)
def test_sessions_that_cannot_work_are_told(config: dict[str, Any], says: str) -> None:
    found = wrong(version(session_config=config), game(orchestrator="edgegap-sessions"))
    assert says in " ".join(found)


@pytest.mark.parametrize(
    ("address", "reachable"),
    [
        ("nats.example.org:4222", True),
        ("https://play.example.org", True),
        ("8.8.8.8", True),
        ("127.0.0.1:4222", False),
        ("nats://10.0.0.5:4222", False),
        ("localhost", False),
        ("nats", False),
        ("printer.local", False),
        ("[::1]:4222", False),
        ("", False),
    ],
)
def test_addresses_that_the_internet_knows(address: str, reachable: bool) -> None:
    assert reachable_from_outside(address) is reachable
