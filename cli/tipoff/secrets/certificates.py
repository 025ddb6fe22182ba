"""Makes and reads X.509 certificates for NATS: our own authority, and the server certificate that it signs.

Clients trust only this authority (`NATS_CA`), no public one. Elliptic keys (P-256) keep the files small: an
orchestrator may pass the authority's certificate on in a variable.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret

ALWAYS = ("nats", "localhost", "127.0.0.1", "::1")
"""Names of every server certificate: the service's in a Compose file, and loopback."""
AUTHORITY_DAYS = 3650
SERVER_DAYS = 730
RENEW_DAYS = 30
"""Days before its end from which on a certificate should be renewed."""

_NAME = re.compile(r"(\*\.)?[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9-]{1,63})*", re.ASCII)
_EARLIER = datetime.timedelta(hours=1)  # for machines whose clocks are behind


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key as PEM texts; `key` is a secret."""

    certificate: str
    key: Secret


@dataclass(frozen=True, slots=True)
class Described:
    """The content of a certificate. `names`: its host names and addresses."""

    names: tuple[str, ...]
    expires: datetime.datetime


def check_host(name: str) -> str:
    """The form of a host name or address for a certificate. Raises `ConfigError`."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if len(name) <= 253 and _NAME.fullmatch(name):
            return name.lower()
    raise ConfigError(f"--host {name}: a host name or an address is expected, like nats.example.org")


def new_authority(now: datetime.datetime) -> Issued:
    """A new certificate authority, valid for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tipoff NATS authority {now:%Y-%m-%d}")])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _issued(certificate, key)


def new_server(authority: Issued, names: Iterable[str], now: datetime.datetime) -> Issued:
    """A server certificate for `names`, valid for two years. Raises `ConfigError` when the authority's files are
    unusable."""
    try:
        parent = x509.load_pem_x509_certificate(authority.certificate.encode())
        parent_key = serialization.load_pem_private_key(authority.key.reveal().encode(), password=None)
    except ValueError as exc:
        raise ConfigError(f"the certificate authority's files cannot be read: {exc}") from exc
    if (
        not isinstance(parent_key, ec.EllipticCurvePrivateKey)
        or parent_key.public_key() != parent.public_key()
    ):
        raise ConfigError("ca.key is not the key of ca.pem; `tipoff secrets rotate nats-ca` makes both anew")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats-server")])
    certificate = (
        _builder(subject, parent.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False
        )
        .sign(parent_key, hashes.SHA256())
    )
    return _issued(certificate, key)


def describe(certificate: str) -> Described:
    """Read a PEM certificate. Raises `ConfigError` for any other text."""
    try:
        read = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as exc:
        raise ConfigError(f"not a certificate: {exc}") from exc
    try:
        found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Described((), read.not_valid_after_utc)
    return Described(tuple(str(name.value) for name in found), read.not_valid_after_utc)


def is_signed_by(certificate: str, authority: str) -> bool:
    """Whether `authority` signed `certificate`."""
    try:
        x509.load_pem_x509_certificate(certificate.encode()).verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority.encode())
        )
    except Exception:  # cryptography's own InvalidSignature, ValueError, TypeError: all mean no
        return False
    return True


def fits_key(certificate: str, key: Secret) -> bool:
    """Whether the certificate is for this private key."""
    try:
        private = serialization.load_pem_private_key(key.reveal().encode(), password=None)
        return private.public_key() == x509.load_pem_x509_certificate(certificate.encode()).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Issued(certificate.public_bytes(serialization.Encoding.PEM).decode(), Secret(pem.decode()))
