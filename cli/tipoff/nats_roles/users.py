"""Makes nats-server's users file: a user for each role, with the hash of its password and its permissions.

Passwords are 256 random bits, so that a fast hash is safe: bcrypt with its lowest cost. At cost 10 each connect would
take nats-server 60 ms of a core, and after a restart all clients connect at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping

import bcrypt

from tipoff.nats_roles.permissions import Permissions, permissions
from tipoff_shared.secret import Secret
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import Subjects

COST = 4
_HEAD = """\
# Made by `tipoff secrets init`: a user for each role.
# namespace: {namespace}
# Passwords are hashes; the permissions are those of the table in tipoff's nats_roles/permissions.py.
# Once it is edited by hand, `tipoff secrets init` leaves it as it is; `tipoff secrets rotate users` makes it anew.
# sha256 of what follows: """
_HASH = re.compile(r'user: "([a-z]+)"\s+password: "(\$2a\$\d\d\$[./A-Za-z0-9]{53})"')


def hashed(password: Secret) -> str:
    """The bcrypt hash of a password, with a new salt."""
    return bcrypt.hashpw(password.reveal().encode(), bcrypt.gensalt(COST, prefix=b"2a")).decode()


def is_hash_of(password: Secret, known: str) -> bool:
    """Whether `known` is a hash of the password."""
    return bcrypt.checkpw(password.reveal().encode(), known.encode())


def users_file(hashes: Mapping[str, str], subjects: Subjects) -> str:
    """The file that `deploy/nats/nats.conf` includes. `hashes`: role -> bcrypt hash, for every role."""
    users = "\n".join(_user(role, hashes[role], permissions(role, subjects)) for role in ROLES)
    body = f"\nauthorization {{\n  timeout: 5\n  users: [\n{users}  ]\n}}\n"
    return with_head(body, subjects)


def with_head(body: str, subjects: Subjects) -> str:
    """`body` below a comment that holds its namespace and its digest, by which `was_edited` recognises edits."""
    return _HEAD.format(namespace=subjects.namespace or "(none)") + _digest(body) + "\n" + body


def namespace_of(text: str) -> str:
    """The namespace that a users file was made for."""
    found = re.search(r"^# namespace: ([a-zA-Z0-9-]+)$", text, re.MULTILINE)
    return found[1] if found else ""


def was_edited(text: str) -> bool:
    """Whether a users file has been changed since it was made."""
    found = re.search(r"^# sha256 of what follows: ([0-9a-f]{64})\n", text, re.MULTILINE)
    return found is None or _digest(text[found.end() :]) != found[1]


def hashes_in(text: str) -> dict[str, str]:
    """Role -> hash, read from a users file."""
    return {found[1]: found[2] for found in _HASH.finditer(text)}


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _user(role: str, password_hash: str, allowed: Permissions) -> str:
    return (
        "    {\n"
        f"      user: {json.dumps(role)}\n"
        f"      password: {json.dumps(password_hash)}\n"
        f"{permissions_block(allowed, '      ')}"
        "    }\n"
    )


def permissions_block(allowed: Permissions, indent: str) -> str:
    """The block `permissions: {...}` of nats-server's configuration."""
    deny = _subjects("deny", allowed.deny_publish, indent + "    ") if allowed.deny_publish else ""
    return (
        f"{indent}permissions: {{\n"
        f"{indent}  publish: {{\n{_subjects('allow', allowed.publish, indent + '    ')}{deny}{indent}  }}\n"
        f"{indent}  subscribe: {{\n{_subjects('allow', allowed.subscribe, indent + '    ')}{indent}  }}\n"
        f"{indent}}}\n"
    )


def _subjects(name: str, subjects: Iterable[str], indent: str) -> str:
    # In quotes: a bare $ would be a variable.
    return f"{indent}{name}: [\n" + "".join(f"{indent}  {json.dumps(s)}\n" for s in subjects) + f"{indent}]\n"
