"""Decides what an application's version must hold for a game, and how that differs from what it holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.environment import Variable
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.games.limits import EDGEGAP_VALUE_LIMIT

Json: TypeAlias = dict[str, Any]

SET_AND_ENCRYPTED = "This value is set and encrypted"
"""Edgegap shows this in place of a secret, which cannot be read."""
MAX_PORT = 59_999
_IMAGE = re.compile(
    r"(?P<registry>[a-z0-9.-]+(?::\d+)?)/(?P<image>[a-z0-9._/-]+):(?P<tag>[\w.-]{1,128})", re.ASCII
)
_PORTS = {
    "udp": (30_000, "UDP"),
    "websocket": (30_001, "WS"),
    "tcp": (30_002, "TCP"),
    "webtransport": (30_003, "UDP"),
}
_EMPTY_TTL = 10
_GRACE = 10
"""Seconds between SIGTERM and SIGKILL: the SDK's drain grace and a little."""


@dataclass(frozen=True, slots=True)
class Image:
    """`registry.edgegap.com/org/game:1.2` in its three parts."""

    registry: str
    image: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Image:
        """Raises `ConfigError`, also for the tag `latest`, which Edgegap caches for good."""
        found = _IMAGE.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"--image {text!r}: REGISTRY/NAME:TAG in lower case is expected, like "
                "registry.edgegap.com/myorg/mygame:1.0.3"
            )
        if found["tag"] == "latest":
            raise ConfigError(
                f"--image {text!r}: Edgegap's locations keep the first image of a tag; give every build its own tag"
            )
        return cls(found["registry"], found["image"], found["tag"])


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `configure-app` is to set; None leaves a member unchanged. `cpu` in 1/1024 of a vCPU, `memory` in MB,
    `max_duration` in minutes."""

    image: Image | None = None
    cpu: int | None = None
    memory: int | None = None
    max_duration: int | None = None
    force_cache: bool | None = None
    tls_upgrade: bool = True
    registry_user: str = ""
    registry_token: str = field(default="", repr=False)
    ca: str = ""
    environment: tuple[Variable, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """A member that differs, for people; a secret's value is never shown."""

    member: str
    now: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.member}: {self.now} -> {self.wanted}"


def wanted_version(game: Game, wishes: Wishes) -> Json:
    """The members of the version that the game needs. Raises `ConfigError`."""
    version: Json = {
        "is_active": True,
        "restart_policy": "never",  # when a server dies, its deployment ends
        "termination_grace_period_seconds": _GRACE,
        "ports": ports(game, tls_upgrade=wishes.tls_upgrade),
    }
    if wishes.image is not None:
        version |= {
            "docker_repository": wishes.image.registry,
            "docker_image": wishes.image.image,
            "docker_tag": wishes.image.tag,
        }
    for name, value in (
        ("req_cpu", wishes.cpu),
        ("req_memory", wishes.memory),
        ("max_duration", wishes.max_duration),
        ("force_cache", wishes.force_cache),
    ):
        if value is not None:
            version[name] = value
    if wishes.registry_user:
        version |= {"private_username": wishes.registry_user, "private_token": wishes.registry_token}
    if wishes.environment:
        version["envs"] = [
            {"key": name, "value": value, "is_secret": hidden} for name, value, hidden in wishes.environment
        ]
    if wishes.ca:  # (A: version-members), as `session_config` below
        version["arguments"] = ca_argument(wishes.ca)
    if game.orchestrator == SESSIONS and game.edgegap is not None:
        kind = game.edgegap.kind.capitalize()
        version["session_config"] = {
            "kind": kind,
            "sockets": game.seats if kind == "Seat" else 1,
            "autodeploy": True,
            "empty_ttl": _EMPTY_TTL,
        }
    return version


def ports(game: Game, *, tls_upgrade: bool) -> list[Json]:
    """The ports of the primary transport and of WebSocket. Our servers listen where ARBITRIUM_PORTS_MAPPING says, so
    any number will do; a bevygap game's number is in its code, and `changes` keeps it where the version has it."""
    name = game.edgegap.port if game.edgegap is not None else ""
    found: list[Json] = []
    for transport in dict.fromkeys((game.primary, "websocket")):
        number, protocol = _PORTS[transport]
        if game.bevygap and transport != game.primary:
            continue
        port: Json = {
            "name": name if name and transport == game.primary else transport,
            "port": number,
            "protocol": protocol,
            "to_check": False,  # our servers announce themselves when they are ready
            "tls_upgrade": tls_upgrade and protocol == "WS",
        }
        found.append(port)
    return found


