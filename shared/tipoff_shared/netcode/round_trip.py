"""Measures the round trip to the server without a packet type for it.

A connected client sends a keep-alive once a second as a probe, whatever else it sends; tipoff's server
answers a keep-alive with one at once. The answer does not name its probe, so a sample is taken only when
the match is certain:

* Our keep-alive before the probe is at least 0.9 s old, so its answer has come or was lost. An idle client therefore
  also sends one a second, not ten. (Longer round trips than that cannot be measured.)
* The server was busy from the probe to the answer, with no two of its packets 90 ms apart: any server also
  sends keep-alives unprompted, but only after 0.1 s of silence.
"""

from __future__ import annotations

from .constants import SEND_INTERVAL

PROBE_INTERVAL = 1.0
_LOST_AFTER = 0.9
_IDLE_GAP = 0.09
_WEIGHT = 1 / 8  # of a new sample, as TCP's (RFC 6298)


class RoundTripMeter:
    """`rtt` is the smoothed round trip in seconds, None before the first sample.

    All times are monotonic seconds.
    """

    __slots__ = ("_connected", "_gap_ended", "_last_heard", "_last_sent", "_probing", "rtt")

    def __init__(self) -> None:
        self.rtt: float | None = None
        self._connected = 0.0
        self._last_sent = 0.0
        self._last_heard = 0.0
        self._gap_ended = 0.0
        self._probing = False

    def handshake(self, sample: float) -> None:
        """One step of the handshake, sent once and answered.

        The later step counts: admission delays the first.
        """
        self.rtt = sample

    def connected(self, now: float) -> None:
        """The connection is established; times are seconds of one monotonic clock."""
        self._connected = self._last_heard = self._gap_ended = now

    def heard(self, now: float) -> None:
        """Any authentic packet of the server."""
        if now - self._last_heard >= _IDLE_GAP:
            self._gap_ended = now
        self._last_heard = now

    def keep_alive_sent(self, now: float) -> None:
        """Call for each keep-alive that the client sends."""
        # In the first second the server may still repeat its own keep-alive, until it knows that we are
        # connected.
        oldest = max(self._last_sent, self._connected)
        self._probing = now - oldest >= _LOST_AFTER
        self._last_sent = now

    def keep_alive_heard(self, now: float) -> None:
        """Call after ``heard``."""
        if self._probing and self._gap_ended <= self._last_sent:
            sample = now - self._last_sent
            self.rtt = sample if self.rtt is None else self.rtt + (sample - self.rtt) * _WEIGHT
        self._probing = False

    def keep_alive_due(self, last_send: float, timeout: float) -> float:
        """When the client must send a keep-alive; `last_send` is of any packet, `timeout` the token's (seconds)."""
        silence = min(PROBE_INTERVAL, max(SEND_INTERVAL, timeout / 8))
        if last_send - self._connected < PROBE_INTERVAL:
            silence = SEND_INTERVAL  # until the server surely knows that we are connected
        return min(last_send + silence, self._last_sent + PROBE_INTERVAL)
