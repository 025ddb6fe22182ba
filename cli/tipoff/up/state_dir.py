"""Holds the state directory of one running `tipoff up`: its lock, and where the other commands find the system.

lock        held while `up` runs; holds its pid
up.json     URLs and NATS credentials, readable only by the owner; exists while `up` runs
nats/       the embedded nats-server's data
keys/       private keys of games that configure none, new at each start
logs/       one file for each process
launcher/   records and logs of the game servers
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

DEFAULT_STATE_DIR = "~/.local/state/tipoff"
"""For help texts, and the default where `XDG_STATE_HOME` is not set."""


class UpInfo(msgspec.Struct, frozen=True):
    """The content of `up.json`. `nats_password` is a secret: the file has mode 0600."""

    pid: int
    url: str
    nats_url: str
    nats_user: str
    nats_password: str
    namespace: str = ""

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


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """`TIPOFF_STATE_DIR`, else `tipoff` in the user's state directory (`XDG_STATE_HOME`)."""
    env = os.environ if environ is None else environ
    if given := env.get("TIPOFF_STATE_DIR"):
        return Path(given)
    base = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tipoff"


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Lock the directory for this process. Raises `ConfigError` with the pid of the process that holds it."""
    import fcntl  # POSIX, as the process back end is

    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"the state directory {state_dir} cannot be used: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"the state directory {state_dir} is in use by another `tipoff up` (pid {holder}); "
                "stop that one, or choose another with --state-dir"
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def write_up_info(state_dir: Path, info: UpInfo) -> None:
    """Write `up.json` atomically; no other user can read it at any moment."""
    temporary = state_dir / "up.json.new"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(info))
    temporary.replace(state_dir / "up.json")


def remove_up_info(state_dir: Path) -> None:
    """Remove `up.json`. Idempotent."""
    (state_dir / "up.json").unlink(missing_ok=True)


def read_up_info(state_dir: Path) -> UpInfo:
    """The running `tipoff up` of this directory. Raises `ConfigError`, which says what to do, when there is none."""
    try:
        info = msgspec.json.decode((state_dir / "up.json").read_bytes(), type=UpInfo)
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
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
