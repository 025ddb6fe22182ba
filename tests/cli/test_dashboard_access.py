"""Who may use the dashboard: the developer on this machine, from the dashboard's own page."""

from __future__ import annotations

from typing import Any

import pytest

from tipoff.dashboard.access import TOKEN_HEADER, AccessRule, parse_networks
from tipoff_shared.errors import ConfigError, NotAllowed
from tipoff_shared.secret import Secret

RULE = AccessRule(frozenset({"192.168.1.5", "game.example"}), parse_networks("10.1.0.0/16"), Secret("page"))


def scope(
    peer: str = "127.0.0.1",
    *,
    host: str = "127.0.0.1:3000",
    own: str = "127.0.0.1",
    scheme: str = "http",
    **headers: str,
) -> dict[str, Any]:
    """A request; `headers` with `_` for `-`."""
    given = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {
        "client": (peer, 4711),
        "server": (own, 3000),
        "scheme": scheme,
        "headers": [(b"host", host.encode()), *given],
    }


@pytest.mark.parametrize(
    "allowed",
    [
        scope(),
        scope(host="localhost:3000"),
        scope(host="pong.localhost"),
        scope("::1", host="[::1]:3000", own="::1"),
        scope("::ffff:127.0.0.1"),
        scope("192.168.1.5", host="192.168.1.5:3000", own="192.168.1.5"),  # this machine by its own address
        scope("10.1.2.3", host="192.168.1.5:3000", own="192.168.1.5"),  # a network that the developer named
        scope(host="GAME.example:3000"),
        scope(sec_fetch_site="none", sec_fetch_mode="navigate"),
        scope(sec_fetch_site="cross-site", sec_fetch_mode="navigate"),  # a link; it only opens the page
        scope(sec_fetch_site="same-origin", origin="http://127.0.0.1:3000"),
        scope(scheme="https", origin="https://127.0.0.1:3000"),
    ],
)
def test_the_developer_on_this_machine_may(allowed: dict[str, Any]) -> None:
    """By whatever name of it, with or without a browser."""
    RULE.check_visitor(allowed)


@pytest.mark.parametrize(
    "refused",
    [
        scope("192.168.1.9", host="192.168.1.5:3000", own="192.168.1.5"),
        scope("10.2.0.1", host="192.168.1.5:3000", own="192.168.1.5"),
        scope("fe80::1", host="localhost:3000", own="::1"),
        scope(host="attacker.example:3000"),  # DNS rebinding
        scope(host="192.168.1.6:3000"),
        scope(host="127.0.0.1.attacker.example"),
        scope(host="localhost.attacker.example"),
        scope(host=""),
        scope(origin="http://attacker.example"),
        scope(origin="http://127.0.0.1:8080"),  # another program of this machine
        scope(origin="http://localhost:3000"),
        scope(origin="null"),
        scope(scheme="https", origin="http://127.0.0.1:3000"),
        scope(sec_fetch_site="cross-site", sec_fetch_mode="no-cors"),
        scope(sec_fetch_site="same-site", sec_fetch_mode="cors"),
        scope(x_forwarded_for="203.0.113.9"),
        scope(forwarded="for=203.0.113.9"),
        scope(via="1.1 proxy"),
    ],
)
def test_nobody_else_may(refused: dict[str, Any]) -> None:
    """Other machines, visitors by a proxy, other web pages, names that were pointed here."""
    with pytest.raises(NotAllowed):
        RULE.check_visitor(refused)


def test_a_connection_without_an_address_is_not_from_here() -> None:
    """Such as by a Unix socket, behind which anybody may be."""
    with pytest.raises(NotAllowed):
        RULE.check_visitor(scope() | {"client": None})


@pytest.mark.parametrize("token", [None, "", "pag", "page ", "Page", "\xff"])
def test_data_and_buttons_want_the_pages_secret(token: str | None) -> None:
    """A request from this machine is not enough: any program and page can make one."""
    headers = {} if token is None else {TOKEN_HEADER.decode(): token}
    with pytest.raises(NotAllowed, match="load it again"):
        RULE.check_page(scope(**headers))
    RULE.check_page(scope(**{TOKEN_HEADER.decode(): "page"}))


def test_the_secret_is_of_no_use_to_other_machines() -> None:
    """Nor to other pages."""
    secret = {TOKEN_HEADER.decode(): "page"}
    with pytest.raises(NotAllowed):
        RULE.check_page(scope("192.168.1.9", **secret))
    with pytest.raises(NotAllowed):
        RULE.check_page(scope(origin="http://attacker.example", **secret))


@pytest.mark.parametrize("text", ["x", "192.168.1.5/24", "10.0.0.0/33", "10.0.0.0/8 192.168.0.0/16"])
def test_a_network_that_is_none_is_refused_with_an_example(text: str) -> None:
    """`192.168.1.5/24` has host bits: it may mean one machine or all of them."""
    with pytest.raises(ConfigError, match=r"192\.168\.1\.0/24"):
        parse_networks(text)
