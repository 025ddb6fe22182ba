"""Holds the state directory of one running `tipoff up`: its lock, and where the other commands find the system.

lock        held while `up` runs; holds its pid
up.json     URLs and NATS credentials, readable only by the owner; exists while `up` runs
ports.json  the ports of the last time, where no option named them
nats/       the embedded nats-server's data
keys/       private keys of games that configure none, new at each start
logs/       one file for each process, of at most 10 MiB, and its previous part
launcher/   records and logs of the game servers
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings
from tipoff_shared.state_home import state_home

DEFAULT_STATE_DIR = "~/.local/state/tipoff"
"""For help texts, and the default where `XDG_STATE_HOME` is not set."""


class UpInfo(msgspec.Struct, frozen=True):
    """The content of `up.json`. `nats_password` is a secret: the file has mode 0600. `device` and `inode` are the state
    directory's, which a copy does not share. `games` is the path of games.toml, `ports` FIRST-LAST of game servers or
    "" for any, `public_hosts` the addresses in tokens."""

    pid: int
    url: str
    nats_url: str
    nats_user: str
    nats_password: str
    namespace: str = ""
    device: int = 0
    inode: int = 0
    games: str = ""
    ports: str = ""
    public_hosts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"UpInfo(pid={self.pid}, url={self.url!r}, nats_url={self.nats_url!r})"

    def nats_settings(self) -> NatsSettings:
        """How clients connect to the system's NATS."""
        return NatsSettings(
            servers=(self.nats_url,),
            user=self.nats_user,
            password=Secret(self.nats_password),
            insecure=True,
            namespace=self.namespace,
        )


_LONGEST_PATH = 3500
"""Bytes of the longest path of a state directory: Linux allows 4095, and the files within add up to 300."""


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """`TIPOFF_STATE_DIR`, else `tipoff` in the user's state directory (`XDG_STATE_HOME`). Raises `ConfigError` for a
    user without one."""
    env = os.environ if environ is None else environ
    if given := env.get("TIPOFF_STATE_DIR"):
        return Path(given)
    try:
        return state_home(env) / "tipoff"
    except ConfigError as exc:
        raise ConfigError(f"{exc} (--state-dir or TIPOFF_STATE_DIR)") from exc


def check_path(option: str, path: Path) -> None:
    """Raise `ConfigError` for a path that not every part of the system can use. `option` names it.

    Environment variables, records and logs are UTF-8, so a path must be. Any other character may be in it.
    """
    try:
        length = len(str(path.resolve()).encode())
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ConfigError(f"{option} {shown}: the path is not UTF-8; choose or make another one") from None
    except (OSError, RuntimeError) as exc:  # RuntimeError: links in a circle, in Python 3.11 and 3.12
        reason = exc.strerror if isinstance(exc, OSError) else "its links go in a circle"
        raise ConfigError(f"{option} {path}: {reason}; choose another one") from exc
    if length > _LONGEST_PATH:
        raise ConfigError(
            f"{option}: the path has {length} bytes, and at most {_LONGEST_PATH} leave room for the files in it; "
            "choose a shorter one"
        )


@contextmanager
def usable(state_dir: Path) -> Iterator[None]:
    """Turn an `OSError` about a file within `state_dir` into a `ConfigError` that names the file and what to do."""
    try:
        yield
    except OSError as exc:
        within = [Path(str(name)) for name in (exc.filename, exc.filename2) if name is not None]
        if not any(path.is_relative_to(state_dir) for path in within):
            raise
        raise ConfigError(
            f"the state directory {state_dir} cannot be used: {exc.strerror} ({within[0]}); "
            "choose another with --state-dir"
        ) from exc


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Lock the directory for this process. Raises `ConfigError` with the pid of the process that holds it."""
    import fcntl  # POSIX, as the process back end is

    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        reason = "it is not a directory" if exc.errno == errno.EEXIST else exc.strerror
        raise ConfigError(
            f"the state directory {state_dir} cannot be used: {reason}; choose another with --state-dir"
        ) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"the state directory {state_dir} is in use by another `tipoff up` (pid {holder}{_at(state_dir)}); "
                "stop that one, or choose another with --state-dir"
            ) from None
        except OSError as exc:
            raise ConfigError(
                f"the state directory {state_dir} cannot be locked: {exc.strerror}; choose one on a local disk with "
                "--state-dir"
            ) from exc
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _at(state_dir: Path) -> str:
    """Where the `tipoff up` of this directory is, for a sentence; "" while it starts or stops."""
    try:
        return f", {read_up_info(state_dir).url}"
    except ConfigError:
        return ""


class Ports(msgspec.Struct, frozen=True):
    """The content of `ports.json`: the ports of the page and of NATS, 0 for none."""

    page: int = 0
    nats: int = 0


def read_ports(state_dir: Path) -> Ports:
    """What `write_ports` wrote; none where that cannot be read, for any free port will do."""
    try:
        found = msgspec.json.decode((state_dir / "ports.json").read_bytes(), type=Ports)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return Ports()
    return found if all(0 <= port < 65536 for port in (found.page, found.nats)) else Ports()


def write_ports(state_dir: Path, ports: Ports) -> None:
    """Remember the ports for the next time, as far as the disk has room."""
    with suppress(OSError):
        (state_dir / "ports.json").write_bytes(msgspec.json.encode(ports))


def write_up_info(state_dir: Path, info: UpInfo) -> None:
    """Write `up.json` atomically; no other user can read it at any moment."""
    temporary = state_dir / "up.json.new"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        here = state_dir.stat()
        info = msgspec.structs.replace(info, device=here.st_dev, inode=here.st_ino)
        file.write(msgspec.json.encode(info))
    temporary.replace(state_dir / "up.json")


def remove_up_info(state_dir: Path) -> None:
    """Remove `up.json`. Idempotent."""
    (state_dir / "up.json").unlink(missing_ok=True)


def read_up_info(state_dir: Path) -> UpInfo:
    """The running `tipoff up` of this directory. Raises `ConfigError`, which says what to do, when there is none."""
    try:
        info = msgspec.json.decode((state_dir / "up.json").read_bytes(), type=UpInfo)
        here = state_dir.stat()
        if info.inode and (info.device, info.inode) != (here.st_dev, here.st_ino):
            raise ConfigError(
                f"the state directory {state_dir} is a copy of that of a `tipoff up` (pid {info.pid}); start one with "
                "this directory, or name the original"
            )
        if not _lives(info.pid):
            raise ConfigError(
                f"the `tipoff up` of the state directory {state_dir} (pid {info.pid}) is gone; start it again"
            )
        return info
    except FileNotFoundError:
        raise ConfigError(
            f"no `tipoff up` runs with the state directory {state_dir}; start it, "
            "or say where to look with --state-dir or --nats"
        ) from None
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(f"{state_dir / 'up.json'} cannot be read: {exc}") from exc


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's process
        return True
    return True
