"""Recognises replayed packets by the newest 256 sequence numbers of one sender."""

from __future__ import annotations

from .constants import REPLAY_WINDOW

_MASK = REPLAY_WINDOW - 1


class ReplayWindow:
    """Call ``seen`` before decrypting, and ``accept`` only after a packet has authenticated.

    Anybody can send any number; if the window moved before authentication, one forged datagram would lock the
    honest sender out. The reference marks empty cells with 2^64-1 and so takes that number again and again;
    -1 does not.
    """

    __slots__ = ("_cells", "_oldest")

    def __init__(self) -> None:
        self._oldest = -REPLAY_WINDOW  # the newest number minus 256; everything up to it is too old
        self._cells = [-1] * REPLAY_WINDOW

    def seen(self, sequence: int) -> bool:
        """True when `sequence` was received before, or is too old to tell."""
        return sequence <= self._oldest or self._cells[sequence & _MASK] >= sequence

    def accept(self, sequence: int) -> None:
        """Enter an authenticated packet's number."""
        if sequence - REPLAY_WINDOW > self._oldest:
            self._oldest = sequence - REPLAY_WINDOW
        self._cells[sequence & _MASK] = sequence
