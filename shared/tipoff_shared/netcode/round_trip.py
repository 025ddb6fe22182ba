"""Measures the round trip to the server without a packet type for it.

The body of a client's keep-alive carries no meaning in the standard; here it is a nonce. tipoff's server answers a
keep-alive at once, and repeats such a body. Other servers ignore the body; against them only the handshake is measured.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from .constants import SEND_INTERVAL

PROBE_INTERVAL = 1.0
_WEIGHT = 1 / 8  # of a new sample, as TCP's (RFC 6298)
_UNANSWERED = 32
"""Nonces that are remembered: 32 s of probes, or 3 s of those of a new connection."""
_BODY = struct.Struct("<Q")
_MARK = 1 << 63
"""Set in every nonce. In the standard's body it would mean a server of over two thousand million slots."""


def is_nonce(body: bytes) -> bool:
    """Whether a keep-alive's body (8 bytes) is a nonce to be repeated in the answer."""
    return bool(body[7] & 0x80)


class RoundTripMeter:
    """`rtt` is the smoothed round trip in seconds, None before the first sample.

    All times are monotonic seconds.
    """

    __slots__ = ("_connected", "_last_sent", "_nonce", "_sent_at", "rtt")

    def __init__(self) -> None:
        self.rtt: float | None = None
        self._connected = 0.0
        self._last_sent = 0.0
        self._nonce = _MARK
        self._sent_at: OrderedDict[bytes, float] = OrderedDict()

    def handshake(self, sample: float) -> None:
        """One step of the handshake, sent once and answered.

        The later step counts: admission delays the first.
        """
        self.rtt = sample

    def connected(self, now: float) -> None:
        """The connection is established; times are seconds of one monotonic clock."""
        self._connected = now

    def keep_alive(self, now: float) -> bytes:
        """The body of a keep-alive that the client sends now."""
        self._last_sent = now
        self._nonce += 1
        body = _BODY.pack(self._nonce)
        self._sent_at[body] = now
        if len(self._sent_at) > _UNANSWERED:
            self._sent_at.popitem(last=False)
        return body

    def keep_alive_heard(self, body: bytes, now: float) -> None:
        """Take in the body of the server's keep-alive; only one that answers ours is a sample."""
        sent_at = self._sent_at.pop(body, None)
        if sent_at is not None:
            sample = now - sent_at
            self.rtt = sample if self.rtt is None else self.rtt + (sample - self.rtt) * _WEIGHT

    def keep_alive_due(self, last_send: float, timeout: float) -> float:
        """When the client must send a keep-alive; `last_send` is of any packet, `timeout` the token's (seconds)."""
        silence = min(PROBE_INTERVAL, max(SEND_INTERVAL, timeout / 8))
        if last_send - self._connected < PROBE_INTERVAL:
            silence = SEND_INTERVAL  # until the server surely knows that we are connected
        return min(last_send + silence, self._last_sent + PROBE_INTERVAL)
