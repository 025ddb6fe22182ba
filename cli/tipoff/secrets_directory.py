"""The secrets of an installation, in one directory: made once, kept, replaced one at a time.

    DIR/                      0700: nobody else gets further than this
    DIR/.gitignore            so that none of it is ever committed
    DIR/nats/ROLE.password    one line
    DIR/nats/users.conf       for nats-server: users, hashes, permissions; follows from the passwords
    DIR/nats/isolated.conf    the same for the isolated profile: game servers in an account of their own
    DIR/nats/ca.pem, ca.key   the certificate authority; its key signs new server certificates, nobody else needs it
    DIR/nats/server.pem, server.key
    DIR/netcode/GAME.VERSION.key    64 hex digits; the directory is a TIPOFF_KEYS_DIR
    DIR/edgegap/hook.key      what makes the addresses of webhooks unguessable (TIPOFF_HOOK_KEY_FILE)
    DIR/edgegap, DIR/https    room for an API token, and for certificates of the operator's own

Files inside are 0444, since containers read them by single-file mounts under other user ids; the authority's key is
0400. A file that is replaced keeps its inode, because such a mount shows the old file for ever otherwise.

`initialise` and `rotate` are idempotent up to what was asked: any line may be the last one, and `initialise` again
completes what is missing. A file that is there is never overwritten, except what only follows from others and was not
edited by hand.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tipoff.nats_isolated import accounts
from tipoff.nats_users import (
    hashed,
    hashes_in,
    is_hash_of,
    namespace_of,
    users_file,
    was_edited,
    with_head,
)
from tipoff.secrets_certificates import (
    ALWAYS,
    RENEW_DAYS,
    Issued,
    check_host,
    describe,
    fits_key,
    is_signed_by,
    new_authority,
    new_server,
)
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, key_file
from tipoff_shared.netcode.keys import PrivateKey
from tipoff_shared.secret import Secret
from tipoff_shared.settings import ROLES
from tipoff_shared.subjects import Subjects

_DIRECTORIES = ("nats", "netcode", "edgegap", "https")
_OURS = {*_DIRECTORIES, ".gitignore"}
MADE, KEPT, RENEWED, EDITED = "made", "kept", "renewed", "edited by hand: kept"
READABLE, PRIVATE = 0o444, 0o400

USERS, TLS, AUTHORITY, HOOK = "users", "nats-tls", "nats-ca", "hook"

Derived = Callable[[Mapping[str, str], Subjects], str]


def _isolated(hashes: Mapping[str, str], subjects: Subjects) -> str:
    return with_head("\n" + accounts(hashes, subjects), subjects)


DERIVED: dict[str, Derived] = {"users.conf": users_file, "isolated.conf": _isolated}
"""Files for nats-server that follow from the passwords: name -> what makes its text of role -> hash."""


@dataclass(slots=True)
class Item:
    """One file. `name` is what `rotate` calls it, `readers` who needs it, `back_up` whether a copy is worth keeping."""

    name: str
    path: Path
    readers: str
    back_up: str
    state: str = KEPT
    expires: datetime.datetime | None = None


@dataclass(slots=True)
class Report:
    """What lies where, and what is to do now: sentences for people."""

    directory: Path
    namespace: str
    items: list[Item] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class SecretsDirectory:
    """`games`: those whose netcode keys belong here; games that name their own keys are left out."""

    def __init__(
        self, directory: Path, games: Sequence[Game] = (), *, now: Callable[[], datetime.datetime] = _now
    ) -> None:
        self.directory = directory
        self._nats = directory / "nats"
        self._netcode = directory / "netcode"
        self._games = [game for game in games if not (game.private_key_file or game.private_key_env)]
        self._now = now

    def initialise(self, hosts: Iterable[str] = (), namespace: str | None = None) -> Report:
        """Make what is missing. `hosts`: names by which clients reach NATS from elsewhere. `namespace` None is the
        one there is. Raises `ConfigError`."""
        asked = [check_host(host) for host in hosts]
        self._prepare()
        report = Report(self.directory.absolute(), self._namespace(namespace))
        subjects = Subjects(report.namespace)
        for role in ROLES:
            self._once(report, self._password_item(role), lambda: secrets.token_urlsafe(32) + "\n")
        self._derive(report, subjects)
        self._certificates(report, asked)
        self._once(report, self._hook_item(), _new_hook_key)
        for game in self._games:
            self._once(report, self._key_item(game), _new_netcode_key)
        made = {item.path for item in report.items}
        report.items += [item for item in self._key_items() if item.path not in made]
        for item in report.items:  # also where a write broke off before its last step
            _set_mode(item.path)
        self._notice_expiry(report)
        return report

    def show(self) -> Report:
        """What is there, nothing made or changed. Raises `ConfigError` when it was never initialised."""
        if not _there(self._nats / "users.conf"):
            raise ConfigError(
                f"{self.directory} holds no secrets; `tipoff secrets init {self.directory}` makes them"
            )
        report = Report(self.directory.absolute(), self._namespace(None))
        for item in self._all_items():
            if _there(item.path):
                report.items.append(item)
            else:
                report.next.append(f"{item.path} is missing; `tipoff secrets init {self.directory}` makes it")
        self._notice_expiry(report)
        return report

    def rotate(self, name: str, hosts: Iterable[str] = ()) -> Report:
        """Replace one secret: a role's password, `nats-tls`, `nats-ca`, `users`, or a game's key by `GAME.VERSION`.
        Raises `ConfigError` naming what there is."""
        asked = [check_host(host) for host in hosts]
        if asked and name not in (TLS, AUTHORITY):
            raise ConfigError(f"--host is for {TLS} and {AUTHORITY}")
        report = self.show()
        subjects = Subjects(report.namespace)
        if name in ROLES:
            self._replace(report, name, secrets.token_urlsafe(32) + "\n")
            self._derive(report, subjects, again=True)
            report.next.append(
                _AFTER_PASSWORD.get(name, f"{_RELOAD}, then restart every {name}: it is out until then")
            )
        elif name == HOOK:
            self._replace(report, HOOK, _new_hook_key())
            report.next.append(
                "restart every httpd and matchmaker: webhooks of servers that run are not heard until then"
            )
        elif name == USERS:
            self._derive(report, subjects, again=True)
            report.next.append(_RELOAD)
        elif name == TLS:
            self._new_server(report, asked)
            report.next.append(f"{_RELOAD}; connected clients stay")
        elif name == AUTHORITY:
            names = self._server_names()
            authority = new_authority(self._now())
            self._replace(report, AUTHORITY, authority.certificate, authority.key.reveal())
            self._new_server(report, asked, names)
            report.next.append(
                "restart nats-server and every part: all need the new ca.pem (NATS_CA), at Edgegap in the app version"
            )
        elif path := self._key_path(name):
            item = _find(report, name) or Item(name, path, _KEY_READERS, _YES)
            _write(path, _new_netcode_key(), READABLE)
            item.state = RENEWED
            report.next.append(
                f"restart the matchmakers and the launcher and drain the game servers of {name}: those that run "
                "know the old key alone, and nobody new gets in there"
            )
        else:
            keys = [path.stem for path in sorted(self._netcode.glob("*.key"))]
            raise ConfigError(
                f"{name!r}: one of {', '.join([*ROLES, USERS, TLS, AUTHORITY, HOOK, *keys])} is expected"
            )
        self._notice_expiry(report)
        return report

    # What there is.

    def _all_items(self) -> list[Item]:
        return [
            *(self._password_item(role) for role in ROLES),
            *(self._derived_item(name) for name in DERIVED),
            *self._authority_items(),
            *self._server_items(),
            self._hook_item(),
            *self._key_items(),
        ]

    def _key_items(self) -> list[Item]:
        """Keys that are there, and those of the games."""
        paths = {*self._netcode.glob("*.key"), *(key_file(self._netcode, game) for game in self._games)}
        return [Item(path.stem, path, _KEY_READERS, _YES) for path in sorted(paths)]

    def _password_item(self, role: str) -> Item:
        readers = _PASSWORD_READERS.get(role, role)
        return Item(role, self._nats / f"{role}.password", readers, _YES)

    def _derived_item(self, name: str) -> Item:
        return Item(USERS, self._nats / name, "nats-server", _NO)

    def _authority_items(self) -> list[Item]:
        return [
            Item(AUTHORITY, self._nats / "ca.pem", "every part", _YES),
            Item(
                AUTHORITY,
                self._nats / "ca.key",
                "tipoff secrets rotate",
                _APART,
            ),
        ]

    def _server_items(self) -> list[Item]:
        return [
            Item(TLS, self._nats / "server.pem", "nats-server", _NO),
            Item(TLS, self._nats / "server.key", "nats-server", _NO),
        ]

    def _hook_item(self) -> Item:
        return Item(HOOK, self.directory / "edgegap" / "hook.key", "httpd, matchmaker", _YES)

    def _key_item(self, game: Game) -> Item:
        path = key_file(self._netcode, game)
        return Item(path.stem, path, _KEY_READERS, _YES)

    def _key_path(self, name: str) -> Path | None:
        return next((path for path in self._netcode.glob("*.key") if path.stem == name), None)

    def _namespace(self, asked: str | None) -> str:
        if asked is not None:
            return Subjects(asked).namespace
        path = self._nats / "users.conf"
        return namespace_of(_read(path)) if _there(path) else ""

    # How it is made.

    def _prepare(self) -> None:
        """The directories, for their owner alone. One that holds something else is left alone."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if {entry.name for entry in self.directory.iterdir()} - _OURS and not self._nats.is_dir():
                raise ConfigError(
                    f"{self.directory} is not empty and holds no secrets of tipoff; choose another directory"
                )
            self.directory.chmod(0o700)
            for inner in _DIRECTORIES:
                (self.directory / inner).mkdir(exist_ok=True)
                (self.directory / inner).chmod(
                    0o755
                )  # for containers that mount it; nobody else comes this far
            ignore = self.directory / ".gitignore"
            if not ignore.exists():
                _write(ignore, "*\n", 0o644)
        except OSError as exc:
            raise ConfigError(f"{exc.filename}: {exc.strerror}; choose another directory") from exc

    def _once(self, report: Report, item: Item, make: Callable[[], str]) -> None:
        if not _there(item.path):
            _write(item.path, make(), READABLE)
            item.state = MADE
        report.items.append(item)

    def _derive(self, report: Report, subjects: Subjects, *, again: bool = False) -> None:
        """Bring what follows from the passwords up to date. `again`: whatever it is now."""
        known = self._known_hashes()
        hashes: dict[str, str] = {}
        for role in ROLES:
            password = Secret(_read(self._nats / f"{role}.password").strip())
            before = known.get(role, "")
            hashes[role] = before if before and is_hash_of(password, before) else hashed(password)
        for name, make in DERIVED.items():
            item = _find(report, USERS, name) or self._derived_item(name)
            if item not in report.items:
                report.items.append(item)
            text = make(hashes, subjects)
            old = _read(item.path) if _there(item.path) else None
            if old == text:
                continue
            if old is not None and was_edited(old) and not again:
                item.state = EDITED
                report.next.append(
                    f"{item.path} was edited and is left as it is; `tipoff secrets rotate users` makes it anew"
                )
                continue
            _write(item.path, text, READABLE)
            item.state = MADE if old is None else RENEWED
            if old is not None and not again:
                report.next.append(
                    f"{name} is new (passwords, namespace or permissions): let nats-server reload (SIGHUP)"
                )

    def _known_hashes(self) -> dict[str, str]:
        for name in DERIVED:
            path = self._nats / name
            if _there(path) and (known := hashes_in(_read(path))):
                return known
        return {}

    def _certificates(self, report: Report, hosts: list[str]) -> None:
        certificate, key = self._authority_items()
        if not _there(certificate.path):  # a key alone is of a try that broke off
            authority = new_authority(self._now())
            _write(key.path, authority.key.reveal(), PRIVATE)
            _write(certificate.path, authority.certificate, READABLE)
            certificate.state = key.state = MADE
        report.items += [certificate, key]
        server, server_key = self._server_items()
        report.items += [server, server_key]
        if not (_there(server.path) and _there(server_key.path)):
            self._new_server(report, hosts)
            server.state = server_key.state = MADE
            return
        text = _read(server.path)
        if not is_signed_by(text, _read(certificate.path)) or not fits_key(
            text, Secret(_read(server_key.path))
        ):
            report.next.append(
                f"server.pem is not signed by ca.pem, or not for server.key; `tipoff secrets rotate {TLS}` makes one "
                "that is"
            )
            return
        if missing := [host for host in hosts if host not in describe(text).names]:
            options = " ".join(f"--host {host}" for host in missing)
            report.next.append(
                f"server.pem is not for {', '.join(missing)}; `tipoff secrets rotate {TLS} {options}` adds that"
            )

    def _server_names(self) -> tuple[str, ...]:
        path = self._nats / "server.pem"
        with contextlib.suppress(ConfigError):
            return describe(_read(path)).names if _there(path) else ()
        return ()  # it cannot be read: what a new one is for

    def _new_server(self, report: Report, hosts: Iterable[str], names: Iterable[str] | None = None) -> None:
        """A new server certificate, for all the names of the one before, too."""
        before = self._server_names() if names is None else names
        ca_key = self._nats / "ca.key"
        if not _there(ca_key):
            raise ConfigError(
                f"{ca_key} is missing: bring it back from the back-up, or `tipoff secrets rotate {AUTHORITY}`"
            )
        authority = Issued(_read(self._nats / "ca.pem"), Secret(_read(ca_key)))
        issued = new_server(authority, dict.fromkeys([*ALWAYS, *before, *hosts]), self._now())
        self._replace(report, TLS, issued.certificate, issued.key.reveal())

    def _replace(self, report: Report, name: str, *texts: str) -> None:
        """The files of one item, in the order of `texts`."""
        items = [item for item in report.items if item.name == name]
        if len(items) != len(texts):
            items = [item for item in self._all_items() if item.name == name]
            report.items += items
        for item, text in zip(items, texts, strict=True):
            _write(item.path, text, _mode(item.path))
            item.state = RENEWED

    def _notice_expiry(self, report: Report) -> None:
        for item in report.items:
            if item.path.suffix != ".pem":
                continue
            try:
                item.expires = describe(_read(item.path)).expires
            except ConfigError as exc:
                report.next.append(
                    f"{item.path.name}: {exc}; `tipoff secrets rotate {item.name}` makes a new one"
                )
                continue
            days = (item.expires - self._now()).days
            if days < RENEW_DAYS:
                when = "has expired" if days < 0 else f"expires in {days} days"
                report.next.append(f"{item.path.name} {when}: `tipoff secrets rotate {item.name}`")


