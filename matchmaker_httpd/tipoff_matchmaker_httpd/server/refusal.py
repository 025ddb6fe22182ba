"""An HTTP answer written by the protocol itself, before or instead of any endpoint."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tipoff_shared.errors import TipoffError
from tipoff_shared.messages import Failed, encode_feedback


def refusal(error: TipoffError) -> bytes:
    """The whole answer: status, `{"Error": [code, reason]}`, and that the connection ends."""
    body = encode_feedback(Failed(error.code, error.message))
    retry = b"retry-after: %d\r\n" % max(1, round(error.retry_after)) if error.retry_after else b""
    return (
        STATUS_LINE[error.code]
        + b"content-type: application/json\r\nconnection: close\r\n"
        + (b"sec-websocket-version: 13\r\n" if error.code == 426 else b"")
        + retry
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )
