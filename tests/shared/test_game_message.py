"""What a game may send as a message: the same for servers and players."""

from __future__ import annotations

import pytest

from tipoff_shared.errors import EmptyMessage, Malformed, MessageTooLarge, TooLarge
from tipoff_shared.framing import MAX_MESSAGE_BYTES, message_bytes


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [1, 1200, MAX_MESSAGE_BYTES])
def test_bytes_of_any_kind_are_a_message(kind: type, size: int) -> None:
    message = message_bytes(kind(bytes(size)))
    assert type(message) is bytes
    assert len(message) == size


@pytest.mark.parametrize(("size", "limit"), [(1201, 1200), (MAX_MESSAGE_BYTES + 1, MAX_MESSAGE_BYTES)])
def test_a_message_over_the_limit_says_how_long_it_may_be(size: int, limit: int) -> None:
    with pytest.raises(MessageTooLarge, match=f"1 to {limit} bytes, not {size}") as caught:
        message_bytes(bytes(size), limit)
    assert (caught.value.size, caught.value.limit) == (size, limit)
    assert isinstance(caught.value, TooLarge)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
def test_a_message_of_no_bytes_is_refused(empty: object) -> None:
    with pytest.raises(EmptyMessage, match="1 to 1200 bytes, not 0") as caught:
        message_bytes(empty, 1200)
    assert caught.value.limit == 1200
    assert isinstance(caught.value, Malformed)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("text", r"not str: send text\.encode\(\)"), (7, "not int$"), (None, "not NoneType$")]
)
def test_what_is_no_bytes_is_refused(wrong: object, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        message_bytes(wrong)
