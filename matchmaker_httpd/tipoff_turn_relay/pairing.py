"""Decides who is paired with whom. Pure: the list, a request and `now` in, the new list and an answer out.

A player's stages: waiting -> paired -> loading -> ready -> playing. First come, first served among those who want
anybody; two who name each other only with each other. Requests may come twice or late: they get the same answer, so
a lost one costs nothing.

Silence counts from `heard_since` at the earliest: the moment since when this process can reach the list. Otherwise an
outage would drop everybody.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tipoff_turn_relay.keys import new_game, new_pairing_key
from tipoff_turn_relay.messages import (
    Error,
    Failed,
    Gone,
    Load,
    MapInit,
    MapReady,
    Paired,
    PairingAnswer,
    PairingRequest,
    PartnerLoading,
    Register,
    Registered,
    RequestPair,
    Start,
    StillPairing,
    Unregister,
)

MAX_PLAYERS = 2000
"""In the list at one time; a full list is about 250 KB."""
MAX_PER_ADDRESS = 200
"""Of those, registered from one address."""
REFRESH = 1.0
"""Seconds after which a poll that changes nothing else is recorded as a sign of life."""
PLAYING_PATIENCE = 25.0
"""Seconds for which a player can ask again for the start of its game."""
MAX_AVOIDED = 16
"""Most names of dropped partners that a player avoids."""


class Stage(StrEnum):
    """How far a player is on the way into a game."""

    WAITING = "waiting"
    PAIRED = "paired"
    LOADING = "loading"
    READY = "ready"
    PLAYING = "playing"


class Player(Struct, frozen=True, array_like=True):
    """One registration. `wanted` is the only partner's name ("": anybody), `seen` Unix seconds, `avoid` the names of
    partners who dropped; `left_alone`: the partner dropped, and the player may not know yet."""

    name: str
    wanted: str
    patience: float
    seen: float
    stage: Stage = Stage.WAITING
    partner: str = ""
    partner_name: str = ""
    server: bool = False
    left_alone: bool = False
    avoid: tuple[str, ...] = ()
    game_id: int = -1
    secrets: tuple[int, int] = (0, 0)
    player: int = 0
    origin: str = ""
    """What its address counts under; "": none, or registered by an earlier release."""


class PairingList(Struct, frozen=True):
    """Players by pairing key, in the order of their registration. Never changed: `step` makes a new one."""

    players: dict[str, Player] = {}

    def with_(self, changed: dict[str, Player | None]) -> PairingList:
        """The list with these players changed; None removes one."""
        players = dict(self.players)
        for key, player in changed.items():
            if player is None:
                players.pop(key, None)
            else:
                players[key] = player
        return PairingList(players)


def is_gone(player: Player, now: float, heard_since: float) -> bool:
    """Whether a player has been silent for too long."""
    return now - max(player.seen, heard_since) > player.patience


def without_gone(state: PairingList, now: float, heard_since: float) -> PairingList:
    """The list without those who dropped; their partners find out at their next request."""
    gone = [key for key, player in state.players.items() if is_gone(player, now, heard_since)]
    return state.with_(dict.fromkeys(gone)) if gone else state


def without(state: PairingList, *keys: str) -> PairingList:
    """The list without these players."""
    there = [key for key in keys if key in state.players]
    return state.with_(dict.fromkeys(there)) if there else state


def games_full(state: PairingList, key: str) -> tuple[PairingList, Failed]:
    """The list without the player and its partner, for whose game there is no room: both register again."""
    player = state.players.get(key)
    return without(state, key, *([player.partner] if player else [])), Failed(Error.GAMES_FULL)


def step(
    state: PairingList, request: PairingRequest, now: float, *, heard_since: float, random_bits: int
) -> tuple[PairingList, PairingAnswer]:
    """The list after `request`, and its answer. The same object means that there is nothing to write.

    `random_bits`: as many as `keys.RANDOM_BITS`, drawn for this request. Repeated with the same, it registers once.
    """
    if isinstance(request, Register):
        return _register(state, request, now, heard_since, random_bits)
    player = state.players.get(request.key)
    if player is None or is_gone(player, now, heard_since):
        return without(state, request.key), Failed(Error.NOT_REGISTERED)
    match request:
        case Unregister(key=key):
            return without(state, key), Gone()
        case RequestPair(key=key):
            if player.stage is Stage.WAITING:
                return _look_for_partner(state, key, player, now, heard_since)
            answer: PairingAnswer = Paired(player.partner_name, player.server)
            if player.stage is Stage.PLAYING:
                return state, answer
            if _partner(state, key, player, now, heard_since) is None:
                return _partner_dropped(state, key, player, now)
            return _changed(state, key, player, now, left_alone=False), answer
        case MapInit(key=key):
            return _map_init(state, key, player, now, heard_since)
        case MapReady(key=key):
            return _map_ready(state, key, player, now, heard_since, random_bits)


def _register(
    state: PairingList, request: Register, now: float, heard_since: float, random_bits: int
) -> tuple[PairingList, PairingAnswer]:
    key = new_pairing_key(random_bits)
    if key in state.players:  # the same request, carried out before
        return state, Registered(key)
    state = without_gone(state, now, heard_since)
    held = Counter(player.origin for player in state.players.values() if player.origin)
    if request.origin and held[request.origin] >= MAX_PER_ADDRESS:
        return state, Failed(Error.LIST_FULL)
    if len(state.players) >= MAX_PLAYERS:
        if (victim := _oldest_of_the_greediest(state, held, request.origin)) is None:
            return state, Failed(Error.LIST_FULL)
        state = without(state, victim)
    player = Player(request.name, request.partner, request.patience, now, origin=request.origin)
    return state.with_({key: player}), Registered(key)


def _oldest_of_the_greediest(state: PairingList, held: Counter[str], newcomer: str) -> str | None:
    """The key of the player who makes room in a full list: the oldest without a partner of the address that has most,
    where that has more than the newcomer's would."""
    greediest, count = max(held.items(), key=lambda item: item[1], default=("", 0))
    if count <= held[newcomer] + 1:
        return None
    for key, player in state.players.items():
        if player.origin == greediest and player.stage is Stage.WAITING:
            return key
    return None


