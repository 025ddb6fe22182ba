"""What `tipoff doctor` reads: its options, the stack's variables, and the answers of others, whom nobody need trust."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff.doctor.facts.nats import (
    StreamFacts,
    orchestrators_of,
    read_stream,
    read_varz,
)
from tipoff.doctor.target import of_env_file, of_environment, of_up, read_env_file
from tipoff.port_range import parse_ports
from tipoff.up.state_dir import UpInfo
from tipoff_shared.admin import Failing, MatchmakerStatus, OrchestratorStatus
from tipoff_shared.errors import ConfigError

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@given(
    st.binary(max_size=200)
    | st.sampled_from([b"{}", b"[]", b'{"config":{},"state":{}}', b'{"error":{}}', b"null"])
)
def test_answers_nobody_can_read_are_findings(data: bytes) -> None:
    """Not crashes."""
    facts, _ = read_stream("sessions", data)
    assert facts.error or facts.missing
    assert read_varz("u", data).error


def test_jetstreams_answer_is_read() -> None:
    """As nats-server 2.12 writes it."""
    data = (
        b'{"ts":"2026-11-20T00:00:00.123456789Z","config":{"num_replicas":3,"max_bytes":-1},'
        b'"state":{"messages":7,"bytes":700},"cluster":{"replicas":[{"current":true},{"current":false}]}}'
    )
    facts, at = read_stream("sessions", data)
    assert facts == StreamFacts("sessions", replicas=3, current=2, messages=7, bytes=700)
    assert at == pytest.approx(NOW.timestamp() + 0.123456)
    missing, _ = read_stream("sessions", b'{"error":{"err_code":10059,"description":"stream not found"}}')
    assert missing.missing


def test_an_orchestrator_works_when_every_matchmaker_says_so() -> None:
    """One that has seen it fail is believed."""
    failing = OrchestratorStatus("launcher", "closed", [Failing("list", "closed", 2, "nobody listens")])
    works = OrchestratorStatus("launcher", "closed")
    asked = [MatchmakerStatus("m1", 0, [works]), MatchmakerStatus("m2", 0, [failing])]
    assert orchestrators_of(asked) == {"launcher": "list: nobody listens"}
    assert orchestrators_of(asked[:1]) == {"launcher": ""}


@pytest.mark.parametrize("text", ["", "0-5", "5-4", "1-65536", "a-b", "30000-", "-1"])
def test_ports_that_are_none(text: str) -> None:
    """Refused with what is expected."""
    with pytest.raises(ConfigError, match="FIRST-LAST"):
        parse_ports(text)


def test_an_env_file_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    """Comments, quotes, export; a line that is none is told with its number."""
    path = tmp_path / ".env"
    path.write_text("# a\n\nA=1\nexport B = 'x # y'\nC=\"z\"\nD=w # comment\nE=\n")
    assert read_env_file(path) == {"A": "1", "B": "x # y", "C": "z", "D": "w", "E": ""}
    path.write_text("A=1\nnonsense\n")
    with pytest.raises(ConfigError, match=":2:"):
        read_env_file(path)


def test_the_stacks_env_file_says_what_to_look_at(tmp_path: Path) -> None:
    """Host, ports, secrets, engine: everything that compose.yaml takes from it."""
    (tmp_path / "secrets/nats").mkdir(parents=True)
    (tmp_path / "secrets/nats/operator.password").write_text("pw\n")
    (tmp_path / "secrets/nats/ca.pem").write_text("PEM")
    path = tmp_path / ".env.local"
    path.write_text(
        "COMPOSE_PROFILES=local\nTIPOFF_HOST=play.example.org\nTIPOFF_HTTPS_PORT=8443\nTIPOFF_PUBLIC_HOST=93.184.216.34\n"
        "TIPOFF_PORT_RANGE=31000-31009\nTIPOFF_NATS_PUBLISH=127.0.0.1:14222\nDOCKER_SOCKET=/run/d.sock\n"
    )
    target = of_env_file(path)
    assert (target.host, target.url) == ("play.example.org", "https://play.example.org:8443")
    assert (target.public_hosts, target.ports) == (("93.184.216.34",), range(31000, 31010))
    assert target.nats is not None
    assert (target.nats.servers, target.nats.user) == (("tls://127.0.0.1:14222",), "operator")
    assert (target.engine, target.network) == (Path("/run/d.sock"), "tipoff_games")
    path.write_text("COMPOSE_PROFILES=edgegap\n")
    assert (of_env_file(path).servers_here, of_env_file(path).engine) == (False, None)
    (tmp_path / "secrets/nats/operator.password").unlink()
    assert "tipoff secrets init" in of_env_file(path).nats_problem


def test_the_stacks_example_can_be_looked_at(source_tree: Path) -> None:
    """`deploy/.env.example`, as it is."""
    target = of_env_file(source_tree / "deploy" / ".env.example")
    assert target.host == "localhost"
    assert len(target.ports) > 0


def test_a_running_up_says_where_its_games_and_ports_are(tmp_path: Path) -> None:
    """Not the variables of the shell that `tipoff doctor` is started in."""
    around = of_environment({"TIPOFF_GAMES": "/other.toml"}, nats=None, problem="")
    up = UpInfo(
        1,
        "https://play.example.org:3000/",
        "nats://127.0.0.1:4222",
        "up",
        "secret",
        games="/game/games.toml",
        ports="31000-31009",
        public_hosts=("203.0.113.7",),
    )
    found = of_up(around, up, tmp_path)
    assert (found.host, found.url) == ("play.example.org", "https://play.example.org:3000")
    assert (found.games, found.ports) == (Path("/game/games.toml"), range(31000, 31010))
    assert (found.public_hosts, found.any_ports) == (("203.0.113.7",), False)
    assert of_up(around, UpInfo(1, "http://127.0.0.1:3000/", "", "", ""), tmp_path).any_ports
    assert of_up(around, UpInfo(1, "http://[::1]:3000/", "", "", ""), tmp_path).host == ""
