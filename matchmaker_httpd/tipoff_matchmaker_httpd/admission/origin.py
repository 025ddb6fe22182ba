"""Decides which web pages may ask for a seat: the same origin always, others by the operator's list. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.admission.client_address import parse_address

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_LISTED = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|(?:\*\.)?[a-z0-9._~%!$&'()*+;=-]+)(?::[0-9]{1,5})?", re.ASCII
)
"""What browsers can send: they write other letters in a host name as Punycode."""
_DEFAULT_PORT = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class OriginRule:
    """The operator's part of the rule."""

    origins: tuple[str, ...] = ()
    """Origins in lower case; `*` and `https://*.game.example` are allowed."""
    allow_missing: bool = True
    """Serve clients without an Origin header."""

    @classmethod
    def from_settings(cls, settings: Settings) -> OriginRule:
        """The rule by `origins` and `allow_missing_origin`."""
        return cls(tuple(map(listed_origin, settings.origins)), settings.allow_missing_origin)

    def allows(self, origin: str | None, host: str | None, secure: bool) -> bool:
        """Whether a request may be served. `origin` and `host` are its headers, `secure`: it came over TLS."""
        if origin is None:
            return self.allow_missing
        return same_origin(origin, host, secure) or self.lists(origin)

    def lists(self, origin: str) -> bool:
        """Whether the list allows `origin`: exactly, by `https://*.game.example` (any depth), or by `*`."""
        origin = origin.lower()
        for allowed in self.origins:
            if allowed in ("*", origin):
                return True
            scheme, wild, domain = allowed.partition("://*.")
            if wild and origin.startswith(f"{scheme}://") and origin.endswith(f".{domain}"):
                label = origin[len(scheme) + 3 : -len(domain) - 1]
                if re.fullmatch(r"[a-z0-9.-]+", label, re.ASCII):
                    return True
        return False


def listed_origin(entry: str) -> str:
    """An entry of the list as browsers write it (RFC 6454 §6.2): lower case, no slash at the end, no default port.
    `file:` in any spelling is `file://`, which pages from a file, Cordova and Electron send."""
    origin = entry.strip().lower()
    scheme, colon, rest = origin.partition(":")
    host = rest.strip("/")
    if not colon or not rest.startswith("/"):
        return "file://" if origin == "file:" else origin.rstrip("/")
    return f"{scheme}://{host.removesuffix(':' + _DEFAULT_PORT.get(scheme, ''))}"


def never_matches(entry: str) -> str:
    """Why no browser sends such an origin, for the log; "" when one may."""
    origin = listed_origin(entry)
    if origin in ("*", "null", "file://"):
        return ""
    scheme, found, host = origin.partition("://")
    if not found or not scheme:
        return "it has no scheme; https://game.example is expected"
    if not host:
        return "it has no host; https://game.example is expected"
    if "/" in host or "?" in host or "#" in host:
        return "an origin has no path"
    if "@" in host:
        return "an origin has no user"
    if "*" in host.removeprefix("*."):
        return "a wild card stands for whole names at the front, as in https://*.game.example"
    if not _LISTED.fullmatch(origin):
        return (
            "an origin has no such characters; entries are separated by commas, without quotes and brackets"
        )
    return ""


@lru_cache(maxsize=1024)
def same_origin(origin: str, host: str | None, secure: bool) -> bool:
    """Whether the page comes from the server it talks to: host and port agree.

    Behind a proxy that ends TLS, the page is https while the connection to this process is not. So an https page is
    accepted on a plain connection, but an http page is not accepted over TLS.
    """
    found = _ORIGIN.fullmatch(origin.lower())
    if not found or not host or (secure and found[1] != "https"):
        return False
    default = _DEFAULT_PORT[found[1]]
    name, port = split_host(host)
    return name == found[2] and (port or default) == (found[3] or default)


def split_host(host: str) -> tuple[str, str]:
    """Name in lower case (IPv6 in its brackets) and port of `example.org:3000`; the port is "" where there is none."""
    host = host.strip().lower()
    if host.startswith("["):
        name, _, rest = host.partition("]")
        return name + "]", rest.removeprefix(":")
    name, _, port = host.partition(":")
    return name, port


def not_rebound(host: str | None, secure: bool) -> bool:
    """Whether a Host header is one that DNS rebinding cannot produce.

    A foreign page whose public name was re-pointed at this machine is "same origin" with it. But its Host is that
    public name, and it has no certificate for TLS. Addresses, names without a dot, `.local` and `.localhost` cannot be
    registered by strangers.
    """
    name, _ = split_host(host or "")
    if not name:
        return False
    return (
        secure
        or "." not in name
        or name.endswith((".local", ".localhost"))
        or parse_address(name.strip("[]")) is not None
    )
