"""Serves TLS with a certificate that is renewed while the listener runs, as Let's Encrypt and mkcert do.

A listener gets one `SSLContext` for its whole life. Each handshake takes the newest chain that could be read; open
connections are not touched. The files are looked at every few seconds:

    files changed, readable, key and certificate match    the next handshake uses them
    they do not                                           the old chain stays; a second look, for a renewal in two steps
    they still do not                                     one error in the log, until they change again
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tipoff_shared.errors import ConfigError

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two looks at the files."""

_Stamp: TypeAlias = tuple[tuple[int, ...] | None, ...]
"""What tells one version of the files from another: device, inode, size, times. None: the file cannot be found."""


class ServerCertificate:
    """The certificate chain of a listener and its private key, in PEM files. `key` None: both are in `cert`."""

    def __init__(
        self, cert: str | Path, key: str | Path | None, *, variables: str, alpn: Sequence[str] = ()
    ) -> None:
        """Reads the files; raises `ConfigError` when they cannot be used. `variables` name them in errors."""
        self._cert = str(cert)
        self._key = str(key) if key else None
        self._what = ", ".join(
            f"{variable}={path}"
            for variable, path in zip(variables.split(","), (self._cert, self._key), strict=False)
            if path
        )
        self._alpn = list(alpn)
        self._used = self._stamp()
        self._suspect: _Stamp | None = None
        """Files that could not be used at the last look."""
        self._logged: _Stamp | None = None
        """Files of which the log says that they cannot be used."""
        try:
            self.context = self._load()
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"{self._what}: {_why(exc)}; a certificate chain and its private key are expected, in PEM"
            ) from exc
        self._current = self.context
        self.context.sni_callback = self._choose
        self.renewals = 0
        """How often newer files were taken."""

    async def watch(self) -> None:
        """Look at the files every `INTERVAL` seconds, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await asyncio.to_thread(self.check)

    def check(self) -> None:
        """Take the files if they have changed and can be used. Blocks for as long as reading them takes."""
        stamp = self._stamp()
        if stamp == self._used:
            self._suspect = self._logged = None
            return
        if stamp == self._logged:
            return
        try:
            fresh = self._load()
        except (OSError, ssl.SSLError) as exc:
            if stamp == self._suspect:
                self._logged = stamp
                log.error(  # noqa: TRY400 # the operator's files are at fault; a traceback would not say more
                    "%s: the new files cannot be used: %s. The certificate that was read before stays in use; replace "
                    "the files, no restart is needed",
                    self._what,
                    _why(exc),
                )
            self._suspect = stamp
            return
        if self._stamp() != stamp:  # written while they were read: the next look sees the rest
            return
        self._current, self._used = fresh, stamp
        self._suspect = self._logged = None
        self.renewals += 1
        log.info("%s: renewed; new connections get the new certificate", self._what)

    def _choose(self, handshake: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        # Called at each ClientHello, with a server name or without.
        if self._current is not self.context:
            handshake.context = self._current

    def _load(self) -> ssl.SSLContext:
        # A new context: one that has loaded half of a pair that does not match is broken.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._alpn:
            context.set_alpn_protocols(self._alpn)
        context.load_cert_chain(self._cert, self._key, password=_no_password)
        return context

    def _stamp(self) -> _Stamp:
        return tuple(_version(path) for path in (self._cert, self._key) if path)


def _version(path: str) -> tuple[int, ...] | None:
    try:
        # Follows links: Let's Encrypt and Kubernetes replace what a link points to.
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _no_password() -> str:
    # Without this OpenSSL asks for it on the terminal, and waits.
    raise ssl.SSLError("the private key is encrypted; a key without a password is expected")


def _why(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        reason: str | None = getattr(exc, "reason", None)  # only OpenSSL's own errors have one
        if reason == "KEY_VALUES_MISMATCH":
            return "the private key is not that of the certificate"
        return reason or str(exc)
    return exc.strerror or str(exc)
