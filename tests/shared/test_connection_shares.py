"""Which socket goes when an address, or everybody together, holds too many."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_shared.admission.client_address import Address
from tipoff_shared.admission.connection_shares import ConnectionShares, party_key

pytestmark = pytest.mark.row(69)

GREEDY, OTHER, THIRD = (ip_address(f"203.0.113.{last}") for last in (1, 2, 3))


def test_an_address_over_its_share_loses_its_own_oldest_unproven_socket() -> None:
    """Others keep theirs, and the newcomer of the greedy address gets in."""
    shares = ConnectionShares[str](10, 2)
    assert shares.enter("other", OTHER) is None
    for name in ("a", "b"):
        assert shares.enter(name, GREEDY) is None
    eviction = shares.enter("c", GREEDY)
    assert eviction is not None
    assert (eviction.connection, eviction.party, eviction.over_share) == ("a", "203.0.113.1", True)
    assert "other" in shares
    assert "c" in shares
    assert shares.held_by(GREEDY) == 2


def test_a_full_listener_drops_the_oldest_unproven_socket_of_the_greediest_address() -> None:
    """Whoever comes next gets in."""
    shares = ConnectionShares[str](4, 4)
    for name in ("a", "b", "c"):
        shares.enter(name, GREEDY)
    assert shares.enter("x", OTHER) is None
    eviction = shares.enter("y", THIRD)
    assert eviction is not None
    assert (eviction.connection, eviction.over_share) == ("a", False)
    assert len(shares) == 4


def test_the_greediest_is_whoever_has_most_unproven_sockets() -> None:
    """A school with many players behind one address is not greedy: its players have proven themselves."""
    shares = ConnectionShares[str](7, 7)
    for name in ("p1", "p2", "p3", "p4"):
        shares.enter(name, OTHER)
        shares.prove(name)
    shares.enter("new player", OTHER)
    shares.enter("a", GREEDY)
    shares.enter("b", GREEDY)
    eviction = shares.enter("y", THIRD)
    assert eviction is not None
    assert eviction.connection == "a"


def test_a_proven_socket_is_never_evicted() -> None:
    """With nothing else to evict, the newcomer goes: 429 for its own address, 503 for a full house."""
    shares = ConnectionShares[str](3, 2)
    for name, address in (("a", GREEDY), ("b", GREEDY), ("c", OTHER)):
        shares.enter(name, address)
        shares.prove(name)
    over = shares.enter("d", GREEDY)
    assert over is not None
    assert (over.connection, over.over_share) == ("d", True)
    full = shares.enter("e", THIRD)
    assert full is not None
    assert (full.connection, full.over_share) == ("e", False)
    assert len(shares) == 3


def test_an_idle_socket_can_be_evicted_again_as_the_youngest() -> None:
    """One request does not buy a socket for ever."""
    shares = ConnectionShares[str](10, 2)
    shares.enter("a", GREEDY)
    shares.prove("a")
    shares.enter("b", GREEDY)
    shares.idle("a")
    first = shares.enter("c", GREEDY)
    second = shares.enter("d", GREEDY)
    assert first is not None
    assert second is not None
    assert [first.connection, second.connection] == ["b", "a"]


def test_the_connections_of_a_trusted_proxy_are_exempt_until_it_names_a_client() -> None:
    """Then they count under the client's address, and after the request under none again."""
    shares = ConnectionShares[str](10, 1)
    for name in ("p1", "p2", "p3"):
        assert shares.enter(name, None) is None
    assert shares.assign("p1", GREEDY) is None
    shares.prove("p1")
    over = shares.assign("p2", GREEDY)
    assert over is not None
    assert (over.connection, over.over_share) == ("p2", True)
    assert shares.assign("p3", OTHER) is None
    shares.assign("p1", None)
    shares.idle("p1")
    assert shares.enter("g", GREEDY) is None
    assert len(shares) == 3


def test_a_full_listener_evicts_no_connection_of_a_trusted_proxy() -> None:
    """A proxy answers 502 to its client when an idle connection of it is closed; strangers go first."""
    shares = ConnectionShares[str](2, 2)
    shares.enter("proxy", None)
    shares.enter("stranger", GREEDY)
    eviction = shares.enter("proxy 2", None)
    assert eviction is not None
    assert eviction.connection == "stranger"
    last = shares.enter("proxy 3", None)
    assert last is not None
    assert last.connection == "proxy 3"


def test_loopback_has_no_share_but_goes_when_the_listener_is_full() -> None:
    """A proxy on this machine that no setting names must work; an attack from there must not keep others out."""
    shares = ConnectionShares[int](5, 1)
    for number in range(5):
        assert shares.enter(number, ip_address("127.0.0.2")) is None
    eviction = shares.enter(5, ip_address("127.0.0.1"))
    assert eviction is not None
    assert eviction.connection == 0


