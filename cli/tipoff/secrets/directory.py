"""Makes a secrets directory, shows it, and replaces one secret at a time.

Files have mode 0444, because containers read them by single-file mounts under other user ids; the authority's key has
0400. A replaced file keeps its inode, because such a mount would otherwise show the old file for ever.

The process may die at any line: `initialise` then completes what is missing. It never overwrites an existing file,
except users files that nobody has edited, which follow from the passwords.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tipoff.secrets import nats_files, nats_tls
from tipoff.secrets.certificates import check_host
from tipoff.secrets.files import is_there, set_mode, write
from tipoff.secrets.items import Report
from tipoff.secrets.layout import AUTH, AUTHORITY, DIRECTORIES, HOOK, TLS, USERS, Layout
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.netcode.keys import PrivateKey
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import Subjects

_OURS = {*DIRECTORIES, ".gitignore"}

_RELOAD = "let nats-server reload (SIGHUP)"
_AFTER_PASSWORD = {
    "gameserver": f"at a quiet hour {_RELOAD} and restart the launcher at once: running game servers know only the old "
    "password, cannot renew their leases, and end with their players",
    "operator": _RELOAD,
    "admin": _RELOAD,
}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class SecretsDirectory:
    """The secrets in `directory`, with netcode keys for those of `games` that configure no key of their own."""

    def __init__(
        self, directory: Path, games: Sequence[Game] = (), *, now: Callable[[], datetime.datetime] = _now
    ) -> None:
        self.directory = directory
        self._layout = Layout(directory, games)
        self._now = now

    def initialise(self, hosts: Iterable[str] = (), namespace: str | None = None) -> Report:
        """Make missing secrets. `hosts` are names at which clients on other hosts reach NATS. `namespace` None keeps
        the present one. Raises `ConfigError`."""
        asked = [check_host(host) for host in hosts]
        self._prepare()
        layout = self._layout
        report = self._report(namespace)
        for role in ROLES:
            report.make_missing(layout.password(role), _new_password)
        report.make_missing(layout.auth_seed(), _new_auth_seed)
        nats_files.derive(layout, report, Subjects(report.namespace))
        nats_tls.make_missing(layout, report, asked, self._now())
        report.make_missing(layout.hook(), _new_hook_key)
        for game in layout.games:
            report.make_missing(layout.key_of(game), _new_netcode_key)
        made = {item.path for item in report.items}
        report.items += [item for item in layout.netcode_keys() if item.path not in made]
        for item in report.items:  # also after a write that broke off before its last step
            set_mode(item.path)
        nats_tls.notice_expiry(report, self._now())
        return report

    def show(self) -> Report:
        """Report the existing files and change nothing. Raises `ConfigError` for a directory without secrets."""
        if not is_there(self._layout.nats / "users.conf"):
            raise ConfigError(
                f"{self.directory} holds no secrets; `tipoff secrets init {self.directory}` makes them"
            )
        report = self._report(None)
        for item in self._layout.all():
            if is_there(item.path):
                report.items.append(item)
            else:
                report.next.append(f"{item.path} is missing; `tipoff secrets init {self.directory}` makes it")
        nats_tls.notice_expiry(report, self._now())
        return report

    def rotate(self, name: str, hosts: Iterable[str] = ()) -> Report:
        """Replace one secret: a role's password, `nats-tls`, `nats-ca`, `users`, `server-auth`, `hook`, or a game's key
        by `GAME.VERSION`. Raises `ConfigError`, which lists the known names."""
        asked = [check_host(host) for host in hosts]
        if asked and name not in (TLS, AUTHORITY):
            raise ConfigError(f"--host is for {TLS} and {AUTHORITY}")
        layout = self._layout
        report = self.show()
        if name in ROLES:
            report.replace([layout.password(name)], [_new_password()])
            nats_files.derive(layout, report, Subjects(report.namespace), again=True)
            report.next.append(
                _AFTER_PASSWORD.get(
                    name, f"{_RELOAD}, then restart every {name}, which cannot connect until then"
                )
            )
        elif name == HOOK:
            report.replace([layout.hook()], [_new_hook_key()])
            report.next.append(
                "restart every httpd and matchmaker: webhooks of running servers are refused until then"
            )
        elif name == AUTH:
            report.replace([layout.auth_seed()], [_new_auth_seed()])
            nats_files.derive(layout, report, Subjects(report.namespace), again=True)
            report.next.append("restart every matchmaker: no isolated game server can connect until then")
        elif name == USERS:
            nats_files.derive(layout, report, Subjects(report.namespace), again=True)
            report.next.append(_RELOAD)
        elif name == TLS:
            nats_tls.replace_server(layout, report, asked, self._now())
            report.next.append(f"{_RELOAD}; connected clients stay")
        elif name == AUTHORITY:
            nats_tls.replace_authority(layout, report, asked, self._now())
            report.next.append(
                "restart nats-server and every service: all need the new ca.pem (NATS_CA), Edgegap in the app version"
            )
        elif key := layout.key_named(name):
            report.replace([key], [_new_netcode_key()])
            report.next.append(
                f"restart the matchmakers and the launcher and drain the game servers of {name}: running servers know "
                "only the old key, and no new player gets in there"
            )
        else:
            known = [*ROLES, USERS, AUTH, TLS, AUTHORITY, HOOK, *layout.key_names()]
            raise ConfigError(f"{name!r}: one of {', '.join(known)} is expected")
        nats_tls.notice_expiry(report, self._now())
        return report

    def _report(self, namespace: str | None) -> Report:
        """An empty report; with None, for the namespace that the directory was made for."""
        known = nats_files.namespace_in(self._layout) if namespace is None else Subjects(namespace).namespace
        return Report(self.directory.absolute(), known)

    def _prepare(self) -> None:
        """Make the directories, which only their owner can enter. Raises `ConfigError` for a directory with other
        content."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if {entry.name for entry in self.directory.iterdir()} - _OURS and not self._layout.nats.is_dir():
                raise ConfigError(
                    f"{self.directory} is not empty and holds no secrets of tipoff; choose another directory"
                )
            self.directory.chmod(0o700)
            for name in DIRECTORIES:
                inner = self.directory / name
                inner.mkdir(exist_ok=True)
                inner.chmod(0o755)  # for containers that mount it; the directory above keeps other users out
            ignore = self.directory / ".gitignore"
            if not ignore.exists():
                write(ignore, "*\n", 0o644)
        except OSError as exc:
            raise ConfigError(f"{exc.filename}: {exc.strerror}; choose another directory") from exc


def _new_password() -> str:
    return secrets.token_urlsafe(32) + "\n"


def _new_auth_seed() -> str:
    return AccountKey.generate().seed() + "\n"


def _new_netcode_key() -> str:
    return PrivateKey.generate().reveal().hex() + "\n"


def _new_hook_key() -> str:
    return secrets.token_hex(32) + "\n"
