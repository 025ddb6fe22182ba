"""The messages between player, httpd and matchmaker: one codec for every wire.

Feedback is JSON in the externally tagged form of Rust's serde, which bevygap's clients read. Decoding takes hostile
input: the outcome is a message or `Malformed`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from tipoff_shared.errors import Malformed, TipoffError, from_code
from tipoff_shared.names import check_name, check_request_id

MAX_MESSAGE = 4096
"""Bytes of the longest message a player may send to httpd."""


class PlayRequest(msgspec.Struct, omit_defaults=True):
    """A player's first message, and the request that httpd sends to the matchmaker with the address filled in.

    httpd uses `client_ip` from a player only where the operator allows it. `auth` is the player's credential, a secret;
    where httpd checks logins it ends there. `name` is what the player calls itself, `user_id` what its login says:
    httpd replaces both, so a matchmaker reads what httpd vouches for. `session` and `resume_key` ask for the seat that
    this session still has, in place of a new one; the key, a secret, goes on from httpd in a header only. Unknown
    members are ignored.
    """

    game: str
    version: str
    client_ip: str | None = None
    request_id: str | None = None
    auth: dict[str, Any] | None = None
    ticket: dict[str, Any] | None = None
    session: str | None = None
    resume_key: str | None = None
    user_id: str = ""
    name: str = ""

    def __repr__(self) -> str:
        return f"PlayRequest({self.game!r}, {self.version!r}, user_id={self.user_id!r}, ...)"


class UdpAddress(msgspec.Struct, frozen=True):
    """Where a server listens, by UDP or by TCP."""

    host: str
    port: int


class WebTransportAddress(msgspec.Struct, frozen=True):
    """The URL and the SHA-256 digest of the certificate, as colon-separated hex."""

    url: str
    cert_digest: str


class WebSocketAddress(msgspec.Struct, frozen=True):
    """A `ws://` or `wss://` URL."""

    url: str


class Transports(msgspec.Struct, frozen=True, omit_defaults=True):
    """The transports of one game server; None where it does not listen."""

    udp: UdpAddress | None = None
    webtransport: WebTransportAddress | None = None
    websocket: WebSocketAddress | None = None
    tcp: UdpAddress | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    """A matchmaker has received the request."""


class SessionRequestAccepted(msgspec.Struct, frozen=True):
    """The session that the request leads to."""

    session_id: str


class ProgressReport(msgspec.Struct, frozen=True):
    """One line for a waiting player."""

    text: str


class SessionReady(msgspec.Struct, frozen=True):
    """A seat. `token` is base64 (2732 characters) and secret; `ip` is a literal, of IPv4 unless the server has only
    IPv6; `cert_digest` is "" without WebTransport; `client_id` is decimal text because JavaScript has no 64-bit
    integers. With `resume_key`, a secret, the player may ask for the same seat again, which is held `resume_ttl` s
    after a lost connection; both are missing where no seat is held."""

    token: str
    ip: str
    port: int
    cert_digest: str = ""
    session_id: str = ""
    client_id: str = ""
    deployment_id: str = ""
    transports: Transports = Transports()
    resume_key: str | msgspec.UnsetType = msgspec.UNSET
    resume_ttl: float | msgspec.UnsetType = msgspec.UNSET

    def __repr__(self) -> str:
        return f"SessionReady({self.ip}:{self.port}, session_id={self.session_id!r}, token=...)"


class Failed(msgspec.Struct, frozen=True):
    """The request failed. On the wire: `{"Error": [code, message]}`."""

    code: int
    message: str

    def error(self, retry_after: float | None = None) -> TipoffError:
        """The typed error for `code`."""
        return from_code(self.code, self.message, retry_after=retry_after)


Feedback: TypeAlias = Acknowledged | SessionRequestAccepted | ProgressReport | SessionReady | Failed

_encoder = msgspec.json.Encoder()
_tagged_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_str_decoder = msgspec.json.Decoder(str)
_ready_decoder = msgspec.json.Decoder(SessionReady)
_error_decoder = msgspec.json.Decoder(tuple[int, str])

ACKNOWLEDGED = b'"Acknowledged"'


def encode_request(request: PlayRequest) -> bytes:
    """The request as JSON."""
    return _encoder.encode(request)


class _RequestOfSubject(PlayRequest):
    game: str = ""
    version: str = ""


_request_decoder = msgspec.json.Decoder(PlayRequest)
_subject_decoder = msgspec.json.Decoder(_RequestOfSubject)


def decode_request(data: bytes | str, *, subject: tuple[str, str] | None = None) -> PlayRequest:
    """The request in `data`, with its names checked. Raises `Malformed` with a reason for people.

    `subject`: the game and version that the message's subject names. bevygap's httpd names them only there; a body that
    contradicts it is malformed.
    """
    if len(data) > MAX_MESSAGE:
        raise Malformed(f"a request is at most {MAX_MESSAGE} bytes")
    try:
        request = (_request_decoder if subject is None else _subject_decoder).decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f'not a request like {{"game": "arena", "version": "1"}}: {exc}') from exc
    if subject is not None:
        request.game, request.version = request.game or subject[0], request.version or subject[1]
        if (request.game, request.version) != subject:
            raise Malformed("the request names another game or version than its subject")
    check_name(request.game, "game")
    check_name(request.version, "version")
    if request.request_id is not None:
        check_request_id(request.request_id)
    return request


def encode_feedback(feedback: Feedback) -> bytes:
    """The feedback as one JSON value, without a line end."""
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
    """The feedback in `data`; raises `Malformed`. Unknown members are ignored."""
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


class Admitted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A game server's answer to a valid token on WebSocket, WebTransport or TCP: `{"Admitted": {...}}`.

    `tick_rate` is in ticks per second; `max_message`, the bytes of the longest message either way, is there when the
    client has asked for more than 1200.
    """

    client_index: int
    tick_rate: float
    max_message: int = 1200


def encode_admission(answer: Admitted | Failed) -> bytes:
    """The one message that follows a token: `Admitted`, or `{"Refused": [code, reason]}` before the close."""
    if isinstance(answer, Admitted):
        return _encoder.encode({"Admitted": answer})
    return _encoder.encode({"Refused": [answer.code, answer.message]})


def decode_admission(data: bytes | str) -> Admitted | Failed:
    """The answer in `data`; raises `Malformed`."""
    try:
        tagged = _tagged_decoder.decode(data)
        if "Admitted" in tagged:
            return msgspec.json.decode(tagged["Admitted"], type=Admitted)
        if "Refused" in tagged:
            return Failed(*_error_decoder.decode(tagged["Refused"]))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a gameserver's answer to a token: {exc}") from exc
    raise Malformed("not a gameserver's answer to a token: neither Admitted nor Refused")
