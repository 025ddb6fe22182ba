"""Whom Edgegap places a server near to: addresses it can find on a map. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def addresses(near: Iterable[str], otherwise: Iterable[str]) -> list[str]:
    """The public IP addresses among `near`, each once, in order; where there is none, `otherwise`. Names of regions are
    left out: a v2 deployment is placed by its users alone."""
    found: dict[str, None] = {}
    for text in near:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if address.is_global and not address.is_multicast:
            found[str(address)] = None
    return list(found) or list(dict.fromkeys(otherwise))
