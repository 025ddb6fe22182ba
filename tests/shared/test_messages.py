"""The player's messages: bevygap's exact form, and nothing but typed errors for anything else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.errors import BY_CODE, Malformed, from_code
from tipoff_shared.messages import (
    Acknowledged,
    Admitted,
    Failed,
    Feedback,
    PlayRequest,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
    Transports,
    UdpAddress,
    WebSocketAddress,
    decode_admission,
    decode_feedback,
    decode_request,
    encode_admission,
    encode_feedback,
    encode_request,
)

READY = SessionReady(
    token="AAAA",
    ip="127.0.0.1",
    port=30004,
    session_id="s1",
    client_id="18446744073709551615",
    deployment_id="d1",
    transports=Transports(
        udp=UdpAddress("127.0.0.1", 30004), websocket=WebSocketAddress("ws://127.0.0.1:1/")
    ),
)


@pytest.mark.parametrize(
    ("feedback", "wire"),
    [
        (Acknowledged(), '"Acknowledged"'),
        (SessionRequestAccepted("abc"), '{"SessionRequestAccepted":"abc"}'),
        (ProgressReport("starting"), '{"ProgressReport":"starting"}'),
        (Failed(503, "no matchmaker"), '{"Error":[503,"no matchmaker"]}'),
    ],
)
def test_feedback_is_externally_tagged(feedback: Feedback, wire: str) -> None:
    """The form in which Rust's serde reads and writes it."""
    assert encode_feedback(feedback).decode() == wire
    assert decode_feedback(wire) == feedback


def test_session_ready_has_bevygaps_members() -> None:
    """token, ip, port and cert_digest are always there; ours are beside them."""
    members = json.loads(encode_feedback(READY))["SessionReady"]
    assert {"token", "ip", "port", "cert_digest"} <= set(members)
    assert members["cert_digest"] == ""
    assert members["transports"] == {
        "udp": {"host": "127.0.0.1", "port": 30004},
        "websocket": {"url": "ws://127.0.0.1:1/"},
    }
    assert decode_feedback(encode_feedback(READY)) == READY


def test_session_ready_of_bevygap_is_understood() -> None:
    """Without our members, and with members nobody knows."""
    wire = '{"SessionReady":{"token":"t","ip":"1.2.3.4","port":5,"cert_digest":"aa:bb","new":1}}'
    assert decode_feedback(wire) == SessionReady("t", "1.2.3.4", 5, "aa:bb")


def test_the_token_is_not_in_a_repr() -> None:
    """A logged message tells no secret."""
    assert "AAAA" not in repr(READY)


@pytest.mark.parametrize("answer", [Admitted(3, 30.0), Failed(409, "token already used")])
def test_admission_answers_round_trip(answer: Admitted | Failed) -> None:
    assert decode_admission(encode_admission(answer)) == answer


def test_a_request_round_trips() -> None:
    request = PlayRequest("arena", "v0.0.1", client_ip="1.2.3.4")
    assert decode_request(encode_request(request)) == request


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"game":"a"}',
        b'{"game":1,"version":"1"}',
        b'{"game":"a","version":NaN}',
        b'{"game":"*","version":"1"}',
        b'{"game":"a.>","version":"1"}',
        b'{"game":"a\\r\\nb","version":"1"}',
        b'{"game":"' + b"a" * 31 + b'","version":"1"}',
        '{"game":"ä","version":"1"}'.encode(),
        b'{"game":"a","version":"1","request_id":"short"}',
        b'{"game":"a","version":' + b"[" * 3000 + b"]" * 300,
        b'{"game":"a","version":1' + b"0" * 4000 + b"}",
        b'{"game":"a","version":"1","pad":"' + b"x" * 5000 + b'"}',
        b'\xff\xfe{"game":"a","version":"1"}',
    ],
)
def test_a_bad_request_is_malformed(bad: bytes) -> None:
    """Whatever the bytes, the outcome is typed."""
    with pytest.raises(Malformed):
        decode_request(bad)


@pytest.mark.parametrize(
    "body",
    [
        b'{"client_ip": "203.0.113.7"}',  # what bevygap's httpd publishes for /matchmaker/request/GAME/VERSION
        b'{"game": "bevygap-spaceships", "client_ip": "203.0.113.7"}',
        b'{"version": "1", "client_ip": "203.0.113.7"}',
    ],
)
def test_a_subject_names_what_the_body_leaves_out(body: bytes) -> None:
    request = decode_request(body, subject=("bevygap-spaceships", "1"))
    assert (request.game, request.version, request.client_ip) == ("bevygap-spaceships", "1", "203.0.113.7")


@pytest.mark.parametrize(
    "body", [b'{"game": "other"}', b'{"version": "2"}', b'{"game": "a", "version": "2"}']
)
def test_a_body_may_not_contradict_its_subject(body: bytes) -> None:
    with pytest.raises(Malformed, match="than its subject"):
        decode_request(body, subject=("a", "1"))


def test_a_subject_without_names_names_nothing() -> None:
    with pytest.raises(Malformed):
        decode_request(b'{"client_ip": "203.0.113.7"}', subject=("", ""))


def test_dots_and_spaces_are_allowed_in_names() -> None:
    """bevygap's own default version is `v0.0.1`."""
    assert decode_request(b'{"game":"my game","version":"v0.0.1"}').version == "v0.0.1"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.binary(max_size=300) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_give_a_message_or_malformed(data: bytes) -> None:
    """Fuzz: no other exception comes out of the four parsers of untrusted bytes."""
    for parse in (decode_request, decode_feedback, decode_admission):
        with contextlib.suppress(Malformed):
            parse(data)


def test_every_code_has_its_error() -> None:
    """A code that came over a wire becomes the error it names."""
    for code, kind in BY_CODE.items():
        assert type(from_code(code, "x")) is kind
