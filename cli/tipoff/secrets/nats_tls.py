"""Makes and replaces the certificates in a secrets directory: the authority's, and nats-server's."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable

from tipoff.secrets.certificates import (
    ALWAYS,
    RENEW_DAYS,
    Issued,
    describe,
    fits_key,
    is_signed_by,
    new_authority,
    new_server,
)
from tipoff.secrets.files import PRIVATE, READABLE, is_there, read, write
from tipoff.secrets.items import MADE, Report
from tipoff.secrets.layout import AUTHORITY, TLS, Layout
from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret


def make_missing(layout: Layout, report: Report, hosts: list[str], now: datetime.datetime) -> None:
    """Make the certificates that are missing, and report what is wrong with existing ones. Raises `ConfigError`."""
    certificate, key = layout.authority()
    if not is_there(certificate.path):  # a key without its certificate is left over from a run that broke off
        authority = new_authority(now)
        write(key.path, authority.key.reveal(), PRIVATE)
        write(certificate.path, authority.certificate, READABLE)
        certificate.state = key.state = MADE
    report.items += [certificate, key]
    server, server_key = layout.server()
    report.items += [server, server_key]
    if not (is_there(server.path) and is_there(server_key.path)):
        replace_server(layout, report, hosts, now)
        server.state = server_key.state = MADE
        return
    text = read(server.path)
    if not is_signed_by(text, read(certificate.path)) or not fits_key(text, Secret(read(server_key.path))):
        report.next.append(
            f"server.pem is not signed by ca.pem, or does not fit server.key; `tipoff secrets rotate {TLS}` replaces it"
        )
        return
    if missing := [host for host in hosts if host not in describe(text).names]:
        options = " ".join(f"--host {host}" for host in missing)
        report.next.append(
            f"server.pem does not name {', '.join(missing)}; `tipoff secrets rotate {TLS} {options}` adds that"
        )


def replace_server(layout: Layout, report: Report, hosts: Iterable[str], now: datetime.datetime) -> None:
    """Make a new server certificate for the names of the previous one and `hosts`. Raises `ConfigError`."""
    _issue(layout, report, [*_server_names(layout), *hosts], now)


def replace_authority(layout: Layout, report: Report, hosts: Iterable[str], now: datetime.datetime) -> None:
    """Make a new authority, and a server certificate that it signs."""
    names = _server_names(layout)
    authority = new_authority(now)
    report.replace(layout.authority(), (authority.certificate, authority.key.reveal()))
    _issue(layout, report, [*names, *hosts], now)


def notice_expiry(report: Report, now: datetime.datetime) -> None:
    """Note when each certificate expires, and what to do about those that expire soon."""
    for item in report.items:
        if item.path.suffix != ".pem":
            continue
        try:
            item.expires = describe(read(item.path)).expires
        except ConfigError as exc:
            report.next.append(
                f"{item.path.name}: {exc}; `tipoff secrets rotate {item.name}` makes a new one"
            )
            continue
        days = (item.expires - now).days
        if days < RENEW_DAYS:
            when = "has expired" if days < 0 else f"expires in {days} days"
            report.next.append(f"{item.path.name} {when}: `tipoff secrets rotate {item.name}`")


def _server_names(layout: Layout) -> tuple[str, ...]:
    path = layout.nats / "server.pem"
    with contextlib.suppress(ConfigError):
        return describe(read(path)).names if is_there(path) else ()
    return ()  # unreadable: a new certificate replaces it


def _issue(layout: Layout, report: Report, names: Iterable[str], now: datetime.datetime) -> None:
    ca_key = layout.nats / "ca.key"
    if not is_there(ca_key):
        raise ConfigError(
            f"{ca_key} is missing: restore it from the back-up, or `tipoff secrets rotate {AUTHORITY}`"
        )
    authority = Issued(read(layout.nats / "ca.pem"), Secret(read(ca_key)))
    issued = new_server(authority, dict.fromkeys([*ALWAYS, *names]), now)
    report.replace(layout.server(), (issued.certificate, issued.key.reveal()))
