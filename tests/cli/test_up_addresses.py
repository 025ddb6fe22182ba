"""`--host` of `tipoff up`: what players dial, where it listens, and whether the certificate is for it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import self_signed
from tipoff.up.addresses import Reach, find_reach, listen
from tipoff.up.certificate import check_certificate, covers
from tipoff.up.options import UpOptions, check_games
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.games.model import EdgegapSpec

pytestmark = pytest.mark.row(83)

LOOPBACK = ("127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
NAMES = {
    "play.example.org": ["2001:db8::1", "203.0.113.5"],
    "six.example.org": ["2001:db8::1"],
    "mybox": ["127.0.1.1"],
    "localhost": ["::1", "127.0.0.1"],
    "xn--mnchen-3ya.example": ["203.0.113.6"],
}


def resolve(name: str) -> list[str]:
    if name not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return NAMES[name]


def reach(host: str, *, secure: bool = False, lan: str | None = "192.168.1.5") -> Reach:
    return find_reach(host, secure=secure, lan=lambda: lan, resolve=resolve)


@pytest.mark.parametrize("host", ["auto", "0.0.0.0", "::", "*"])
def test_every_interface_is_never_what_players_dial(host: str) -> None:
    """They get the LAN address, and this machine stays in reach; without a network, loopback."""
    assert reach(host) == Reach(("192.168.1.5", "127.0.0.1"), ("192.168.1.5", "127.0.0.1"), EVERYWHERE)
    assert reach(host, lan=None).hosts == ("127.0.0.1",)


def test_this_machine_has_such_an_address() -> None:
    assert "127.0.0.1" in find_reach("auto").hosts


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        ("127.0.0.1", LOOPBACK),
        ("127.0.0.2", ("127.0.0.2", *LOOPBACK)),
        ("::1", ("::1", "127.0.0.1")),
        ("203.0.113.5", ("203.0.113.5", *LOOPBACK)),
        ("2001:db8::1", ("2001:db8::1", *LOOPBACK)),
    ],
)
def test_an_address_is_dialled_as_given(host: str, bind: tuple[str, ...]) -> None:
    """And loopback stays open beside it, for the commands of this machine."""
    assert reach(host) == Reach((host,), (host,), bind)


def test_brackets_and_mapped_addresses_are_understood() -> None:
    assert reach("[2001:db8::1]").hosts == ("2001:db8::1",)
    assert reach("::ffff:203.0.113.5").hosts == ("203.0.113.5",)


def test_a_name_with_a_certificate_is_dialled_by_name_and_for_udp_by_its_ipv4_address() -> None:
    found = reach("Play.Example.org.", secure=True)
    assert found == Reach(("play.example.org", "203.0.113.5"), ("play.example.org",), EVERYWHERE)
    assert found.ipv4 == "203.0.113.5"


def test_a_name_without_a_certificate_is_dialled_by_address() -> None:
    """A server opens `ws` only on an address that it sees to be private; the page keeps the name."""
    assert reach("play.example.org") == Reach(("203.0.113.5",), ("play.example.org",), EVERYWHERE)


def test_names_of_other_kinds() -> None:
    """Only IPv6; this machine itself; not ASCII."""
    assert reach("six.example.org", secure=True).hosts == ("six.example.org", "2001:db8::1")
    assert reach("six.example.org").ipv4 is None
    assert reach("localhost").bind == LOOPBACK
    assert reach("mybox").only_here
    assert reach("münchen.example", secure=True).hosts[0] == "xn--mnchen-3ya.example"


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("nowhere.example.org", "no address here"),
        ("https://play.example.org", "DNS name is expected"),
        ("play.example.org:3000", "DNS name is expected"),
        ("127.1", "DNS name is expected"),
        ("0", "DNS name is expected"),
        ("0x7f.0.0.1", "DNS name is expected"),
        ("", "DNS name is expected"),
        ("a" * 64 + ".example.org", "DNS name is expected"),
        ("224.0.0.1", "cannot dial"),
        ("255.255.255.255", "cannot dial"),
        ("ff02::1", "cannot dial"),
        ("fe80::1%lo", "zone"),
        ("::ffff:0.0.0.0", "cannot dial"),
    ],
)
def test_what_nobody_can_dial_is_refused(host: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        reach(host)


@given(st.text(max_size=40))
def test_any_text_is_an_address_a_name_or_refused(host: str) -> None:
    with contextlib.suppress(ConfigError):
        assert reach(host).hosts[0] not in ("0.0.0.0", "::", "")


def game(**settings: object) -> Game:
    return Game(name="a", version="1", **settings)  # type: ignore[arg-type] # chosen by the test


@pytest.mark.parametrize(
    ("emulator", "of_the_game"),
    [(False, {"bevygap": True}), (True, {"edgegap": EdgegapSpec("a", "1")})],
    ids=["bevygap", "edgegap"],
)
def test_clients_that_know_only_ipv4_are_refused_an_ipv6_host(
    emulator: bool, of_the_game: dict[str, object]
) -> None:
    options = UpOptions(games=Path("g"), state_dir=Path("s"), host="::1", edgegap_emulator=emulator)
    with pytest.raises(ConfigError, match="IPv4"):
        check_games(options, [game(**of_the_game)], reach("::1"))
    check_games(options, [game(**of_the_game)], reach("play.example.org"))
    if not emulator:
        check_games(options, [game()], reach("::1"))


def test_localhost_is_reached_on_ipv6_too() -> None:
    """On one port; and a port that another program has on `::1` counts as in use."""
    door = listen(LOOPBACK, 0)
    port = door[0].getsockname()[1]
    try:
        for host in LOOPBACK:
            socket.create_connection((host, port), timeout=2).close()
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            listen(["127.0.0.2", "::1"], port)
    finally:
        for sock in door:
            sock.close()


def test_a_machine_without_an_address_beside_the_first_listens_without_it() -> None:
    door = listen(["127.0.0.1", "2001:db8::1", "203.0.113.7"], 0)
    assert len(door) == 1
    door[0].close()


@pytest.mark.parametrize(
    ("name", "host", "fits"),
    [
        ("play.example.org", "play.example.org", True),
        ("PLAY.example.org", "play.EXAMPLE.org", True),
        ("*.example.org", "play.example.org", True),
        ("*.example.org", "a.play.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.org", "example.org", False),
        ("play.example.org", "example.org", False),
        ("203.0.113.5", "203.0.113.5", True),
        ("2001:db8::1", "2001:db8:0::1", True),
        ("203.0.113.5", "203.0.113.6", False),
        ("*.0.113.5", "203.0.113.5", False),
    ],
)
def test_which_hosts_a_name_in_a_certificate_covers(name: str, host: str, fits: bool) -> None:
    assert covers(name, host) is fits


def test_a_certificate_for_another_name_is_refused_and_the_right_name_is_given(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, name="play.example.org")
    now = datetime.now(UTC)
    assert check_certificate(certificate, key, ["play.example.org"], now) is None
    with pytest.raises(
        ConfigError, match=r"is for play\.example\.org, 127\.0\.0\.1.*give --host play\.example"
    ):
        check_certificate(certificate, key, ["other.example.org"], now)


def test_an_address_that_the_certificate_is_not_for_is_a_warning(tmp_path: Path) -> None:
    """Programs may be told to trust it; browsers may not."""
    certificate, key = self_signed(tmp_path, name="play.example.org")
    warning = check_certificate(certificate, key, ["203.0.113.5"], datetime.now(UTC))
    assert warning is not None
    assert warning.endswith("browsers refuse it at 203.0.113.5; give --host play.example.org")


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    later = datetime.now(UTC) + timedelta(days=2)
    assert "has expired" in (check_certificate(certificate, key, ["localhost"], later) or "")


def swapped(certificate: Path, key: Path) -> tuple[Path, Path]:
    return key, certificate


def another_key(certificate: Path, key: Path) -> tuple[Path, Path]:
    other = certificate.parent / "other"
    other.mkdir()
    return certificate, self_signed(other)[1]


def not_text(certificate: Path, key: Path) -> tuple[Path, Path]:
    certificate.write_bytes(b"\x30\x82\xff")
    return certificate, key


@pytest.mark.parametrize("change", [swapped, another_key, not_text])
def test_files_that_belong_to_no_certificate_are_refused(
    tmp_path: Path, change: Callable[[Path, Path], tuple[Path, Path]]
) -> None:
    certificate, key = change(*self_signed(tmp_path))
    with pytest.raises(ConfigError, match="--tls-"):
        check_certificate(certificate, key, ["localhost"], datetime.now(UTC))
