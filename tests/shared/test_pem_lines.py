"""A certificate authority that has lost its line breaks on the way to a game server."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tipoff_shared.settings import NatsSettings, pem_lines


def certificate() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_an_authority_on_one_line_is_read() -> None:
    """As bevygap's script hands it over: without line breaks."""
    one_line = "".join(certificate().splitlines())
    context = NatsSettings(ca_contents=one_line).tls_context()
    assert context is not None
    assert len(context.get_ca_certs()) == 1


def test_an_authority_as_it_was_written_stays_as_it_is() -> None:
    """Two certificates, one after the other."""
    text = certificate() + certificate()
    assert pem_lines(text).replace("\n\n", "\n") == text


def test_what_is_no_certificate_is_left_alone() -> None:
    assert pem_lines("nonsense") == "nonsense"
