"""Reads and writes the text protocol: `<symbol>,<data>,<key>,<player key>,<player state>` and `<error>/<code>/<data>`.

Both directions, for the endpoint and for clients. Input that cannot be read becomes a `Failed` with its error code.
"""

from __future__ import annotations

from tipoff_turn_relay.keys import GameKey
from tipoff_turn_relay.messages import (
    LONG_PATIENCE,
    MAX_NAME,
    NORMAL_PATIENCE,
    Answer,
    Error,
    Failed,
    GameQuit,
    GameUpdate,
    Gone,
    Load,
    MapInit,
    MapReady,
    Paired,
    PartnerLoading,
    Register,
    Registered,
    Request,
    RequestPair,
    Start,
    StillPairing,
    Symbol,
    Unregister,
    Updates,
)

MAX_BODY = 16_384
"""Bytes of a request."""
NOTHING = "*"
LONG_KEY = "bibbybabbis"
"""The key that registers a player with `LONG_PATIENCE`."""

_FIELDS = 5
_MAX_NUMBER = 18
"""Digits of a player state."""
_BY_PAIRING_KEY: dict[int, type[Unregister | RequestPair | MapInit | MapReady]] = {
    Symbol.UNREGISTER: Unregister,
    Symbol.REQUEST_PAIR: RequestPair,
    Symbol.MAP_INIT: MapInit,
    Symbol.MAP_READY: MapReady,
}


def parse_request(body: bytes) -> Request | Failed:
    """One request, or the error it is answered with. Never raises."""
    if not body or len(body) > MAX_BODY:
        return Failed(Error.TOO_LONG if body else Error.NO_DATA)
    try:
        fields = body.decode().split(",")
    except UnicodeDecodeError:
        return Failed(Error.NO_DATA)
    if len(fields) != _FIELDS:
        return Failed(Error.FORMAT, "0")
    symbol = _number(fields[0])
    if symbol is None or symbol > Symbol.GAME_UPDATE:
        return Failed(Error.FORMAT, "0")
    data, key = fields[1], fields[2].strip()
    if symbol >= Symbol.GAME_QUIT:
        player, number = _number(fields[3]), _number(fields[4])
        if player is None or player > 1:
            return Failed(Error.FORMAT, "1")
        if number is None:
            return Failed(Error.FORMAT, "2")
        if symbol == Symbol.GAME_QUIT:
            return GameQuit(key, player)
        return GameUpdate(key, player, number, None if data == NOTHING else data)
    if symbol == Symbol.REGISTER:
        if key not in (NOTHING, LONG_KEY):
            return Failed(Error.FORMAT, "3")
        partner = fields[3].strip()
        return checked(
            Register(
                name=data,
                partner="" if partner == NOTHING else partner,
                patience=LONG_PATIENCE if key == LONG_KEY else NORMAL_PATIENCE,
            ),
            names_partner=partner != NOTHING,
        )
    return _BY_PAIRING_KEY[symbol](key)


def checked(register: Register, *, names_partner: bool) -> Register | Failed:
    """`register`, or the error of a name that cannot be used."""
    if not 0 < len(register.name) <= MAX_NAME:
        return Failed(Error.REGISTER_FAILED)
    if names_partner and not 0 < len(register.partner) <= MAX_NAME:
        return Failed(Error.BAD_PARTNER_NAME)
    return register


def _number(field: str) -> int | None:
    digits = field.strip()
    if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_NUMBER:
        return int(digits)
    return None


def encode_answer(answer: Answer) -> str:
    """The body of a response; its status is 200 when it begins with `0/`, else 400."""
    match answer:
        case Updates(updates=()):
            return "0/10/*"
        case Updates(updates=updates):
            return "0/9/" + "|".join(updates)
        case StillPairing():
            return "0/2/*"
        case Registered(key=key):
            return f"0/0/{key}"
        case Gone():
            return "0/1/*"
        case Paired(partner=partner, server=server):
            return f"0/{3 if server else 4}/{partner}"
        case Load(server=server):
            return "0/5/" if server else "0/6/"
        case PartnerLoading():
            return "0/7/*"
        case Start(game_id=game_id, secrets=secrets, player=player):
            return f"0/8/{GameKey(game_id, secrets[player])}|{player}"
        case Failed(error=error, detail=detail, data=data):
            return f"{error}/{detail}/{data}"


def encode_request(
    symbol: Symbol, data: str = NOTHING, key: str = NOTHING, player: str = NOTHING, state: str = NOTHING
) -> bytes:
    """A request as a client sends it. No field may contain `,`."""
    return f"{int(symbol)},{data},{key},{player},{state}".encode()


def parse_answer(body: bytes) -> tuple[int, str, str]:
    """Error, code and data of an answer, for clients. Raises `ValueError` for anything else."""
    error, code, data = body.decode().split("/", 2)
    return int(error), code, data
