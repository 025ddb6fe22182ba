"""What a server's environment becomes inside a container: files it names, and secrets, go in as files. Pure.

Environment variables of a container show in `docker inspect`, so the game's key and the NATS password stay out of
them; and the paths of this host mean nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

DIRECTORY = "/run/tipoff"

_PATHS = {
    "TIPOFF_PRIVATE_KEY_FILE": "private_key",
    "NATS_CA": "nats_ca.pem",
    "TIPOFF_TLS_CERT": "tls_cert.pem",
    "TIPOFF_TLS_KEY": "tls_key.pem",
}
_SECRETS = {
    "NATS_PASSWORD": ("nats_password", "NATS_PASSWORD_FILE"),
    "TIPOFF_EVENT_KEY": ("event_key", "TIPOFF_EVENT_KEY_FILE"),
}
"""Variable -> its file, and the variable that our SDK finds the file by."""
_KEYS = ("TIPOFF_PRIVATE_KEY", "LIGHTYEAR_PRIVATE_KEY")


def inside(
    environment: dict[str, str],
    *,
    own: Collection[str],
    secrets: Literal["file", "environment"],
    nats_host: str,
    read: Callable[[str], bytes],
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The variables of the container, and the files of its `DIRECTORY`. `own`: names that games.toml has set, whose
    paths are the image's. `read` opens a path of this host; what it raises comes through."""
    variables = dict(environment)
    files: dict[str, bytes] = {}
    for name, file in _PATHS.items():
        if variables.get(name) and (name not in own or name == "TIPOFF_PRIVATE_KEY_FILE"):
            files[file] = read(variables[name])
            variables[name] = f"{DIRECTORY}/{file}"
    if nats_host:
        variables["NATS_HOST"] = nats_host
    if secrets == "environment":
        key = files.pop("private_key", b"").decode()
        variables.pop("TIPOFF_PRIVATE_KEY_FILE", None)
        variables["TIPOFF_PRIVATE_KEY"] = key
        return variables, files
    for name in _KEYS:
        variables.pop(name, None)
    for name, (file, variable) in _SECRETS.items():
        if name not in own and (secret := variables.pop(name, "")):
            files[file] = secret.encode()
            variables[variable] = f"{DIRECTORY}/{file}"
    return variables, files
