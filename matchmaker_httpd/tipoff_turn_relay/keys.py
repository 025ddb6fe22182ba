"""Makes and reads keys: decimal numbers of 63 random bits, opaque to players, who may keep them as 64-bit integers.

A pairing key is random as a whole. A game key is the game's id (32 bits) and one side's secret (31 bits): both sides
find the same record, and neither can act as the other, whose key it never sees.
"""

from __future__ import annotations

from msgspec import Struct

KEY_BITS = 63
SECRET_BITS = 31
ID_BITS = KEY_BITS - SECRET_BITS
RANDOM_BITS = 2 * KEY_BITS
"""Random bits from which one request makes any new key it needs."""


class GameKey(Struct, frozen=True, gc=False):
    """One player's key of a game."""

    game_id: int
    secret: int

    def __str__(self) -> str:
        return str(self.game_id << SECRET_BITS | self.secret)

    @classmethod
    def parse(cls, text: str) -> GameKey | None:
        """The key in `text`; None when it cannot be one."""
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            return None
        number = int(text)
        if number >> KEY_BITS:
            return None
        return cls(number >> SECRET_BITS, number & ((1 << SECRET_BITS) - 1))


def new_pairing_key(random_bits: int) -> str:
    """A pairing key made from `RANDOM_BITS` random bits."""
    return str(random_bits & ((1 << KEY_BITS) - 1))


def new_game(random_bits: int) -> tuple[int, tuple[int, int]]:
    """A game's id and the two different secrets of its sides."""
    mask = (1 << SECRET_BITS) - 1
    first, second = random_bits & mask, random_bits >> SECRET_BITS & mask
    if first == second:
        second ^= 1
    return random_bits >> 2 * SECRET_BITS & ((1 << ID_BITS) - 1), (first, second)
