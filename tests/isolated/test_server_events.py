"""Events of game servers as hostile input, and the rules by which a matchmaker writes what they say."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_gameserver.context import deployed_context
from tipoff_gameserver.presence.events import refusal
from tipoff_matchmaker.isolated import rules as event_rules
from tipoff_matchmaker.isolated.rules import Join, Leave
from tipoff_orchestrator_client.base import DeploySpec, environment_of
from tipoff_orchestrator_client.wire import decode_deploy, encode_deploy
from tipoff_shared.errors import ConfigError, Malformed, NotAllowed
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress
from tipoff_shared.records import GameserverLease, LeaseState, SessionRecord, SessionState
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import (
    MAC_HEADER,
    MAX_CHANGES,
    MAX_EVENT,
    Context,
    EventKey,
    Goodbye,
    Lease,
    Players,
    ServerEvent,
    What,
    seal,
    unseal,
)

KEY = EventKey(bytes(range(32)))
SECRET = Secret("ab" * 32)
LEASE = GameserverLease(
    "d1",
    "b1",
    "arena",
    "1",
    LeaseState.READY,
    Transports(udp=UdpAddress("203.0.113.7", 30000), websocket=WebSocketAddress("wss://play.example/gs/d1")),
    4,
    internal=["127.0.0.1:30000", "[::1]:30000"],
)


def event(what: What, seq: int = 1, boot: str = "b1") -> ServerEvent:
    return ServerEvent(boot, 1_700_000_000.0, seq, what)


def sealed_json(value: Any) -> tuple[bytes, dict[str, str]]:
    body = msgspec.json.encode(value)
    return body, {MAC_HEADER: KEY.mac("d1", body)}


@pytest.mark.parametrize(
    "what",
    [
        Lease(LEASE, 10),
        Players({"s1": "18446744073709551615"}, ["s2"]),
        Context({"public_ip": "x"}),
        Goodbye(),
    ],
)
def test_what_is_sealed_is_unsealed(what: What) -> None:
    sent = event(what)
    body, headers = seal(KEY, "d1", sent)
    assert unseal(KEY, "d1", body, headers) == sent


def test_a_seal_is_of_one_deployment_and_one_body() -> None:
    body, headers = seal(KEY, "d1", event(Goodbye()))
    for deployment_id, changed in (("d2", body), ("d1", body + b" "), ("d1", body.replace(b"1", b"2"))):
        with pytest.raises(NotAllowed):
            unseal(KEY, deployment_id, changed, headers)
    for wrong in (None, {}, {MAC_HEADER: ""}, {MAC_HEADER: "é" * 64}, {MAC_HEADER: "\udc80"}):
        with pytest.raises(NotAllowed):
            unseal(KEY, "d1", body, wrong)


def test_keys_differ_by_deployment_namespace_and_secret() -> None:
    keys = {
        EventKey.derive(secret, namespace, deployment).reveal()
        for secret in (SECRET, Secret("cd" * 32))
        for namespace in ("", "n")
        for deployment in ("d1", "d2")
    }
    assert len(keys) == 8
    assert EventKey.parse(min(keys) + "\n").reveal() == min(keys)


def test_a_key_shows_nowhere() -> None:
    assert KEY.reveal() not in f"{KEY} {KEY!r} {[KEY]}"
    with pytest.raises(ConfigError) as caught:
        deployed_context(
            {
                "TIPOFF_DEPLOYMENT_ID": "d1",
                "TIPOFF_PRIVATE_KEY": "12" * 32,
                "TIPOFF_PROFILE": "isolated",
                "TIPOFF_EVENT_KEY": "hunter2" * 9,
            }
        )
    assert "TIPOFF_EVENT_KEY" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_key_travels_to_the_launcher_and_shows_nowhere() -> None:
    spec = DeploySpec("d1", "arena", "1", 4, event_key=KEY.reveal())
    assert decode_deploy(encode_deploy(spec)) == spec
    assert KEY.reveal() not in repr(spec)
    assert environment_of("") == {}
    for wrong in ("ab", "x" * 64, KEY.reveal() + "\n"):
        with pytest.raises(Malformed) as caught:
            decode_deploy(encode_deploy(DeploySpec("d1", "arena", "1", 4, event_key=wrong)))
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("deployment_id", {"deployment_id": "d2"}),
        ("boot_id", {"boot_id": "b2"}),
        ("capacity", {"capacity": 1_000_000}),
        ("players", {"players": -1}),
        ("game", {"game": "x" * 31}),
        ("cert_digest", {"cert_digest": "ab"}),
        ("internal", {"internal": ["localhost:1"]}),
        ("internal port", {"internal": ["127.0.0.1:70000"]}),
        ("internal, many", {"internal": ["127.0.0.1:1"] * 33}),
        ("websocket_port", {"websocket_port": 65536}),
        ("udp port", {"transports": Transports(udp=UdpAddress("h", 0))}),
        ("udp host", {"transports": Transports(udp=UdpAddress("a b", 1))}),
        ("url", {"transports": Transports(websocket=WebSocketAddress("javascript:alert(1)"))}),
    ],
)
def test_a_lease_that_cannot_be_is_refused(what: str, changes: dict[str, Any]) -> None:
    lease = msgspec.structs.replace(LEASE, **changes)
    with pytest.raises(Malformed):
        unseal(KEY, "d1", *seal(KEY, "d1", event(Lease(lease, 10))))


@pytest.mark.parametrize(
    "what",
    [
        Lease(LEASE, 0),
        Lease(LEASE, 100_000),
        Players({"a b": "1"}),
        Players({"s1": "x"}),
        Players(left=["$KV.sessions.>"]),
        Players(left=["s"] * (MAX_CHANGES + 1)),
    ],
)
def test_other_events_out_of_bounds_are_refused(what: What) -> None:
    with pytest.raises(Malformed):
        unseal(KEY, "d1", *seal(KEY, "d1", event(what)))


def test_one_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(Malformed, match="at most"):
        unseal(KEY, "d1", b"x" * (MAX_EVENT + 1), {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
names = st.sampled_from(
    ["event", "lease", "ttl", "joined", "left", "context", "boot_id", "started_at", "seq", "what"]
)
likely = st.dictionaries(
    names, json_values | st.sampled_from(["lease", "players", "context", "goodbye", 1, {"event": "goodbye"}])
)


@given(st.binary(max_size=300) | likely.map(msgspec.json.encode) | json_values.map(msgspec.json.encode))
def test_whatever_is_sealed_is_an_event_or_malformed(body: bytes) -> None:
    """A hostile server has its key: a good seal says nothing of what is in it."""
    with contextlib.suppress(Malformed):
        unseal(KEY, "d1", body, {MAC_HEADER: KEY.mac("d1", body)})


@settings(max_examples=50)
@given(likely, st.integers(0, 3))
def test_a_real_event_with_anything_in_it_is_an_event_or_malformed(
    changes: dict[str, Any], where: int
) -> None:
    original = [Lease(LEASE, 10), Players({"s1": "1"}, ["s2"]), Context({}), Goodbye()][where]
    value = msgspec.json.decode(msgspec.json.encode(event(original)))
    value["what"] |= changes
    for changed in (value | changes, value):
        with contextlib.suppress(Malformed):
            unseal(KEY, "d1", *sealed_json(changed))


@given(st.binary(max_size=200) | json_values.map(msgspec.json.encode))
def test_whatever_answers_is_no_answer_or_a_reason(data: bytes) -> None:
    assert refusal(data) or b"stream" in data


def test_a_streams_answer_is_understood() -> None:
    assert refusal(b'{"stream":"E","seq":1}') == ""
    assert "rollup" in refusal(
        b'{"error":{"code":500,"description":"rollup not permitted"},"stream":"E","seq":0}'
    )
    assert refusal(b"")


# The rules.


def session(state: SessionState = SessionState.READY, **changes: Any) -> SessionRecord:
    record = SessionRecord(
        "s1", state, "arena", "1", "7", "m1", time.time(), deployment_id="d1", boot_id="b1"
    )
    return msgspec.structs.replace(record, **changes)


def test_a_connection_is_written_only_where_the_session_sits() -> None:
    def join(record: SessionRecord | None, client_id: str = "7", boot_id: str = "b1") -> Join:
        return event_rules.join(record, "d1", boot_id, client_id)

    assert join(session()) is Join.WRITE
    assert join(session(SessionState.ACTIVE)) is Join.WRITE
    assert join(session(boot_id="")) is Join.WRITE
    for refused in (
        join(None),
        join(session(SessionState.REQUESTED)),
        join(session(SessionState.CLOSING)),
        join(session(SessionState.GONE)),
        join(session(deployment_id="d2")),
        join(session(), boot_id="b2"),
        join(session(), client_id="8"),
    ):
        assert refused is Join.KICK


def test_a_connection_is_ended_only_where_the_session_sits() -> None:
    assert event_rules.leave(session(), "d1") is Leave.TELL
    assert event_rules.leave(session(SessionState.ACTIVE), "d1") is Leave.TELL
    assert event_rules.leave(session(SessionState.CLOSING), "d1") is Leave.CLEAN
    assert event_rules.leave(None, "d1") is Leave.CLEAN
    assert event_rules.leave(session(deployment_id="d2"), "d1") is Leave.IGNORE


def test_a_lease_is_replaced_by_a_later_one_alone() -> None:
    """Of the same boot by its number, of another boot by when that began."""
    here = event_rules.ordered(LEASE, event(Goodbye(), seq=5))
    assert event_rules.newer(None, event(Goodbye()))
    assert event_rules.newer(here, event(Goodbye(), seq=6))
    assert not event_rules.newer(here, event(Goodbye(), seq=5))
    assert not event_rules.newer(here, event(Goodbye(), seq=4))
    assert event_rules.newer(here, ServerEvent("b2", here.started_at + 1, 1, Goodbye()))
    assert not event_rules.newer(here, ServerEvent("b0", here.started_at - 1, 99, Goodbye()))


def test_a_goodbye_withdraws_the_lease_of_its_own_boot() -> None:
    here = event_rules.ordered(LEASE, event(Goodbye(), seq=5))
    assert event_rules.withdraws(here, event(Goodbye(), seq=6))
    assert not event_rules.withdraws(here, ServerEvent("b0", here.started_at - 1, 99, Goodbye()))
    assert not event_rules.withdraws(None, event(Goodbye()))


@pytest.mark.parametrize("changes", [{"bevygap": True}, {"orchestrator": "edgegap-sessions"}])
def test_a_game_whose_servers_have_no_key_needs_the_trusted_profile(changes: dict[str, Any]) -> None:
    event_rules.check_games([Game("arena", "1")])
    with pytest.raises(ConfigError, match="trusted"):
        event_rules.check_games([Game("arena", "1"), Game("other", "1", **changes)])