def ca_argument(pem: str) -> str:
    """`--ca_contents '...'` on one line, as bevygap's script writes it. Raises `ConfigError` unless `pem` is a PEM."""
    text = pem.strip()
    if not text.startswith("-----BEGIN CERTIFICATE-----") or "'" in text:
        raise ConfigError("the certificate authority is not a PEM certificate")
    return f"--ca_contents '{''.join(text.splitlines())}'"


def changes(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Json, list[Change]]:
    """The members to send, and what they change. Edgegap replaces lists whole, so these keep their other variables and
    ports. A secret that is set counts as right, because it cannot be read."""
    body: Json = {}
    told: list[Change] = []
    merged: Any
    for member, value in wanted.items():
        if member == "envs":
            merged, differences = _environment(objects(current.get("envs")), value)
        elif member == "ports":
            merged, differences = _merged_ports(objects(current.get("ports")), value)
        elif member == "private_token":
            same = current.get(member) == SET_AND_ENCRYPTED and "private_username" not in body
            merged, differences = value, [] if same else [Change(member, "…", "as given")]
        elif member == "session_config":
            before = current.get(member) if isinstance(current.get(member), Mapping) else {}
            merged = {**(before or {}), **value}
            differences = [] if merged == before else [Change(member, _show(before), _show(merged))]
        else:
            before = current.get(member)
            merged, differences = (
                value,
                [] if before == value else [Change(member, _show(before), _show(value))],
            )
        if differences:
            body[member] = merged
            told += differences
    return body, told


def objects(value: Any) -> list[Json]:
    """The objects in a list; [] for a value that is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def port_name(port: Mapping[str, Any]) -> str:
    """The port's name at Edgegap and in ARBITRIUM_PORTS_MAPPING: its `name`, else its number."""
    name = port.get("name")
    return name if isinstance(name, str) and name else str(port.get("port"))


def is_port(number: Any) -> bool:
    """Whether Edgegap allows this port number."""
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_PORT


def _environment(current: Iterable[Json], wanted: list[Json]) -> tuple[list[Json], list[Change]]:
    before = {env["key"]: env for env in current if isinstance(env.get("key"), str)}
    told: list[Change] = []
    for env in wanted:
        old = before.get(env["key"])
        name = f"envs.{env['key']}"
        if old is None:
            told.append(Change(name, "missing", _value(env)))
        elif env["is_secret"] and old.get("value") == SET_AND_ENCRYPTED:
            continue
        elif old.get("value") != env["value"]:
            told.append(Change(name, _value({**old, "is_secret": env["is_secret"]}), _value(env)))
    ours = {env["key"] for env in wanted}
    kept = [env for key, env in before.items() if key not in ours]
    lost = [env["key"] for env in kept if env.get("value") == SET_AND_ENCRYPTED]
    if told and lost:
        raise ConfigError(
            f"the version has the secret variable(s) {', '.join(lost)}, which cannot be read and which a change would "
            "lose: write the environment in the dashboard, or create a new version"
        )
    return [*kept, *wanted], told


def _merged_ports(current: Iterable[Json], wanted: list[Json]) -> tuple[list[Json], list[Change]]:
    """Our ports, which keep the numbers they have, and the version's other ports unchanged."""
    before = {port_name(port): port for port in current}
    told: list[Change] = []
    merged: list[Json] = []
    found = {port["name"]: before.pop(port["name"], None) for port in wanted}
    taken = {port.get("port") for port in before.values() if is_port(port.get("port"))}
    for port in wanted:
        old = found[port["name"]] or {}
        number: int = old["port"] if is_port(old.get("port")) else port["port"]
        while number in taken:
            number = number + 1 if number < MAX_PORT else 1
        taken.add(number)
        new = {**old, **port, "port": number}
        if new != old:
            told.append(
                Change(f"ports.{port['name']}", _show_port(old) if old else "missing", _show_port(new))
            )
        merged.append(new)
    return [*merged, *before.values()], told


def too_long(environment: Any) -> list[str]:
    """Names of the variables whose value is over 255 bytes."""
    return [
        str(env.get("key"))
        for env in objects(environment)
        if len(str(env.get("value", "")).encode(errors="replace")) > EDGEGAP_VALUE_LIMIT
    ]


def _show_port(port: Mapping[str, Any]) -> str:
    extra = "".join(f" {name}" for name in ("tls_upgrade", "to_check") if port.get(name))
    return f"{port.get('port')} {port.get('protocol')}{extra}"


def _show(value: Any) -> str:
    text = "none" if value is None or value == {} else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _value(env: Mapping[str, Any]) -> str:
    return "(secret)" if env.get("is_secret") else _show(env.get("value"))
