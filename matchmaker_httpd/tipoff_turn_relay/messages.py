"""Defines the requests and answers of both protocols. Their bytes are in `text`."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

from msgspec import Struct

NORMAL_PATIENCE = 25.0
"""Seconds of silence after which a player in the pairing list is dropped."""
LONG_PATIENCE = 180.0
"""The same for those who registered with the key `bibbybabbis`."""
MAX_NAME = 64
"""Characters of a player's name."""


class Symbol(IntEnum):
    """The first field of a request."""

    REGISTER = 0
    UNREGISTER = 1
    REQUEST_PAIR = 2
    MAP_INIT = 3
    MAP_READY = 4
    GAME_QUIT = 5
    GAME_UPDATE = 6


class Error(IntEnum):
    """The first field of an answer that is not 0."""

    BAD_CONTENT_LENGTH = 1
    NO_DATA = 2
    NO_ADDRESS = 3
    FORMAT = 4
    NOT_REGISTERED = 5
    BAD_REGISTER_SYMBOL = 6
    REGISTER_FAILED = 7
    KEEP_ALIVE_FAILED = 8
    PARTNER_DROPPED = 9
    DROPPED = 10
    LIST_FULL = 11
    GAMES_FULL = 12
    NO_GAME = 13
    NOT_IN_GAME = 14
    PARTNER_GONE = 15
    BAD_PARTNER_NAME = 16
    NAMED_PARTNER_DROPPED = 17
    BEHIND = 18
    AHEAD = 19
    TOO_LONG = 20
    CACHE_FULL = 21


MEANING: dict[Error, str] = {
    Error.BAD_CONTENT_LENGTH: "Content-Length is missing or not a number",
    Error.NO_DATA: "the body is empty or not UTF-8",
    Error.NO_ADDRESS: "the server does not know your address",
    Error.FORMAT: "the request does not have the expected form",
    Error.NOT_REGISTERED: "this pairing key is not registered, or has been dropped: register again",
    Error.BAD_REGISTER_SYMBOL: "this cannot be registered",
    Error.REGISTER_FAILED: "the registration failed: try again in a moment, with a name of 1 to 64 characters",
    Error.KEEP_ALIVE_FAILED: "this request cannot be carried out now: send it again",
    Error.PARTNER_DROPPED: "your partner dropped out; you are back in the list",
    Error.DROPPED: "you were dropped from the list: register again",
    Error.LIST_FULL: "the pairing list is full: try again in a moment",
    Error.GAMES_FULL: "there is no room for another game: register again in a moment",
    Error.NO_GAME: "there is no such game, or it has ended",
    Error.NOT_IN_GAME: "you are not in this game, or you have left it",
    Error.PARTNER_GONE: "your partner left the game",
    Error.BAD_PARTNER_NAME: "a partner's name has 1 to 64 characters",
    Error.NAMED_PARTNER_DROPPED: "the partner you named dropped: register again",
    Error.BEHIND: "this number was answered long ago",
    Error.AHEAD: "the number before this one was never sent",
    Error.TOO_LONG: "a body is at most 16,384 bytes",
    Error.CACHE_FULL: "at most 131,072 bytes may wait for a player",
}


# Requests.


class Register(Struct, frozen=True):
    """Enter the pairing list. `partner` is the only partner wanted, "" for anybody; `patience` is in seconds."""

    name: str
    partner: str = ""
    patience: float = NORMAL_PATIENCE
    origin: str = ""
    """What its address counts under (`limits.address_key`); the relay sets it. "": it does not count."""


class Unregister(Struct, frozen=True):
    """Leave the pairing list."""

    key: str


class RequestPair(Struct, frozen=True):
    """Ask for a partner."""

    key: str


class MapInit(Struct, frozen=True):
    """Begin to load the game."""

    key: str


class MapReady(Struct, frozen=True):
    """The game is loaded."""

    key: str


class GameQuit(Struct, frozen=True):
    """Leave the game. `player` is 0 or 1, or None where the key says which."""

    key: str
    player: int | None


class GameUpdate(Struct, frozen=True, gc=False):
    """The text protocol's exchange: `number` confirms the answer before it, `data` None hands nothing over."""

    key: str
    player: int
    number: int
    data: str | None


class Exchange(Struct, frozen=True):
    """The JSON API's exchange: an update with its `number` (or none), and the partner's updates from the position
    `after` on, which confirms those before it (None: nothing is fetched or confirmed)."""

    key: str
    number: int | None = None
    data: str = ""
    after: int | None = None


PairingRequest: TypeAlias = Register | Unregister | RequestPair | MapInit | MapReady
Request: TypeAlias = PairingRequest | GameQuit | GameUpdate


# Answers.


class Registered(Struct, frozen=True):
    """You are in the pairing list; `key` is your pairing key."""

    key: str


class Gone(Struct, frozen=True):
    """You have left the list or the game."""


class StillPairing(Struct, frozen=True):
    """No partner yet."""


class Paired(Struct, frozen=True):
    """`server`: you act as the server of the two."""

    partner: str
    server: bool


class Load(Struct, frozen=True):
    """Load the game, as the server of the two or as the client."""

    server: bool


class PartnerLoading(Struct, frozen=True):
    """Your partner is still loading."""


class Start(Struct, frozen=True):
    """Play. Holds all that the game's record is made from: both sides' secrets, names and pairing keys, in order of the
    player keys. `player` is the player key of the one who gets this answer."""

    game_id: int
    secrets: tuple[int, int]
    names: tuple[str, str]
    pairing_keys: tuple[str, str]
    player: int


class Updates(Struct, frozen=True, gc=False):
    """The partner's updates, if any. `repeated`: the number was not new, so the previous answer may be lost.

    `number` is the last one accepted, `after` the position behind the last of `updates` (JSON API).
    """

    updates: tuple[str, ...]
    number: int
    after: int
    repeated: bool = False


class Failed(Struct, frozen=True):
    """`detail` and `data` are the second and third field, `*` where there is none."""

    error: Error
    detail: str = "*"
    data: str = "*"


PairingAnswer: TypeAlias = Registered | Gone | StillPairing | Paired | Load | PartnerLoading | Start | Failed
Answer: TypeAlias = PairingAnswer | Updates
