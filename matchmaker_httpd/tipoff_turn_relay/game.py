"""Decides what two players of a game receive: every update exactly once and in order. Pure, no I/O.

Each side has a queue of its partner's updates. The text protocol's number confirms: a request with the next number
releases what the previous answer held, hands over its own data and gets the queue; the same number again gets the same
answer and whatever came meanwhile. The JSON API confirms by position instead (`after`), so that its requests may come
late, twice or in any order.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from tipoff_turn_relay.messages import (
    Error,
    Exchange,
    Failed,
    GameUpdate,
    Gone,
    Start,
    Updates,
)

MAX_CACHE = 131_072
"""Bytes of a player's updates that wait, and of one answer; each update counts one more than its UTF-8."""
SILENCE = 20.0
"""Seconds of silence of one player after which the game ends."""
REFRESH = 2.0
"""Seconds after which a request that changes nothing else is recorded as a sign of life."""
_WORTH_RELEASING = 8_192
"""Bytes of confirmed updates that justify a separate write, to remove them from the record."""


class Side(Struct, frozen=True, array_like=True, gc=False):
    """One player: `number` is the last accepted, `queue` the partner's updates not yet confirmed, of which the first
    `given` went out with that number; `released` counts those confirmed. `seen` is Unix seconds."""

    seen: float
    number: int = -1
    queue: tuple[str, ...] = ()
    given: int = 0
    released: int = 0
    has_quit: bool = False


class Game(Struct, frozen=True, array_like=True, gc=False):
    """The record of one game; index 0 and 1 are the player keys."""

    secrets: tuple[int, int]
    names: tuple[str, str]
    pairing_keys: tuple[str, str]
    sides: tuple[Side, Side]
    over: bool = False

    def player_of(self, secret: int) -> int | None:
        """The player whose key holds this secret."""
        if secret == self.secrets[0]:
            return 0
        return 1 if secret == self.secrets[1] else None

    @property
    def both_began(self) -> bool:
        """Both have sent an update, so neither needs the pairing list."""
        return self.sides[0].number >= 0 and self.sides[1].number >= 0


def new_game(start: Start, now: float) -> Game:
    """The record of a game that begins `now`."""
    return Game(start.secrets, start.names, start.pairing_keys, (Side(now), Side(now)))


def update(
    game: Game, player: int, request: GameUpdate, now: float, *, heard_since: float
) -> tuple[Game, Updates | Failed]:
    """One request of the text protocol. The same object means that there is nothing to write."""
    ended = _ended(game, player, now, heard_since)
    if ended is not None:
        return ended
    me, partner = game.sides[player], game.sides[1 - player]
    if request.number < me.number:
        return game, Failed(Error.BEHIND)
    if request.number > me.number + 1:
        return game, Failed(Error.AHEAD)
    if request.number == me.number:
        return _again(game, player, now)
    rest = me.queue[me.given :]
    if partner.has_quit and not rest:
        return game, Failed(Error.PARTNER_GONE)
    if request.data is not None and not partner.has_quit:
        if _size(partner.queue[partner.given :]) + _size((request.data,)) > MAX_CACHE:
            return game, Failed(Error.CACHE_FULL)
        partner = replace(partner, queue=(*partner.queue, request.data))
    me = Side(now, request.number, rest, len(rest), me.released + me.given)
    return _with(game, player, me, partner), _updates(me, rest)


def _again(game: Game, player: int, now: float) -> tuple[Game, Updates | Failed]:
    """The answer to the last number was lost: the same again, with what is new since."""
    me = game.sides[player]
    if me.given < len(me.queue):
        if _size(me.queue) > MAX_CACHE:  # the new stays for the next number
            old = "|".join(me.queue[: me.given]) if me.given else "*"
            return _heard(game, player, now), Failed(Error.CACHE_FULL, data=old)
        me = replace(me, given=len(me.queue), seen=now)
        return _with(game, player, me, game.sides[1 - player]), _updates(me, me.queue, repeated=True)
    return _heard(game, player, now), _updates(me, me.queue, repeated=True)


def exchange(
    game: Game, player: int, request: Exchange, now: float, *, heard_since: float
) -> tuple[Game, Updates | Failed]:
    """One request of the JSON API. The same object means that there is nothing to write.

    A number that was accepted before is neither accepted again nor an error: the client cannot know.
    """
    ended = _ended(game, player, now, heard_since)
    if ended is not None:
        return ended
    me, partner = game.sides[player], game.sides[1 - player]
    confirmed = 0
    if request.after is not None:
        confirmed = request.after - me.released
        if confirmed < 0:
            return game, Failed(Error.BEHIND)
        if confirmed > len(me.queue):
            return game, Failed(Error.AHEAD)
    rest = me.queue[confirmed:] if request.after is not None else ()
    if request.number is not None and request.number > me.number + 1:
        return game, Failed(Error.AHEAD)
    only_again = request.after is None and request.number is not None and request.number <= me.number
    if partner.has_quit and len(me.queue) == confirmed and not only_again:
        return game, Failed(Error.PARTNER_GONE)
    accepts = request.number is not None and request.number == me.number + 1
    if accepts and not partner.has_quit:
        if _size(partner.queue[partner.given :]) + _size((request.data,)) > MAX_CACHE:
            return game, Failed(Error.CACHE_FULL)
        partner = replace(partner, queue=(*partner.queue, request.data))
    after = me.released + confirmed + len(rest)
    worth_it = accepts or now - me.seen >= REFRESH or (_size(me.queue[:confirmed]) >= _WORTH_RELEASING)
    if worth_it:
        me = Side(
            now,
            me.number + 1 if accepts else me.number,
            me.queue[confirmed:],
            max(0, me.given - confirmed),
            me.released + confirmed,
        )
        game = _with(game, player, me, partner)
    return game, Updates(rest, me.number, after)


def leave(game: Game, player: int, now: float, *, heard_since: float) -> tuple[Game, Gone | Failed]:
    """Leave the game. What was handed over before still reaches the partner, who then gets `PARTNER_GONE`."""
    if game.sides[player].has_quit:
        return game, Gone()
    ended = _ended(game, player, now, heard_since)
    if ended is not None:
        return ended
    me = replace(game.sides[player], seen=now, queue=(), given=0, has_quit=True)
    game = _with(game, player, me, game.sides[1 - player])
    return replace(game, over=game.sides[1 - player].has_quit), Gone()


def _ended(game: Game, player: int, now: float, heard_since: float) -> tuple[Game, Failed] | None:
    """The error for a player when the game, or its part in it, is over; None while it goes on."""
    if game.over:
        return game, Failed(Error.NO_GAME)
    for side in game.sides:
        if not side.has_quit and now - max(side.seen, heard_since) > SILENCE:
            return replace(game, over=True), Failed(Error.NO_GAME)
    if game.sides[player].has_quit:
        return game, Failed(Error.NOT_IN_GAME)
    return None


def _heard(game: Game, player: int, now: float) -> Game:
    me = game.sides[player]
    if now - me.seen < REFRESH:
        return game
    return _with(game, player, replace(me, seen=now), game.sides[1 - player])


def _with(game: Game, player: int, me: Side, partner: Side) -> Game:
    return replace(game, sides=(me, partner) if player == 0 else (partner, me))


def _updates(me: Side, given: tuple[str, ...], *, repeated: bool = False) -> Updates:
    return Updates(given, me.number, me.released + len(given), repeated)


def _size(updates: tuple[str, ...]) -> int:
    """Bytes, with the `|` that joins them: an empty update counts, too."""
    return sum(len(update.encode()) + 1 for update in updates)
