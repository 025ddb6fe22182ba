"""Where the servers of this host are: for those who are told it in the manner of Edgegap (arbitrium.py)."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket

from tipoff_launcher.edgegap_compat.arbitrium import Place
from tipoff_launcher.settings import Settings
from tipoff_shared.games import Games

log = logging.getLogger(__name__)

_DNS_TIMEOUT = 3.0
_LOOPBACK, _EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104  # it answers to tokens alone


def where_to_listen(settings: Settings, games: Games) -> tuple[str, int]:
    """Address and port of the context endpoint: beyond loopback only where containers are to ask it."""
    if settings.context_listen:
        address, _, port = settings.context_listen.rpartition(":")
        return address, int(port)
    asked_by_containers = _containers(settings) and any(
        game.docker is not None and game.ready != "lease" for game in games.all()
    )
    return (_EVERYWHERE if asked_by_containers else _LOOPBACK), 0


async def find_place(settings: Settings, listens: tuple[str, int]) -> Place:
    """`listens`: where the context endpoint does. Names are looked up once, now: servers are told an IPv4 address.
    Raises nothing."""
    city, country = settings.city_and_country
    return Place(
        url=settings.context_url or f"http://{_reached(settings, listens[0])}:{listens[1]}",
        public_ip=await _public_ip(settings),
        fqdn=settings.main_public_host,
        city=city,
        country=country,
    )


def _containers(settings: Settings) -> bool:
    """Whether servers have a loopback of their own."""
    return settings.backend == "docker" and settings.docker_network != "host"


def _reached(settings: Settings, address: str) -> str:
    """What servers dial to reach what listens on `address`."""
    if address != _EVERYWHERE:
        return address
    return "host.docker.internal" if _containers(settings) else _LOOPBACK


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
            str(exc) or type(exc).__name__,
        )
        return "127.0.0.1"
    return str(found[0][4][0])
