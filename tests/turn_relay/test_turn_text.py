"""The text protocol, byte for byte, and what hostile bytes come to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_turn_relay.keys import RANDOM_BITS, GameKey, new_game, new_pairing_key
from tipoff_turn_relay.messages import (
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
from tipoff_turn_relay.text import (
    MAX_BODY,
    encode_answer,
    encode_request,
    parse_answer,
    parse_request,
)

KEY = str((7 << 31) | 5)


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        (b"0,Davey Jones,*,*,*", Register("Davey Jones")),
        (b"0,Ada,bibbybabbis,Bob,*", Register("Ada", "Bob", 180.0)),
        (b"1,*,30,*,*", Unregister("30")),
        (b"2,*,30,*,*", RequestPair("30")),
        (b"3,*,30,*,*", MapInit("30")),
        (b"4,*,30,*,*", MapReady("30")),
        (b"5,*,30,1,9", GameQuit("30", 1)),
        (b"6,a word,30,0,0", GameUpdate("30", 0, 0, "a word")),
        (b"6,*,30,0,12", GameUpdate("30", 0, 12, None)),
        (b"6,,30,0,0", GameUpdate("30", 0, 0, "")),
        (b"6,a|b/c,30,1,3", GameUpdate("30", 1, 3, "a|b/c")),
        (b" 2 ,*, 30 ,*,*\r\n", RequestPair("30")),
        ("6,größe ♞,30,0,0\n".encode(), GameUpdate("30", 0, 0, "größe ♞")),
    ],
)
def test_a_request_says_what_its_fields_say(body: bytes, request_: Request) -> None:
    assert parse_request(body) == request_


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", "2/*/*"),
        (b"\xff\xfe", "2/*/*"),
        (b"2", "4/0/*"),
        (b"2,*,30,*", "4/0/*"),
        (b"6,hello, you,30,0,0", "4/0/*"),
        (b"7,*,30,*,*", "4/0/*"),
        (b"-1,*,30,*,*", "4/0/*"),
        (b"x,*,30,*,*", "4/0/*"),
        ("²,*,30,*,*".encode(), "4/0/*"),
        (b"6,*,30,2,0", "4/1/*"),
        (b"5,*,30,*,0", "4/1/*"),
        (b"6,*,30,0,-1", "4/2/*"),
        (b"6,*,30,0,*", "4/2/*"),
        (b"6,*,30,0," + b"9" * 400, "4/2/*"),
        (b"0,Ada,secret,*,*", "4/3/*"),
        (b"0,,*,*,*", "7/*/*"),
        (b"0," + b"x" * 65 + b",*,*,*", "7/*/*"),
        (b"0,Ada,*,,*", "16/*/*"),
        (b"0,Ada,*," + b"x" * 65 + b",*", "16/*/*"),
        (b"6," + b"x" * MAX_BODY + b",30,0,0", "20/*/*"),
    ],
)
def test_a_malformed_request_gets_its_error_code(body: bytes, answer: str) -> None:
    failed = parse_request(body)
    assert isinstance(failed, Failed)
    assert encode_answer(failed) == answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Registered("15"), "0/0/15"),
        (Gone(), "0/1/*"),
        (StillPairing(), "0/2/*"),
        (Paired("Ada", server=True), "0/3/Ada"),
        (Paired("Ada", server=False), "0/4/Ada"),
        (Load(server=True), "0/5/"),
        (Load(server=False), "0/6/"),
        (PartnerLoading(), "0/7/*"),
        (Start(7, (4, 5), ("a", "b"), ("1", "2"), 1), f"0/8/{KEY}|1"),
        (Updates(("one",), 3, 1), "0/9/one"),
        (Updates(("one", "two"), 3, 2), "0/9/one|two"),
        (Updates(("",), 3, 2), "0/9/"),
        (Updates((), 3, 0), "0/10/*"),
        (Failed(Error.NOT_REGISTERED), "5/*/*"),
        (Failed(Error.PARTNER_DROPPED, "2"), "9/2/*"),
        (Failed(Error.CACHE_FULL, data="one|two"), "21/*/one|two"),
    ],
)
def test_an_answer_is_the_original_s_byte_for_byte(answer: Answer, text: str) -> None:
    assert encode_answer(answer) == text


@given(st.binary(max_size=200) | st.text(alphabet="0123456789,*|/ab \n", max_size=60).map(str.encode))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    """Nothing raises, and every error has a number of the protocol."""
    parsed = parse_request(body)
    if isinstance(parsed, Failed):
        error, _, _ = parse_answer(encode_answer(parsed).encode())
        assert error in list(Error)


@given(
    st.text(st.characters(exclude_characters=",", codec="utf-8"), min_size=1, max_size=100).filter(
        "*".__ne__
    ),
    st.integers(0, 1),
    st.integers(0, 10**17),
)
def test_what_a_client_writes_is_what_the_relay_reads(data: str, player: int, number: int) -> None:
    body = encode_request(Symbol.GAME_UPDATE, data, KEY, str(player), str(number))
    assert parse_request(body) == GameUpdate(KEY, player, number, data)


@given(st.integers(0, (1 << RANDOM_BITS) - 1))
def test_keys_are_decimal_digits_of_a_positive_64_bit_integer(random_bits: int) -> None:
    game_id, secrets = new_game(random_bits)
    assert secrets[0] != secrets[1]
    for key in (new_pairing_key(random_bits), *(str(GameKey(game_id, secret)) for secret in secrets)):
        assert key.isdigit()
        assert int(key) < 1 << 63
    assert GameKey.parse(str(GameKey(game_id, secrets[1]))) == GameKey(game_id, secrets[1])


@pytest.mark.parametrize("text", ["", "*", "-1", "1.5", "x", "9" * 19, "1" * 500, "²", "१"])
def test_what_cannot_be_a_key_is_none(text: str) -> None:
    assert GameKey.parse(text) is None
