"""The list of bans by itself: what a ban names, when it is over, and what a banned player is told."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.ban_list import BanList, ban_key, is_over, new_ban, text_of
from tipoff_shared.errors import Malformed, NotAllowed
from tipoff_shared.records import Ban, BanKind

NOW = 1_800_000_000.0


def listing(*bans: Ban) -> BanList:
    bans_list = BanList()
    for ban in bans:
        bans_list.put(ban_key(ban), ban)
    return bans_list


@pytest.mark.row(68)
@pytest.mark.parametrize(
    ("subject", "inside", "outside"),
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.8"),
        ("203.0.113.99/24", "203.0.113.1", "203.0.114.1"),
        ("2001:db8::1/64", "2001:db8::ffff", "2001:db8:0:1::1"),
        ("::ffff:203.0.113.7", "203.0.113.7", "203.0.113.6"),
        ("203.0.113.7", "::ffff:203.0.113.7", "::203.0.113.7"),
        ("0.0.0.0/0", "8.8.8.8", "2001:db8::1"),
    ],
)
def test_an_address_or_network_is_banned_in_any_spelling(subject: str, inside: str, outside: str) -> None:
    """IPv4 in IPv6 is IPv4; host bits of a network mean nothing."""
    bans = listing(new_ban("address", subject))
    assert bans.find(NOW, address=inside) is not None
    assert bans.find(NOW, address=outside) is None
    assert bans.find(NOW, address="") is None
    assert bans.find(NOW, address="nonsense") is None


@pytest.mark.row(68)
def test_a_user_and_a_client_are_banned_by_name() -> None:
    """Nobody else is, and neither is somebody of that address."""
    bans = listing(new_ban("user", "mallory"), new_ban("client", "42"))
    assert bans.find(NOW, user="mallory") is not None
    assert bans.find(NOW, client_id=42) is not None
    assert bans.find(NOW, user="Mallory", client_id=43, address="203.0.113.7") is None
    assert bans.find(NOW, user="") is None


@pytest.mark.row(68)
def test_a_ban_ends_by_itself_and_says_when() -> None:
    """The player is told the longest of several."""
    short = new_ban("address", "203.0.113.7", until=NOW + 60, reason="spam")
    long = new_ban("address", "203.0.113.0/24", until=NOW + 3600)
    bans = listing(short, long)
    with pytest.raises(NotAllowed, match=r"you are banned until 2027-01-15 09:00 UTC$") as caught:
        bans.check(NOW, address="203.0.113.7")
    assert caught.value.code == 403
    assert bans.find(NOW + 3600, address="203.0.113.7") is None
    bans.check(NOW + 3600, address="203.0.113.7")
    assert is_over(short, NOW + 60)
    assert text_of(new_ban("user", "m", reason="cheating")) == "you are banned: cheating"


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("address", "203.0.113"),
        ("address", "example.org"),
        ("address", ""),
        ("address", "203.0.113.0/33"),
        ("client", "-1"),
        ("client", "01"),
        ("client", str(2**64)),
        ("client", "٣"),
        ("user", ""),
        ("user", "a\nb"),
        ("user", "x" * 201),
        ("ip", "203.0.113.7"),
    ],
)
def test_what_cannot_be_banned_is_refused_in_one_sentence(kind: str, subject: str) -> None:
    """The message names the field and what is allowed."""
    with pytest.raises(Malformed, match=r"^(kind|address|client|user): "):
        new_ban(kind, subject)


@pytest.mark.parametrize("until", [-1.0, float("nan"), float("inf"), 1e300])
def test_an_end_that_is_no_time_is_refused(until: float) -> None:
    with pytest.raises(Malformed, match="until"):
        new_ban("user", "m", until=until)


def test_a_record_of_another_release_keeps_nobody_out_and_breaks_nothing() -> None:
    """Its subject cannot be read here."""
    bans = BanList()
    bans.put("address.x", Ban(BanKind.ADDRESS, "from the future"))
    assert len(bans) == 0
    bans.drop("address.x")


IPS = st.ip_addresses()
NETWORKS = IPS.flatmap(
    lambda ip: (
        st.integers(0, ip.max_prefixlen).map(lambda n: str(ip_network((int(ip), n), strict=False)))
        if ip.version == 4
        else st.integers(0, 128).map(lambda n: str(ip_network(f"{ip}/{n}", strict=False)))
    )
)


@given(st.lists(st.one_of(NETWORKS, IPS.map(str)), max_size=8), IPS, st.data())
def test_an_address_is_banned_exactly_when_one_of_the_networks_has_it(
    subjects: list[str], address: object, data: st.DataObject
) -> None:
    """Whatever was added, replaced and dropped before."""
    bans = BanList()
    made = [new_ban("address", subject) for subject in subjects]
    for ban in made:
        bans.put(ban_key(ban), ban)
    dropped = data.draw(st.sets(st.sampled_from(subjects))) if subjects else set()
    for subject in dropped:
        bans.drop(ban_key(new_ban("address", subject)))
    gone = {ban_key(new_ban("address", subject)) for subject in dropped}
    staying = [ip_network(ban.subject) for ban in made if ban_key(ban) not in gone]
    asked = ip_address(str(address))
    mapped = getattr(asked, "ipv4_mapped", None)
    asked = mapped if mapped is not None else asked
    expected = any(asked.version == network.version and asked in network for network in staying)
    assert (bans.find(NOW, address=str(address)) is not None) == expected


@given(st.sampled_from(["address", "user", "client", "else"]), st.text(max_size=60))
def test_any_text_is_a_ban_or_malformed(kind: str, subject: str) -> None:
    """A subject in its normal form stays as it is, and its key is a key."""
    try:
        ban = new_ban(kind, subject)
    except Malformed:
        return
    assert new_ban(kind, ban.subject) == ban
    assert ban_key(ban).isascii()
    assert len(listing(ban)) == 1
