"""The world of the isolated profile: a nats-server with the accounts, roles and permissions of `tipoff secrets init`,
and one more user, `eyes`, who may see everything and sends requests as httpd does."""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from tests.faults.real_servers import RealServers
from tests.matchmaker.world import World
from tipoff.nats_roles.isolated import accounts
from tipoff.nats_roles.users import hashed
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.secret import Secret
from tipoff_shared.settings import ROLES, NatsSettings, inbox_prefix_of
from tipoff_shared.subjects import Subjects


class IsolatedNats:
    """A nats-server of the isolated profile."""

    def __init__(self, store: Path, namespace: str = "", *, more: str = "") -> None:
        """`more` is added to nats-server's configuration unchanged."""
        self.namespace = namespace
        self._passwords = {role: Secret(secrets.token_urlsafe(16)) for role in ROLES}
        key = AccountKey.generate()
        everything = Secret(secrets.token_urlsafe(16))
        users = accounts(
            {role: hashed(password) for role, password in self._passwords.items()},
            Subjects(namespace),
            issuer=key.public,
            more_users=f"      {{ user: eyes, password: {json.dumps(everything.reveal())} }}\n",
            more_names=["eyes"],
        )
        self.auth_seed_file = store.with_name(f"{store.name}.seed")
        """What matchmakers that answer nats-server's questions need; others leave the servers their shared user."""
        self.auth_seed_file.write_text(key.seed())
        self._passwords["eyes"] = everything
        self._users = users
        self.server = EmbeddedNats(store, users=users, more=more)

    def another_node(self, store: Path, *, more: str) -> EmbeddedNats:
        """One that knows the same users."""
        return EmbeddedNats(store, users=self._users, more=more)

    def settings(self, role: str) -> NatsSettings:
        return dataclasses.replace(
            self.server.settings(self.namespace),
            user=role,
            password=self._passwords[role],
            inbox_prefix=inbox_prefix_of("httpd" if role == "eyes" else role),
        )


@dataclass(frozen=True, slots=True)
class IsolatedWorld:
    """Matchmakers are started by the test (`world.matchmaker(..., profile="isolated")`), under their role; game
    servers are real, under theirs."""

    world: World
    servers: RealServers
    nats: IsolatedNats