def _look_for_partner(
    state: PairingList, key: str, player: Player, now: float, heard_since: float
) -> tuple[PairingList, PairingAnswer]:
    for other_key, other in state.players.items():
        if (
            other.stage is Stage.WAITING
            and other_key != key
            and _match(player, other)
            and not is_gone(other, now, heard_since)
        ):
            mine = replace(
                player,
                seen=now,
                stage=Stage.PAIRED,
                partner=other_key,
                partner_name=other.name,
                server=True,
                left_alone=False,
            )
            theirs = replace(
                other, stage=Stage.PAIRED, partner=key, partner_name=player.name, server=False
            )  # `left_alone` stays: they may not know yet
            return state.with_({key: mine, other_key: theirs}), Paired(other.name, server=True)
    return _changed(state, key, player, now, left_alone=False), StillPairing()


def _match(one: Player, other: Player) -> bool:
    if one.wanted or other.wanted:
        return one.wanted == other.name and other.wanted == one.name
    return one.name not in other.avoid and other.name not in one.avoid


def _partner(state: PairingList, key: str, player: Player, now: float, heard_since: float) -> Player | None:
    """The partner, if it is in the list and paired with `key`."""
    partner = state.players.get(player.partner)
    if partner is None or partner.partner != key or is_gone(partner, now, heard_since):
        return None
    return partner


def _partner_dropped(
    state: PairingList, key: str, player: Player, now: float
) -> tuple[PairingList, PairingAnswer]:
    if player.wanted:
        return without(state, key), Failed(Error.NAMED_PARTNER_DROPPED)
    back = Player(
        player.name,
        player.wanted,
        player.patience,
        now,
        left_alone=True,
        origin=player.origin,
        avoid=(*player.avoid, player.partner_name)[-MAX_AVOIDED:],
    )
    return state.with_({key: back}), Failed(Error.PARTNER_DROPPED, "2")


def _map_init(
    state: PairingList, key: str, player: Player, now: float, heard_since: float
) -> tuple[PairingList, PairingAnswer]:
    if player.stage is Stage.PLAYING:
        return state, Load(player.server)
    if player.left_alone:  # the answer that said so was lost
        return _changed(state, key, player, now), Failed(Error.PARTNER_DROPPED, "2")
    if player.stage is Stage.WAITING:
        return without(state, key), Failed(Error.DROPPED)
    if _partner(state, key, player, now, heard_since) is None:
        return _partner_dropped(state, key, player, now)
    stage = Stage.LOADING if player.stage is Stage.PAIRED else player.stage
    return _changed(state, key, player, now, stage=stage), Load(player.server)


def _map_ready(
    state: PairingList, key: str, player: Player, now: float, heard_since: float, random_bits: int
) -> tuple[PairingList, PairingAnswer]:
    if player.stage is Stage.PLAYING:
        return state, _start(key, player)
    if player.left_alone:
        return _changed(state, key, player, now), Failed(Error.PARTNER_DROPPED, "2")
    if player.stage is Stage.WAITING:
        return without(state, key), Failed(Error.DROPPED)
    partner = _partner(state, key, player, now, heard_since)
    if partner is None:
        return _partner_dropped(state, key, player, now)
    if player.stage is Stage.PAIRED:
        return without(state, key), Failed(Error.DROPPED)
    if partner.stage is not Stage.READY:
        return _changed(state, key, player, now, stage=Stage.READY), PartnerLoading()
    game_id, secrets = new_game(random_bits)
    begun: dict[str, Any] = {
        "stage": Stage.PLAYING,
        "seen": now,
        "patience": PLAYING_PATIENCE,
        "game_id": game_id,
        "secrets": secrets,
    }
    mine, theirs = replace(player, player=0, **begun), replace(partner, player=1, **begun)
    return state.with_({key: mine, player.partner: theirs}), _start(key, mine)


def _start(key: str, player: Player) -> Start:
    keys, names = (key, player.partner), (player.name, player.partner_name)
    if player.player == 1:
        keys, names = (keys[1], keys[0]), (names[1], names[0])
    return Start(player.game_id, player.secrets, names, keys, player.player)


def _changed(state: PairingList, key: str, player: Player, now: float, **changes: Any) -> PairingList:
    """The list with these changes of `player` and a sign of life; the same object when there is nothing to write."""
    same = all(getattr(player, name) == value for name, value in changes.items())
    if same and now - player.seen < REFRESH:
        return state
    return state.with_({key: replace(player, seen=now, **changes)})
