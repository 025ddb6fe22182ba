"""What a player and httpd say to each other, and httpd and the matchmaker: one codec for every wire.

Feedback is JSON in the externally tagged form of Rust's serde, as bevygap's clients read it. Decoding is for
hostile input: whatever the bytes, the outcome is a message or `Malformed`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from tipoff_shared.errors import Malformed, TipoffError, from_code
from tipoff_shared.names import check_name, check_request_id

MAX_MESSAGE = 4096
"""Bytes of the longest message a player may send to httpd."""


class PlayRequest(msgspec.Struct, omit_defaults=True):
    """The first message of a player, and (with the address filled in by httpd) what the matchmaker gets.

    `client_ip` from a player is believed only where the operator allows it; from httpd it is the resolved
    address. Unknown members are ignored.
    """

    game: str
    version: str
    client_ip: str | None = None
    request_id: str | None = None
    auth: dict[str, Any] | None = None
    ticket: dict[str, Any] | None = None
    session: str | None = None


class UdpAddress(msgspec.Struct, frozen=True):
    host: str
    port: int


class WebTransportAddress(msgspec.Struct, frozen=True):
    url: str
    cert_digest: str


class WebSocketAddress(msgspec.Struct, frozen=True):
    url: str


class Transports(msgspec.Struct, frozen=True, omit_defaults=True):
    """The open ways into one gameserver; absent where there is no listener."""

    udp: UdpAddress | None = None
    webtransport: WebTransportAddress | None = None
    websocket: WebSocketAddress | None = None
    tcp: UdpAddress | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    """A matchmaker has the request."""


class SessionRequestAccepted(msgspec.Struct, frozen=True):
    session_id: str


class ProgressReport(msgspec.Struct, frozen=True):
    """`text` is for people: what is going on while they wait."""

    text: str


class SessionReady(msgspec.Struct, frozen=True):
    """The way in. `token` is base64 (2732 characters), a secret; `ip` is always an IPv4 literal; `cert_digest`
    is "" without WebTransport; `client_id` is decimal text because JavaScript has no 64-bit integers."""

    token: str
    ip: str
    port: int
    cert_digest: str = ""
    session_id: str = ""
    client_id: str = ""
    deployment_id: str = ""
    transports: Transports = Transports()

    def __repr__(self) -> str:
        return f"SessionReady({self.ip}:{self.port}, session_id={self.session_id!r}, token=...)"


class Failed(msgspec.Struct, frozen=True):
    """The end of a request that did not lead to a seat. On the wire: `{"Error": [code, message]}`."""

    code: int
    message: str

    def error(self, retry_after: float | None = None) -> TipoffError:
        return from_code(self.code, self.message, retry_after=retry_after)


Feedback: TypeAlias = Acknowledged | SessionRequestAccepted | ProgressReport | SessionReady | Failed

_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(PlayRequest)
_tagged_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_str_decoder = msgspec.json.Decoder(str)
_ready_decoder = msgspec.json.Decoder(SessionReady)
_error_decoder = msgspec.json.Decoder(tuple[int, str])

ACKNOWLEDGED = b'"Acknowledged"'


def encode_request(request: PlayRequest) -> bytes:
    return _encoder.encode(request)


def decode_request(data: bytes | str) -> PlayRequest:
    """The request in `data`, its names checked; raises `Malformed` with a reason for people."""
    if len(data) > MAX_MESSAGE:
        raise Malformed(f"a request is at most {MAX_MESSAGE} bytes")
    try:
        request = _request_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f'not a request like {{"game": "arena", "version": "1"}}: {exc}') from exc
    check_name(request.game, "game")
    check_name(request.version, "version")
    if request.request_id is not None:
        check_request_id(request.request_id)
    return request


def encode_feedback(feedback: Feedback) -> bytes:
    """One JSON value, without a line end."""
    if isinstance(feedback, SessionReady):
        return _encoder.encode({"SessionReady": feedback})
    if isinstance(feedback, ProgressReport):
        return _encoder.encode({"ProgressReport": feedback.text})
    if isinstance(feedback, SessionRequestAccepted):
        return _encoder.encode({"SessionRequestAccepted": feedback.session_id})
    if isinstance(feedback, Failed):
        return _encoder.encode({"Error": [feedback.code, feedback.message]})
    return ACKNOWLEDGED


def decode_feedback(data: bytes | str) -> Feedback:
    """The feedback in `data`; raises `Malformed` for anything else. Unknown members are ignored."""
    raw = data.encode() if isinstance(data, str) else data
    if raw == ACKNOWLEDGED:
        return Acknowledged()
    try:
        tagged = _tagged_decoder.decode(raw)
        if len(tagged) == 1:
            tag, value = next(iter(tagged.items()))
            if tag == "SessionReady":
                return _ready_decoder.decode(value)
            if tag == "ProgressReport":
                return ProgressReport(_str_decoder.decode(value))
            if tag == "SessionRequestAccepted":
                return SessionRequestAccepted(_str_decoder.decode(value))
            if tag == "Error":
                return Failed(*_error_decoder.decode(value))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a matchmaker's message: {exc}") from exc
    raise Malformed("not a matchmaker's message: exactly one known tag is expected")


class Admitted(msgspec.Struct, frozen=True):
    """A gameserver's answer to a token on WebSocket, WebTransport or TCP: `{"Admitted": {...}}`.

    `tick_rate` is in ticks per second.
    """

    client_index: int
    tick_rate: float


def encode_admission(answer: Admitted | Failed) -> bytes:
    """The one message that follows a token: admitted, or `{"Refused": [code, reason]}` and a close."""
    if isinstance(answer, Admitted):
        return _encoder.encode({"Admitted": answer})
    return _encoder.encode({"Refused": [answer.code, answer.message]})


def decode_admission(data: bytes | str) -> Admitted | Failed:
    """Raises `Malformed` for anything that `encode_admission` does not make."""
    try:
        tagged = _tagged_decoder.decode(data)
        if "Admitted" in tagged:
            return msgspec.json.decode(tagged["Admitted"], type=Admitted)
        if "Refused" in tagged:
            return Failed(*_error_decoder.decode(tagged["Refused"]))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a gameserver's answer to a token: {exc}") from exc
    raise Malformed("not a gameserver's answer to a token: neither Admitted nor Refused")