_YES, _NO, _APART = "yes", "no", "yes, apart"
_PASSWORD_READERS = {
    "gameserver": "launcher (for servers)",
    "operator": "people: status, watch",
    "admin": "people: kick, drain",
}
_RELOAD = "let nats-server reload (SIGHUP)"
_AFTER_PASSWORD = {
    "gameserver": f"at a quiet hour {_RELOAD} and restart the launcher at once: game servers that run know the old "
    "password alone, cannot renew their leases, and are ended with their players",
    "operator": _RELOAD,
    "admin": _RELOAD,
}
_KEY_READERS = "matchmaker, launcher"


def _new_netcode_key() -> str:
    return PrivateKey.generate().reveal().hex() + "\n"


def _new_hook_key() -> str:
    return secrets.token_hex(32) + "\n"


def _find(report: Report, name: str, file: str = "") -> Item | None:
    return next((i for i in report.items if i.name == name and file in ("", i.path.name)), None)


def _mode(path: Path) -> int:
    return PRIVATE if path.name == "ca.key" else READABLE


def _set_mode(path: Path) -> None:
    try:
        if path.stat().st_mode & 0o777 != _mode(path):
            path.chmod(_mode(path))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made the directory") from exc


def _there(path: Path) -> bool:
    """A file with something in it: an empty one is of a try that broke off."""
    return path.is_file() and path.stat().st_size > 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made it") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not text") from exc


def _write(path: Path, text: str, mode: int) -> None:
    """Into the file that is there, else a new one that nobody reads before it is whole."""
    try:
        if path.is_dir():  # Docker makes one where a file to mount is missing
            path.rmdir()
        if path.exists():
            path.chmod(0o600)
            with path.open("r+") as file:
                file.truncate()
                _fill(file.fileno(), text)
            path.chmod(mode)
            return
        fresh = path.with_name(f".{path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _fill(descriptor, text)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        fresh.rename(path)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; run as the user who made the directory") from exc


def _fill(descriptor: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
