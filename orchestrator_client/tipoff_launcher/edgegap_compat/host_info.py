"""Describes this host as Edgegap would: its address for players, its location, the URL of its context endpoint."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from dataclasses import dataclass

from tipoff_launcher.settings import Settings
from tipoff_shared.games import Games
from tipoff_shared.primitives.text import describe

log = logging.getLogger(__name__)

_DNS_TIMEOUT = 3.0
_LOOPBACK, _EVERY_INTERFACE = "127.0.0.1", "0.0.0.0"  # noqa: S104  # the endpoint answers only to tokens


@dataclass(frozen=True, slots=True)
class HostInfo:
    """Where a launcher's servers are. `url`: how they reach the launcher's HTTP endpoint, without a path; `public_ip`:
    the address that players dial; `fqdn`: its name, where it has one."""

    url: str
    public_ip: str
    fqdn: str
    city: str
    country: str

    @property
    def location(self) -> dict[str, str]:
        """The location in the form of Edgegap's API."""
        return {"city": self.city, "country": self.country, "continent": "", "administrative_division": ""}


def listen_address(settings: Settings, games: Games) -> tuple[str, int]:
    """The address and port of the context endpoint: beyond loopback only where containers need it."""
    if settings.context_listen:
        address, _, port = settings.context_listen.rpartition(":")
        return address, int(port)
    for_containers = _own_loopback(settings) and any(
        game.docker is not None and game.ready != "lease" for game in games.all()
    )
    return (_EVERY_INTERFACE if for_containers else _LOOPBACK), 0


async def find_host_info(settings: Settings, listening: tuple[str, int]) -> HostInfo:
    """What the settings say about this host. `listening`: address and port of the context endpoint.

    Resolves the public host name, because servers are told an IPv4 address; raises nothing."""
    city, country = settings.city_and_country
    return HostInfo(
        url=settings.context_url or f"http://{_dialed(settings, listening[0])}:{listening[1]}",
        public_ip=await _public_ip(settings),
        fqdn=settings.main_public_host,
        city=city,
        country=country,
    )


def _own_loopback(settings: Settings) -> bool:
    """Whether servers have a loopback interface of their own."""
    return settings.backend == "docker" and settings.docker_network != "host"


def _dialed(settings: Settings, address: str) -> str:
    """What servers dial to reach a listener on `address`."""
    if address != _EVERY_INTERFACE:
        return address
    return "host.docker.internal" if _own_loopback(settings) else _LOOPBACK


async def _public_ip(settings: Settings) -> str:
    hosts = settings.public_host.split(",")
    for host in hosts:
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            continue
    try:
        async with asyncio.timeout(_DNS_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                hosts[0], None, family=socket.AF_INET, type=socket.SOCK_DGRAM
            )
    except (OSError, TimeoutError) as exc:
        log.warning(
            "TIPOFF_LAUNCHER_PUBLIC_HOST=%s has no IPv4 address (%s): ARBITRIUM_PUBLIC_IP says 127.0.0.1",
            hosts[0],
            describe(exc),
        )
        return "127.0.0.1"
    return str(found[0][4][0])
