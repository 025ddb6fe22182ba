"""Whatever comes over the wire, to the emulator or from an Edgegap gone mad: only documented errors come out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_edgegap_emulator import schema
from tipoff_orchestrator_client.edgegap.setup.app_version import Image, Wishes, changes, wanted_version
from tipoff_orchestrator_client.edgegap.setup.check import Finding, version_findings
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import EdgegapSpec, Game

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def near(members: dict[str, Any]) -> st.SearchStrategy[Any]:
    """An object with members of the right names and values of any kind, or anything at all."""
    return anything | st.fixed_dictionaries({}, optional=dict.fromkeys(members, anything) | members)


port = near(
    {"name": st.just("udp") | scalars, "port": st.integers(-5, 70_000) | scalars, "protocol": scalars}
)
env = near({"key": scalars, "value": scalars, "is_secret": scalars})
version = near(
    {
        "is_active": scalars,
        "docker_tag": scalars,
        "docker_repository": scalars,
        "ports": st.lists(port, max_size=3) | anything,
        "envs": st.lists(env, max_size=3) | anything,
        "max_duration": scalars,
        "session_config": near({"kind": scalars, "sockets": scalars, "autodeploy": scalars}),
        "private_token": scalars,
    }
).filter(lambda value: isinstance(value, dict))

GAME = Game(
    "arena", "1", orchestrator="edgegap-sessions", edgegap=EdgegapSpec("app", "v1", port="udp"), seats=4
)
WISHES = Wishes(
    Image("r", "i", "1"), 512, 1024, 60, True, True, "user", "pw", "", (("A", "b", False), ("K", "s", True))
)


@pytest.mark.slow
@given(near({"application": scalars, "users": anything, "tags": anything, "environment_variables": anything}))
@settings(max_examples=200, deadline=None)
def test_any_json_is_checked(body: Any) -> None:
    """By every description of a request."""
    for check in (
        schema.deployment,
        schema.session,
        schema.version,
        schema.version_change,
        schema.application,
    ):
        assert all(isinstance(problem, str) for problem in schema.problems(check, body))


@pytest.mark.slow
@given(version)
@settings(max_examples=300, deadline=None)
def test_any_version_is_examined(found: dict[str, Any]) -> None:
    assert all(isinstance(one, Finding) for one in version_findings(GAME, found))


@pytest.mark.slow
@given(version)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_understood_whatever_was_there_before(found: dict[str, Any]) -> None:
    """And a second time there is nothing left to change, but for what is never shown."""
    wanted = wanted_version(GAME, WISHES)
    with suppress(ConfigError):
        body, _ = changes(found, wanted)
        ours = [port for port in body.get("ports", []) if port.get("name") in ("udp", "websocket")]
        assert schema.problems(schema.version_change, {"ports": ours}) == []
        assert changes({**found, **body}, wanted)[0].keys() <= {"private_token", "private_username"}


@pytest.mark.parametrize("depth", [10_000])
def test_depth_is_no_trouble(depth: int) -> None:
    body: Any = []
    for _ in range(depth):
        body = [body]
    assert schema.problems(schema.deployment, {"application": "a", "version": "1", "users": body}) != []
