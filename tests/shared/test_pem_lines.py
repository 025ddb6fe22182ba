"""A certificate authority that has lost its line breaks on the way to a game server."""

from __future__ import annotations

from pathlib import Path

from tests.certificates import self_signed
from tipoff_shared.settings import NatsSettings, pem_lines


def certificate(directory: Path) -> str:
    return self_signed(directory)[0].read_text()


def test_an_authority_on_one_line_is_read(tmp_path: Path) -> None:
    """As bevygap's script hands it over: without line breaks."""
    one_line = "".join(certificate(tmp_path).splitlines())
    context = NatsSettings(ca_contents=one_line).tls_context()
    assert context is not None
    assert len(context.get_ca_certs()) == 1


def test_an_authority_as_it_was_written_stays_as_it_is(tmp_path: Path) -> None:
    """Two certificates, one after the other."""
    text = certificate(tmp_path) + certificate(tmp_path)
    assert pem_lines(text).replace("\n\n", "\n") == text


def test_what_is_no_certificate_is_left_alone() -> None:
    assert pem_lines("nonsense") == "nonsense"
