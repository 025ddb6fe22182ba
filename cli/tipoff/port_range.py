"""Reads the ports that a person writes: `30000-30199`."""

from __future__ import annotations

import re

from tipoff_shared.errors import ConfigError

DEFAULT_PORTS = "30000-30999"


def parse_ports(text: str, least: int = 1) -> range:
    """Parse `30000-30199` or `30000`. Raises `ConfigError`, also for a port below `least`."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text.strip(), re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not least <= first <= last <= 65535:
        raise ConfigError(
            f"ports {text!r}: FIRST-LAST within {least}-65535 is expected, like {DEFAULT_PORTS}"
        )
    return range(first, last + 1)
