"""Changes that servers with bevygap's plugin need: NATS credentials, a decimal key, and a digest key of their own."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Mapping
from pathlib import Path

from tipoff_orchestrator_client.base import NotConfigured
from tipoff_shared.games import Game, Games

PRIVATE_KEY = "LIGHTYEAR_PRIVATE_KEY"

_RESERVED = ipaddress.IPv4Network("240.0.0.0/4")
"""Reserved addresses, routed nowhere: no digest key can be mistaken for the address of a host."""


def games_without_namespace(games: Games, namespace: str) -> list[Game]:
    """The games whose servers would use subjects without the namespace, on which no matchmaker listens."""
    return [game for game in games.all() if namespace and game.bevygap and game.ready == "context"]


def bevygap_environment(environment: Mapping[str, str], key: bytes) -> dict[str, str]:
    """The variables with the changes that bevygap's plugin and lightyear's examples need. Raises `NotConfigured`.

    The plugin accepts one NATS server (a cluster tells it the others), exits without a user and a password even where
    NATS needs none, and reads no password from a file; lightyear reads its key in decimal.
    """
    changed = dict(environment)
    changed["NATS_HOST"] = environment.get("NATS_HOST", "").split(",")[0]
    changed.setdefault("NATS_USER", "gameserver")
    if (path := changed.pop("NATS_PASSWORD_FILE", "")) and "NATS_PASSWORD" not in changed:
        try:
            changed["NATS_PASSWORD"] = Path(path).read_text().strip()
        except OSError as exc:
            raise NotConfigured(f"NATS_PASSWORD_FILE={path}: {exc.strerror}") from exc
    changed.setdefault("NATS_PASSWORD", "")
    changed.setdefault(PRIVATE_KEY, ",".join(map(str, key)))
    return changed


def synthetic_ip(deployment_id: str, held: Collection[str]) -> str:
    """A key of the form of an IPv4 address, not among the `held` ones, for a server's certificate digest.

    bevygap's servers write their digest to `cert_digests[public_ip]`; those of one host share an address and would
    overwrite each other's. The search starts at a number derived from the id, so that launchers of other hosts on the
    same NATS rarely choose the same key: the chance is 0.2 % that any two of a thousand servers do.
    """
    digest = hashlib.blake2b(deployment_id.encode(), digest_size=8, person=b"tipoff public_ip").digest()
    size = _RESERVED.num_addresses - 2  # neither 240.0.0.0 nor 255.255.255.255
    number = int.from_bytes(digest, "big") % size
    while (address := str(_RESERVED[1 + number % size])) in held:
        number += 1
    return address
