"""Reads facts from the Docker engine, by its socket."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tipoff_shared.primitives.text import describe

_TIMEOUT = 4.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine reported. `error` says why it did not answer; `denied`: this user may not use the socket.
    `images`: name -> whether it is on this host. `world`: every user of this host may use the socket."""

    socket: Path
    error: str = ""
    denied: bool = False
    group: int = -1
    world: bool = False
    version: str = ""
    api: str = ""
    live_restore: bool = False
    images: Mapping[str, bool] = field(default_factory=dict)
    network: str = ""
    network_there: bool = True


async def look_at_engine(socket: Path, images: list[str], network: str) -> EngineFacts:
    """The engine's version and settings, and whether it has `images` and the `network` ("" for none)."""
    import httpx

    try:
        mode = os.stat(socket)
    except OSError as exc:
        return EngineFacts(socket, error=exc.strerror or str(exc))
    if not stat.S_ISSOCK(mode.st_mode):
        return EngineFacts(socket, error="not a socket")
    group, world = mode.st_gid, bool(mode.st_mode & stat.S_IWOTH)
    if not os.access(socket, os.R_OK | os.W_OK):
        return EngineFacts(socket, error="permission denied", denied=True, group=group, world=world)
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://engine", timeout=_TIMEOUT
        ) as client:
            version = _object((await client.get("/version")).json())
            info = _object((await client.get("/info")).json())
            there = {
                image: (await client.get(f"/images/{image}/json")).status_code == 200 for image in images
            }
            network_there = not network or (await client.get(f"/networks/{network}")).status_code == 200
    except (httpx.HTTPError, ValueError) as exc:
        return EngineFacts(socket, error=describe(exc), group=group, world=world)
    return EngineFacts(
        socket,
        group=group,
        world=world,
        version=str(version.get("Version", "?")),
        api=str(version.get("ApiVersion", "")),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        images=there,
        network=network,
        network_there=network_there,
    )


async def addresses_of(socket: Path, project: str, service: str) -> list[str]:
    """The addresses at which this host reaches the containers of a compose project's service; empty when unknown."""
    import httpx

    wanted = [f"com.docker.compose.project={project}", f"com.docker.compose.service={service}"]
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://engine", timeout=_TIMEOUT
        ) as client:
            answer = await client.get("/containers/json", params={"filters": json.dumps({"label": wanted})})
            return read_addresses(answer.json())
    except (httpx.HTTPError, ValueError):
        return []


def read_addresses(containers: Any) -> list[str]:
    """The addresses of the containers in the engine's listing. Raises `ValueError` for anything else."""
    try:
        networks = [net for item in containers for net in item["NetworkSettings"]["Networks"].values()]
        return [str(ipaddress.ip_address(net["IPAddress"])) for net in networks if net.get("IPAddress")]
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not a listing of containers") from exc


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("the engine's answer is not an object")
    return value
