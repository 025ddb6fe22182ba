"""Which pages may ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_matchmaker_httpd.admission.origin import (
    OriginRule,
    listed_origin,
    never_matches,
    not_rebound,
    same_origin,
)
from tipoff_matchmaker_httpd.settings import Settings


@pytest.mark.parametrize(
    ("origin", "host", "secure", "same"),
    [
        ("http://localhost:3000", "localhost:3000", False, True),
        ("http://LOCALHOST:3000", "localhost:3000", False, True),
        ("https://play.example", "play.example", False, True),  # a proxy ends TLS
        ("https://play.example", "play.example:443", False, True),
        ("https://play.example", "play.example", True, True),
        ("http://play.example", "play.example", True, False),
        ("http://[::1]:3000", "[::1]:3000", False, True),
        ("http://localhost:3001", "localhost:3000", False, False),
        ("http://evil.example", "play.example", False, False),
        ("http://play.example.evil.example", "play.example", False, False),
        ("null", "play.example", False, False),
        ("", "", False, False),
        ("http://", "", False, False),
        ("http://play.example", None, False, False),
        ("http://play.example/", "play.example", False, False),
        ("http://user@play.example", "play.example", False, False),
    ],
)
def test_same_origin(origin: str, host: str | None, secure: bool, same: bool) -> None:
    """Host and port of the page and of the request agree."""
    assert same_origin(origin, host, secure) is same


def test_listed_origins_are_allowed() -> None:
    """Exactly, by wild card below a domain, or all."""
    rule = OriginRule.from_settings(Settings(origins=("https://game.example/", "https://*.games.example")))
    assert rule.allows("https://game.example", "mm.example", True)
    assert rule.allows("https://a.b.games.example", "mm.example", True)
    for other in (
        "http://game.example",
        "https://games.example",
        "https://evilgames.example",
        "https://evil.example/.games.example",
        "https://game.example.evil.example",
        "null",
    ):
        assert not rule.allows(other, "mm.example", True)
    assert OriginRule(("*",)).allows("null", "mm.example", True)


@pytest.mark.parametrize(
    ("entry", "sent"),
    [
        ("file://", "file://"),
        ("file:///", "file://"),
        ("file:", "file://"),
        ("FILE://", "file://"),
        ("null", "null"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdef/", "chrome-extension://abcdef"),
        ("https://game.example:443", "https://game.example"),
        ("http://game.example:80/", "http://game.example"),
        ("https://game.example:8443", "https://game.example:8443"),
        ("https://*.game.example:8443", "https://a.game.example:8443"),
        ("https://[2001:db8::1]:443", "https://[2001:db8::1]"),
        ("*", "file://"),
    ],
)
def test_an_entry_matches_what_browsers_send(entry: str, sent: str) -> None:
    """However the operator spells it."""
    rule = OriginRule.from_settings(Settings(origins=(entry,)))
    assert rule.allows(sent, "mm.example", True)
    assert never_matches(entry) == ""
    for other in ("https://evil.example", "file://evil", "http://game.example:8080", "data:"):
        assert other == sent or entry == "*" or not rule.allows(other, "mm.example", True)


@pytest.mark.parametrize(
    "entry",
    [
        "game.example",
        "https://game.example/play",
        "https://game.*",
        "https://a*.game.example",
        "https://",
        "https://me@game.example",
        '["file://"',
        '"https://game.example"',
        "'https://game.example'",
        "https://game.example]",
        "https://game.example https://other.example",
        "https://game.example;https://other.example",
        "https://spiel.münchen.example",
    ],
)
def test_an_entry_that_no_browser_sends_has_a_reason(entry: str) -> None:
    """httpd logs it at its start: it would never match, and nobody would know why."""
    assert never_matches(entry)


@given(st.text(max_size=60))
def test_any_entry_is_normal_after_one_step(entry: str) -> None:
    """And nothing raises."""
    once = listed_origin(entry)
    assert listed_origin(once) == once or never_matches(entry)
    never_matches(once)


def test_a_missing_origin_is_the_operators_choice() -> None:
    """Native clients send none."""
    assert OriginRule().allows(None, "mm.example", True)
    assert not OriginRule(allow_missing=False).allows(None, "mm.example", True)


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        ("127.0.0.1:3000", True),
        ("[::1]:3000", True),
        ("localhost:3000", True),
        ("devbox:3000", True),
        ("devbox.local", True),
        ("192.168.1.5:3000", True),
        ("evil.example:3000", False),
        ("localhost.evil.example", False),
        ("", False),
        (None, False),
    ],
)
def test_a_rebound_name_is_told_from_an_address(host: str | None, safe: bool) -> None:
    """A public name in front of the demo is somebody else's page."""
    assert not_rebound(host, secure=False) is safe


@given(st.text(max_size=80), st.text(max_size=80))
def test_hostile_origins_are_answered(origin: str, host: str) -> None:
    """No exception, and only the same text is the same origin."""
    rule = OriginRule(("https://*.games.example",))
    if rule.allows(origin, host, False):
        assert "://" in origin
