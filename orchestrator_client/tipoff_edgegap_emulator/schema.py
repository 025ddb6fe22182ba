"""Checks the bodies of requests to Edgegap: names, types and bounds of their members. Pure.

Source: Edgegap's public OpenAPI descriptions (v2 of 2026.03.16, v1 of 2026.04.24) and, for v1 sessions, which these no
longer hold, the generated client that bevygap uses. A comment says where we are stricter.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any, str], Iterator[str]]
"""`(value, where)`: one text for each thing that is wrong."""

MAX_PORT = 59_999
MAX_TAG = 40
"""Characters of a tag, by v1's DeploymentTag; for v2 it is assumed (A: tag-length)."""
MAX_VALUE = 255
"""Bytes of an environment variable's value in 2024. For 2026 4 KB are documented; we keep to the smaller limit."""

_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _TYPES.get(type(value), type(value).__name__)


def text(low: int = 0, high: int | None = None, *, among: tuple[str, ...] = ()) -> Check:
    """A string of `low` to `high` characters, or one of `among`."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, str):
            yield f"{where}: a string is expected, not {_kind(value)}"
        elif among and value not in among:
            yield f"{where}: {value!r} is none of {', '.join(among)}"
        elif len(value) < low or (high is not None and len(value) > high):
            yield f"{where}: {len(value)} characters; {low} to {high if high is not None else 'any number'} are allowed"

    return check


def whole(low: int | None = None, high: int | None = None) -> Check:
    """An integer from `low` to `high`."""

    def check(value: Any, where: str) -> Iterator[str]:
        if isinstance(value, bool) or not isinstance(value, int):
            yield f"{where}: an integer is expected, not {_kind(value)}"
        elif (low is not None and value < low) or (high is not None and value > high):
            yield f"{where}: {value} is outside {low}..{high}"

    return check


def number(value: Any, where: str) -> Iterator[str]:
    """An integer or a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield f"{where}: a number is expected, not {_kind(value)}"


def flag(value: Any, where: str) -> Iterator[str]:
    """A boolean."""
    if not isinstance(value, bool):
        yield f"{where}: a boolean is expected, not {_kind(value)}"


def address(value: Any, where: str) -> Iterator[str]:
    """An IP address."""
    if not isinstance(value, str):
        yield f"{where}: a string is expected, not {_kind(value)}"
        return
    try:
        ipaddress.ip_address(value)
    except ValueError:
        yield f"{where}: {value!r} is not an IP address"


def url(value: Any, where: str) -> Iterator[str]:
    """An http or https URL."""
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        yield f"{where}: a URL is expected"


def anything(value: Any, where: str) -> Iterator[str]:
    """Any value."""
    return iter(())


def or_null(inner: Check) -> Check:
    """null, or what `inner` allows."""

    def check(value: Any, where: str) -> Iterator[str]:
        if value is not None:
            yield from inner(value, where)

    return check


def array(item: Check, *, at_least: int = 0) -> Check:
    """A list of at least `at_least` items that `item` allows."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where}: an array is expected, not {_kind(value)}"
            return
        if len(value) < at_least:
            yield f"{where}: at least {at_least} item(s) are expected"
        for index, one in enumerate(value):
            yield from item(one, f"{where}[{index}]")

    return check


def record(members: Mapping[str, Check], *, required: tuple[str, ...] = ()) -> Check:
    """An object with these members and no others."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where or 'the body'}: an object is expected, not {_kind(value)}"
            return
        for name in required:
            if name not in value:
                yield f"{_join(where, name)}: missing"
        for name, one in value.items():
            if name in members:
                yield from members[name](one, _join(where, name))
            else:
                yield f"{_join(where, name)}: Edgegap knows no such member"

    return check


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _user(value: Any, where: str) -> Iterator[str]:
    kinds = {
        "ip_address": record({"ip_address": address}, required=("ip_address",)),
        "geo_coordinates": record(
            {"latitude": number, "longitude": number}, required=("latitude", "longitude")
        ),
    }
    yield from record(
        {"user_type": text(among=tuple(kinds)), "user_data": anything}, required=("user_type", "user_data")
    )(value, where)
    if isinstance(value, dict) and value.get("user_type") in kinds and "user_data" in value:
        yield from kinds[value["user_type"]](value["user_data"], f"{where}.user_data")


def _value(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where}: a string is expected, not {_kind(value)}"
    elif (size := len(value.encode())) > MAX_VALUE:
        yield f"{where}: {size} bytes; a value of at most {MAX_VALUE} is sure to be taken"


