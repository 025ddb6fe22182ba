"""Reads facts about DNS, TLS, clocks and httpd's readiness from the network."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from tipoff_shared.primitives.text import describe

_HEAD_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class DnsFacts:
    """The addresses of a name; `error` says why it has none."""

    name: str
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """One TLS server. `connected`: TCP connected; `problem`: why the certificate is not trusted (OpenSSL's text), or
    why there is no TLS. The other fields are the certificate's, where the server sent one."""

    where: str
    connected: bool = False
    problem: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    names: tuple[str, ...] = ()
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """`offset`: seconds by which the other clock is ahead of ours; `within`: the uncertainty, in seconds."""

    whose: str
    offset: float
    within: float


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """An answer of httpd. `status` 0: no answer, and `error` says why."""

    url: str
    status: int = 0
    body: bytes = b""
    date: str = ""
    asked_at: float = 0.0
    answered_at: float = 0.0
    error: str = ""

    def clock(self) -> ClockFacts | None:
        """The server's clock by its Date header, which has a resolution of one second; None without one."""
        parsed = email.utils.parsedate_to_datetime(self.date) if _is_date(self.date) else None
        if parsed is None:
            return None
        middle = (self.asked_at + self.answered_at) / 2
        within = (self.answered_at - self.asked_at) / 2 + 0.5
        return ClockFacts(self.url, parsed.timestamp() + 0.5 - middle, within)

    def missing(self) -> list[str]:
        """What `/readyz` reports as missing."""
        try:
            found: Any = json.loads(self.body)
        except ValueError:
            return []
        missing = found.get("missing") if isinstance(found, dict) else None
        return [str(item) for item in missing] if isinstance(missing, list) else []


def _is_date(text: str) -> bool:
    try:
        return bool(text) and email.utils.parsedate_to_datetime(text).tzinfo is not None
    except (TypeError, ValueError):
        return False


async def look_up(name: str) -> DnsFacts:
    """Resolve `name` as this machine's programs do."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        return DnsFacts(name, error=exc.strerror or str(exc))
    by_family: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        known = by_family.setdefault(family, [])
        if str(address[0]) not in known:
            known.append(str(address[0]))
    return DnsFacts(name, tuple(by_family.get(socket.AF_INET, ())), tuple(by_family.get(socket.AF_INET6, ())))


def trusting(ca: Path | str | None) -> ssl.SSLContext:
    """A context that trusts the system's authorities and those in the PEM file `ca`. Raises `OSError`, also as
    `ssl.SSLError`."""
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cafile=str(ca))
    return context


async def look_at_https(host: str, port: int, ca: Path | None) -> TlsFacts:
    """The certificate of an HTTPS server, checked as a client does that also trusts `ca`."""
    where = f"{host}:{port}"
    return await _look(where, host, trusting(ca), lambda context: _dial(host, port, context, host))


async def look_at_nats_tls(host: str, port: int, context: ssl.SSLContext) -> TlsFacts:
    """The certificate of a nats-server, which first sends its INFO in clear and then does TLS on the same
    connection."""
    return await _look(f"{host}:{port}", host, context, lambda tls: _dial_nats(host, port, tls))


async def _dial(host: str, port: int, context: ssl.SSLContext, name: str) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    return writer


async def _dial_nats(host: str, port: int, context: ssl.SSLContext) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection(host, port, limit=_HEAD_LIMIT)
    try:
        line = await reader.readuntil(b"\n")
        if not line.startswith(b"INFO "):
            raise ssl.SSLError("not a nats-server: it does not begin with INFO")
        info: Any = json.loads(line[5:])
        if not isinstance(info, dict) or not (info.get("tls_required") or info.get("tls_available")):
            raise ssl.SSLError("this nats-server has no TLS")
        await writer.start_tls(context, server_hostname=host)
    except BaseException:
        writer.close()
        raise
    return writer


async def _look(where: str, host: str, context: ssl.SSLContext, dial: Any) -> TlsFacts:
    """Connect as a client does; where the certificate is not trusted, connect once more to read it."""
    problem = ""
    try:
        writer = await dial(context)
    except ssl.SSLCertVerificationError as exc:
        problem = exc.verify_message or str(exc)
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # to read it, nothing is sent
        try:
            writer = await dial(anybody)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return TlsFacts(where, connected=True, problem=problem)
    except ssl.SSLError as exc:
        return TlsFacts(where, connected=True, problem=str(getattr(exc, "reason", "") or exc))
    except (asyncio.IncompleteReadError, ValueError, asyncio.LimitOverrunError) as exc:
        return TlsFacts(
            where, connected=True, problem=f"the connection ended, or its data was invalid: {exc}"
        )
    except OSError as exc:
        return TlsFacts(where, problem=exc.strerror or describe(exc))
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()
    return of_certificate(where, shown, problem)


def of_certificate(where: str, der: bytes, problem: str = "") -> TlsFacts:
    """The facts in a DER certificate."""
    certificate = x509.load_der_x509_certificate(der)
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        value = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += value.get_values_for_type(x509.DNSName)
        names += [str(address) for address in value.get_values_for_type(x509.IPAddress)]
    return TlsFacts(
        where,
        connected=True,
        problem=problem,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        names=tuple(names),
        issuer=certificate.issuer.rfc4514_string(),
    )


async def ask_http(url: str, path: str) -> HttpFacts:
    """`GET url + path`. Accepts any certificate, because another check judges it."""
    import httpx

    asked = time.time()
    try:
        # The request holds nothing secret, and the answer is only displayed.
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=10) as client:
            answer = await client.get(url + path)
    except httpx.HTTPError as exc:
        return HttpFacts(url, error=describe(exc))
    return HttpFacts(
        url,
        answer.status_code,
        answer.content[:_HEAD_LIMIT],
        answer.headers.get("date", ""),
        asked,
        time.time(),
    )


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port of a URL, with the scheme's default port."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme in ("https", "wss") else 80)


def now_utc() -> datetime:
    """The present time."""
    return datetime.now(UTC)
