"""How every service reaches NATS. The variables have the same meaning as in bevygap.

| variable | meaning |
|---|---|
| `NATS_HOST` | `host[:port]` or `nats://host:port`, several separated by commas |
| `NATS_USER`, `NATS_PASSWORD` | credentials; `NATS_PASSWORD_FILE` names a file instead |
| `NATS_CA`, `NATS_CA_CONTENTS` | the certificate authority: a path, or PEM text (or in parts, `..._1`, `..._2`) |
| `NATS_INSECURE` | set (to anything but 0): no TLS |
| `TIPOFF_NAMESPACE` | prefix of every subject, bucket and stream; empty by default |
| `TIPOFF_NATS_REPLICAS` | replicas of tipoff's buckets and streams (1; 3 on a cluster) |
| `TIPOFF_NATS_BEVYGAP_REPLICAS` | the same for those that bevygap's programs use (1: they refuse any other) |
| `NATS_INBOX_PREFIX` | inbox prefix: `_INBOX_ROLE` for a user named like a role (`matchmaker`, ...), else `_INBOX` |
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret
from tipoff_shared.subjects import Subjects

ROLES = ("matchmaker", "httpd", "launcher", "gameserver", "operator", "admin")
"""The NATS users that `tipoff secrets init` creates, each with the permissions of its role."""


def inbox_prefix_of(user: str) -> str:
    """The inbox prefix of a user. Each role has its own, so that no other role receives its answers."""
    return f"_INBOX_{user}" if user in ROLES else "_INBOX"


def server_user(deployment_id: str) -> str:
    """The NATS user of one game server of the isolated profile."""
    return f"gs-{deployment_id}"


def server_inbox_prefix(deployment_id: str) -> str:
    """The inbox prefix of that user."""
    return f"_INBOX_{server_user(deployment_id)}"


def server_credentials(deployment_id: str, password: str) -> dict[str, str]:
    """The environment variables by which a server of the isolated profile connects as itself. They hold a secret."""
    return {
        "NATS_USER": server_user(deployment_id),
        "NATS_PASSWORD": password,
        "NATS_INBOX_PREFIX": server_inbox_prefix(deployment_id),
    }


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """NATS's addresses and credentials. `replicas` is for tipoff's buckets.

    `bevygap_replicas` is for the buckets that bevygap's programs create with one replica at their start; they fail when
    they find another number. Raise it to `replicas` where none of those programs runs. With one replica, the loss of
    its node hides who plays until that node is back: nothing is lost and no player is reaped, but seats of players who
    leave meanwhile are freed only then.
    """

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    user: str = ""
    password: Secret = field(default_factory=lambda: Secret(""))
    ca_file: str = ""
    ca_contents: str = ""
    insecure: bool = False
    namespace: str = ""
    replicas: int = 1
    bevygap_replicas: int = 1
    inbox_prefix: str = "_INBOX"

    @property
    def subjects(self) -> Subjects:
        """Every subject and bucket name within the namespace."""
        return Subjects(self.namespace)

    def tls_context(self) -> ssl.SSLContext | None:
        """None when NATS is spoken to without TLS; raises `ConfigError` when the authority cannot be read."""
        if self.insecure:
            return None
        try:
            return ssl.create_default_context(
                cafile=self.ca_file or None, cadata=pem_lines(self.ca_contents) or None
            )
        except (OSError, ssl.SSLError) as exc:
            where = f"NATS_CA={self.ca_file}" if self.ca_file else "NATS_CA_CONTENTS"
            raise ConfigError(f"{where}: {exc}; a PEM certificate is expected") from exc

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> NatsSettings:
        """Read the variables above; raises `ConfigError` naming the variable that cannot be used."""
        env = os.environ if environ is None else environ
        password = env.get("NATS_PASSWORD", "")
        if path := env.get("NATS_PASSWORD_FILE", ""):
            try:
                password = Path(path).read_text().strip()
            except (OSError, UnicodeError) as exc:
                raise ConfigError(f"NATS_PASSWORD_FILE: {exc}") from exc
            if not password:
                raise ConfigError(f"NATS_PASSWORD_FILE: {path} is empty")
        insecure = env.get("NATS_INSECURE", "") not in ("", "0", "false")
        scheme = "nats" if insecure else "tls"
        hosts = [host.strip() for host in env.get("NATS_HOST", "127.0.0.1:4222").split(",") if host.strip()]
        if not hosts:
            raise ConfigError("NATS_HOST is empty; host:port is expected")
        if any("@" in host for host in hosts):  # it is logged, and game servers are told it
            raise ConfigError(
                "NATS_HOST holds credentials; they belong into NATS_USER and NATS_PASSWORD or NATS_PASSWORD_FILE"
            )
        return cls(
            servers=tuple(host if "://" in host else f"{scheme}://{host}" for host in hosts),
            user=env.get("NATS_USER", ""),
            password=Secret(password),
            ca_file=env.get("NATS_CA", ""),
            ca_contents=env.get("NATS_CA_CONTENTS", "") or _joined(env, "NATS_CA_CONTENTS"),
            insecure=insecure,
            namespace=env.get("TIPOFF_NAMESPACE", ""),
            replicas=_replicas(env, "TIPOFF_NATS_REPLICAS"),
            bevygap_replicas=_replicas(env, "TIPOFF_NATS_BEVYGAP_REPLICAS"),
            inbox_prefix=env.get("NATS_INBOX_PREFIX") or inbox_prefix_of(env.get("NATS_USER", "")),
        )

    def to_environment(self) -> dict[str, str]:
        """The settings as variables for a child process. They hold the password: for `env=` only."""
        env = {"NATS_HOST": ",".join(self.servers), "TIPOFF_NAMESPACE": self.namespace}
        if self.user:
            env |= {"NATS_USER": self.user, "NATS_PASSWORD": self.password.reveal()}
        if self.ca_file:
            env["NATS_CA"] = self.ca_file
        if self.ca_contents:
            env["NATS_CA_CONTENTS"] = self.ca_contents
        if self.insecure:
            env["NATS_INSECURE"] = "1"
        if self.replicas != 1:
            env["TIPOFF_NATS_REPLICAS"] = str(self.replicas)
        if self.bevygap_replicas != 1:
            env["TIPOFF_NATS_BEVYGAP_REPLICAS"] = str(self.bevygap_replicas)
        if self.inbox_prefix != inbox_prefix_of(self.user):
            env["NATS_INBOX_PREFIX"] = self.inbox_prefix
        return env


def _joined(env: Mapping[str, str], name: str) -> str:
    """`NAME_1`, `NAME_2`, ... joined, for places where one variable is too short (Edgegap: 255 bytes)."""
    parts: list[str] = []
    while part := env.get(f"{name}_{len(parts) + 1}", ""):
        parts.append(part)
    return "".join(parts)


def _replicas(env: Mapping[str, str], name: str) -> int:
    value = env.get(name, "1")
    if value not in ("1", "3", "5"):
        raise ConfigError(f"{name}={value!r}: 1, 3 or 5 are allowed")
    return int(value)


_PEM = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")


def pem_lines(text: str) -> str:
    """PEM certificates with proper line breaks; other text is unchanged. A certificate that went through a command line
    or a web panel may be one line (bevygap's script does that), which OpenSSL does not read."""

    def lines(found: re.Match[str]) -> str:
        inner = "".join(found[1].split())
        return "\n".join(
            ("-----BEGIN CERTIFICATE-----", *re.findall(".{1,64}", inner), "-----END CERTIFICATE-----", "")
        )

    return _PEM.sub(lines, text)
