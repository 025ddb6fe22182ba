"""What is done with a secrets directory: made, shown, replaced one secret at a time.

Files inside are 0444, since containers read them by single-file mounts under other user ids; the authority's key is
0400. A file that is replaced keeps its inode, because such a mount shows the old file for ever otherwise.

`initialise` and `rotate` are idempotent up to what was asked: any line may be the last one, and `initialise` again
completes what is missing. A file that is there is never overwritten, except what only follows from others and was not
edited by hand.
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
from tipoff.secrets.layout import AUTHORITY, DIRECTORIES, HOOK, TLS, USERS, Layout
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.netcode.keys import PrivateKey
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import Subjects

_OURS = {*DIRECTORIES, ".gitignore"}

_RELOAD = "let nats-server reload (SIGHUP)"
_AFTER_PASSWORD = {
    "gameserver": f"at a quiet hour {_RELOAD} and restart the launcher at once: game servers that run know the old "
    "password alone, cannot renew their leases, and are ended with their players",
    "operator": _RELOAD,
    "admin": _RELOAD,
}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class SecretsDirectory:
    """`games`: those whose netcode keys belong here; games that name their own keys are left out."""

    def __init__(
        self, directory: Path, games: Sequence[Game] = (), *, now: Callable[[], datetime.datetime] = _now
    ) -> None:
        self.directory = directory
        self._layout = Layout(directory, games)
        self._now = now

    def initialise(self, hosts: Iterable[str] = (), namespace: str | None = None) -> Report:
        """Make what is missing. `hosts`: names by which clients reach NATS from elsewhere. `namespace` None is the
        one there is. Raises `ConfigError`."""
        asked = [check_host(host) for host in hosts]
        self._prepare()
        layout = self._layout
        report = self._report(namespace)
        for role in ROLES:
            report.make_missing(layout.password(role), _new_password)
        nats_files.derive(layout, report, Subjects(report.namespace))
        nats_tls.make_missing(layout, report, asked, self._now())
        report.make_missing(layout.hook(), _new_hook_key)
        for game in layout.games:
            report.make_missing(layout.key_of(game), _new_netcode_key)
        made = {item.path for item in report.items}
        report.items += [item for item in layout.netcode_keys() if item.path not in made]
        for item in report.items:  # also where a write broke off before its last step
            set_mode(item.path)
        nats_tls.notice_expiry(report, self._now())
        return report

    def show(self) -> Report:
        """What is there, nothing made or changed. Raises `ConfigError` when it was never initialised."""
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
        """Replace one secret: a role's password, `nats-tls`, `nats-ca`, `users`, or a game's key by `GAME.VERSION`.
        Raises `ConfigError` naming what there is."""
        asked = [check_host(host) for host in hosts]
        if asked and name not in (TLS, AUTHORITY):
            raise ConfigError(f"--host is for {TLS} and {AUTHORITY}")
        layout = self._layout
        report = self.show()
        if name in ROLES:
            report.replace([layout.password(name)], [_new_password()])
            nats_files.derive(layout, report, Subjects(report.namespace), again=True)
            report.next.append(
                _AFTER_PASSWORD.get(name, f"{_RELOAD}, then restart every {name}: it is out until then")
            )
        elif name == HOOK:
            report.replace([layout.hook()], [_new_hook_key()])
            report.next.append(
                "restart every httpd and matchmaker: webhooks of servers that run are not heard until then"
            )
        elif name == USERS:
            nats_files.derive(layout, report, Subjects(report.namespace), again=True)
            report.next.append(_RELOAD)
        elif name == TLS:
            nats_tls.replace_server(layout, report, asked, self._now())
            report.next.append(f"{_RELOAD}; connected clients stay")
        elif name == AUTHORITY:
            nats_tls.replace_authority(layout, report, asked, self._now())
            report.next.append(
                "restart nats-server and every part: all need the new ca.pem (NATS_CA), at Edgegap in the app version"
            )
        elif key := layout.key_named(name):
            report.replace([key], [_new_netcode_key()])
            report.next.append(
                f"restart the matchmakers and the launcher and drain the game servers of {name}: those that run "
                "know the old key alone, and nobody new gets in there"
            )
        else:
            known = [*ROLES, USERS, TLS, AUTHORITY, HOOK, *layout.key_names()]
            raise ConfigError(f"{name!r}: one of {', '.join(known)} is expected")
        nats_tls.notice_expiry(report, self._now())
        return report

    def _report(self, namespace: str | None) -> Report:
        """An empty one; None: the namespace the directory is for."""
        known = nats_files.namespace_in(self._layout) if namespace is None else Subjects(namespace).namespace
        return Report(self.directory.absolute(), known)

    def _prepare(self) -> None:
        """The directories, for their owner alone. One that holds something else is left alone."""
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
                inner.chmod(0o755)  # for containers that mount it; nobody else comes this far
            ignore = self.directory / ".gitignore"
            if not ignore.exists():
                write(ignore, "*\n", 0o644)
        except OSError as exc:
            raise ConfigError(f"{exc.filename}: {exc.strerror}; choose another directory") from exc


def _new_password() -> str:
    return secrets.token_urlsafe(32) + "\n"


def _new_netcode_key() -> str:
    return PrivateKey.generate().reveal().hex() + "\n"


def _new_hook_key() -> str:
    return secrets.token_hex(32) + "\n"
