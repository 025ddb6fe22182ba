"""A certificate that is renewed while its listener runs. The handshakes here happen in memory."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.certificates import self_signed
from tipoff_shared.errors import ConfigError
from tipoff_shared.primitives.server_certificate import ServerCertificate

pytestmark = pytest.mark.row(71)

VARIABLES = "TIPOFF_HTTPD_TLS_CERT,TIPOFF_HTTPD_TLS_KEY"


class Connection:
    """A client's TLS connection to a listener with this context."""

    def __init__(self, context: ssl.SSLContext, name: str | None = "localhost") -> None:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
        trust.set_alpn_protocols(["h2", "http/1.1"])
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trust.wrap_bio(back, there, server_hostname=name)
        self.server = context.wrap_bio(there, back, server_side=True)
        done: set[ssl.SSLObject] = set()
        while len(done) < 2:
            for side in (self.client, self.server):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass

    @property
    def certificate(self) -> str:
        """What the server has shown, as PEM."""
        shown = self.client.getpeercert(binary_form=True)
        assert shown is not None
        return ssl.DER_cert_to_PEM_cert(shown)

    def talk(self) -> bytes:
        self.client.write(b"still here")
        return self.server.read()


@pytest.fixture
def live(tmp_path: Path) -> tuple[Path, Path]:
    """The files that a listener is configured with."""
    return self_signed(tmp_path)


@pytest.fixture
def new(tmp_path: Path) -> tuple[Path, Path]:
    """Their next version, elsewhere."""
    (tmp_path / "new").mkdir()
    return self_signed(tmp_path / "new")


def made(live: tuple[Path, Path]) -> ServerCertificate:
    return ServerCertificate(*live, variables=VARIABLES, alpn=("http/1.1",))


def shown(certificate: ServerCertificate) -> str:
    return Connection(certificate.context).certificate


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def overwrite(live: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    for old, fresh in zip(live, new, strict=True):
        old.write_bytes(fresh.read_bytes())


def rename(live: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    for old, fresh in zip(live, new, strict=True):
        shutil.copy(fresh, f"{old}.part")
        os.replace(f"{old}.part", old)


@pytest.mark.parametrize("write", [overwrite, rename])
@pytest.mark.parametrize("name", ["localhost", None], ids=["server name", "no server name"])
def test_the_next_handshake_gets_the_new_certificate(
    live: tuple[Path, Path], new: tuple[Path, Path], write: object, name: str | None
) -> None:
    """An open connection goes on."""
    certificate = made(live)
    before = Connection(certificate.context, name)
    assert callable(write)
    write(live, new)
    certificate.check()
    after = Connection(certificate.context, name)
    assert after.certificate.strip() == new[0].read_text().strip() != before.certificate.strip()
    assert after.client.selected_alpn_protocol() == "http/1.1"
    assert before.talk() == after.talk() == b"still here"
    assert certificate.renewals == 1


def test_links_are_followed(tmp_path: Path, live: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    """Let's Encrypt replaces links to the files, Kubernetes a link to their directory."""
    (tmp_path / "data").symlink_to(tmp_path)
    certificate = made((tmp_path / "data" / "cert.pem", tmp_path / "data" / "key.pem"))
    (tmp_path / "next").symlink_to(tmp_path / "new")
    os.replace(tmp_path / "next", tmp_path / "data")
    certificate.check()
    assert shown(certificate).strip() == new[0].read_text().strip()


@pytest.mark.parametrize("first", [0, 1], ids=["certificate first", "key first"])
def test_a_renewal_in_two_steps_is_no_error(
    live: tuple[Path, Path], new: tuple[Path, Path], caplog: pytest.LogCaptureFixture, first: int
) -> None:
    """In between the pair does not match, and the old one is served."""
    certificate, old = made(live), live[0].read_text()
    live[first].write_bytes(new[first].read_bytes())
    certificate.check()
    assert shown(certificate).strip() == old.strip()
    overwrite(live, new)
    certificate.check()
    assert shown(certificate).strip() == new[0].read_text().strip()
    assert errors(caplog) == []


def _empty(live: tuple[Path, Path], _: tuple[Path, Path]) -> str:
    live[0].write_text("")
    return "TIPOFF_HTTPD_TLS_CERT"


def _cut(live: tuple[Path, Path], new: tuple[Path, Path]) -> str:
    live[0].write_text(new[0].read_text()[:300])
    return "TIPOFF_HTTPD_TLS_CERT"


def _missing(live: tuple[Path, Path], _: tuple[Path, Path]) -> str:
    live[1].unlink()
    return "No such file"


def _mismatch(live: tuple[Path, Path], new: tuple[Path, Path]) -> str:
    live[0].write_bytes(new[0].read_bytes())
    return "the private key is not that of the certificate"


def _encrypted(live: tuple[Path, Path], new: tuple[Path, Path]) -> str:
    key = serialization.load_pem_private_key(new[1].read_bytes(), None)
    live[0].write_bytes(new[0].read_bytes())
    live[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return "the private key is encrypted"


@pytest.mark.parametrize("damage", [_empty, _cut, _missing, _mismatch, _encrypted])
def test_files_that_cannot_be_used_are_one_error_and_the_old_certificate_stays(
    live: tuple[Path, Path], new: tuple[Path, Path], caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    """However often they are looked at; when they are good again, they are taken."""
    certificate, old = made(live), live[0].read_text()
    assert callable(damage)
    words = damage(live, new)
    for _ in range(5):
        certificate.check()
    assert shown(certificate).strip() == old.strip()
    (line,) = errors(caplog)
    assert words in line
    assert str(live[0]) in line
    assert "no restart" in line
    overwrite(live, new)
    certificate.check()
    assert shown(certificate).strip() == new[0].read_text().strip()
    assert len(errors(caplog)) == 1


def test_old_files_that_come_back_are_no_renewal(live: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    """And nothing is read while nothing changes."""
    certificate = made(live)
    live[0].rename(f"{live[0]}.away")
    certificate.check()
    os.rename(f"{live[0]}.away", live[0])
    certificate.check()
    for _ in range(3):
        certificate.check()
    assert certificate.renewals <= 1
    assert shown(certificate).strip() == live[0].read_text().strip()


def test_one_file_may_hold_both(live: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    """As some tools write it."""
    live[0].write_text(live[0].read_text() + live[1].read_text())
    certificate = ServerCertificate(live[0], None, variables=VARIABLES)
    live[0].write_text(new[0].read_text() + new[1].read_text())
    certificate.check()
    assert shown(certificate).strip() == new[0].read_text().strip()


@pytest.mark.parametrize("damage", [_empty, _cut, _missing, _mismatch, _encrypted])
def test_at_the_start_such_files_are_refused(
    live: tuple[Path, Path], new: tuple[Path, Path], damage: object
) -> None:
    """With the variables, the files and the reason; nothing asks for a password on the terminal."""
    assert callable(damage)
    words = damage(live, new)
    with pytest.raises(ConfigError) as caught:
        made(live)
    assert words in str(caught.value)
    assert "PEM" in str(caught.value)
    assert f"TIPOFF_HTTPD_TLS_KEY={live[1]}" in str(caught.value)
