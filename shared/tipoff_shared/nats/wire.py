"""Decides which bytes nats-py can read, and teaches it to read both forms of a stored message's reply subject.

A publisher chooses the subject, the reply and the headers of a message; some of them would end nats-py's reader for
good, or look like a status of the server's. Importing this module corrects nats-py's readers.

Written against nats-py 2.16: replaces `MSG_RE` and `HMSG_RE` of `nats.protocol.parser`, and
`Msg.Metadata._get_metadata_fields`.
"""

from __future__ import annotations

import re

import nats.protocol.parser
from nats.aio.msg import Msg

STORED_REPLY = re.compile(
    rb"\$JS\.ACK\.(?:[^.]+\.[^.]+(?:\.\d{1,20}){5}|(?:[^.]+\.){3}[^.]+(?:\.\d{1,20}){5}(?:\..*)?)"
)
"""The reply subject of a message from a stream, in its two forms: `$JS.ACK.STREAM.CONSUMER.` and five numbers; with
nats-server's feature flag `js_ack_fc_v2` `$JS.ACK.DOMAIN.ACCOUNT.STREAM.CONSUMER.` and the numbers, then anything."""

_STORED = b"$JS.ACK."
"""Prefix of both."""
_FIRST_FORM = 9
"""Words of the first form."""
_HEADERS = b"NATS/1.0\r\n"
_STATUS = re.compile(rb"\r\n\s*status\s*:", re.IGNORECASE)

# Words of NATS's protocol end at a space or a tab, but nats-py splits at any white space of Python's. A message with a
# form feed in its subject, which nats-server accepts, would be a protocol error after each reconnect.
_WORD = rb"([^ \t\r\n]+)[ \t]+"
nats.protocol.parser.MSG_RE = re.compile(rb"\AMSG[ \t]+" + _WORD + _WORD + rb"(" + _WORD + rb")?(\d+)\r\n")
nats.protocol.parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+" + _WORD + _WORD + rb"(" + _WORD + rb")?(\d+)[ \t]+(\d+)\r\n"
)

_fields = Msg.Metadata._get_metadata_fields


def reply_fields(reply: str | None) -> list[str]:
    """The words of a stored message's reply subject as its first form has them. nats-py's ordered consumers read the
    second form as the first, and the error ends the connection's reader for good. Raises `NotJSMessageError`."""
    fields: list[str] = _fields(reply)
    return fields if len(fields) == _FIRST_FORM else [*fields[:2], *fields[4 : _FIRST_FORM + 2]]


Msg.Metadata._get_metadata_fields = staticmethod(reply_fields)  # type: ignore[method-assign]


def is_readable(subject: bytes, reply: bytes, headers: bytes | None) -> bool:
    """Whether nats-py can read a message, and does not take a stored message for a status of the server's."""
    try:
        subject.decode()
        reply.decode()
        stored = reply.startswith(_STORED)
        if stored and not STORED_REPLY.fullmatch(reply):
            return False  # a publisher's own words, which nats-py would take for numbers
        if not headers:
            return True
        if stored:
            return headers.startswith(_HEADERS) and not _STATUS.search(headers)
        status, _, _ = headers.partition(b"\r\n\r\n")
        return headers.startswith(_HEADERS) or (headers.startswith(b"NATS/1.0 ") and bool(status.decode()))
    except UnicodeDecodeError:
        return False
