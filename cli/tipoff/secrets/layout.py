"""Lists the files of a secrets directory: where each is, its name and who needs it.

DIR/                      0700: other users stop here
DIR/.gitignore            keeps all of it out of git
DIR/nats/ROLE.password    one line
DIR/nats/users.conf       for nats-server: users, hashes, permissions; follows from the passwords
DIR/nats/isolated.conf    the same for the isolated profile: game servers in their own account
DIR/nats/server-auth.seed    the nkey with which matchmakers answer nats-server about game servers (isolated profile)
DIR/nats/ca.pem, ca.key   the certificate authority; only `tipoff secrets` needs its key, to sign new certificates
DIR/nats/server.pem, server.key
DIR/netcode/GAME.VERSION.key    64 hex digits; the directory is a TIPOFF_KEYS_DIR
DIR/edgegap/hook.key      makes the URLs of webhooks unguessable (TIPOFF_HOOK_KEY_FILE)
DIR/edgegap, DIR/https    room for an API token, and for the operator's own certificates
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tipoff.secrets.items import Item
from tipoff_shared.games import Game
from tipoff_shared.games.toml import key_file
from tipoff_shared.settings import ROLES

USERS, TLS, AUTHORITY, HOOK, AUTH = "users", "nats-tls", "nats-ca", "hook", "server-auth"
DIRECTORIES = ("nats", "netcode", "edgegap", "https")
NATS_FILES = ("users.conf", "isolated.conf")
"""The files from which nats-server reads users and permissions."""

_YES, _NO, _APART = "yes", "no", "yes, apart"
_PASSWORD_READERS = {
    "gameserver": "launcher (for servers)",
    "operator": "people: status, watch",
    "admin": "people: kick, drain",
}


class Layout:
    """The files in `directory`, with netcode keys for those of `games` that configure no key of their own."""

    def __init__(self, directory: Path, games: Sequence[Game] = ()) -> None:
        self.directory = directory
        self.nats = directory / "nats"
        self.netcode = directory / "netcode"
        self.games = [game for game in games if not (game.private_key_file or game.private_key_env)]

    def all(self) -> list[Item]:
        """Every file."""
        return [
            *(self.password(role) for role in ROLES),
            self.auth_seed(),
            *(self.nats_file(name) for name in NATS_FILES),
            *self.authority(),
            *self.server(),
            self.hook(),
            *self.netcode_keys(),
        ]

    def password(self, role: str) -> Item:
        """The password of a role on NATS."""
        readers = _PASSWORD_READERS.get(role, role)
        return Item(role, self.nats / f"{role}.password", readers, _YES)

    def auth_seed(self) -> Item:
        """The seed of the nkey that signs matchmakers' answers to nats-server."""
        return Item(AUTH, self.nats / "server-auth.seed", "matchmaker", _YES)

    def nats_file(self, name: str) -> Item:
        """One of `NATS_FILES`."""
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
        """The key of webhook URLs."""
        return Item(HOOK, self.directory / "edgegap" / "hook.key", "httpd, matchmaker", _YES)

    def netcode_keys(self) -> list[Item]:
        """The existing keys, and those of the games."""
        paths = {*self.netcode.glob("*.key"), *(key_file(self.netcode, game) for game in self.games)}
        return [self._netcode_key(path) for path in sorted(paths)]

    def key_of(self, game: Game) -> Item:
        """The key of a game."""
        return self._netcode_key(key_file(self.netcode, game))

    def key_named(self, name: str) -> Item | None:
        """The existing key for GAME.VERSION, None without one."""
        return next(
            (self._netcode_key(path) for path in self.netcode.glob("*.key") if path.stem == name), None
        )

    def key_names(self) -> list[str]:
        """GAME.VERSION of every existing key."""
        return [path.stem for path in sorted(self.netcode.glob("*.key"))]

    def _netcode_key(self, path: Path) -> Item:
        return Item(path.stem, path, "matchmaker, launcher", _YES)
