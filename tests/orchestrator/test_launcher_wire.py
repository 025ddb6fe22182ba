"""Bytes from NATS are hostile until parsed: any bytes become a value or a typed error."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tipoff_launcher.service import Launcher
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    GameUnavailable,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    Port,
    RunState,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import Malformed
from tipoff_shared.nats.connection import Bus

# A slow run on a busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
members = st.sampled_from(["deployment_id", "game", "version", "capacity", "near", "environment"])
requests = st.dictionaries(members, json_values | st.just("arena-1") | st.just(4)).map(
    lambda value: json.dumps(value).encode()
)
answers = st.dictionaries(st.sampled_from(["deployment", "deployments", "error"]), json_values).map(
    lambda value: json.dumps(value).encode()
)

NASTY = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"deployment_id": "../../etc/passwd"}',
    b'{"deployment_id": "a/b"}',
    b'{"deployment_id": ""}',
    b'{"deployment_id": "a\\u0000"}',
    b'{"deployment_id": "\\ud800"}',
    b'{"deployment_id": "' + b"a" * 64 + b'"}',
    b'{"deployment_id": 5}',
    b'{"deployment_id": "a", "deployment_id": "*"}',
    b" " * (wire.MAX_REQUEST + 1),
]


@unhurried
@given(st.binary() | requests)
def test_any_bytes_are_a_spec_or_malformed(data: bytes) -> None:
    """No other exception is raised, and the result is safe to use."""
    try:
        spec = wire.decode_deploy(data)
    except Malformed:
        return
    assert "/" not in spec.deployment_id
    assert 1 <= spec.capacity <= wire.MAX_CAPACITY


@unhurried
@given(st.binary() | requests)
def test_any_bytes_are_an_id_or_malformed(data: bytes) -> None:
    """An id is used as a file name, so it must not lead elsewhere."""
    try:
        id = wire.decode_one(data)
    except Malformed:
        return
    assert id.replace("-", "a").isalnum()


@unhurried
@given(st.binary() | answers)
def test_any_bytes_are_an_answer_or_an_orchestrator_error(data: bytes) -> None:
    """A broken launcher does not break its clients."""
    for decode in (wire.decode_deployment, wire.decode_deployments, wire.decode_done):
        try:
            decode(data)
        except OrchestratorError:
            continue


@pytest.mark.parametrize("data", NASTY, ids=lambda data: repr(data[:24]))
def test_nasty_requests_are_malformed(data: bytes) -> None:
    """Truncated, too deep, too long, a path, a lone surrogate."""
    for decode in (wire.decode_deploy, wire.decode_one):
        with pytest.raises(Malformed):
            decode(data)


def test_a_spec_survives_the_wire() -> None:
    """Every field survives."""
    spec = DeploySpec("arena-1", "arena", "v0.0.1", 16, ("10.0.0.1", "eu"), {"GAME_MAP": "dust"})
    assert wire.decode_deploy(wire.encode_deploy(spec)) == spec


@pytest.mark.parametrize(
    "environment",
    [
        {"PATH": "x"},
        {"GAME_": "x"},
        {"game_map": "x"},
        {"GAME_A=B": "x"},
        {"GAME_A": "x" * 4097},
        {"GAME_A": "\0"},
        {f"GAME_{n}": "x" for n in range(65)},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_specs_environment_is_bounded(environment: dict[str, str]) -> None:
    """Names, sizes and number are limited."""
    with pytest.raises(Malformed, match="environment"):
        wire.decode_deploy(wire.encode_deploy(DeploySpec("a", "g", "1", 1, environment=environment)))


def test_a_deployment_survives_the_wire() -> None:
    """Its ports survive, and None stays None."""
    deployment = Deployment(
        "arena-1", "arena", "1", RunState.RUNNING, "5@x", "10.0.0.1", {"game": Port(1, 2, "udp")}, "why"
    )
    assert wire.decode_deployment(wire.encode_deployment(deployment)) == deployment
    assert wire.decode_deployment(wire.encode_deployment(None)) is None
    assert wire.decode_deployments(wire.encode_deployments([deployment])) == ([deployment], [])
    assert wire.decode_deployments(wire.encode_deployments([], ["no room"] * 20)) == ([], ["no room"] * 10)


@pytest.mark.parametrize(
    "kind", [NoCapacity, GameUnavailable, NotConfigured, OrchestratorUnavailable, OrchestratorError]
)
def test_an_error_survives_the_wire(kind: type[OrchestratorError]) -> None:
    """Its type survives, and what it says about a retry."""
    error = kind("words", retryable=True, may_have_started=True, retry_after=2.5)
    with pytest.raises(kind, match="words") as caught:
        wire.decode_deployment(wire.encode_error(error))
    assert type(caught.value) is kind
    assert (caught.value.retryable, caught.value.may_have_started) == (True, True)
    assert caught.value.retry_after == 2.5


async def test_a_launcher_answers_garbage_with_an_error_and_goes_on(launcher: Launcher, nats: Bus) -> None:
    """Over NATS, every bad request gets a typed answer, and nothing is started."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    noise = random.Random(seed)
    good = wire.encode_deploy(DeploySpec("sleeper-1", "sleeper", "1", 4))
    flipped = []
    for _ in range(50):
        data = bytearray(good)
        data[noise.randrange(len(data))] = noise.randrange(0x80, 0x100)  # no longer UTF-8, so never right
        flipped.append(bytes(data))
    requests = [(operation, data) for operation in ("deploy", "get", "stop") for data in NASTY]
    for operation, data in [*requests, *(("deploy", data) for data in flipped)]:
        answer = await nats.request(nats.subjects.launcher("local", operation), data, timeout=2)
        assert json.loads(answer.data)["error"]["kind"] == "failed"
    assert await LauncherOrchestrator(nats).list() == []


async def test_a_bug_in_the_launcher_is_an_answer_without_its_innards(
    launcher: Launcher, nats: Bus, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The caller gets an error without details; the log has the rest."""

    def broken() -> list[Deployment]:
        raise RuntimeError("innards")

    monkeypatch.setattr(launcher.supervisor, "living", broken)
    with pytest.raises(OrchestratorError, match="its log says why") as caught:
        await LauncherOrchestrator(nats).list()
    assert "innards" not in str(caught.value)
    assert "innards" in caplog.text