_webhook = record({"url": url}, required=("url",))


def deployment_with(max_tag: int) -> Check:
    """`POST /v2/deployments`. `max_tag`: characters of a tag."""
    return record(
        {
            "application": text(1),
            "version": text(1),
            "require_cached_locations": or_null(flag),
            "users": array(_user, at_least=1),
            "environment_variables": array(
                record(
                    {"key": text(1), "value": _value, "is_hidden": flag},
                    required=("key", "value", "is_hidden"),
                )
            ),
            "tags": array(text(1, max_tag)),
            "webhook_on_ready": _webhook,
            "webhook_on_error": _webhook,
            "webhook_on_terminated": _webhook,
        },
        required=("application", "version", "users"),
    )


deployment = deployment_with(MAX_TAG)
"""`POST /v2/deployments`."""

_filter = record(
    {"field": text(1), "values": array(text()), "filter_type": text(among=("any", "all", "not"))},
    required=("field", "values", "filter_type"),
)

session = record(
    {
        "app_name": text(1),
        "version_name": text(1),
        "ip_list": array(address, at_least=1),
        "geo_ip_list": array(
            record(
                {"ip": address, "latitude": number, "longitude": number},
                required=("ip", "latitude", "longitude"),
            ),
            at_least=1,
        ),
        "deployment_request_id": text(1),
        "location": record({"latitude": number, "longitude": number}, required=("latitude", "longitude")),
        "city": text(),
        "country": text(),
        "continent": text(),
        "administrative_division": text(),
        "region": text(),
        "selectors": array(
            record(
                {
                    "tag": text(1),
                    "tag_only": flag,
                    "env": record({"key": text(1), "value": _value}, required=("key",)),
                },
                required=("tag",),
            )
        ),
        "webhook_url": or_null(url),
        "filters": array(_filter),
        "skip_telemetry": flag,
    },
    required=("app_name",),
)
"""`POST /v1/session`."""

_application_members: dict[str, Check] = {
    "name": text(3, 64),
    "is_active": flag,
    "image": text(),
    "is_telemetry_agent_active": flag,
}
application = record(_application_members, required=("name", "is_active", "image"))
"""`POST /v1/app`; `PATCH` takes any of them."""
application_change = record(_application_members)

PROTOCOLS = ("UDP", "TCP", "TCP/UDP", "HTTP", "HTTPS", "WS", "WSS")

_version_members: dict[str, Check] = {
    "name": text(1, 64),
    "is_active": flag,
    "req_cpu": whole(100),
    "req_memory": whole(100),
    "req_video": whole(0),
    "docker_repository": text(1),
    "private_username": text(),
    "private_token": text(),
    "docker_image": text(1),
    "docker_tag": text(1),
    "verify_image": flag,
    "force_cache": flag,
    "time_to_deploy": whole(10),
    "max_duration": whole(-1, 1440),
    "restart_policy": text(among=("always", "never", "on_failure")),
    "termination_grace_period_seconds": whole(5, 3600),
    "will_deploy_in_mainland_china": flag,
    "dns_config": text(),
    "ports": array(
        record(
            {
                "port": whole(0, MAX_PORT),
                "protocol": text(among=PROTOCOLS),
                "to_check": flag,
                "tls_upgrade": flag,
                "name": text(1),
            },
            required=("port", "protocol"),
        )
    ),
    "envs": array(record({"key": text(1), "value": _value, "is_secret": flag}, required=("key", "value"))),
    "endpoint_storage": text(),
    # Not in the descriptions of 2026, but needed by bevygap's script and by sessions (A: version-members):
    "arguments": or_null(text()),
    "command": or_null(text()),
    "session_config": record(
        {
            "kind": text(among=("Default", "Seat", "Match")),
            "sockets": whole(1),
            "autodeploy": flag,
            "empty_ttl": whole(0),
            "session_max_duration": whole(60),
        },
        required=("kind", "sockets"),
    ),
}

version = record(
    _version_members,
    required=("name", "docker_repository", "docker_image", "docker_tag", "req_cpu", "req_memory"),
)
"""`POST /v1/app/{app}/version`."""
version_change = record(_version_members)
"""`PATCH /v1/app/{app}/version/{version}`."""


def problems(check: Check, body: Any) -> list[str]:
    """One text for each thing that is wrong with `body`."""
    return list(check(body, ""))
