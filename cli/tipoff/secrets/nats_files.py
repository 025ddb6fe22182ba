"""Makes nats-server's users files from the passwords; leaves a file that was edited by hand unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tipoff.nats_roles.isolated import accounts
from tipoff.nats_roles.users import (
    hashed,
    hashes_in,
    is_hash_of,
    namespace_of,
    users_file,
    was_edited,
    with_head,
)
from tipoff.secrets.files import READABLE, is_there, read, write
from tipoff.secrets.items import EDITED, MADE, RENEWED, Report
from tipoff.secrets.layout import AUTH, NATS_FILES, USERS, Layout
from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.secret import Secret
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import Subjects

_CALLOUT = re.compile(r"^  auth_callout \{.*?^  \}", re.MULTILINE | re.DOTALL)
"""What nats-server (2.15) does not reload."""


def _isolated(hashes: Mapping[str, str], subjects: Subjects, issuer: str) -> str:
    return with_head("\n" + accounts(hashes, subjects, issuer=issuer), subjects)


_MAKERS: dict[str, Callable[[Mapping[str, str], Subjects, str], str]] = {
    "users.conf": lambda hashes, subjects, issuer: users_file(hashes, subjects),
    "isolated.conf": _isolated,
}
"""File name -> function that makes its text from the hashes and the public key of `server-auth.seed`."""


def derive(layout: Layout, report: Report, subjects: Subjects, *, again: bool = False) -> None:
    """Update the files to the present passwords; with `again`, edited ones, too."""
    hashes, issuer = _hashes(layout), _issuer(layout)
    for name in NATS_FILES:
        item = report.find(USERS, name) or layout.nats_file(name)
        if item not in report.items:
            report.items.append(item)
        text = _MAKERS[name](hashes, subjects, issuer)
        old = read(item.path) if is_there(item.path) else None
        if old == text:
            continue
        if old is not None and was_edited(old) and not again:
            item.state = EDITED
            report.next.append(
                f"{item.path} was edited and stays unchanged; `tipoff secrets rotate users` replaces it"
            )
            continue
        write(item.path, text, READABLE)
        item.state = MADE if old is None else RENEWED
        if old is not None and _CALLOUT.findall(old) != _CALLOUT.findall(text):
            report.next.append(
                f"{name} is new: where nats-server uses it, restart nats-server, which does not reload its auth_callout"
            )
        elif old is not None and not again:
            report.next.append(
                f"{name} is new (passwords, namespace or permissions): let nats-server reload (SIGHUP)"
            )


def namespace_in(layout: Layout) -> str:
    """The namespace that users.conf was made for, "" without one."""
    path = layout.nats / "users.conf"
    return namespace_of(read(path)) if is_there(path) else ""


def _hashes(layout: Layout) -> dict[str, str]:
    """Role -> hash of its password. A hash that a file already holds is kept, because every new hash differs."""
    known = _known_hashes(layout)
    hashes: dict[str, str] = {}
    for role in ROLES:
        password = Secret(read(layout.password(role).path).strip())
        before = known.get(role, "")
        hashes[role] = before if before and is_hash_of(password, before) else hashed(password)
    return hashes


def _issuer(layout: Layout) -> str:
    """The public key of the matchmakers' seed; "" without one. Raises `ConfigError`."""
    path = layout.auth_seed().path
    if not is_there(path):
        return ""
    try:
        return AccountKey.parse(read(path)).public
    except Malformed as exc:
        raise ConfigError(f"{path}: {exc}; `tipoff secrets rotate {AUTH}` makes a new one") from exc


def _known_hashes(layout: Layout) -> dict[str, str]:
    for name in NATS_FILES:
        path = layout.nats / name
        if is_there(path) and (known := hashes_in(read(path))):
            return known
    return {}
