"""Compares the certificate of `tipoff up` with the host that players dial, before anything starts."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from tipoff.secrets.certificates import describe, fits_key
from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret


def check_certificate(
    certificate: Path, key: Path, hosts: Sequence[str], now: datetime.datetime
) -> str | None:
    """None for a certificate with which browsers reach the first of `hosts`, else one sentence for the user.

    Raises `ConfigError` when nobody could use it: files that are none, a key of another certificate, or a DNS name
    that it is not for.
    """
    try:
        text, private = certificate.read_text(), Secret(key.read_text())
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"--tls-cert {certificate}, --tls-key {key}: {exc}") from exc
    try:
        found = describe(text)
    except ConfigError as exc:
        raise ConfigError(f"--tls-cert {certificate}: {exc}; a PEM certificate is expected") from exc
    if not fits_key(text, private):
        raise ConfigError(
            f"--tls-key {key} is not the key of {certificate}, or it has a passphrase; give the key that belongs to it"
        )
    names = ", ".join(found.names) or "no name"
    if not any(covers(name, hosts[0]) for name in found.names):
        wrong = f"the certificate {certificate} is for {names}, so browsers refuse it at {hosts[0]}"
        named = next((name for name in found.names if not _is_address(name) and "*" not in name), None)
        advice = f"give --host {named}" if named else "give --host a name that it is for"
        if not _is_address(hosts[0]):
            raise ConfigError(f"--host {hosts[0]}: {wrong}; {advice}, or get one for this name")
        return f"{wrong}; {advice}"
    if found.expires <= now:
        return f"the certificate {certificate} has expired on {found.expires:%Y-%m-%d}: renew it"
    return None


def covers(name: str, host: str) -> bool:
    """Whether a name in a certificate is for `host`; `*` stands for exactly the first label (RFC 6125)."""
    if _is_address(host) or _is_address(name):
        return _is_address(host) and _is_address(name) and _address(host) == _address(name)
    name, host = name.lower().rstrip("."), host.lower().rstrip(".")
    if name.startswith("*."):
        return name[2:] == host.partition(".")[2] and "." in name[2:]
    return name == host


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


def _is_address(text: str) -> bool:
    try:
        _address(text)
    except ValueError:
        return False
    return True
