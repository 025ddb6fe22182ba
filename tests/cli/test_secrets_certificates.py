"""`tipoff secrets`: the certificates of NATS and of the authority that signs them."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest

from tests.cli.secrets_files import changed, contents
from tipoff.secrets.certificates import describe, is_signed_by
from tipoff.secrets.directory import SecretsDirectory
from tipoff.secrets.items import RENEWED


def test_the_server_certificate_is_for_every_name_and_signed_by_the_authority(made: SecretsDirectory) -> None:
    """With its chain accepted by Python's own checks (3.13's are strict)."""
    nats = made.directory / "nats"
    names = describe((nats / "server.pem").read_text()).names
    assert set(names) == {"nats", "localhost", "127.0.0.1", "::1", "play.example.org"}
    assert is_signed_by((nats / "server.pem").read_text(), (nats / "ca.pem").read_text())
    assert handshake(nats, "play.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(nats, "other.example.org")


def handshake(nats: Path, name: str) -> bool:
    """TLS in memory between a server with our certificate and a client that trusts our authority alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(nats / "server.pem", nats / "server.key")
    client = ssl.create_default_context(cafile=str(nats / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    return not ends


def test_rotating_the_certificate_keeps_its_names_and_the_authority(made: SecretsDirectory) -> None:
    before = contents(made.directory)
    made.rotate("nats-tls", ["192.0.2.7"])
    after = contents(made.directory)
    assert changed(before, after) == {"nats/server.pem", "nats/server.key"}
    assert {"play.example.org", "192.0.2.7", "nats"} <= set(describe(after["nats/server.pem"]).names)
    assert is_signed_by(after["nats/server.pem"], after["nats/ca.pem"])


def test_rotating_the_authority_signs_the_server_anew(made: SecretsDirectory) -> None:
    before = contents(made.directory)
    report = made.rotate("nats-ca")
    after = contents(made.directory)
    assert changed(before, after) == {
        f"nats/{name}" for name in ("ca.pem", "ca.key", "server.pem", "server.key")
    }
    assert is_signed_by(after["nats/server.pem"], after["nats/ca.pem"])
    assert stat.S_IMODE((made.directory / "nats" / "ca.key").stat().st_mode) == 0o400
    assert any("NATS_CA" in line for line in report.next)


def test_a_missing_name_in_the_certificate_is_said_with_the_command(made: SecretsDirectory) -> None:
    report = made.initialise(["new.example.org"])
    assert any("rotate nats-tls --host new.example.org" in line for line in report.next)


def test_a_certificate_that_ends_soon_is_said_with_the_command(tmp_path: Path) -> None:
    """30 days before, and after it has ended."""
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    SecretsDirectory(tmp_path / "s", now=lambda: now).initialise()
    for days, words in ((729 - 28, "expires in"), (731, "has expired")):
        later = SecretsDirectory(tmp_path / "s", now=lambda days=days: now + datetime.timedelta(days=days))
        assert any(words in line and "rotate nats-tls" in line for line in later.show().next), days
    early = SecretsDirectory(tmp_path / "s", now=lambda: now + datetime.timedelta(days=600))
    assert early.show().next == []


@pytest.mark.parametrize("name", ["server.pem", "ca.pem"])
def test_a_certificate_that_cannot_be_read_is_said_and_can_be_replaced(
    made: SecretsDirectory, name: str
) -> None:
    """`init` and `show-paths` say with which command, and that one works."""
    path = made.directory / "nats" / name
    path.chmod(0o600)
    path.write_text("no certificate")
    asked = "nats-tls" if name == "server.pem" else "nats-ca"
    for report in (made.show(), made.initialise()):
        assert any(f"rotate {asked}" in line for line in report.next)
    made.rotate(asked)
    assert not any("rotate" in line for line in made.show().next)
    assert handshake(made.directory / "nats", "localhost")


def test_a_certificate_beside_another_ones_key_is_said(made: SecretsDirectory) -> None:
    """A rotation that died between the two files: nats-server would not start."""
    path = made.directory / "nats" / "server.pem"
    before = path.read_text()
    made.rotate("nats-tls")
    path.chmod(0o600)
    path.write_text(before)
    assert any("rotate nats-tls" in line for line in made.initialise().next)


def test_a_rotation_tells_of_each_file_once(made: SecretsDirectory) -> None:
    """Also of one that was missing."""
    (made.directory / "nats" / "server.key").unlink()
    report = made.rotate("nats-tls")
    paths = [item.path for item in report.items]
    assert len(paths) == len(set(paths))
    assert [item.state for item in report.items if item.name == "nats-tls"] == [RENEWED, RENEWED]
