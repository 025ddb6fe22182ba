"""Which requests Edgegap would understand: names, types and bounds of every member."""

from __future__ import annotations

from typing import Any

import pytest

from tipoff_edgegap_emulator import schema


def user(**data: Any) -> dict[str, Any]:
    return {"user_type": "ip_address", "user_data": data or {"ip_address": "203.0.113.7"}}


def deployment(**members: Any) -> dict[str, Any]:
    return {"application": "a", "version": "1", "users": [user()]} | members


VERSION: dict[str, Any] = {
    "name": "1",
    "docker_repository": "registry.edgegap.com",
    "docker_image": "org/game",
    "docker_tag": "1.0",
    "req_cpu": 512,
    "req_memory": 1024,
}


def test_a_whole_deployment_is_understood() -> None:
    body = deployment(
        environment_variables=[{"key": "A", "value": "b", "is_hidden": True}],
        tags=["t"],
        webhook_on_ready={"url": "https://example.org/hook"},
        webhook_on_error={"url": "https://example.org/hook"},
        webhook_on_terminated={"url": "https://example.org/hook"},
        require_cached_locations=None,
    )
    assert schema.problems(schema.deployment, body) == []


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"users": []}, "users: at least 1"),
        ({"users": None}, "users: an array is expected, not null"),
        ({"users": [user(ip_address=None)]}, "users[0].user_data.ip_address: a string is expected, not null"),
        ({"users": [user(ip_address="nonsense")]}, "'nonsense' is not an IP address"),
        ({"users": [{"user_type": "name", "user_data": {}}]}, "users[0].user_type: 'name' is none of"),
        ({"app_name": "a"}, "app_name: Edgegap knows no such member"),
        ({"application": 7}, "application: a string is expected, not an integer"),
        ({"tags": "one"}, "tags: an array is expected, not a string"),
        ({"tags": ["x" * 41]}, "tags[0]: 41 characters"),
        (
            {"environment_variables": [{"key": "A", "value": "b"}]},
            "environment_variables[0].is_hidden: missing",
        ),
        (
            {"environment_variables": [{"key": "A", "value": 5, "is_hidden": False}]},
            "environment_variables[0].value: a string is expected",
        ),
        (
            {"environment_variables": [{"key": "A", "value": "ü" * 128, "is_hidden": False}]},
            "environment_variables[0].value: 256 bytes",
        ),
        (
            {"webhook_on_ready": "https://example.org"},
            "webhook_on_ready: an object is expected, not a string",
        ),
        ({"webhook_on_ready": {"url": "example.org"}}, "webhook_on_ready.url: a URL is expected"),
    ],
)
def test_a_deployment_that_is_not_understood(members: dict[str, Any], says: str) -> None:
    """Each is reported with its place in the body."""
    found = schema.problems(schema.deployment, deployment(**members))
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize("name", ["application", "version", "users"])
def test_what_a_deployment_cannot_do_without(name: str) -> None:
    body = deployment()
    del body[name]
    assert schema.problems(schema.deployment, body) == [f"{name}: missing"]


@pytest.mark.parametrize("body", [None, [], "text", 5, True])
def test_a_body_is_an_object(body: Any) -> None:
    assert len(schema.problems(schema.deployment, body)) == 1


def test_players_can_be_told_by_coordinates() -> None:
    place = {"user_type": "geo_coordinates", "user_data": {"latitude": 45.5, "longitude": -73}}
    assert schema.problems(schema.deployment, deployment(users=[place])) == []


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, None),
        ({"version_name": "1", "ip_list": ["203.0.113.7"], "webhook_url": "https://example.org"}, None),
        ({"ip_list": []}, "ip_list: at least 1"),
        ({"version": "1"}, "version: Edgegap knows no such member"),
        ({"users": [user()]}, "users: Edgegap knows no such member"),
    ],
)
def test_a_session(members: dict[str, Any], says: str | None) -> None:
    """Its members are not those of a deployment."""
    found = schema.problems(schema.session, {"app_name": "a"} | members)
    assert found == [] if says is None else says in found[0]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"ports": [{"port": 7777, "protocol": "UDP"}]}, None),
        ({"ports": [{"port": 60_000, "protocol": "UDP"}]}, "ports[0].port: 60000 is outside"),
        ({"ports": [{"port": 1, "protocol": "udp"}]}, "ports[0].protocol: 'udp' is none of"),
        ({"envs": [{"key": "A", "value": "x" * 256}]}, "envs[0].value: 256 bytes"),
        ({"max_duration": 2000}, "max_duration: 2000 is outside"),
        ({"arguments": "--ca_contents 'x'"}, None),
        ({"session_config": {"kind": "seat", "sockets": 4}}, "session_config.kind: 'seat' is none of"),
        ({"restart_policy": "sometimes"}, "restart_policy: 'sometimes' is none of"),
        ({"is_active": "yes"}, "is_active: a boolean is expected"),
        ({"req_cpu": True}, "req_cpu: an integer is expected, not a boolean"),
    ],
)
def test_a_version(members: dict[str, Any], says: str | None) -> None:
    found = schema.problems(schema.version, VERSION | members)
    assert found == [] if says is None else says in found[0]


def test_a_change_of_a_version_names_what_it_changes() -> None:
    assert schema.problems(schema.version_change, {"docker_tag": "1.1"}) == []