def test_a_claim_takes_nothing_from_an_address_that_holds_as_many() -> None:
    """Who is evicted comes back at once, so two equals would evict each other for ever."""
    shares = ConnectionShares[str](3, 3)
    for name, address in (("a", GREEDY), ("b", GREEDY), ("x", OTHER)):
        assert shares.claim(name, address) is None
    first = shares.claim("y", THIRD)
    assert first is not None
    assert first.connection == "a"
    refused = shares.claim("x2", OTHER)
    assert refused is not None
    assert (refused.connection, refused.over_share) == ("x2", False)
    assert {name for name in ("a", "b", "x", "y", "x2") if name in shares} == {"b", "x", "y"}


def test_a_claim_over_the_share_is_refused() -> None:
    """The address keeps what it has."""
    shares = ConnectionShares[str](9, 2)
    for name in ("a", "b"):
        assert shares.claim(name, GREEDY) is None
    refused = shares.claim("c", GREEDY)
    assert refused is not None
    assert (refused.connection, refused.over_share) == ("c", True)
    assert shares.held_by(GREEDY) == 2


def test_an_ipv6_household_is_one_address() -> None:
    """It has 2^64 addresses to choose from."""
    assert party_key(ip_address("2001:db8:0:1::1")) == party_key(ip_address("2001:db8:0:1:ffff::2"))
    assert party_key(ip_address("2001:db8:0:1::1")) != party_key(ip_address("2001:db8:0:2::1"))


def test_nothing_is_kept_of_who_left() -> None:
    """Leaving twice, and what an evicted connection still reports, changes nothing."""
    shares = ConnectionShares[int](100, 3)
    for number in range(300):
        shares.enter(number, ip_address(f"203.0.113.{number % 50}"))
    for number in range(300):
        shares.prove(number)
        shares.leave(number)
        shares.leave(number)
        shares.idle(number)
        assert shares.assign(number, OTHER) is None
    assert len(shares) == 0
    assert shares.parties == 0


class _Model:
    """The same policy by looking at everything each time."""

    def __init__(self, most: int, share: int) -> None:
        self.most, self.share = most, share
        self.all: dict[int, tuple[Address | None, bool]] = {}
        self.age: list[int] = []

    def unproven(self, address: Address) -> list[int]:
        return [c for c in self.age if c in self.all and self.all[c] == (address, False)]

    def held(self, address: Address) -> int:
        return sum(1 for a, _ in self.all.values() if a == address)

    def enter(self, c: int, address: Address | None) -> set[int]:
        """The connections of which one may go."""
        self.put(c, address)
        if address is not None and self.held(address) > self.share:
            return {(self.unproven(address) or [c])[0]}
        if len(self.all) <= self.most:
            return set()
        counts = Counter(a for a, proven in self.all.values() if a is not None and not proven)
        if not counts:
            return {c}
        most = max(counts.values())
        return {self.unproven(a)[0] for a, n in counts.items() if n == most and a is not None}

    def put(self, c: int, address: Address | None) -> None:
        self.all[c] = (address, False)
        self.renew(c)

    def renew(self, c: int) -> None:
        self.age = [other for other in self.age if other != c] + [c]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 5))
def test_any_history_follows_the_policy(seed: int, most: int, share: int) -> None:
    """Compared, step by step, with a model that counts everything anew."""
    rng = random.Random(seed)
    addresses = [GREEDY, OTHER, THIRD, None]
    shares, model = ConnectionShares[int](most, share), _Model(most, share)
    for number in range(60):
        known = list(model.all)
        act = rng.randrange(6) if known else 0
        if act <= 1:
            allowed = model.enter(number, address := rng.choice(addresses))
            eviction = shares.enter(number, address)
            assert (eviction is None) == (not allowed)
            if eviction is not None:
                assert eviction.connection in allowed
                del model.all[eviction.connection]
        elif act == 2:
            c = rng.choice(known)
            shares.leave(c)
            del model.all[c]
        elif act == 3:
            c = rng.choice(known)
            shares.prove(c)
            model.all[c] = (model.all[c][0], True)
        elif act == 4:
            c = rng.choice(known)
            shares.idle(c)
            model.all[c] = (model.all[c][0], False)
            model.renew(c)
        else:
            c, address = rng.choice(known), rng.choice(addresses)
            model.put(c, address)
            moved = shares.assign(c, address)
            assert (moved is not None) == (address is not None and model.held(address) > share)
            if moved is not None:
                assert address is not None
                assert moved.connection == model.unproven(address)[0]
                del model.all[moved.connection]
        assert len(shares) == len(model.all) <= most
        for party in (GREEDY, OTHER, THIRD):
            assert shares.held_by(party) == model.held(party) <= share
