"""Which files a secrets directory holds, what each is called and who needs it.

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
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tipoff.secrets.items import Item
from tipoff_shared.games import Game
from tipoff_shared.games.toml import key_file
from tipoff_shared.settings import ROLES

USERS, TLS, AUTHORITY, HOOK = "users", "nats-tls", "nats-ca", "hook"
DIRECTORIES = ("nats", "netcode", "edgegap", "https")
NATS_FILES = ("users.conf", "isolated.conf")
"""What nats-server reads of users and permissions."""

_YES, _NO, _APART = "yes", "no", "yes, apart"
_PASSWORD_READERS = {
    "gameserver": "launcher (for servers)",
    "operator": "people: status, watch",
    "admin": "people: kick, drain",
}


class Layout:
    """`games`: those whose netcode keys belong here; games that name their own keys are left out."""

    def __init__(self, directory: Path, games: Sequence[Game] = ()) -> None:
        self.directory = directory
        self.nats = directory / "nats"
        self.netcode = directory / "netcode"
        self.games = [game for game in games if not (game.private_key_file or game.private_key_env)]

    def all(self) -> list[Item]:
        return [
            *(self.password(role) for role in ROLES),
            *(self.nats_file(name) for name in NATS_FILES),
            *self.authority(),
            *self.server(),
            self.hook(),
            *self.netcode_keys(),
        ]

    def password(self, role: str) -> Item:
        readers = _PASSWORD_READERS.get(role, role)
        return Item(role, self.nats / f"{role}.password", readers, _YES)

    def nats_file(self, name: str) -> Item:
        return Item(USERS, self.nats / name, "nats-server", _NO)

    def authority(self) -> tuple[Item, Item]:
        """Certificate and key."""
        return (
            Item(AUTHORITY, self.nats / "ca.pem", "every part", _YES),
            Item(AUTHORITY, self.nats / "ca.key", "tipoff secrets rotate", _APART),
        )

    def server(self) -> tuple[Item, Item]:
        """Certificate and key."""
        return (
            Item(TLS, self.nats / "server.pem", "nats-server", _NO),
            Item(TLS, self.nats / "server.key", "nats-server", _NO),
        )

    def hook(self) -> Item:
        return Item(HOOK, self.directory / "edgegap" / "hook.key", "httpd, matchmaker", _YES)

    def netcode_keys(self) -> list[Item]:
        """Keys that are there, and those of the games."""
        paths = {*self.netcode.glob("*.key"), *(key_file(self.netcode, game) for game in self.games)}
        return [self._netcode_key(path) for path in sorted(paths)]

    def key_of(self, game: Game) -> Item:
        return self._netcode_key(key_file(self.netcode, game))

    def key_named(self, name: str) -> Item | None:
        """The key that is there for GAME.VERSION."""
        return next(
            (self._netcode_key(path) for path in self.netcode.glob("*.key") if path.stem == name), None
        )

    def key_names(self) -> list[str]:
        return [path.stem for path in sorted(self.netcode.glob("*.key"))]

    def _netcode_key(self, path: Path) -> Item:
        return Item(path.stem, path, "matchmaker, launcher", _YES)
